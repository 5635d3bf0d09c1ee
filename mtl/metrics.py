"""Metrics per problem type: `evaluate.Metric` subclasses that need no network, and the two functions that apply them.

Every class computes one number with scikit-learn or SciPy in its `score`; `evaluate` adds `add`, `add_batch`,
`compute` and `evaluate.combine`. Nothing is downloaded and, by default, nothing is written: see `ScoreMetric`.
A value that is mathematically undefined is `nan`, never an exception and never a warning.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import datasets
import numpy as np
import scipy.special
import scipy.stats
import sklearn.metrics
import torch

from classification_mtl import ordinal_median
from mtl.metric_base import ScoreMetric
from mtl.ordinal_metrics import MeanAbsoluteError, QuadraticWeightedKappa
from mtl.similarity_metrics import NearerPositive, NearestNeighbourAccuracy, embedding_metrics
from tasks_mtl import (
    CLASS_TYPES,
    CONTRASTIVE,
    IGNORE_INDEX,
    MULTI_LABEL,
    ORDINAL,
    POSITIVE_PAIRS,
    REGRESSION,
    SCORED_PAIRS,
    SINGLE_LABEL,
    TRIPLETS,
)

logger = logging.getLogger(__name__)

PROBABILITY_THRESHOLD = 0.5

_FLOATS = datasets.Sequence(datasets.Value("float64"))


class _ClassMetric(ScoreMetric):
    inputs = "predictions, references: one class id a row."
    feature_options: ClassVar[list[Any]] = [datasets.Value("int64")]


class Accuracy(_ClassMetric):
    """Share of the rows whose predicted class is the reference class."""

    key = "accuracy"

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute accuracy, 0 to 1, from class ids (N,), (N,)."""
        return sklearn.metrics.accuracy_score(references, predictions)


class MacroF1(_ClassMetric):
    """Unweighted mean of F1 over the classes that occur in the references or in the predictions."""

    key = "f1_macro"

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute macro F1, 0 to 1, from class ids (N,), (N,)."""
        return sklearn.metrics.f1_score(references, predictions, average="macro", zero_division=0.0)


class MatthewsCorrelation(_ClassMetric):
    """Matthews correlation coefficient for K classes (Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006).

    With constant predictions or references the quotient is 0 / 0; the field's convention, and scikit-learn's, is 0.
    """

    key = "mcc"

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the coefficient, -1 to 1, from class ids (N,), (N,)."""
        if len(np.unique(predictions)) < 2 or len(np.unique(references)) < 2:
            return 0.0  # as scikit-learn, which warns besides when both are the same constant
        return sklearn.metrics.matthews_corrcoef(references, predictions)


class _ColumnMetric(ScoreMetric):
    """Mean over the columns that have a labelled row of `column_score` on those rows."""

    skips_undefined: ClassVar[bool]

    @classmethod
    @abstractmethod
    def column_score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the number of one label or output from its labelled rows (N,), (N,)."""

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the mean from numbers (N,) or (N, C), in references nan = missing."""
        columns = zip(np.atleast_2d(predictions.T), np.atleast_2d(references.T), strict=True)  # C pairs of (N,)
        labelled = [(p[~np.isnan(r)], r[~np.isnan(r)]) for p, r in columns if not np.isnan(r).all()]
        scores = [cls.column_score(p, r) for p, r in labelled]
        if cls.skips_undefined:
            scores = [score for score in scores if not np.isnan(score)]
        return float(np.mean(scores)) if scores else np.nan


class _LabelMetric(_ColumnMetric):
    inputs = "predictions: probabilities (N, C), or 0 and 1. references (N, C): 0, 1, or nan for a missing label."
    feature_options: ClassVar[list[Any]] = [_FLOATS]
    skips_undefined = True


class MultiLabelMacroF1(_LabelMetric):
    """Unweighted mean over the labels of each one's F1 over its labelled rows; predicted from probability 0.5 up.

    A label with no positive row that is never predicted either has no F1 and is left out of the mean; with no label
    left it is `nan`. A label with no positive row that is predicted counts as 0.
    """

    key = "f1_macro"

    @classmethod
    def column_score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute F1, 0 to 1, from probabilities and references (N,)."""
        predicted, positive = predictions >= PROBABILITY_THRESHOLD, references == 1
        if not predicted.any() and not positive.any():
            return np.nan
        return sklearn.metrics.f1_score(positive, predicted, zero_division=0.0)


class MicroF1(MultiLabelMacroF1):
    """F1 over the labelled cells of all labels together; predicted from probability 0.5 up.

    `nan` when no labelled cell is positive and none is predicted.
    """

    key = "f1_micro"

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute micro F1, 0 to 1, from probabilities and references (N, C)."""
        return super().score(predictions.ravel(), references.ravel())


