"""Compares groups of teachers by what they say, averaged, of the validation rows of the intents.

python benchmarks/teachers.py outputs/large outputs/large,outputs/small --data-dir <folder> --write docs/intents.md

A group is one folder of a trained model or several with commas between. A student learns from the averaged
probabilities of its teachers, so this tells which group to take before a student is trained. BANKING77 has no
validation split of its own: by default all its rows are trained on, and groups are compared by the other two.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from documents import write_between, write_json
from intent_rows import SETTINGS, intent_rows
from seeds import ROOT

from configuration_mtl import TaskConfig
from mtl.evaluation import EvaluationMetrics
from mtl.labels import label_column
from mtl.teacher_columns import teacher_column
from mtl.teachers import load_mtl_teacher, with_teachers

TASKS = ("clinc", "hwu")


def main(argv: list[str] | None = None) -> None:
    """Asks every teacher once, and writes the table of the groups."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", help="Folders of models, with commas between those of one group.")
    parser.add_argument("--data-dir", help="Folder of the data sets.")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "teachers.json")
    parser.add_argument("--write", type=Path, help="File with the markers between which the table goes.")
    options = parser.parse_args(argv)
    if options.groups:
        if options.data_dir is None:
            parser.error("--data-dir is needed to ask teachers: the folder of the data sets.")
        groups = [group.split(",") for group in options.groups]
        write_json(compare(groups, options.data_dir), options.output)
    text = table(json.loads(options.output.read_text(encoding="utf-8")))
    print(text)
    if options.write is not None:
        write_between(options.write, "<!-- teachers:begin -->", "<!-- teachers:end -->", text)


def compare(groups: Sequence[Sequence[str]], data_dir: str) -> list[dict[str, Any]]:
    """Returns the figures of each group by task, on the validation rows of the tasks."""
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    splits, tasks = intent_rows([TaskConfig(**task) for task in settings["tasks"] if task["name"] in TASKS], data_dir)
    teachers = {name: load_mtl_teacher(name) for group in groups for name in group}
    report = []
    for group in groups:
        rows = with_teachers(splits["validation"], tasks, [teachers[name] for name in group])
        report.append({"teachers": list(group), "tasks": {task.name: figures(rows, task) for task in tasks}})
    return report


def figures(rows: Dataset, task: TaskConfig) -> dict[str, float]:
    """Returns accuracy and cross-entropy of what the teachers say of the rows that have a class of the task."""
    said = np.asarray(rows[teacher_column(task.name)], np.float64)  # (N, C)
    logits = {task.name: np.log(np.maximum(said, np.finfo(np.float32).tiny))}
    labels = {task.name: np.asarray(rows[label_column(task.name)])}  # (N,)
    metrics = EvaluationMetrics([task]).by_task(logits, labels)[task.name]
    return {"accuracy": metrics["accuracy"], "loss": metrics["loss"], "rows": metrics["support"]}


def table(report: Sequence[dict[str, Any]]) -> str:
    """Formats the groups as Markdown."""
    heads = " | ".join(f"{task} accuracy | {task} loss" for task in TASKS)
    lines = [f"| averaged | {heads} |", "|---" * (1 + 2 * len(TASKS)) + "|"]
    for group in report:
        cells = [f"{group['tasks'][task][name]:.4f}" for task in TASKS for name in ("accuracy", "loss")]
        lines.append(f"| {', '.join(f'`{name}`' for name in group['teachers'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
