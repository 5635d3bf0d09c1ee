"""Several classifiers against the one model that was distilled from them: agreement, quality, size and speed."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.special
from datasets import Dataset, DatasetDict
from torch import nn

from configuration_mtl import TaskConfig
from mtl.evaluation import json_number
from mtl.labels import count_labelled, label_column
from mtl.metrics import PRIMARY_METRIC, PROBABILITY_THRESHOLD, compute_task_metrics
from mtl.teacher_columns import as_teacher_column, teacher_column
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL

_BYTES_PER_MIB = 2**20
_LATENCY_REPEATS = 5


def gold_column(task_name: str) -> str:
    """Returns the name of the column to which the labels of the texts themselves are moved."""
    return f"gold_{task_name}"


def with_decisions(splits: DatasetDict, tasks: Sequence[TaskConfig]) -> DatasetDict:
    """Returns the splits with what teachers decide for labels, so that to evaluate is to measure agreement.

    Labels of the texts themselves are moved to columns `gold_<task>`. In train no row has a label: there the tasks
    learn from the columns `teacher_<task>`.

    Args:
        splits: The splits, with a column `teacher_<task>` for every task.
        tasks: The tasks.
    """
    return DatasetDict({name: _with_decisions(split, tasks, name != "train") for name, split in splits.items()})


def _with_decisions(split: Dataset, tasks: Sequence[TaskConfig], is_held_out: bool) -> Dataset:
    for task in tasks:
        column = label_column(task.name)
        if count_labelled(task, split.with_format("arrow")[:][column]):
            split = split.rename_column(column, gold_column(task.name))
        else:
            split = split.remove_columns(column)
        says = column_values(split, teacher_column(task.name))  # (N, C)
        split = split.add_column(column, _decisions(task, says if is_held_out else np.full_like(says, np.nan)))
    return split


def _decisions(task: TaskConfig, says: npt.NDArray) -> pa.Array:
    """Returns the label column of what a teacher says, (N, C): missing where it says nothing."""
    nothing = np.isnan(says)
    if task.problem_type == SINGLE_LABEL:
        chosen = np.where(nothing, -1.0, says).argmax(axis=1)  # (N,)
        return pa.array(np.where(nothing.all(axis=1), IGNORE_INDEX, chosen).astype(np.int64))
    if task.problem_type == REGRESSION and task.num_labels == 1:
        return pa.array(says.reshape(-1).astype(np.float32), from_pandas=False)
    hot = says if task.problem_type == REGRESSION else np.where(nothing, np.nan, says >= PROBABILITY_THRESHOLD)
    return as_teacher_column(hot)


def column_values(dataset: Dataset, column: str) -> npt.NDArray:
    """Returns a column of numbers, or of lists of as many numbers each, as an array, (N,) or (N, C)."""
    return np.asarray(dataset.with_format("numpy")[:][column])


def metrics_of_probabilities(task: TaskConfig, says: npt.NDArray, labels: npt.NDArray) -> dict[str, Any]:
    """Returns a task's metrics as JSON-ready values.

    Args:
        task: The task.
        says: Probabilities, or the outputs of a regression. Shape (N, C).
        labels: Labels, see `compute_task_metrics`.
    """
    if task.problem_type == MULTI_LABEL:
        says = scipy.special.logit(np.clip(says.astype(np.float64), 1e-12, 1 - 1e-12))
    return metrics_of_logits(task, says, labels)


def metrics_of_logits(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, Any]:
    """Returns a task's metrics as JSON-ready values, from logits, (N, C), and labels; see `compute_task_metrics`."""
    metrics = compute_task_metrics(task.problem_type, logits, labels)
    return {key: json_number(value) for key, value in metrics.items()}


def sizes(module: nn.Module) -> dict[str, Any]:
    """Returns the count of a model's parameters, and the size of its weights as they are in memory, in MiB."""
    tensors = [*module.parameters(), *module.buffers()]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return {"parameters": sum(p.numel() for p in module.parameters()), "size_mib": round(taken / _BYTES_PER_MIB, 2)}


def latency_ms(calls: dict[str, Callable[[], Any]], *, repeats: int = _LATENCY_REPEATS) -> dict[str, float]:
    """Returns the median duration of each call, in ms; they take turns, so that a busy machine hits all alike.

    Args:
        calls: What to time, by name.
        repeats: How often each is timed, after one call that is not.
    """
    durations: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repeat:
                durations[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in durations.items()}


def merging_section(figures: dict[str, Any], tasks: Sequence[TaskConfig]) -> str:
    """Formats the figures of a merge as a section of a model card.

    Args:
        figures: What `merge_models.py` measured.
        tasks: The tasks.
    """
    lines = ["", "## Merged from single-task classifiers", ""]
    lines += [
        f"One model in place of {len(tasks)}, distilled from them over texts without using a label. *Agreement* is "
        "with what each teacher decides on held-out texts, not with the truth.",
        "",
        "| task | teacher | split | measure | agreement |",
        "|---|---|---|---|---|",
    ]
    for split, by_task in figures["agreement"].items():
        for task in tasks:
            metric = PRIMARY_METRIC[task.problem_type]
            name, value = figures["teachers"][task.name]["name"], by_task[task.name].get(metric)
            lines.append(f"| `{task.name}` | {name} | {split} | {metric} | {_shown(value)} |")
    if any(figures["gold"].values()):
        lines += ["", "| task | split | against labels | teacher | this model |", "|---|---|---|---|---|"]
        for split, golden in figures["gold"].items():
            for name, both in golden.items():
                metric = next(PRIMARY_METRIC[task.problem_type] for task in tasks if task.name == name)
                teacher, student = (_shown(both[who].get(metric)) for who in ("teacher", "student"))
                lines.append(f"| `{name}` | {split} | {metric} | {teacher} | {student} |")
    teachers, student, ratio = (figures["cost"][key] for key in ("teachers", "student", "ratio"))
    lines += ["", f"| | {len(tasks)} teachers | this model | ratio |", "|---|---|---|---|"]
    for key, form in (("parameters", ",d"), ("size_mib", ",.1f"), ("latency_ms", ",.1f")):
        lines.append(f"| {key} | {teachers[key]:{form}} | {student[key]:{form}} | {ratio[key]:.2f} |")
    about = figures["cost"]["latency_of"]
    lines += [
        "",
        f"Latency is of {about['texts']} texts in one batch on {about['device']}, tokens and all, the median of "
        f"{about['repeats']} calls in turn; the ratio says more than the milliseconds.",
    ]
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