class MeanAveragePrecision(_LabelMetric):
    """Mean over the labels of average precision, the step-wise area under the precision-recall curve.

    It goes by the order of the predictions alone, so that logits serve as well as probabilities.
    Only a label with at least one positive and one negative row counts. With no positive, average precision is
    undefined; with no negative it is 1 for any model. Both kinds are left out, and with no label left it is `nan`.
    """

    key = "map"
    inputs = "predictions: probabilities or logits (N, C). references (N, C): 0, 1, or nan for a missing label."

    @classmethod
    def column_score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute average precision, 0 to 1, from probabilities or logits and references (N,)."""
        if len(np.unique(references)) < 2:
            return np.nan
        ranks = scipy.stats.rankdata(predictions)  # scikit-learn takes no infinite logit
        return sklearn.metrics.average_precision_score(references, ranks)


class _NumberMetric(_ColumnMetric):
    inputs = "predictions, references: one number a row, or a list of C numbers; nan in references is missing."
    feature_options: ClassVar[list[Any]] = [_FLOATS, datasets.Value("float64")]
    skips_undefined = False


class Pearson(_NumberMetric):
    """Pearson's r; for C > 1 outputs the mean over them, `nan` if it is undefined in one that has labels."""

    key = "pearson"
    method: ClassVar[Callable[..., Any]] = staticmethod(scipy.stats.pearsonr)

    @classmethod
    def column_score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the coefficient, -1 to 1, from numbers (N,); `nan` for fewer than 2 rows or a constant."""
        if len(references) < 2 or _is_constant(predictions) or _is_constant(references):
            return np.nan
        return cls.method(predictions, references).statistic


class Spearman(Pearson):
    """Spearman's rho; for C > 1 outputs the mean over them, `nan` if it is undefined in one that has labels."""

    key = "spearman"
    method: ClassVar[Callable[..., Any]] = staticmethod(scipy.stats.spearmanr)


