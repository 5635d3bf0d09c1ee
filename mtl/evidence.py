"""All that is to be said of a model on a split, from what it says of the rows: the evidence behind its figures."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from configuration_mtl import TaskConfig
from mtl.bootstrap import CONFIDENCE_LEVEL, RESAMPLES, metric_intervals
from mtl.calibration_metrics import calibration_of
from mtl.data import row_texts
from mtl.evaluation import EvaluationMetrics, json_number
from mtl.hard_rows import surest_errors
from mtl.label_tables import confusion_table, label_table, residuals
from mtl.metrics import PRIMARY_METRIC
from mtl.predictions import Predictions
from mtl.slices import coverage, slices_of
from mtl.weighted_metrics import labelled_rows
from tasks_mtl import CLASS_TYPES, MULTI_LABEL, REGRESSION

Progress = Callable[[int], Any]


def build_evidence(
    predictions: Predictions,
    *,
    resamples: int = RESAMPLES,
    level: float = CONFIDENCE_LEVEL,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns the evidence of a split as JSON-ready values; an undefined one is None.

    Args:
        predictions: What the model says of the split.
        resamples: Resamples of an interval, see `mtl.bootstrap`.
        level: Probability with which an interval is to hold.
        seed: Seed of the resamples.
        progress: Is told how many resamples were done since it was last told; there are [`count_resamples`] in all.

    Returns:
        `split`, `num_rows`, `score`, `seconds` and `rows_per_second` of the pass over the split; `bootstrap`, its
        settings; `coverage`, see `mtl.slices`; `slices`, each `by` what, its `value`, count of `rows`, and of each of
        the `tasks` its primary `metric` with `value`, `low`, `high` and `support`; and `tasks`: of each its
        `problem_type`, `primary_metric`, `support`, and `metrics`, each with `value`, `low` and `high`, and, as its
        type has them, `labels`, `confusion`, `residuals` (see `mtl.label_tables`), `calibration` (see
        `mtl.calibration_metrics`) and `errors` (see `mtl.hard_rows`), with their text and source.
    """
    result, settings = predictions.result, {"resamples": resamples, "level": level, "seed": seed}
    sources = predictions.rows["source"][:]
    tasks = {task.name: _of_task(task, predictions, {**settings, "progress": progress}) for task in predictions.tasks}
    return {
        "split": result.split,
        "num_rows": result.num_rows,
        "score": json_number(result.score),
        "seconds": round(result.seconds, 3),
        "rows_per_second": round(result.num_rows / result.seconds, 1) if result.seconds > 0 else None,
        "bootstrap": {"resamples": resamples, "confidence_level": level, "seed": seed},
        "coverage": coverage(predictions.labels, sources),
        "tasks": tasks,
        "slices": _slices(predictions, {**settings, "progress": progress}),
    }


def count_resamples(predictions: Predictions, resamples: int = RESAMPLES) -> int:
    """Returns how many resamples, at most, [`build_evidence`] makes in all."""
    return resamples * len(predictions.tasks) * (1 + len(slices_of(predictions.rows)))


def _of_task(task: TaskConfig, predictions: Predictions, settings: Mapping[str, Any]) -> dict[str, Any]:
    logits, labels = predictions.logits[task.name], predictions.labels[task.name]
    figures = predictions.result.to_dict()["tasks"][task.name]
    none = {"low": None, "high": None}
    ends = metric_intervals(task, logits, labels, **settings)
    said: dict[str, Any] = {
        "problem_type": task.problem_type,
        "primary_metric": PRIMARY_METRIC[task.problem_type],
        "support": figures["support"],
        "metrics": {
            key: {"value": value, **ends.get(key, none)}
            for key, value in figures.items()
            if not key.endswith("support")
        },
    }
    if not figures["support"] and not figures.get("oos_support"):
        return said
    return said | _details(task, logits, labels, predictions)


def _details(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray, predictions: Predictions) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if task.problem_type in (*CLASS_TYPES, MULTI_LABEL):
        said["labels"] = label_table(task, logits, labels)
        said["calibration"] = calibration_of(task, logits, labels)
    if task.problem_type in CLASS_TYPES:
        said["confusion"] = confusion_table(task, logits, labels)
    if task.problem_type == REGRESSION:
        said["residuals"] = residuals(task, logits, labels)
    if task.has_head:
        errors = surest_errors(task, logits, labels)
        rows = predictions.rows.select([error.pop("place") for error in errors])[:]
        texts = [text if isinstance(text, str) else " / ".join(text) for text in row_texts(rows)]
        said["errors"] = [
            {"row": row, "text": text, "source": source, **error}
            for row, text, source, error in zip(rows["row"], texts, rows["source"], errors, strict=True)
        ]
    return said


def _slices(predictions: Predictions, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for by, value, inside in slices_of(predictions.rows):
        tasks = {
            task.name: figure
            for task in predictions.tasks
            if (figure := _of_slice(task, predictions, inside, settings)) is not None
        }
        found.append({"by": by, "value": value, "rows": int(inside.sum()), "tasks": tasks})
    return found


def _of_slice(
    task: TaskConfig, predictions: Predictions, inside: npt.NDArray[np.bool_], settings: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns a task's primary metric on a slice, or None if no row of it has a label."""
    logits, labels = predictions.logits[task.name][inside], predictions.labels[task.name][inside]
    support = int(labelled_rows(labels).sum())
    if not support:
        return None
    metric = PRIMARY_METRIC[task.problem_type]
    figures = EvaluationMetrics([task]).by_task({task.name: logits}, {task.name: labels})[task.name]
    ends = metric_intervals(task, logits, labels, **settings)[metric]
    return {"metric": metric, "value": json_number(figures[metric]), **ends, "support": support}
