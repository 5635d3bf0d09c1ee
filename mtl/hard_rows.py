"""The rows that a model is wrong about, those first of which it is surest."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from classification_mtl import chosen_labels, class_ids, class_scores, confidence, probabilities
from configuration_mtl import TaskConfig
from mtl.weighted_metrics import labelled_rows
from tasks_mtl import MULTI_LABEL, OUT_OF_SCOPE_INDEX, REGRESSION

MOST_ERRORS = 200


def surest_errors(
    task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray, *, limit: int = MOST_ERRORS
) -> list[dict[str, Any]]:
    """Returns the errors of a task, JSON-ready: `place` of the row, true `label`, `predicted` label, and `score`.

    The score is the probability of the predicted class; for multi-label, of the surest of the labels that are wrong,
    that it is as predicted; for a regression it is the distance, and every row is an error. Where a task has a
    rejection threshold, its decision is what is right or wrong; without one out-of-scope rows take no part.

    Args:
        task: A task with a head.
        logits: Outputs. Shape (N, C), for ordinal classification (N, C - 1).
        labels: Labels, see `Predictions`.
        limit: Count of errors, at most.
    """
    kinds = {MULTI_LABEL: _of_labels, REGRESSION: _of_numbers}
    kind: Callable[..., tuple[npt.NDArray, npt.NDArray, Callable[[int], tuple[str, str]]]]
    kind = kinds.get(task.problem_type, _of_classes)
    wrong, scores, names = kind(task, logits, labels)
    places = np.flatnonzero(wrong & np.isfinite(scores))
    places = places[np.argsort(-scores[places], kind="stable")][:limit]
    shown = []
    for place in places.tolist():
        label, predicted = names(place)
        shown.append({"place": place, "label": label, "predicted": predicted, "score": float(scores[place])})
    return shown


def _of_classes(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Any:
    outputs = torch.from_numpy(logits)
    predicted, scores = (kind(task, outputs).numpy() for kind in (class_ids, class_scores))  # (N,) each
    judged = labels >= 0  # (N,)
    if task.rejection_threshold is not None:
        rejected = ~(confidence(outputs, str(task.rejection_score)).numpy() >= task.rejection_threshold)  # (N,)
        predicted = np.where(rejected, OUT_OF_SCOPE_INDEX, predicted)
        judged |= labels == OUT_OF_SCOPE_INDEX
    names = task.id2label | {OUT_OF_SCOPE_INDEX: str(task.out_of_scope_label)}
    wrong = judged & (predicted != labels)  # (N,)
    return wrong, scores, lambda place: (names[int(labels[place])], names[int(predicted[place])])


def _of_labels(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Any:
    outputs = torch.from_numpy(logits)
    said, chosen = probabilities(task, outputs).numpy(), chosen_labels(task, outputs).numpy()  # (N, C) each
    wrong = ~np.isnan(labels) & (chosen != (labels == 1))  # (N, C)
    scores = np.where(wrong, np.where(chosen, said, 1 - said), -1.0).max(axis=1)  # (N,)

    def names(place: int) -> tuple[str, str]:
        known = ~np.isnan(labels[place])  # (C,)
        return _joined(task, labels[place] == 1), _joined(task, chosen[place] & known)

    return wrong.any(axis=1), scores, names


def _of_numbers(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> Any:
    outputs, targets = (np.atleast_2d(some.astype(np.float64).T).T for some in (logits, labels))  # (N, C) each
    kept = labelled_rows(targets)  # (N,)
    scores = np.where(np.isnan(targets), 0.0, np.abs(outputs - targets)).max(axis=1)  # (N,)
    return kept, scores, lambda place: (_numbers(targets[place]), _numbers(outputs[place]))


def _joined(task: TaskConfig, chosen: npt.NDArray[np.bool_]) -> str:
    return ", ".join(task.id2label[place] for place in np.flatnonzero(chosen).tolist()) or "none"


def _numbers(values: Sequence[float] | npt.NDArray) -> str:
    return ", ".join("-" if np.isnan(value) else f"{value:.3g}" for value in values)
