"""Predictions and labels of a data set to the metrics of every task, and to one score over them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction, Trainer

from classification_mtl import chosen_labels
from configuration_mtl import TaskConfig
from heads_mtl import task_loss
from mtl.abstention import ABSTENTION_METRICS, abstention_metrics
from mtl.metrics import METRICS, PRIMARY_METRIC, aggregate_score, compute_task_metrics
from mtl.rejection import REJECTION_METRICS, THRESHOLD_METRICS, rejection_metrics, rejects
from tasks_mtl import CLASS_TYPES, IGNORE_INDEX, MULTI_LABEL, OUT_OF_SCOPE_INDEX, valid_labels


@dataclass(frozen=True)
class EvaluationResult:
    """What a model reached on a split.

    Args:
        split: Name of the split.
        num_rows: Rows in it.
        score: Mean over tasks of the primary metric.
        metrics: For each task its metrics, with `loss` (unweighted mean) and `support` (labelled rows), those of
            rejection if it has an `out_of_scope_label`, and those of abstention if it has a threshold for it.
        primary: Name of each task's primary metric.
        seconds: Wall-clock time of the pass over the split.
    """

    split: str
    num_rows: int
    score: float
    metrics: dict[str, dict[str, float]]
    primary: dict[str, str]
    seconds: float

    @classmethod
    def from_log(
        cls, log: Mapping[str, float], tasks: Sequence[TaskConfig], *, split: str, num_rows: int, prefix: str
    ) -> "EvaluationResult":
        """Reads what a Trainer logged of an evaluation with [`EvaluationMetrics`].

        Args:
            log: The flat metrics.
            tasks: The tasks.
            split: Name of the split that was evaluated.
            num_rows: Rows in it.
            prefix: The `metric_key_prefix` of the evaluation.
        """
        metrics = {}
        for task in tasks:
            names = {key: f"{prefix}_{task.name}_{key}" for key in metric_keys(task)}
            metrics[task.name] = {key: log[name] for key, name in names.items() if name in log}
        return cls(
            split=split,
            num_rows=num_rows,
            score=log[f"{prefix}_score"],
            metrics=metrics,
            primary=EvaluationMetrics(tasks).primary,
            seconds=log[f"{prefix}_runtime"],
        )

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
    CoSENT and the supervised contrastive loss set all rows of the data set against each other, so they are larger than
    in a batch of training; that of positive pairs depends on the evaluation batch, in which its negatives are.

    Args:
        tasks: The tasks, in any order.

    Raises:
        ValueError: If a metric of one task and another of another would have the same name.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        self.tasks = tuple(tasks)
        if (doubled := doubled_metric(self.tasks)) is not None:
            raise ValueError("Tasks {!r} and {!r} both have a metric {!r}. Rename one of them.".format(*doubled))
        self.primary = {task.name: PRIMARY_METRIC[task.problem_type] for task in self.tasks}

    def by_task(self, logits: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """Returns each task's metrics and loss, from logits, (N, C), and labels, (N,) or (N, C).

        Accuracy and its like are those of the rows that are of a class, without rejection or abstention; F1 of a
        multi-label task is that of its `label_thresholds`. Losses are without temperature.
        """
        results = {}
        for task in self.tasks:
            outputs, targets = logits[task.name], labels[task.name]
            inside = np.where(targets == OUT_OF_SCOPE_INDEX, IGNORE_INDEX, targets) if rejects(task) else targets
            chosen = None
            if task.problem_type == MULTI_LABEL:  # As `predict` decides, to the last digit of a float32 probability.
                chosen = chosen_labels(task, torch.from_numpy(outputs)).numpy()  # (N, C)
            metrics = dict(compute_task_metrics(task.problem_type, outputs, inside, chosen=chosen))
            if metrics["support"] > 0:
                metrics["loss"] = _mean_loss(task, torch.from_numpy(outputs), torch.from_numpy(targets))
            if rejects(task):
                metrics |= rejection_metrics(task, outputs, targets)
            if task.abstention_threshold is not None:
                metrics |= abstention_metrics(task, outputs, targets)
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
        trainer: The trainer.
        dataset: The tokenised split.
        split: Its name, for the result.
        tasks: The tasks.
    """
    # The Trainer puts the prefix only before names that do not begin with it, and no task's name begins with this one.
    metrics = trainer.predict(dataset, metric_key_prefix="_").metrics or {}
    return EvaluationResult.from_log(metrics, tasks, split=split, num_rows=len(dataset), prefix="_")


def evaluation_of_final_model(
    trainer: Trainer, dataset: Dataset, split: str, tasks: Sequence[TaskConfig]
) -> EvaluationResult | None:
    """Returns what training has measured of the model that it ended with, or None if it has not.

    Args:
        trainer: The trainer, after training; its best model is the one it holds if it was to load that.
        dataset: The split on which it evaluated.
        split: Its name, for the result.
        tasks: The tasks.
    """
    state = trainer.state
    step = state.global_step
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        # Not `best_global_step`: that of an evaluation between two checkpoints is no model that could be loaded.
        step = int(Path(state.best_model_checkpoint).name.rpartition("-")[2])
    logs = [log for log in state.log_history if log["step"] == step and "eval_score" in log]
    if not logs:
        return None
    return EvaluationResult.from_log(logs[-1], tasks, split=split, num_rows=len(dataset), prefix="eval")


def metric_keys(task: TaskConfig) -> list[str]:
    """Returns the keys of all metrics that a task may have, with those that need labels or a threshold."""
    keys = [*(metric.key for metric in METRICS[task.problem_type]), "loss", "support"]
    keys += REJECTION_METRICS if rejects(task) else ()
    return [*keys, *ABSTENTION_METRICS] if task.problem_type in CLASS_TYPES else keys


def keys_without_threshold(task: TaskConfig) -> list[str]:
    """Returns the keys of the metrics of a task that are measured at a threshold which it does not have."""
    rejection = THRESHOLD_METRICS if rejects(task) and task.rejection_threshold is None else ()
    is_open = task.problem_type in CLASS_TYPES and task.abstention_threshold is None
    return [*rejection, *(ABSTENTION_METRICS if is_open else ())]


def doubled_metric(tasks: Sequence[TaskConfig]) -> tuple[str, str, str] | None:
    """Returns a name that a metric of one task and another of another have, after these two; None if there is none.

    `oos_support` of the task `a` and `support` of `a_oos` are such metrics.
    """
    owners: dict[str, str] = {}
    for task in tasks:
        for name in [f"{task.name}_{key}" for key in metric_keys(task)]:
            other = owners.setdefault(name, task.name)
            if other != task.name:
                return other, task.name, name
    return None


def _mean_loss(task: TaskConfig, logits: torch.Tensor, labels: torch.Tensor) -> float:
    total = task_loss(task, logits, labels)  # ()
    return (total / valid_labels(labels).sum()).item()


def json_number(value: float) -> float | int | None:
    """Returns a figure as JSON can hold it: an undefined or infinite one is None."""
    return value if isinstance(value, int) or math.isfinite(value) else None
