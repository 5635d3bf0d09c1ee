"""Metrics of ordered classes, in which an error counts by how far it goes."""

from typing import Any, ClassVar

import datasets
import numpy as np
import sklearn.metrics

from mtl.metric_base import ScoreMetric


class _RankMetric(ScoreMetric):
    inputs = "predictions, references: one class id a row, in the order of the classes."
    feature_options: ClassVar[list[Any]] = [datasets.Value("int64")]


class QuadraticWeightedKappa(_RankMetric):
    """Agreement beyond chance, where a disagreement counts by the square of its distance in ranks.

    Cohen, "Weighted kappa: Nominal scale agreement with provision for scaled disagreement or partial credit",
    Psychological Bulletin 1968. If predictions and references are all of one class, it is 0 / 0 and `nan`.
    """

    key = "qwk"

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute weighted kappa, at most 1, from class ids (N,), (N,)."""
        both = np.concatenate([predictions, references])
        if (both == both[0]).all():
            return np.nan  # as scikit-learn, which warns besides
        # By itself scikit-learn takes the classes that occur for neighbours, even where one between them does not.
        ranks = np.arange(both.min(), both.max() + 1)
        return sklearn.metrics.cohen_kappa_score(references, predictions, labels=ranks, weights="quadratic")


class MeanAbsoluteError(_RankMetric):
    """Mean distance of the predicted from the reference class, in ranks. Lower is better."""

    key = "mae"

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the mean distance, 0 to C - 1, from class ids (N,), (N,)."""
        return float(np.abs(predictions - references).mean())
