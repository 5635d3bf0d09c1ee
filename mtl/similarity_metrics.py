"""Metrics of tasks without a head, from the cosines or embeddings that stand for their logits."""

from collections.abc import Sequence
from typing import Any, ClassVar

import datasets
import numpy as np

from mtl.metric_base import ScoreMetric
from tasks_mtl import IGNORE_INDEX

_CHUNK_ROWS = 1024


class NearerPositive(ScoreMetric):
    """Share of the anchors to which the positive is nearer than the negative; a tie is not nearer.

    A row without a negative (nan) is left out; with none left it is `nan`. For `positive_pairs` the negative is the
    nearest other text of the evaluation batch, so the figure falls as batches grow: compare it at one batch size.
    """

    key = "accuracy"
    inputs = "predictions: cosine to the positive and to the negative (N, 2 or more). references: 1 a row."
    feature_options: ClassVar[list[Any]] = [datasets.Sequence(datasets.Value("float64"))]
    reference_feature: ClassVar[Any] = datasets.Value("int64")

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the share, 0 to 1, from cosines (N, C), of which the first two columns count."""
        positive, negative = predictions[:, 0], predictions[:, 1]
        judged = ~np.isnan(negative)
        if np.isnan(positive).any() or not judged.any():
            return np.nan
        return float(np.mean(positive[judged] > negative[judged]))


class NearestNeighbourAccuracy(ScoreMetric):
    """Share of the rows whose nearest other row, by cosine, is of their class.

    Each row is left out of its own search. A class of a single row cannot be found and counts as wrong, as it does
    in retrieval. The time grows with the square of the rows, the memory does not.
    """

    key = "accuracy"
    inputs = "predictions: embeddings (N, H). references: one class id a row."
    feature_options: ClassVar[list[Any]] = [datasets.Sequence(datasets.Value("float64"))]
    reference_feature: ClassVar[Any] = datasets.Value("int64")

    @classmethod
    def score(cls, predictions: np.ndarray, references: np.ndarray) -> float:
        """Compute the share, 0 to 1, from embeddings (N, H) and class ids (N,); `nan` for fewer than 2 rows."""
        if len(predictions) < 2 or np.isnan(predictions).any():
            return np.nan
        lengths = np.linalg.norm(predictions, axis=1, keepdims=True)  # (N, 1)
        units = (predictions / np.maximum(lengths, 1e-12)).astype(np.float32)  # (N, H)
        right = 0
        for start in range(0, len(units), _CHUNK_ROWS):
            cosines = units[start : start + _CHUNK_ROWS] @ units.T  # (R, N)
            rows = np.arange(len(cosines))
            cosines[rows, start + rows] = -np.inf
            right += int((references[cosines.argmax(axis=1)] == references[start + rows]).sum())
        return right / len(units)


def embedding_metrics(
    metrics: Sequence[type[ScoreMetric]], outputs: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Computes metrics over the rows that have a label.

    Args:
        metrics: The metrics.
        outputs: Outputs of a task without a head, see `similarity_mtl`. Shape (N, C).
        labels: Class ids, -100 for missing. Shape (N,).

    Returns:
        Each metric under its `key`, and `support`, the count of labelled rows; only that if it is 0.
    """
    labelled = labels != IGNORE_INDEX  # (N,)
    support = int(labelled.sum())
    if not support:
        return {"support": 0}
    return {metric.key: metric.score(outputs[labelled], labels[labelled]) for metric in metrics} | {"support": support}
