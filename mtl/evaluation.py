"""Predictions and labels of a data set to the metrics of every task, and to one score over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer

from configuration_mtl import TaskConfig
from modeling_mtl import summed_loss, valid_labels
from mtl.metrics import PRIMARY_METRIC, aggregate_score, compute_task_metrics


@dataclass(frozen=True)
class EvaluationResult:
    """What a model reached on a split.

    Args:
        split: Name of the split.
        num_rows: Rows in it.
        score: Mean over tasks of the primary metric.
        metrics: For each task its metrics, with `loss` (unweighted mean) and `support` (labelled rows).
        primary: Name of each task's primary metric.
        logits: Outputs of each task's head, in the order of the rows. Shape (N, C) each.
        labels: Labels, missing ones as in the batches. Shape (N,) or (N, C) each.
        seconds: Wall-clock time of the pass over the split.
    """

    split: str
    num_rows: int
    score: float
    metrics: dict[str, dict[str, float]]
    primary: dict[str, str]
    logits: dict[str, np.ndarray] = field(repr=False)
    labels: dict[str, np.ndarray] = field(repr=False)
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values; an undefined one is None."""
        tasks = {
            name: {key: json_number(value) for key, value in metrics.items()} for name, metrics in self.metrics.items()
        }
        return {
            "split": self.split,
            "num_rows": self.num_rows,
            "score": json_number(self.score),
            "primary_metrics": self.primary,
            "tasks": tasks,
            "seconds": round(self.seconds, 3),
        }


class EvaluationMetrics:
    """Computes, as `compute_metrics` of a Trainer, `<task>_<metric>`, `<task>_loss`, `loss` and `score`.

    The losses are exact means over all labels of the data set, where the Trainer's own is a mean of batch means.

    Args:
        tasks: The tasks, in any order.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        self.tasks = tuple(tasks)
        self.primary = {task.name: PRIMARY_METRIC[task.problem_type] for task in self.tasks}

    def by_task(self, logits: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Returns each task's metrics and loss, from logits, (N, C), and labels, (N,) or (N, C)."""
        results = {}
        for task in self.tasks:
            outputs, targets = logits[task.name], labels[task.name]
            metrics = dict(compute_task_metrics(task.problem_type, outputs, targets))
            if metrics["support"] > 0:
                metrics["loss"] = _mean_loss(task, torch.from_numpy(outputs), torch.from_numpy(targets))
            results[task.name] = metrics
        return results

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """Returns flat metrics, for the Trainer to log and to choose the best model by."""
        logits: Any = prediction.predictions
        labels: Any = prediction.label_ids
        results = self.by_task(logits, labels)
        flat = {f"{name}_{key}": value for name, metrics in results.items() for key, value in metrics.items()}
        flat["loss"] = sum(task.weight * results[task.name].get("loss", 0.0) for task in self.tasks)
        flat["score"] = aggregate_score(results, self.primary)
        return flat


def evaluate_split(trainer: Trainer, dataset: Dataset, split: str, tasks: Sequence[TaskConfig]) -> EvaluationResult:
    """Runs a trainer's model over a split and measures every task.

    Args:
        trainer: The trainer; its `predict` keeps the order of the rows.
        dataset: The tokenised split.
        split: Its name, for the result.
        tasks: The tasks.
    """
    output: Any = trainer.predict(dataset, metric_key_prefix=split)
    computer = EvaluationMetrics(tasks)
    metrics = computer.by_task(output.predictions, output.label_ids)
    return EvaluationResult(
        split=split,
        num_rows=len(dataset),
        score=aggregate_score(metrics, computer.primary),
        metrics=metrics,
        primary=computer.primary,
        logits=output.predictions,
        labels=output.label_ids,
        seconds=output.metrics[f"{split}_runtime"],
    )


def _mean_loss(task: TaskConfig, logits: torch.Tensor, labels: torch.Tensor) -> float:
    total = summed_loss(task.problem_type, logits, labels)  # ()
    return (total / valid_labels(labels).sum()).item()


def json_number(value: float) -> float | int | None:
    """Returns a figure as JSON can hold it: an undefined or infinite one is None."""
    return value if isinstance(value, int) or math.isfinite(value) else None
