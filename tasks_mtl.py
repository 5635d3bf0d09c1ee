"""What a task is: its kind, its labels, what its loss and its decision are set to.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

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
_TYPES_OF_SCHEMA_1 = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_KEYS_OF_SCHEMA_1 = ("name", "problem_type", "labels", "num_labels", "weight", "hidden_size")

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
        for key, value in _loss_settings(self).items():
            object.__setattr__(self, key, value)
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.name, self.labels, self.num_labels))
            object.__setattr__(self, "num_labels", len(self.labels))
        elif self.num_labels is None and self.problem_type in (REGRESSION, *FURTHER_TEXTS):
            object.__setattr__(self, "num_labels", 1)
        self._check_num_labels()
        _check_head_settings(self)
        _check_rejection(self)
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
        fields["labels"] = None if self.labels is None else list(self.labels)
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


def _loss_settings(task: TaskConfig) -> dict[str, Any]:
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


def schema_of_task(fields: Mapping[str, Any]) -> int:
    """Returns the lowest layout of `config.json` that holds a task, from what [`TaskConfig.to_dict`] gives."""
    is_first = fields["problem_type"] in _TYPES_OF_SCHEMA_1 and fields.keys() <= set(_KEYS_OF_SCHEMA_1)
    return 1 if is_first else 2


def _check_head_settings(task: TaskConfig) -> None:
    ranges = {
        "label_smoothing": (lambda value: 0.0 <= value < 1.0, "in [0, 1)"),
        "cosine_scale": (lambda value: value > 0.0, "above 0"),
    }
    for key, (fits, meaning) in ranges.items():
        value = getattr(task, key)
        if value is not None and task.problem_type != SINGLE_LABEL:
            raise ValueError(f"Task {task.name!r}: {key} has no effect on {task.problem_type}. Leave it out.")
        if value is not None and not (_is_number(value) and fits(value)):
            raise ValueError(f"Task {task.name!r}: {key} must be a number {meaning}, found {value!r}.")


def _check_rejection(task: TaskConfig) -> None:
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


def _check_threshold(where: str, score: Any, threshold: Any) -> None:
    if score not in (None, *REJECTION_SCORES):
        raise ValueError(f"{where}: rejection_score {score!r} is unknown. Use one of {list(REJECTION_SCORES)}.")
    if threshold is not None and not _is_number(threshold):
        raise ValueError(f"{where}: rejection_threshold must be a finite number, found {threshold!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


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