class RootMeanSquaredError(_NumberMetric):
    """Root of the mean squared error, in the labels' unit; for C > 1 outputs the mean over them. Lower is better."""

    key = "rmse"

    @classmethod
    def column_score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute RMSE from numbers (N,)."""
        return float(np.sqrt(np.mean((predictions - references) ** 2)))


METRICS: dict[str, tuple[type[ScoreMetric], ...]] = {
    SINGLE_LABEL: (Accuracy, MacroF1, MatthewsCorrelation),
    MULTI_LABEL: (MicroF1, MultiLabelMacroF1, MeanAveragePrecision),
    REGRESSION: (Pearson, Spearman, RootMeanSquaredError),
    ORDINAL: (QuadraticWeightedKappa, Accuracy, MeanAbsoluteError),
    SCORED_PAIRS: (Spearman, Pearson),
    POSITIVE_PAIRS: (NearerPositive,),
    TRIPLETS: (NearerPositive,),
    CONTRASTIVE: (NearestNeighbourAccuracy,),
}
PRIMARY_METRIC = {
    SINGLE_LABEL: "accuracy",
    MULTI_LABEL: "f1_micro",
    REGRESSION: "pearson",
    ORDINAL: "qwk",
    SCORED_PAIRS: "spearman",
    POSITIVE_PAIRS: "accuracy",
    TRIPLETS: "accuracy",
    CONTRASTIVE: "accuracy",
}
LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae", "kept_error"})

# Problem type -> what the metrics are given, from logits (N, C); for regression and scored pairs the numbers are it.
_PREDICTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    SINGLE_LABEL: lambda logits: logits.argmax(axis=1),
    ORDINAL: lambda logits: ordinal_median(torch.from_numpy(logits)).numpy(),
    MULTI_LABEL: scipy.special.expit,
}


def compute_task_metrics(
    problem_type: str, logits: np.ndarray, labels: np.ndarray, *, chosen: np.ndarray | None = None
) -> dict[str, float]:
    """Compute every metric of one task over the rows that have a label.

    Args:
        problem_type: A key of `METRICS`.
        logits: (N, C) raw head outputs, for ordinal classification (N, C - 1); for regression the predicted numbers,
            also (N,) when C is 1; for tasks without a head their outputs, see `similarity_mtl`.
        labels: For single-label and ordinal classification (N,) class ids, -100 = missing. For multi-label
            classification (N, C) of 0 and 1, nan = missing: a row of only nan is dropped, and of a partly missing row
            just the missing cells are left out. For regression (N,) or (N, C) numbers, nan = missing in the same way.
        chosen: For multi-label classification, (N, C), whether each label is predicted, where another threshold than
            probability 0.5 decides. Average precision goes by the logits all the same.

    Returns:
        The score of each class in `METRICS[problem_type]` under its `key`, and `support`, the number of labelled
        rows. Only `support` (0) when no row is labelled. Every score is `nan` when a labelled row has a nan logit.

    Raises:
        ValueError: If the problem type is unknown, shapes disagree or a label is outside its range.
    """
    if problem_type not in METRICS:
        raise ValueError(f"Problem type {problem_type!r} has no metrics. Use one of {sorted(METRICS)}.")
    logits, labels = np.asarray(logits), np.asarray(labels)
    if problem_type in (POSITIVE_PAIRS, TRIPLETS, CONTRASTIVE):
        return embedding_metrics(METRICS[problem_type], logits, labels)
    is_class = problem_type in CLASS_TYPES
    if not is_class:
        logits, labels = (np.atleast_2d(x.astype(np.float64).T).T for x in (logits, labels))  # (N, C)
    _check(problem_type, logits, labels)
    labelled = labels != IGNORE_INDEX if is_class else ~np.isnan(labels).all(axis=1)  # (N,)
    logits, labels = logits[labelled], labels[labelled]
    if not len(labels):
        return {"support": 0}
    broken = np.isnan(logits).any(axis=1)  # (N,)
    if broken.any():
        logger.warning("%s: %d of %d labelled rows have a nan logit", problem_type, broken.sum(), len(labels))
        return {**{metric.key: np.nan for metric in METRICS[problem_type]}, "support": len(labels)}
    predictions = _PREDICTIONS[problem_type](logits) if problem_type in _PREDICTIONS else logits  # (N,) or (N, C)
    predictions = predictions if chosen is None else np.asarray(chosen)[labelled].astype(np.float64)
    scores = {
        # The sigmoid ties large logits, in float64 from 37 up, whose order average precision needs.
        metric.key: float(metric.score(logits if metric is MeanAveragePrecision else predictions, labels))
        for metric in METRICS[problem_type]
    }
    return {**scores, "support": len(labels)}


def aggregate_score(task_metrics: dict[str, dict[str, float]], primary: dict[str, str]) -> float:
    """Average the tasks' primary metrics, a `nan` as 0, into the one number that selects a model; higher is better.

    Args:
        task_metrics: What `compute_task_metrics` returned, by task name.
        primary: The name of the metric that counts, by task name; see `PRIMARY_METRIC` for the usual ones.

    Returns:
        The mean over the tasks with support, of which a collapsed one costs its share; `nan` when none has support.

    Raises:
        ValueError: If a task's primary metric is not given, was not computed, or falls as the model improves.
    """
    values = []
    for task, metrics in task_metrics.items():
        if not metrics["support"]:
            continue
        name, choices = primary.get(task), metrics.keys() - LOWER_IS_BETTER - {"support"}
        if name not in choices:
            raise ValueError(f"Task {task!r}: {name!r} is no metric to select by. Use one of {sorted(choices)}.")
        values.append(0.0 if np.isnan(metrics[name]) else metrics[name])
    return float(np.mean(values)) if values else np.nan


def _check(problem_type: str, logits: np.ndarray, labels: np.ndarray) -> None:
    is_class = problem_type in CLASS_TYPES
    if logits.ndim != 2 or labels.shape != logits.shape[: 1 if is_class else 2]:
        expected = "(N, C) and (N,)" if is_class else "of one shape"
        raise ValueError(f"{problem_type}: logits {logits.shape}, labels {labels.shape}. Give them {expected}.")
    if problem_type in (REGRESSION, SCORED_PAIRS):
        return
    allowed = [IGNORE_INDEX, *range(logits.shape[1] + (problem_type == ORDINAL))] if is_class else [0, 1]
    outside = labels[~np.isin(labels, allowed) & (is_class | ~np.isnan(labels))]
    if len(outside):
        fix = f"class ids 0 to {allowed[-1]}, -100 = missing" if is_class else "0, 1 or nan (missing)"
        raise ValueError(f"{problem_type}: found labels {np.unique(outside).tolist()[:5]}. Give {fix}.")


def _is_constant(values: np.ndarray) -> bool:
    # Outputs that differ by the rounding of float32 only are one value, and its noise is no correlation.
    # 4 steps allow for the order of a matrix product's sums to differ from one batch shape to another.
    step = np.finfo(np.float32).eps * np.abs(values).max()
    return not np.isfinite(step) or bool(np.ptp(values) <= 4 * step)
