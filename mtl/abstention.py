"""When a class is too unsure to act on: the score below which `predict` says so, and what remains above it.

It is selective classification: a row is kept where the score of its class, calibrated if the task is, reaches a
threshold. What is kept errs less, and the more so the less is kept.
"""

import numpy as np
import numpy.typing as npt
import torch

from classification_mtl import class_ids, class_scores
from configuration_mtl import TaskConfig
from mtl.midway import midway

ABSTENTION_METRICS = ("coverage", "kept_error")


def abstention_metrics(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, float]:
    """Measures what a task keeps at its `abstention_threshold`.

    Args:
        task: A single-label or ordinal task with the threshold.
        logits: Logits of the head. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Class ids; rows with one below 0 do not count. Shape (N,).

    Returns:
        `coverage`, the share of the rows that are kept, and `kept_error`, the share of those whose class is wrong.
        Undefined ones are nan.
    """
    scores, is_right = scored_rows(task, logits, labels)
    kept = scores >= (task.abstention_threshold or 0.0)  # (N,)
    coverage = float(kept.mean()) if len(kept) else np.nan
    return {"coverage": coverage, "kept_error": float(1 - is_right[kept].mean()) if kept.any() else np.nan}


def abstention_threshold(
    scores: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_], error_rate: float
) -> float | None:
    """Returns the lowest threshold at which the rows that are kept err at most at a rate; None if there is none.

    It stands midway between the scores of the rows that it parts, and is 0 where all rows may be kept. The rate is the
    plain one of these rows, that of Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", NeurIPS
    2017, without their bound: other rows will err somewhat more or less.

    Args:
        scores: Score of each row. Shape (N,).
        is_right: Whether its class is its own. Shape (N,).
        error_rate: The rate, in [0, 1).
    """
    values, places = np.unique(scores, return_inverse=True)  # (V,), (N,)
    rows = np.bincount(places, minlength=len(values))  # (V,)
    errors = np.bincount(places[~is_right], minlength=len(values))  # (V,)
    kept, wrong = (counts[::-1].cumsum()[::-1] for counts in (rows, errors))  # (V,), of the rows from each score on
    fitting = np.flatnonzero(wrong / kept <= error_rate)
    if not len(fitting):
        return None
    return float([0.0, *midway(values)][fitting[0]])


def scored_rows(
    task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Returns the score of each row that is of a class, as `predict` gives it, and whether its class is right."""
    kept = labels >= 0
    outputs = torch.from_numpy(np.asarray(logits)[kept])  # (N, C)
    return class_scores(task, outputs).double().numpy(), class_ids(task, outputs).numpy() == labels[kept]
