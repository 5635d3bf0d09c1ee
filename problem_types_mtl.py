"""The kinds of task, and which settings each of them takes, with what is refused of their values.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
ORDINAL = "ordinal_classification"
SCORED_PAIRS = "scored_pairs"
POSITIVE_PAIRS = "positive_pairs"
TRIPLETS = "triplets"
CONTRASTIVE = "contrastive"
SIMILARITY_TYPES = (SCORED_PAIRS, POSITIVE_PAIRS, TRIPLETS, CONTRASTIVE)
"""The types of task that train the embedding itself and have no head."""
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, ORDINAL, *SIMILARITY_TYPES)

CLASS_TYPES = (SINGLE_LABEL, ORDINAL)
"""Types whose head gives a row one of several classes."""

CLASS_ID_TYPES = (*CLASS_TYPES, CONTRASTIVE)
"""Types whose label is the id of one class of several."""

PROBABILITY_TYPES = (*CLASS_TYPES, MULTI_LABEL)
"""Types whose head gives probabilities, of classes or of labels."""

INTEGER_LABEL_TYPES = (*CLASS_ID_TYPES, POSITIVE_PAIRS, TRIPLETS)
"""Types with one int64 label a row: a class id, or 1 for a row that has the texts of a pair or triplet."""

FURTHER_TEXTS = {SCORED_PAIRS: (1, 1), POSITIVE_PAIRS: (1, 2), TRIPLETS: (2, 2)}
"""How many texts beside the first one, each encoded for itself, a task needs at least and takes at most."""

# Problem type -> its losses, the default first -> the settings each one takes, with their defaults.
_LOSSES: dict[str, dict[str, dict[str, Any]]] = {
    SCORED_PAIRS: {"cosent": {"temperature": 0.05}, "cosine": {}},
    POSITIVE_PAIRS: {"info_nce": {"temperature": 0.05, "symmetric": False}},
    TRIPLETS: {"margin": {"margin": 0.1}},
    CONTRASTIVE: {"supervised_contrastive": {"temperature": 0.1}},
}
_LOSS_SETTINGS = ("temperature", "margin", "symmetric")

IGNORE_INDEX = -100
"""The class id that stands for a missing label; float labels use nan."""

OUT_OF_SCOPE_INDEX = -1
"""The class id of a row that is known to be of none of the classes. As every negative id, it carries no loss."""

REJECTION_SCORES = ("energy", "logit", "probability")
"""What may be compared with a rejection threshold, the default first; see `confidence` in `classification_mtl`."""

# Settings of a head that are one number -> the types that have it, and which numbers it may be.
_NUMBERS: dict[str, tuple[tuple[str, ...], Callable[[float], bool], str]] = {
    "label_smoothing": ((SINGLE_LABEL,), lambda value: 0.0 <= value < 1.0, "in [0, 1)"),
    "cosine_scale": ((SINGLE_LABEL,), lambda value: value > 0.0, "above 0"),
    "calibration_temperature": (PROBABILITY_TYPES, lambda value: value > 0.0, "above 0"),
    "abstention_threshold": (CLASS_TYPES, lambda value: 0.0 <= value <= 1.0, "in [0, 1]"),
}

# The functions below are given a `TaskConfig`, which is defined above this file.


def loss_settings(task: Any) -> dict[str, Any]:
    """Returns loss, temperature, margin and symmetric of a task, checked, with the defaults of its problem type."""
    where = f"Task {task.name!r}"
    if not task.has_head and task.hidden_size is not None:
        raise ValueError(f"{where}: {task.problem_type} has no head, so no hidden_size. Leave it out.")
    if task.problem_type in FURTHER_TEXTS and (task.labels is not None or task.num_labels not in (None, 1)):
        raise ValueError(f"{where}: {task.problem_type} has no classes. Leave out `labels` and `num_labels`.")
    losses = _LOSSES.get(task.problem_type, {})
    name = task.loss or next(iter(losses), None)
    if task.loss is not None and task.loss not in losses:
        fix = f"Use one of {list(losses)}." if losses else "Leave it out."
        raise ValueError(f"{where}: {task.problem_type} has no loss {task.loss!r}. {fix}")
    defaults = losses.get(str(name), {})
    values: dict[str, Any] = {"loss": name}
    for key in _LOSS_SETTINGS:
        given = getattr(task, key)
        if given is not None and key not in defaults:
            raise ValueError(
                f"{where}: {key} has no effect on {task.problem_type}{f' with loss {name!r}' if name else ''}. Leave "
                "it out."
            )
        values[key] = defaults.get(key) if given is None else given
    _check_loss_settings(where, values)
    return values


def _check_loss_settings(where: str, values: Mapping[str, Any]) -> None:
    for key, most in (("temperature", math.inf), ("margin", 2.0)):
        value = values[key]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{where}: {key} must be a number, found {value!r}.")
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            raise ValueError(f"{where}: {key} must be above 0{'' if most > 2 else ' and at most 2'}, found {value}.")
    if values["symmetric"] not in (None, True, False):
        raise ValueError(f"{where}: symmetric must be true or false, found {values['symmetric']!r}.")


def check_head_settings(task: Any) -> None:
    """Checks those settings of a head and of its decision that are one number."""
    for key, (types, fits, meaning) in _NUMBERS.items():
        value = getattr(task, key)
        if value is not None and task.problem_type not in types:
            raise ValueError(f"Task {task.name!r}: {key} has no effect on {task.problem_type}. Leave it out.")
        if value is not None and not (_is_number(value) and fits(value)):
            raise ValueError(f"Task {task.name!r}: {key} must be a number {meaning}, found {value!r}.")


def check_rejection(task: Any) -> None:
    """Checks the settings by which a task tells sentences of no class."""
    where, label = f"Task {task.name!r}", task.out_of_scope_label
    if label is None:
        for key in ("rejection_score", "rejection_threshold"):
            if getattr(task, key) is not None:
                raise ValueError(f"{where}: {key} needs `out_of_scope_label`, the name of what is rejected.")
        return
    if task.problem_type != SINGLE_LABEL:
        raise ValueError(f"{where}: {task.problem_type} has no rejection. Leave out `out_of_scope_label`.")
    if not isinstance(label, str) or not label:
        raise ValueError(f"{where}: out_of_scope_label must be a name, found {label!r}.")
    if label in (task.labels or ()):
        raise ValueError(f"{where}: {label!r} is its out_of_scope_label and so no class. Take it out of `labels`.")
    _check_threshold(where, task.rejection_score, task.rejection_threshold)


def checked_label_thresholds(task: Any) -> tuple[float, ...] | None:
    """Returns the thresholds of a multi-label task's labels as a tuple, checked."""
    where, given = f"Task {task.name!r}", task.label_thresholds
    if given is None:
        return None
    if task.problem_type != MULTI_LABEL:
        raise ValueError(f"{where}: label_thresholds has no effect on {task.problem_type}. Leave it out.")
    if not isinstance(given, list | tuple) or not all(_is_number(value) and 0 < value < 1 for value in given):
        raise ValueError(f"{where}: label_thresholds must be a list of numbers between 0 and 1, found {given!r}.")
    if task.num_labels is not None and len(given) != task.num_labels:
        raise ValueError(
            f"{where}: label_thresholds has {len(given)} numbers, but the task {task.num_labels} labels. Give one for "
            "each label, in their order."
        )
    return tuple(given)


def _check_threshold(where: str, score: Any, threshold: Any) -> None:
    if score not in (None, *REJECTION_SCORES):
        raise ValueError(f"{where}: rejection_score {score!r} is unknown. Use one of {list(REJECTION_SCORES)}.")
    if threshold is not None and not _is_number(threshold):
        raise ValueError(f"{where}: rejection_threshold must be a finite number, found {threshold!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
