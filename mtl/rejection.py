"""When a single-label head is too unsure to name a class: the threshold, fitted on validation, and what it reaches.

Rows of a task's `out_of_scope_label` (class id -1) carry no loss; the head never learns them. What tells them from the
others is its confidence, see `confidence` in `classification_mtl`: a sentence below the threshold is rejected.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics
import torch
from datasets import Dataset

from classification_mtl import confidence
from configuration_mtl import TaskConfig
from mtl.labels import label_column
from mtl.midway import midway
from tasks_mtl import OUT_OF_SCOPE_INDEX

logger = logging.getLogger(__name__)

REJECTION_METRICS = ("oos_auroc", "oos_recall", "oos_precision", "joint_accuracy", "oos_support")
THRESHOLD_METRICS = ("oos_recall", "oos_precision", "joint_accuracy")
"""Those that are there only with a threshold."""


def rejects(task: TaskConfig) -> bool:
    """Returns whether a task tells sentences of no class from others."""
    return task.out_of_scope_label is not None


def tasks_that_reject(tasks: Sequence[TaskConfig], names: Sequence[str] | None = None) -> list[TaskConfig]:
    """Returns the tasks that have an `out_of_scope_label`, or those of them that are named.

    Raises:
        ValueError: If a name is that of no such task.
    """
    known = {task.name: task for task in tasks if rejects(task)}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ValueError(f"{unknown} are no tasks with an `out_of_scope_label`; those with one are {list(known)}.")
    return [task for name, task in known.items() if names is None or name in names]


def rejection_metrics(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, float]:
    """Measures how well a head tells out-of-scope rows from others.

    Args:
        task: The task; its threshold is what the last three metrics are at.
        logits: Logits of the head. Shape (N, C).
        labels: Class ids, -1 for out of scope, -100 for missing. Shape (N,).

    Returns:
        `oos_auroc`, the area under the ROC curve of the confidence, the share of pairs of an out-of-scope and another
        row of which the first has the lower one; `oos_recall`, the share of out-of-scope rows that are rejected;
        `oos_precision`, the share of rejected rows that are out of scope; `joint_accuracy`, the share of rows that are
        right: out of scope and rejected, or accepted and of the right class; `oos_support`, the count of out-of-scope
        rows. Undefined ones are nan; without a threshold the three that need one are left out.
    """
    rows = _rows(task, logits, labels)
    outside, count = rows.is_outside, int(rows.is_outside.sum())
    is_defined = 0 < count < len(outside) and not np.isnan(rows.confidences).any()
    metrics: dict[str, float] = {
        "oos_auroc": float(sklearn.metrics.roc_auc_score(outside, -rows.confidences)) if is_defined else np.nan
    }
    if task.rejection_threshold is not None:
        rejected = ~(rows.confidences >= task.rejection_threshold)  # (N,)
        hits = int((rejected & outside).sum())
        metrics["oos_recall"] = hits / count if count else np.nan
        metrics["oos_precision"] = hits / int(rejected.sum()) if rejected.any() else np.nan
        right = np.where(outside, rejected, ~rejected & rows.is_right)  # (N,)
        metrics["joint_accuracy"] = float(right.mean()) if len(right) else np.nan
    return {**metrics, "oos_support": count}


def best_threshold(
    confidences: npt.NDArray[np.float64], is_outside: npt.NDArray[np.bool_], is_right: npt.NDArray[np.bool_]
) -> float:
    """Returns the threshold at which most rows are right, of several the lowest.

    A row is right if it is out of scope and rejected, or in scope, accepted, and its class is right, as accuracy is
    counted over all rows by Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope
    Prediction", EMNLP 2019. Thresholds stand midway between neighbouring confidences, so that no row is on one.

    Args:
        confidences: Confidence of each row. Shape (N,).
        is_outside: Whether it is out of scope. Shape (N,).
        is_right: Whether its likeliest class is its own; False out of scope. Shape (N,).
    """
    edges, below = _edges(confidences)
    order = np.argsort(confidences, kind="stable")
    rejected_right = np.concatenate([[0], np.cumsum(is_outside[order])])  # (N + 1,), by count of rejected rows
    accepted_right = is_right.sum() - np.concatenate([[0], np.cumsum(is_right[order])])  # (N + 1,)
    return float(edges[(rejected_right + accepted_right)[below].argmax()])  # The first of several.


def accepting_threshold(confidences: npt.NDArray[np.float64], acceptance: float) -> float:
    """Returns the highest threshold, of those midway between two rows, that accepts a share of the rows or more.

    Args:
        confidences: Confidence of each row that is in scope. Shape (N,).
        acceptance: The share, in (0, 1].
    """
    edges, below = _edges(confidences)
    accepted = (len(confidences) - below) / len(confidences)  # (edges,), falling
    return float(edges[np.flatnonzero(accepted >= acceptance)[-1]])


def check_rejection_data(tasks: Sequence[TaskConfig], dataset: Any, acceptance: float | None) -> None:
    """Checks that thresholds can be fitted on a data set, before anything is trained.

    Args:
        tasks: The tasks whose thresholds are to be fitted.
        dataset: The data set, with label columns, or None.
        acceptance: See [`fit_rejection`].

    Raises:
        ValueError: If `acceptance` is out of range or there is no task for it, there is no data set, or it lacks the
            rows that are needed.
    """
    if acceptance is not None and not 0.0 < acceptance <= 1.0:
        raise ValueError(f"rejection_acceptance must be above 0 and at most 1, found {acceptance}.")
    if acceptance is not None and not tasks:
        raise ValueError(
            f"rejection_acceptance={acceptance} has no effect: no threshold is fitted. Give a task an "
            "`out_of_scope_label`, or set `fit_rejection: true` where nothing is trained, or leave it out."
        )
    for task in tasks:
        where = f"Task {task.name!r}: the threshold below which {task.out_of_scope_label!r} is predicted"
        if dataset is None:
            raise ValueError(
                f"{where} is fitted on validation, and there is none. Add a split, or give `rejection_threshold` of "
                "the task."
            )
        if isinstance(dataset, Mapping):
            raise ValueError(f"{where} is fitted on one data set, found several: {list(dataset)}. Give one of them.")
        labels = np.asarray(dataset[label_column(task.name)][:])  # (N,)
        if not (labels >= 0).any():
            raise ValueError(f"{where} cannot be fitted: validation has no row of any class. Add some.")
        if acceptance is None and not (labels == OUT_OF_SCOPE_INDEX).any():
            raise ValueError(
                f"{where} cannot be fitted: validation has no such row. Add some, or set `rejection_acceptance`, the "
                "share of the other rows that is to be accepted, such as 0.95."
            )


def fit_rejection(
    trainer: Any, dataset: Dataset, tasks: Sequence[TaskConfig], *, acceptance: float | None = None
) -> dict[str, float]:
    """Fits the thresholds of tasks; `MTLTrainer.fit_rejection` also puts them into the model's configuration.

    Args:
        trainer: An `MTLTrainer`, after training.
        dataset: The tokenised validation rows.
        tasks: The tasks to fit, of those with an `out_of_scope_label`.
        acceptance: Share of the rows in scope that is to be accepted; if not given, [`best_threshold`] decides, for
            which there must be out-of-scope rows.

    Returns:
        The threshold of each task.

    Raises:
        ValueError: As `check_rejection_data` does, or if logits are not finite.
    """
    check_rejection_data(tasks, dataset, acceptance)
    if not tasks:
        return {}
    output = trainer.predict(dataset, metric_key_prefix="_")
    thresholds = {}
    for task in tasks:
        logits, labels = output.predictions[task.name], output.label_ids[task.name]
        threshold = thresholds[task.name] = fitted_threshold(task, logits, labels, acceptance)
        logger.info("Task %r: %r below %s %.4f.", task.name, task.out_of_scope_label, task.rejection_score, threshold)
    return thresholds


def fitted_threshold(
    task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray, acceptance: float | None = None
) -> float:
    """Returns the threshold of a task, for its `rejection_score`, from what its head says of validation.

    Args:
        task: The task.
        logits: Logits of the head. Shape (N, C).
        labels: Class ids, -1 for out of scope, -100 for missing. Shape (N,).
        acceptance: See [`fit_rejection`].

    Raises:
        ValueError: If logits are not finite.
    """
    rows = _rows(task, logits, labels)
    if not np.isfinite(rows.confidences).all():
        raise ValueError(f"Task {task.name!r}: logits on validation are not finite. Train it anew.")
    if acceptance is None:
        return best_threshold(rows.confidences, rows.is_outside, rows.is_right)
    return accepting_threshold(rows.confidences[~rows.is_outside], acceptance)


def with_thresholds(tasks: Sequence[TaskConfig], thresholds: Mapping[str, float]) -> list[TaskConfig]:
    """Returns tasks with the thresholds given by name; the others as they are."""
    return [
        dataclasses.replace(task, rejection_threshold=thresholds[task.name]) if task.name in thresholds else task
        for task in tasks
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """The rows that are of a class or of none, not those without a label; each shape is (N,)."""

    confidences: npt.NDArray[np.float64]
    is_outside: npt.NDArray[np.bool_]
    is_right: npt.NDArray[np.bool_]


def _rows(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> _Rows:
    known = (labels >= 0) | (labels == OUT_OF_SCOPE_INDEX)
    logits, labels = logits[known], labels[known]
    confidences = confidence(torch.from_numpy(logits), str(task.rejection_score)).numpy()  # (N,)
    return _Rows(confidences, labels == OUT_OF_SCOPE_INDEX, logits.argmax(axis=1) == labels)


def _edges(confidences: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Returns thresholds, rising, that part rows in every way, (E,), and how many rows are below each, (E,)."""
    values, counts = np.unique(confidences, return_counts=True)
    # One logit, or more than any probability, from the outermost rows: all are accepted there, or rejected.
    edges = np.concatenate([[values[0] - 1.0], midway(values), [values[-1] + 1.0]])
    return edges, np.concatenate([[0], np.cumsum(counts)])
