"""How far a task's probabilities can be believed: calibration error, Brier score, log-likelihood, and bins."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from classification_mtl import class_ids, class_scores, probabilities
from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from tasks_mtl import MULTI_LABEL, valid_labels

BINS = 15
"""Count of bins, as in Guo et al. 2017."""


def calibration_of(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, Any]:
    """Measures the calibration of a task on labelled rows, at its temperature and, where it has one, without it.

    Args:
        task: A single-label, ordinal or multi-label task.
        logits: Logits of the head. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Class ids, those below 0 left out, (N,); for multi-label 0, 1, or nan for missing, (N, C).

    Returns:
        JSON-ready values: what [`calibration_figures`] gives, `temperature` (None without one), and `before`, the same
        figures at temperature 1 (None without a temperature).
    """
    figures = calibration_figures(task, logits, labels)
    before = None
    if task.calibration_temperature is not None:
        before = calibration_figures(replace(task, calibration_temperature=None), logits, labels)
    return {**figures, "temperature": task.calibration_temperature, "before": before}


def calibration_figures(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, Any]:
    """Returns `ece`, `brier`, `nll` and `bins` of a task, JSON-ready; arguments as in [`calibration_of`].

    - `ece`, the expected calibration error: the mean over the rows of the distance, in the row's bin, between mean
      confidence and accuracy. The confidence is the score that `predict` gives, the probability of the predicted
      class, in 15 bins of equal width (Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian
      Binning", AAAI 2015; Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3).
    - `brier`: the mean over the rows of the squared distance between probabilities and one-hot label, summed over the
      classes, from 0 to 2 (Brier, "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather
      Review 1950).
    - `nll`: the mean negative log-likelihood of the labels, in nats.
    - `bins`: of each bin `low`, `high`, the `count` of its rows, their mean `confidence`, and their `accuracy`.

    For multi-label a labelled cell takes the place of a row: its confidence is the probability of the label, its
    accuracy whether the row has it, and its Brier score the square of their difference, from 0 to 1.

    Figures are None where there is no labelled row, or a labelled row has a logit that is not finite.
    """
    scores, targets = torch.from_numpy(np.asarray(logits)).double(), torch.from_numpy(np.asarray(labels))
    if task.problem_type != MULTI_LABEL:
        kept = valid_labels(targets)  # (N,)
        scores, targets = scores[kept], targets[kept]
    is_known = valid_labels(targets)  # (N,) or (N, C)
    count = int(is_known.sum())
    if not count or not scores[is_known].isfinite().all():
        return {"ece": None, "brier": None, "nll": None, "bins": []}
    confidences, is_right, squares = _of_labels(task, scores, targets)  # (items) each
    bins = reliability_bins(confidences.numpy(), is_right.numpy())
    loss = summed_loss(task.problem_type, scores / (task.calibration_temperature or 1.0), targets)  # ()
    ece = sum(some["count"] * abs(some["confidence"] - some["accuracy"]) for some in bins if some["count"]) / count
    return {"ece": ece, "brier": float(squares.mean()), "nll": float(loss) / count, "bins": bins}


def reliability_bins(
    confidences: npt.NDArray[np.float64], is_right: npt.NDArray[np.bool_], count: int = BINS
) -> list[dict[str, Any]]:
    """Returns, of bins of equal width, `low`, `high`, `count`, and the means `confidence` and `accuracy`.

    A bin holds what is above its lower edge up to its upper one, the first also 0. Means of an empty one are None.

    Args:
        confidences: Probabilities. Shape (N,).
        is_right: Whether what each is the probability of is so. Shape (N,).
        count: Count of bins.
    """
    edges = np.linspace(0.0, 1.0, count + 1)  # (count + 1,)
    places = np.searchsorted(edges[1:-1], confidences)  # (N,)
    bins = []
    for place in range(count):
        inside = places == place  # (N,)
        some = {"low": float(edges[place]), "high": float(edges[place + 1]), "count": int(inside.sum())}
        means: dict[str, float | None] = {"confidence": None, "accuracy": None}
        if some["count"]:
            means = {"confidence": float(confidences[inside].mean()), "accuracy": float(is_right[inside].mean())}
        bins.append({**some, **means})
    return bins


def _of_labels(task: TaskConfig, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns confidence, whether it is right, and Brier score of each labelled row, or cell of a multi-label task."""
    said = probabilities(task, logits)  # (N, C)
    if task.problem_type == MULTI_LABEL:
        is_known = valid_labels(labels)  # (N, C)
        positive = labels == 1  # (N, C)
        return said[is_known], positive[is_known], (said - positive.double()).square()[is_known]
    squares = (said - F.one_hot(labels.long(), said.shape[-1])).square().sum(dim=-1)  # (N,)
    return class_scores(task, logits), class_ids(task, logits) == labels, squares
