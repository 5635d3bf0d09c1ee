"""How far the answers of a loader are from those of the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """How equal answers have to be.

    Args:
        bound: The largest difference of a number, relative to the largest one of its kind where that is above 1; or
            the least mean cosine of the embeddings.
        is_cosine: Whether it is that cosine, and predictions are free.
    """

    bound: float
    is_cosine: bool = False


@dataclass(frozen=True)
class Difference:
    """What was measured.

    Args:
        value: The largest difference, or the mean cosine.
        bound: The bound that it is held against.
        is_cosine: Whether it is a cosine.
        is_within: Whether it is within the bound.
        told: Where it is not, what is different.
    """

    value: float
    bound: float
    is_cosine: bool
    is_within: bool
    told: str = ""


def compare(
    answer: Mapping[str, Any], expected: Mapping[str, Any], tolerance: Tolerance, *, task: str | None = None
) -> Difference:
    """Compares embeddings and predictions, as far as a loader gives them, with those of the reference.

    Args:
        answer: `embeddings`, (N, H), `predictions`, as `MTLModel.predict` gives them, or `scores`, for each sentence
            the scores of one task by label.
        expected: Embeddings and predictions.
        tolerance: How equal they have to be.
        task: The task that `scores` are of.

    Raises:
        ValueError: If they differ in shape, in a name or in a decision.
    """
    if tolerance.is_cosine:
        return _cosine(answer["embeddings"], expected["embeddings"], tolerance)
    parts = {}
    if "embeddings" in answer:
        parts["embeddings"] = _largest(answer["embeddings"], expected["embeddings"])
    if "predictions" in answer:
        parts["predictions"] = _deepest(answer["predictions"], expected["predictions"], "predictions")
    if "scores" in answer:
        wanted = _scores(answer["scores"], expected["predictions"], task)
        parts[f"scores of {task}"] = _deepest(answer["scores"], wanted, "scores")
    worst = max(parts, key=lambda name: parts[name])
    is_within = parts[worst] <= tolerance.bound
    told = "" if is_within else f"Its {worst} differ by {parts[worst]:.1e}; {tolerance.bound:.0e} is allowed."
    return Difference(parts[worst], tolerance.bound, False, is_within, told)


def _cosine(actual: Any, expected: Any, tolerance: Tolerance) -> Difference:
    first, second = _arrays(actual, expected)
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)  # (N,)
    mean = float(((first * second).sum(axis=1) / np.maximum(norms, 1e-12)).mean())
    is_within = mean >= tolerance.bound
    told = "" if is_within else f"Its embeddings have a mean cosine of {mean:.4f}; {tolerance.bound} is the least."
    return Difference(mean, tolerance.bound, True, is_within, told)


def _largest(actual: Any, expected: Any) -> float:
    first, second = _arrays(actual, expected)
    return _inf_if_nan(float(np.abs(first - second).max() / max(1.0, float(np.abs(second).max()))))


def _arrays(actual: Any, expected: Any) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)  # (N, H) each
    if first.shape != second.shape:
        raise ValueError(f"Its embeddings have shape {first.shape}, those of the reference {second.shape}.")
    return first, second


def _deepest(actual: Any, expected: Any, where: str) -> float:
    """Returns the largest difference of two numbers in the same place; everything else has to be equal."""
    if isinstance(expected, Mapping):
        if not isinstance(actual, Mapping) or actual.keys() != expected.keys():
            raise ValueError(f"Its {where} are {_short(actual)}, those of the reference {_short(expected)}.")
        return max((_deepest(actual[key], expected[key], f"{where}[{key!r}]") for key in expected), default=0.0)
    if isinstance(expected, Sequence) and not isinstance(expected, str):
        if not isinstance(actual, Sequence) or len(actual) != len(expected):
            raise ValueError(f"Its {where} are {_short(actual)}, those of the reference {_short(expected)}.")
        pairs = enumerate(zip(actual, expected, strict=True))
        return max((_deepest(first, second, f"{where}[{place}]") for place, (first, second) in pairs), default=0.0)
    if isinstance(expected, float) and isinstance(actual, float | int):
        return _inf_if_nan(abs(actual - expected) / max(1.0, abs(expected)))
    if actual != expected:
        raise ValueError(f"Its {where} is {_short(actual)}, that of the reference {_short(expected)}.")
    return 0.0


def _inf_if_nan(value: float) -> float:
    return float("inf") if np.isnan(value) else value


def _scores(
    answers: Sequence[Mapping[str, float]], predictions: Sequence[Mapping[str, Any]], task: str | None
) -> list[Any]:
    """Returns the scores of a task by label; a single number has the label that the answer gives it."""
    if task is None or not predictions or task not in predictions[0]:
        raise ValueError(f"It is in a folder {task!r}, but the model has no such task with a head.")
    found = [row[task] for row in predictions]
    if found and isinstance(found[0], float):
        return [dict.fromkeys(answer, value) for answer, value in zip(answers, found, strict=True)]
    return [row.get("probabilities", row) for row in found]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
