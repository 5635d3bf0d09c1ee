"""Fitting, on validation, what turns a head's logits into probabilities and decisions: see `docs/calibration.md`.

- a temperature, by which logits are divided, so that probabilities are as often right as they say;
- for multi-label, a threshold a label, in place of 0.5, at which its F1 is largest;
- for classes, a score below which `predict` abstains, so that the rest errs at most at a chosen rate.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import sklearn.metrics
import torch
from datasets import Dataset

from classification_mtl import MULTI_LABEL_THRESHOLD, probabilities
from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from mtl.abstention import abstention_threshold, scored_rows
from mtl.calibration_plans import CalibrationPlan, check_calibration_data
from mtl.midway import midway
from tasks_mtl import MULTI_LABEL, valid_labels

logger = logging.getLogger(__name__)

LEAST_ROWS = 20
"""Fewer labelled rows than these say too little of a temperature."""

TEMPERATURES = (0.02, 50.0)
"""Where a temperature is looked for. Logits whose best one is outside say everything of the labels, or nothing."""


class CannotFitError(ValueError):
    """There is nothing to fit on the rows that there are; the message says why."""


def fit_calibration(
    trainer: Any, dataset: Dataset, tasks: Sequence[TaskConfig], plans: Mapping[str, CalibrationPlan]
) -> dict[str, TaskConfig]:
    """Fits temperatures and thresholds; `MTLTrainer.calibrate` also puts them into the model's configuration.

    Args:
        trainer: An `MTLTrainer`, after training.
        dataset: The tokenised validation rows.
        tasks: The tasks.
        plans: What is to be fitted, by task.

    Returns:
        The tasks of the plans with what was fitted. What could not be is None there, and a warning says why.

    Raises:
        ValueError: As `check_calibration_data` does.
    """
    check_calibration_data(plans, dataset)
    if not plans:
        return {}
    output = trainer.predict(dataset, metric_key_prefix="_")
    return {
        task.name: calibrated(task, output.predictions[task.name], output.label_ids[task.name], plans[task.name])
        for task in tasks
        if task.name in plans
    }


def calibrated(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray, plan: CalibrationPlan) -> TaskConfig:
    """Returns a task with what a plan asks for, fitted; None, after a warning, in place of what cannot be.

    Args:
        task: The task.
        logits: Logits of its head. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Class ids, those below 0 left out, (N,); for multi-label 0, 1, or nan for missing, (N, C).
        plan: What to fit; thresholds are fitted on probabilities at the new temperature.
    """
    if plan.temperature:
        task = _with_fitted(task, "calibration_temperature", partial(fit_temperature, task, logits, labels))
        kept = {"label_thresholds": plan.label_thresholds, "abstention_threshold": plan.abstention_error_rate}
        for key, is_fitted in kept.items():
            if getattr(task, key) is not None and is_fitted in (None, False):
                logger.warning(
                    "Task %r: its %s stays, and is now compared with probabilities at temperature %s.",
                    task.name, key, task.calibration_temperature or 1.0,
                )  # fmt: skip
    if plan.label_thresholds:
        task = _with_fitted(task, "label_thresholds", partial(fit_label_thresholds, task, logits, labels))
    if plan.abstention_error_rate is not None:
        fit = partial(fit_abstention, task, logits, labels, plan.abstention_error_rate)
        task = _with_fitted(task, "abstention_threshold", fit)
    return task


def _with_fitted(task: TaskConfig, key: str, fit: Callable[[], Any]) -> TaskConfig:
    try:
        value = fit()
    except CannotFitError as error:
        logger.warning("Task %r: no %s is fitted: %s", task.name, key, error)
        value = None
    else:
        logger.info("Task %r: %s %s.", task.name, key, value)
    changes: dict[str, Any] = {key: value}
    return replace(task, **changes)


def fit_temperature(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> float:
    """Returns the temperature at which the negative log-likelihood of the labels is least.

    That is temperature scaling (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2), for
    ordinal and multi-label tasks of the likelihood that they are trained with. In 1 / T it is convex.

    Args:
        task: A single-label, ordinal or multi-label task.
        logits: Logits of its head, without temperature. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Class ids, those below 0 left out, (N,); for multi-label 0, 1, or nan for missing, (N, C).

    Raises:
        CannotFitError: If there are too few labelled rows, all have one label, a logit of theirs is not finite, or
            the likelihood has no maximum in `TEMPERATURES`.
    """
    rows = _labelled(task, logits, labels)
    if len(rows.labels) < LEAST_ROWS:
        raise CannotFitError(
            f"{len(rows.labels)} of the rows are labelled, and {LEAST_ROWS} are the least. Give more validation rows."
        )
    if len(np.unique(rows.labels[valid_labels(torch.from_numpy(rows.labels)).numpy()])) < 2:
        raise CannotFitError("all labels of the rows are the same. Give validation rows of several.")
    scores, targets = torch.from_numpy(rows.logits).double(), torch.from_numpy(rows.labels)

    def mean_loss(log_temperature: float) -> float:
        return float(summed_loss(task.problem_type, scores / math.exp(log_temperature), targets)) / len(rows.labels)

    bounds = [math.log(temperature) for temperature in TEMPERATURES]
    found = scipy.optimize.minimize_scalar(mean_loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    lowest, highest = (mean_loss(bound) <= found.fun + _LEVEL for bound in bounds)
    if lowest:
        raise CannotFitError(
            "the head is right on all rows, or nearly, so that they give no reason for any doubt. Give more, or rows "
            "that it was not trained on."
        )
    if highest:
        raise CannotFitError("the logits say nothing of the labels of the rows. Train longer, or look at the data.")
    return math.exp(found.x)


_LEVEL = 1e-9  # A difference of mean losses, in nats, that is no difference: far above rounding in float64.


def fit_label_thresholds(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> tuple[float, ...]:
    """Returns [`best_label_threshold`] of each label of a multi-label task, from its labelled rows.

    Args:
        task: The task; its temperature counts.
        logits: Logits of its head, without temperature. Shape (N, C).
        labels: 0, 1, or nan for missing. Shape (N, C).

    Raises:
        CannotFitError: If there is no labelled row, or a logit of one is not finite.
    """
    rows = _labelled(task, logits, labels)
    said = probabilities(task, torch.from_numpy(rows.logits)).double().numpy()  # (N, C)
    known = ~np.isnan(rows.labels)  # (N, C)
    columns = range(said.shape[1])
    return tuple(best_label_threshold(said[known[:, c], c], rows.labels[known[:, c], c] == 1) for c in columns)


def best_label_threshold(said: npt.NDArray[np.float64], is_positive: npt.NDArray[np.bool_]) -> float:
    """Returns the threshold on a label's probability at which its F1 is largest, of several the one nearest to 0.5.

    Thresholds stand midway between neighbouring probabilities, and between the lowest and 0. Without a positive row,
    or without another, it stays 0.5.

    Args:
        said: Probability of the label in each row. Shape (N,).
        is_positive: Whether the row has it. Shape (N,).
    """
    if is_positive.all() or not is_positive.any():
        return MULTI_LABEL_THRESHOLD
    precision, recall, values = sklearn.metrics.precision_recall_curve(is_positive, said)
    together = precision[:-1] + recall[:-1]  # (V,), for each distinct probability as the lowest that is predicted
    f1 = 2 * precision[:-1] * recall[:-1] / np.where(together > 0, together, 1.0)  # (V,)
    below = np.concatenate([[0.0], values]) if values[0] > 0 else values
    thresholds, f1 = midway(below), f1[len(values) + 1 - len(below) :]  # A threshold of 0 is none.
    best = np.flatnonzero(np.isclose(f1, f1.max(initial=0.0), rtol=0.0, atol=1e-12))
    if not len(best):
        return MULTI_LABEL_THRESHOLD
    return float(min(thresholds[best], key=lambda threshold: abs(threshold - MULTI_LABEL_THRESHOLD)))


def fit_abstention(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray, error_rate: float) -> float:
    """Returns the lowest score from which on a task's classes err at most at a rate; see `mtl.abstention`.

    Args:
        task: The task; its temperature counts.
        logits: Logits of its head, without temperature. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Class ids; rows with one below 0 do not count. Shape (N,).
        error_rate: The rate, in [0, 1).

    Raises:
        CannotFitError: If there is no labelled row, a logit of one is not finite, or no threshold reaches the rate.
    """
    rows = _labelled(task, logits, labels)
    scores, is_right = scored_rows(task, rows.logits, rows.labels)
    threshold = abstention_threshold(scores, is_right, error_rate)
    if threshold is None:
        raise CannotFitError(
            f"at every threshold more than {error_rate:.2%} of the rows that are kept are wrong; of those with the "
            "highest score too. Raise the rate, or train a better model."
        )
    return threshold


@dataclass(frozen=True, eq=False)
class _Rows:
    """The labelled rows, (N, C) and (N,) or (N, C)."""

    logits: npt.NDArray
    labels: npt.NDArray


def _labelled(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> _Rows:
    known = valid_labels(torch.from_numpy(np.asarray(labels))).numpy()  # (N,) or (N, C)
    kept = known.any(axis=1) if task.problem_type == MULTI_LABEL else known  # (N,)
    if not kept.any():
        raise CannotFitError("none of the rows is labelled. Give validation rows with labels of the task.")
    if not np.isfinite(logits[kept]).all():
        raise CannotFitError("logits of the rows are not finite. Train anew, with a lower learning rate.")
    return _Rows(logits[kept], labels[kept])
