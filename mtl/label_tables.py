"""Where a task goes wrong: precision, recall and F1 of each label, which classes are taken for which, residuals."""

from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.metrics
import torch

from classification_mtl import chosen_labels, class_ids
from configuration_mtl import TaskConfig
from mtl.evaluation import json_number
from mtl.weighted_metrics import labelled_rows
from tasks_mtl import MULTI_LABEL

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_HISTOGRAM_BINS = 30
_MOST_POINTS = 500


def label_table(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> list[dict[str, Any]]:
    """Returns `label`, `precision`, `recall`, `f1`, `support`, `predicted` and `threshold` of each label, JSON-ready.

    `predicted` counts the rows for which it is predicted, `support` those that have it. Precision is None for a label
    that is never predicted, recall for one that no row has, F1 for one of which both is so. `threshold` is that of a
    multi-label task which has some, else None. Out-of-scope rows take no part.

    Args:
        task: A task whose head gives classes or labels.
        logits: Outputs. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Labels, see `Predictions`.
    """
    kept = labelled_rows(labels)
    outputs, targets = torch.from_numpy(logits[kept]), labels[kept]
    if task.problem_type == MULTI_LABEL:
        known = ~np.isnan(targets)  # (N, C)
        said, true = chosen_labels(task, outputs).numpy() & known, targets == 1  # (N, C) each
    else:
        classes = np.arange(task.num_labels or 0)
        said, true = (ids[:, None] == classes for ids in (class_ids(task, outputs).numpy(), targets))  # (N, C) each
    thresholds = task.label_thresholds or (None,) * said.shape[1]
    return [
        {"label": label, **_of_label(said[:, place], true[:, place]), "threshold": thresholds[place]}
        for place, label in task.id2label.items()
    ]


def _of_label(said: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> dict[str, Any]:
    if not len(true):  # All rows are out of scope; scikit-learn takes no empty array.
        return {"precision": None, "recall": None, "f1": None, "support": 0, "predicted": 0}
    scores = sklearn.metrics.precision_recall_fscore_support(true, said, average="binary", zero_division=np.nan)
    shown = {key: json_number(float(value)) for key, value in zip(("precision", "recall", "f1"), scores, strict=False)}
    return {**shown, "support": int(true.sum()), "predicted": int(said.sum())}


def confusion_table(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, Any]:
    """Returns the names of the classes, `labels`, and how often each, a row, is taken for each, a column, `matrix`.

    Args:
        task: A single-label or ordinal task.
        logits: Outputs. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Class ids; rows below 0 take no part. Shape (N,).
    """
    kept = labelled_rows(labels)
    predicted = class_ids(task, torch.from_numpy(logits[kept])).numpy()  # (N,)
    count = task.num_labels or 0
    places = labels[kept] * count + predicted  # (N,)
    matrix = np.bincount(places, minlength=count * count).reshape(count, count)  # (C, C)
    return {"labels": list(task.id2label.values()), "matrix": matrix.tolist()}


def residuals(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> list[dict[str, Any]]:
    """Describes predicted less true numbers of each output of a regression, JSON-ready.

    Args:
        task: A regression.
        logits: Outputs. Shape (N, C), or (N,) for one output.
        labels: Numbers, nan for missing. Shape (N, C), or (N,) for one output.

    Returns:
        For each output with a labelled row `output`, its name; `mean` and `std` of the residuals; `quantiles` by
        probability; `histogram` with `edges` and `counts`; and `points`, the true and the predicted number of rows
        spread evenly over the true ones, 500 at most.
    """
    outputs, targets = (np.atleast_2d(some.astype(np.float64).T) for some in (logits, labels))  # (C, N) each
    described = []
    for name, said, true in zip(task.id2label.values(), outputs, targets, strict=True):
        kept = ~np.isnan(true) & np.isfinite(said)
        if kept.any():
            described.append({"output": name, **_described(said[kept], true[kept])})
    return described


def _described(said: npt.NDArray[np.float64], true: npt.NDArray[np.float64]) -> dict[str, Any]:
    rest = said - true  # (N,)
    low, high = rest.min(), rest.max()
    # Edges must be different numbers, which between two large neighbouring ones there are not.
    least = 2 * _HISTOGRAM_BINS * np.spacing(np.abs(rest).max())
    pad = max(least - (high - low), float(low == high)) / 2
    around = (low - pad, high + pad) if pad > 0 else (low, high)
    counts, edges = np.histogram(rest, bins=_HISTOGRAM_BINS, range=around)
    order = np.argsort(true, kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(_MOST_POINTS, len(order))).astype(int))]
    quantiles = zip(_QUANTILES, np.quantile(rest, _QUANTILES).tolist(), strict=True)
    return {
        "mean": float(rest.mean()),
        "std": float(rest.std()),
        "quantiles": {str(share): value for share, value in quantiles},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "points": np.stack([true[shown], said[shown]], axis=1).tolist(),
    }
