"""Shows what a model with two tasks returns before any training: the right form, and labels that mean nothing yet.

    python examples/predict_untrained.py

The encoder is pretrained, but the heads are new: their weights are random numbers, drawn from `--seed`. Another seed
gives other labels for the same sentences; `examples/train_on_your_csv.py` gives them a meaning.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from transformers.utils import logging

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.settings import resolve_backbone

TASKS = (
    TaskConfig("topic", labels=("film", "product", "politics")),
    TaskConfig("sentiment", labels=("negative", "neutral", "positive")),
)
SENTENCES = (
    "A warm, funny film with a perfect ending.",
    "The plot makes no sense and the actors look bored.",
    "The camera arrived broken and nobody answers my mails.",
    "The battery lasts all day.",
    "The senate votes on the bill on Tuesday.",
)


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Predicts both tasks for five sentences with random heads, prints the predictions, and returns them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="embedded", help="Name on the Hub, folder, or 'embedded' (the default).")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the random heads.")
    args = parser.parse_args(argv)
    logging.set_verbosity_error()  # The load report lists the pooler, which is left out on purpose.

    torch.manual_seed(args.seed)
    model = MTLModel.from_backbone(resolve_backbone(args.backbone), tasks=TASKS)
    predictions = model.predict(SENTENCES)  # One pass through the encoder serves every task.

    for sentence, prediction in zip(SENTENCES, predictions, strict=True):
        print(sentence)
        for task in TASKS:
            print(f"  {task.name:<10} {prediction[task.name]['label']:<9} score {prediction[task.name]['score']:.3f}")
    print(f"\nThese labels mean nothing yet: the heads are random (seed {args.seed}) and have not been trained.")
    return predictions


if __name__ == "__main__":
    main()
