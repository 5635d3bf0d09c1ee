"""What a task is: its kind, its labels, what its loss and its decision are set to.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .problem_types_mtl import (
            CLASS_ID_TYPES,
            CLASS_TYPES,
            CONTRASTIVE,
            FURTHER_TEXTS,
            IGNORE_INDEX,
            INTEGER_LABEL_TYPES,
            MULTI_LABEL,
            ORDINAL,
            OUT_OF_SCOPE_INDEX,
            POSITIVE_PAIRS,
            PROBABILITY_TYPES,
            PROBLEM_TYPES,
            REGRESSION,
            REJECTION_SCORES,
            SCORED_PAIRS,
            SIMILARITY_TYPES,
            SINGLE_LABEL,
            TRIPLETS,
            check_head_settings,
            check_rejection,
            checked_label_thresholds,
            loss_settings,
        )
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from problem_types_mtl import (
        CLASS_ID_TYPES,
        CLASS_TYPES,
        CONTRASTIVE,
        FURTHER_TEXTS,
        IGNORE_INDEX,
        INTEGER_LABEL_TYPES,
        MULTI_LABEL,
        ORDINAL,
        OUT_OF_SCOPE_INDEX,
        POSITIVE_PAIRS,
        PROBABILITY_TYPES,
        PROBLEM_TYPES,
        REGRESSION,
        REJECTION_SCORES,
        SCORED_PAIRS,
        SIMILARITY_TYPES,
        SINGLE_LABEL,
        TRIPLETS,
        check_head_settings,
        check_rejection,
        checked_label_thresholds,
        loss_settings,
    )

__all__ = [
    "CLASS_ID_TYPES",
    "CLASS_TYPES",
    "CONTRASTIVE",
    "FURTHER_TEXTS",
    "IGNORE_INDEX",
    "INTEGER_LABEL_TYPES",
    "MULTI_LABEL",
    "ORDINAL",
    "OUT_OF_SCOPE_INDEX",
    "POSITIVE_PAIRS",
    "PROBABILITY_TYPES",
    "PROBLEM_TYPES",
    "REGRESSION",
    "REJECTION_SCORES",
    "SCORED_PAIRS",
    "SIMILARITY_TYPES",
    "SINGLE_LABEL",
    "TRIPLETS",
    "TaskConfig",
    "as_task",
    "schema_of_task",
    "valid_labels",
]

_TYPES_OF_SCHEMA_1 = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_KEYS_OF_SCHEMA_1 = ("name", "problem_type", "labels", "num_labels", "weight", "hidden_size")
_KEYS_OF_SCHEMA_3 = ("calibration_temperature", "label_thresholds", "abstention_threshold")

_TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class TaskConfig:
    """One task: what its head predicts, under which names, and how much its loss counts.

    Args:
        name: Name of the task and of its head; a letter, then letters, digits, `_` or `-`.
        problem_type: `"single_label_classification"`, `"multi_label_classification"`, `"regression"` or
            `"ordinal_classification"`, each with a head; or, without one, `"scored_pairs"`, `"positive_pairs"`,
            `"triplets"` or `"contrastive"`, which train the embedding itself (see `similarity_mtl`).
        labels: Names of the classes, in the order of the logits; for ordinal classification from the lowest to the
            highest. For regression, names of the outputs (optional).
        num_labels: Number of outputs; derived from `labels` where those are given. 1 for regression unless said.
        weight: Static weight of the task's loss, >= 0.
        hidden_size: Width of a hidden layer in the head; `None` for a linear head.
        cosine_scale: For single-label, makes the logits cosines between the features and a vector a class, times this
            scale, > 0 (about 20); else they are linear.
        loss: For scored pairs `"cosent"` (the default) or `"cosine"`; the other similarity tasks have one loss each.
        temperature: What cosines are divided by, > 0. Default 0.05 for `cosent` and `info_nce`, the scale of 20 that
            sentence-transformers has; 0.1 for `supervised_contrastive`, as in Khosla et al. 2020, section 4.
        margin: For triplets, by how much the positive has to be nearer in cosine distance, in (0, 2]. Default 0.1:
            squared Euclidean distance of unit vectors is twice that, so it is the 0.2 of Schroff et al., "FaceNet",
            CVPR 2015, section 3.3.
        symmetric: For positive pairs, whether each positive also has to find its anchor. Default false.
        label_smoothing: For single-label, the share of the training loss that goes to all classes alike, in [0, 1);
            `label_smoothing_factor` of the training if not given.
        out_of_scope_label: For single-label, the name in the data of rows that are of no class. They carry no loss,
            but are what rejection is measured on.
        rejection_score: What decides whether a sentence is accepted: `"energy"`, the log of the sum of the
            exponentials of all logits (the default), `"logit"`, the largest one, or `"probability"`, the largest one.
        rejection_threshold: The least `rejection_score` at which a sentence is taken to be of a class; fitted after
            training, see `mtl.rejection`. Without it nothing is rejected.
        calibration_temperature: For single-label, ordinal and multi-label, what `predict` divides logits by before it
            makes probabilities of them, > 0; fitted after training, see `mtl.calibration`. It changes neither
            `forward` nor any loss, and neither the label that is predicted nor a rejection.
        label_thresholds: For multi-label, the probability of each label, in the order of the logits and after the
            temperature, from which on it is predicted, in (0, 1); 0.5 each without them.
        abstention_threshold: For single-label and ordinal, the score, after the temperature, below which `predict`
            says that it abstains, in [0, 1]. Without it, it never does.

    Raises:
        ValueError: For an illegal name, type, weight, width, smoothing or threshold, labels that are empty, doubled
            or contradict `num_labels`, or a setting that the problem type does not have.
    """

    name: str
    problem_type: str = SINGLE_LABEL
    labels: tuple[str, ...] | None = None
    num_labels: int | None = None
    weight: float = 1.0
    hidden_size: int | None = None
    cosine_scale: float | None = None
    loss: str | None = None
    temperature: float | None = None
    margin: float | None = None
    symmetric: bool | None = None
    label_smoothing: float | None = None
    out_of_scope_label: str | None = None
    rejection_score: str | None = None
    rejection_threshold: float | None = None
    calibration_temperature: float | None = None
    label_thresholds: tuple[float, ...] | None = None
    abstention_threshold: float | None = None

    def __post_init__(self) -> None:
        """Validates the fields and fills in what follows from them."""
        _check_name(self.name)
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"Task {self.name!r}: problem_type {self.problem_type!r} is unknown. Use one of {list(PROBLEM_TYPES)}."
            )
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not self._is_weight():
            raise ValueError(f"Task {self.name!r}: weight must be a finite number >= 0, found {self.weight!r}.")
        if self.hidden_size is not None and not _is_count(self.hidden_size, least=1):
            raise ValueError(f"Task {self.name!r}: hidden_size must be a positive int, found {self.hidden_size!r}.")
        for key, value in loss_settings(self).items():
            object.__setattr__(self, key, value)
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.name, self.labels, self.num_labels))
            object.__setattr__(self, "num_labels", len(self.labels))
        elif self.num_labels is None and self.problem_type in (REGRESSION, *FURTHER_TEXTS):
            object.__setattr__(self, "num_labels", 1)
        self._check_num_labels()
        check_head_settings(self)
        check_rejection(self)
        object.__setattr__(self, "label_thresholds", checked_label_thresholds(self))
        if self.out_of_scope_label is not None and self.rejection_score is None:
            object.__setattr__(self, "rejection_score", REJECTION_SCORES[0])

    def _is_weight(self) -> bool:
        return math.isfinite(self.weight) and self.weight >= 0

    def _check_num_labels(self) -> None:
        least = 2 if self.problem_type in CLASS_ID_TYPES else 1
        count = self.num_labels
        if count is not None and not _is_count(count, least):
            raise ValueError(
                f"Task {self.name!r}: {self.problem_type} needs at least {least} labels, found {count!r}. "
                "Give the class names in `labels`, or use another problem_type."
            )

    @property
    def has_head(self) -> bool:
        """Whether the task has a head; a similarity task trains the embedding itself."""
        return self.problem_type not in SIMILARITY_TYPES

    @property
    def is_resolved(self) -> bool:
        """Whether the number of outputs is known, so that a head can be built."""
        return self.num_labels is not None

    @property
    def num_logits(self) -> int:
        """Width of the head: a logit for each label, but for ordinal classification one for each step between two."""
        return (self.num_labels or 0) - (self.problem_type == ORDINAL)

    @property
    def id2label(self) -> dict[int, str]:
        """Name of each output; `LABEL_<i>` where none were given."""
        names = self.labels or tuple(f"LABEL_{index}" for index in range(self.num_labels or 0))
        return dict(enumerate(names))

    @property
    def label2id(self) -> dict[str, int]:
        """Index of each output's name."""
        return {label: index for index, label in self.id2label.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values; of those that came after the first layout, only what is set."""
        fields = dataclasses.asdict(self)
        for key in ("labels", "label_thresholds"):
            fields[key] = None if fields[key] is None else list(fields[key])
        return {key: value for key, value in fields.items() if key in _KEYS_OF_SCHEMA_1 or value is not None}


def valid_labels(labels: Tensor) -> Tensor:
    """Returns where labels carry a loss, in their shape: class ids from 0 on, floats other than nan."""
    return ~labels.isnan() if labels.is_floating_point() else labels >= 0


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _TASK_NAME.fullmatch(name):
        raise ValueError(
            f"Task name {name!r} is illegal: a name is a letter followed by letters, digits, '_' or '-', because it "
            "names a module, a metric and an output of the exported graph. Rename the task."
        )
    # The heads are an `nn.ModuleDict`, which refuses a name that is one of its own attributes.
    if hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"Task name {name!r} is reserved: torch.nn.ModuleDict has an attribute of it. Rename the task."
        )


def schema_of_task(fields: Mapping[str, Any]) -> int:
    """Returns the lowest layout of `config.json` that holds a task, from what [`TaskConfig.to_dict`] gives."""
    if not fields.keys().isdisjoint(_KEYS_OF_SCHEMA_3):
        return 3
    is_first = fields["problem_type"] in _TYPES_OF_SCHEMA_1 and fields.keys() <= set(_KEYS_OF_SCHEMA_1)
    return 1 if is_first else 2


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _checked_labels(name: str, labels: Any, num_labels: int | None) -> tuple[str, ...]:
    # A set would number the classes differently in every process.
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"Task {name!r}: labels must be a list of non-empty strings, found {labels!r}.")
    if len(set(labels)) != len(labels):
        doubled = sorted({label for label in labels if list(labels).count(label) > 1})
        raise ValueError(f"Task {name!r}: labels {doubled} stand more than once. Give each label once.")
    if num_labels is not None and num_labels != len(labels):
        raise ValueError(f"Task {name!r}: num_labels is {num_labels}, but {len(labels)} labels are named.")
    return tuple(labels)


def as_task(task: Any) -> TaskConfig:
    """Returns a task, of this code's own class, from a `TaskConfig` or a dict of its settings.

    Raises:
        TypeError: If it is neither, or has a setting that is unknown.
        ValueError: See [`TaskConfig`].
    """
    # No isinstance check against TaskConfig: code loaded from a folder has a class of its own of that name.
    if not isinstance(task, Mapping) and not hasattr(task, "to_dict"):
        raise TypeError(f"A task is a TaskConfig or a dict of its settings, found {task!r}.")
    fields = dict(task) if isinstance(task, Mapping) else task.to_dict()
    known = {field.name for field in dataclasses.fields(TaskConfig)}
    for key in fields.keys() - known:
        near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known are {sorted(known)}."
        raise TypeError(f"Task {fields.get('name')!r} has no setting {key!r}.{hint}")
    return TaskConfig(**fields)
