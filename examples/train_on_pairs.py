"""Shows two tasks on pairs: a head that reads both sentences together, and an embedding whose cosine says how near.

    python examples/train_on_pairs.py
    python examples/train_on_pairs.py --csv pairs.csv --num_train_epochs 5

The file has the columns `first`, `second`, `same` (a class) and `score` (more is nearer). Without `--csv` a small one
is written: orders, of which two are the same if they say the same in other words. Further options go to the program.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import product

import train_trainer
from batching_mtl import Text
from modeling_mtl import MTLModel

ORDERS = (("turn left", "go left"), ("stop now", "stand still"), ("pick it up", "grab it"), ("go faster", "speed up"))
STARTS = ("Robot, {}.", "Please {}.")
PAIRS: list[Text] = [("Robot, turn left.", "Please go left."), ("Robot, turn left.", "Please stop now.")]


def write_small_csv() -> str:
    """Writes 256 pairs to a temporary file, and returns its path."""
    texts = [(start.format(words), order) for order, both in enumerate(ORDERS) for words in both for start in STARTS]
    rows = [f'"{a}","{b}",{"yes" if i == j else "no"},{int(i == j)}\n' for (a, i), (b, j) in product(texts, texts)]
    with tempfile.NamedTemporaryFile("w", suffix=".csv", delete=False, encoding="utf-8") as file:
        file.writelines(["first,second,same,score\n", *rows])
    print(f"No --csv is given, so a small file was written: {file.name}")
    return file.name


def main(argv: Sequence[str] | None = None) -> list[tuple[str, float]]:
    """Trains on pairs, and returns what the saved model says of two: the class, and the cosine of the embeddings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="The file; without it, a small one is written.")
    parser.add_argument("--output_dir", default="outputs/pairs", help="Where the model is saved.")
    args, more = parser.parse_known_args(argv)
    file = {"path": args.csv or write_small_csv(), "text": "first"}
    together = {**file, "name": "together", "text_pair": "second", "labels": {"same": "same"}}
    apart = {**file, "name": "apart", "compare_with": ["second"], "labels": {"near": "score"}}
    tasks = [{"name": "same"}, {"name": "near", "problem_type": "scored_pairs"}]
    data = ["--sources", json.dumps(together), json.dumps(apart), "--tasks", *map(json.dumps, tasks)]
    rates = ["--learning_rate", "2e-4", "--head_learning_rate", "1e-3", "--per_device_train_batch_size", "32"]
    train_trainer.main(["--backbone", "embedded", *rates, *data, "--output_dir", args.output_dir, *more])
    model = MTLModel.from_pretrained(args.output_dir)
    cosines = [float(first @ second) for first, second in (model.encode(list(pair)) for pair in PAIRS)]
    answers = [(one["same"]["label"], cosine) for one, cosine in zip(model.predict(PAIRS), cosines, strict=True)]
    print(*zip(PAIRS, answers, strict=True), sep="\n")
    return answers


if __name__ == "__main__":
    main()
