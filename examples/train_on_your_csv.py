"""Shows fine-tuning on a CSV file of your own: one column of texts, and one column of classes for each task.

    python examples/train_on_your_csv.py
    python examples/train_on_your_csv.py --csv mails.csv --text body --label team=department mood=tone

Without `--csv` it writes a small file first. An empty label cell is a missing label: its row serves the other tasks.
Further options go to the training program: `--num_train_epochs 5`, or whatever `python train_trainer.py -h` lists.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from itertools import product

import train_trainer
from modeling_mtl import MTLModel

THINGS = {"film": ["the film", "the plot", "this actor"], "product": ["the phone", "the battery", "this charger"]}
WORDS = {"negative": ["is awful", "is a bad joke", "is terrible"], "positive": ["is great", "is a joy", "is lovely"]}
SENTENCES = ["The ending of the movie is wonderful.", "The screen broke after a day, what a bad buy."]


def write_small_csv() -> str:
    """Writes 72 short texts with the labels `topic` and `sentiment` to a temporary file, and returns its path."""
    rows = [
        f'"{start} {thing} {word}.",{topic},{sentiment}\n'
        for topic, sentiment in product(THINGS, WORDS)
        for start, thing, word in product(("I think", "Honestly,"), THINGS[topic], WORDS[sentiment])
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".csv", delete=False, encoding="utf-8") as file:
        file.writelines(["text,topic,sentiment\n", *rows])
    print(f"No --csv is given, so a small file was written: {file.name}")
    return file.name


def main(argv: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Trains on a CSV file, and returns what the saved model says of a few sentences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="The file; without it, a small one is written.")
    parser.add_argument("--text", default="text", help="Column of the texts.")
    parser.add_argument("--label", nargs="+", default=["topic", "sentiment"], metavar="TASK=COLUMN")
    parser.add_argument("--backbone", default="embedded", help="Name on the Hub, folder, or 'embedded' (the default).")
    parser.add_argument("--output_dir", default="outputs/your_csv", help="Where the model is saved.")
    args, more = parser.parse_known_args(argv)
    labels = {task: column or task for task, _, column in (label.partition("=") for label in args.label)}
    source = json.dumps({"path": args.csv or write_small_csv(), "text": args.text, "labels": labels})
    options = ["--sources", source, "--tasks", *(json.dumps({"name": task}) for task in labels), *more]
    options += ["--backbone", args.backbone, "--output_dir", args.output_dir]
    train_trainer.main(["--learning_rate", "2e-4", "--head_learning_rate", "1e-3", *options])
    predictions = MTLModel.from_pretrained(args.output_dir).predict(SENTENCES)
    answers = [{task: value["label"] for task, value in prediction.items()} for prediction in predictions]
    print(f"\n{args.output_dir} holds the saved model; loaded by `MTLModel.from_pretrained`, it says:")
    print(*zip(SENTENCES, answers, strict=True), sep="\n")
    return answers


if __name__ == "__main__":
    main()
