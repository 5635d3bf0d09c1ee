"""Shows what an embedding is for: two sentences become two vectors, and their cosine says how alike they are.

    python examples/compare_two_sentences.py
    python examples/compare_two_sentences.py "The kettle boils." "Careful, the water is hot."

The encoder is a pretrained sentence transformer and needs no task for this; nothing is trained.
"""

import argparse
from collections.abc import Sequence

from transformers.utils import logging

from modeling_mtl import MTLModel
from mtl.settings import resolve_backbone

SENTENCES = ("The battery lasts all day.", "I can use it from morning to night on one charge.")


def main(argv: Sequence[str] | None = None) -> float:
    """Encodes two sentences, prints their cosine similarity, and returns it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", nargs="?", default=SENTENCES[0])
    parser.add_argument("second", nargs="?", default=SENTENCES[1])
    parser.add_argument("--backbone", default="embedded", help="Name on the Hub, folder, or 'embedded' (the default).")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()  # The load report lists the pooler, which is left out on purpose.

    model = MTLModel.from_backbone(resolve_backbone(args.backbone), tasks=[])
    first, second = model.encode([args.first, args.second])  # (H,) each, of length 1
    cosine = float(first @ second)

    for sentence, embedding in ((args.first, first), (args.second, second)):
        beginning = ", ".join(f"{value:+.3f}" for value in embedding[:4])
        print(f"{sentence}\n  {embedding.size} numbers: {beginning}, ...")
    print(f"\nCosine similarity: {cosine:.3f} (1: the same direction, 0: unrelated, -1: opposite)")
    return cosine


if __name__ == "__main__":
    main()
