"""Trains three single-task MiniLM classifiers on the embedded corpus and merges them into one model.

python benchmarks/merging.py --seeds 0 1 2

`--write FILE` puts the tables between the markers `merging:begin` and `merging:end` of a file. The classifiers are
`AutoModelForSequenceClassification`, one a task, trained on the split train; the merge sees the texts of that split
alone, and is measured on test. `--limit 200` tries it on some rows of each split.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from seeds import run_seeds
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from mtl.settings import EMBEDDED_BACKBONE, resolve_backbone

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "data" / "vader" / "vader.parquet"
TASKS = {"topic": "accuracy", "sentiment": "accuracy", "valence": "pearson"}
SENTIMENTS = ("negative", "neutral", "positive")
TRAINING: dict[str, Any] = {
    "num_train_epochs": 1,
    "per_device_train_batch_size": 32,
    "learning_rate": 1.4e-4,
    "warmup_steps": 0.1,
    "weight_decay": 0.01,
}
MERGING: dict[str, Any] = {
    **TRAINING,
    "head_learning_rate": 2e-3,
    "backbone_dropout": 0.0,
    "head_dropout": 0.0,
    "per_device_eval_batch_size": 64,
    "train_sampling_strategy": "group_by_length",
}


def main(argv: list[str] | None = None) -> None:
    """Runs the seeds that the results file does not have yet, then writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "merging.json")
    parser.add_argument("--write", type=Path, help="File with the markers between which the tables go.")
    parser.add_argument("--limit", type=int, help="Rows of each split; all of them if not given.")
    options = parser.parse_args(argv)
    settings = {"training": TRAINING, "merging": MERGING, "limit": options.limit}
    run_seeds(options, settings, lambda seed: run(seed, options.limit), tables)


def run(seed: int, limit: int | None) -> dict[str, Any]:
    """Trains the classifiers and merges them; returns the figures of the merge."""
    folder = ROOT / "outputs" / f"merging-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    table = limited(pq.read_table(CORPUS), limit)
    pq.write_table(table, folder / "texts.parquet")
    for task in TASKS:
        sys.stderr.write(f"seed {seed}: classifier {task}\n")
        train_classifier(task, table, seed, folder / task)
    command = [sys.executable, "merge_models.py", "--teachers", *(f"{task}={folder / task}" for task in TASKS)]
    settings = {
        **MERGING,
        "texts": folder / "texts.parquet",
        "split_column": "split",
        "labels": json.dumps({task: task for task in TASKS}),
        "backbone": EMBEDDED_BACKBONE,
        "output_dir": folder / "merged",
        "save_strategy": "no",
        "seed": seed,
    }
    options = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    subprocess.run([*command, *options], cwd=ROOT, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    report = json.loads((folder / "merged" / "report.json").read_text())
    seconds = report["training"]["train_runtime"]
    return {**report["merging"], "seconds": seconds, "precision": report["precision"], "machine": machine()}


def limited(table: pa.Table, limit: int | None) -> pa.Table:
    """Returns some rows of each split, spread over the whole of it, or all of them."""
    if limit is None:
        return table
    splits = np.array(table["split"].to_pylist())
    places = [np.flatnonzero(splits == split) for split in np.unique(splits)]
    chosen = [some[np.linspace(0, len(some) - 1, min(limit, len(some)), dtype=int)] for some in places]
    return table.take(pa.array(np.concatenate(chosen)))


def train_classifier(task: str, table: pa.Table, seed: int, folder: Path) -> None:
    """Trains a classifier of one task, as `transformers` has it, on the labelled rows of train, and saves it."""
    path = resolve_backbone(EMBEDDED_BACKBONE)
    pairs = zip(table["text"].to_pylist(), table[task].to_pylist(), table["split"].to_pylist(), strict=True)
    rows = [(text, label) for text, label, split in pairs if split == "train" and label is not None]
    named: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    values = [label for _, label in rows]
    if task != "valence":
        labels = list(SENTIMENTS) if task == "sentiment" else sorted(set(values))
        named = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
        values = [labels.index(label) for label in values]
    set_seed(seed)  # The fresh head is drawn before the trainer sets the seed.
    model = AutoModelForSequenceClassification.from_pretrained(path, **named)
    tokenizer = AutoTokenizer.from_pretrained(path)
    encoded = tokenizer([text for text, _ in rows], truncation=True, max_length=128)
    dataset = Dataset.from_dict({**encoded, "labels": values})
    args = TrainingArguments(
        output_dir=str(folder), seed=seed, save_strategy="no", disable_tqdm=True, use_cpu=True, **TRAINING
    )
    Trainer(model, args, train_dataset=dataset, data_collator=DataCollatorWithPadding(tokenizer)).train()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def machine() -> dict[str, Any]:
    """Returns what the figures were measured on."""
    return {
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def tables(runs: dict[str, Any]) -> str:
    """Formats the figures on test, seed by seed, as Markdown."""
    lines = ["| seed | task | metric | classifier | merged | agreement |", "|---|---|---|---:|---:|---:|"]
    for seed, figures in runs.items():
        for task, metric in TASKS.items():
            gold, agreement = figures["gold"]["test"][task], figures["agreement"]["test"][task][metric]
            teacher, student = gold["teacher"][metric], gold["student"][metric]
            numbers = " | ".join(_number(value) for value in (teacher, student, agreement))
            lines.append(f"| {seed} | {task} | {metric} | {numbers} |")
    lines += ["", "| seed | | 3 classifiers | merged | ratio |", "|---|---|---:|---:|---:|"]
    for seed, figures in runs.items():
        teachers, student, ratio = (figures["cost"][key] for key in ("teachers", "student", "ratio"))
        for key, form in (("parameters", ",d"), ("size_mib", ",.1f"), ("latency_ms", ",.1f")):
            lines.append(f"| {seed} | {key} | {teachers[key]:{form}} | {student[key]:{form}} | {ratio[key]:.2f} |")
    last = list(runs.values())[-1]
    about = last["machine"]
    lines += [
        "",
        f"Merged in {last['precision']} on {about['threads']} threads ({about['platform']}, torch {about['torch']}, "
        f"transformers {about['transformers']}).",
    ]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    main()
