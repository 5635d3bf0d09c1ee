"""How far a figure of one model can be trusted: intervals by the bootstrap over the rows that it was measured on.

Rows are drawn again with replacement, and the middle share of the figures of these resamples is the interval (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13). It holds for this model on more rows like these;
of another training of it, with another seed, it says nothing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from configuration_mtl import TaskConfig
from mtl.evaluation import json_number
from mtl.metrics import METRICS
from mtl.weighted_metrics import labelled_rows, weighing

RESAMPLES = 1000
CONFIDENCE_LEVEL = 0.95
_CELLS_AT_ONCE = 500_000


def metric_intervals(
    task: TaskConfig,
    logits: npt.NDArray,
    labels: npt.NDArray,
    *,
    resamples: int = RESAMPLES,
    level: float = CONFIDENCE_LEVEL,
    seed: int = 0,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Returns the `low` and `high` end of each metric of a task, JSON-ready.

    Args:
        task: The task.
        logits: Outputs of the rows, with or without a label. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Labels, see `Predictions`.
        resamples: Count of resamples.
        level: Probability with which an interval is to hold, in (0, 1).
        seed: Seed of the draws.
        progress: Is told how many resamples were done since it was last told.

    Returns:
        For each key of the task's metrics both ends; they are None where there is no labelled row, an output is not
        finite, a resample leaves the metric undefined, or the type has no intervals (`positive_pairs`, `contrastive`).

    Raises:
        ValueError: If `resamples` is below 1 or `level` not between 0 and 1.
    """
    if resamples < 1 or not 0.0 < level < 1.0:
        raise ValueError(f"resamples must be 1 or more, and level between 0 and 1; found {resamples} and {level}.")
    keys = [metric.key for metric in METRICS[task.problem_type]]
    logits, labels = np.asarray(logits), np.asarray(labels)
    labelled = labelled_rows(labels)  # (N,)
    outputs, targets = logits[labelled], labels[labelled]
    weighed = weighing(task, outputs, targets) if len(targets) and _is_usable(task, outputs) else None
    if weighed is None:
        return {key: {"low": None, "high": None} for key in keys}
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[npt.NDArray]] = {key: [] for key in keys}
    at_once = max(1, _CELLS_AT_ONCE // len(targets))
    for start in range(0, resamples, at_once):
        count = min(at_once, resamples - start)
        for key, values in weighed(resampled_counts(rng, count, len(targets))).items():
            drawn[key].append(values)
        if progress is not None:
            progress(count)
    tail = (1 - level) / 2
    ends = {key: np.quantile(np.concatenate(values), [tail, 1 - tail]).tolist() for key, values in drawn.items()}
    return {key: {"low": json_number(low), "high": json_number(high)} for key, (low, high) in ends.items()}


def resampled_counts(rng: np.random.Generator, resamples: int, rows: int) -> npt.NDArray[np.float64]:
    """Returns how often each row is drawn in each resample of as many rows. Shape (resamples, rows)."""
    draws = rng.integers(rows, size=(resamples, rows))  # (R, N)
    places = draws + rows * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(np.float64)


def _is_usable(task: TaskConfig, outputs: npt.NDArray) -> bool:
    # A triplet without a negative has nan in its place.
    return bool(np.isfinite(outputs if task.has_head else outputs[:, :1]).all())
