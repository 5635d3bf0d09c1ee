"""Configuration of a multi-task sentence transformer: its backbone, its pooling and its tasks.

The file travels with every saved model, so it imports nothing but the standard library, torch,
huggingface_hub and transformers.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

logger = logging.get_logger(__name__)

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

SCHEMA_VERSION = 2
"""Newest layout of `config.json` that this code knows; a reader refuses a newer one.

2 has what 1 has not: problem types and settings of tasks that came later. A file without them is still written as 1,
so that earlier code goes on reading it.
"""
_TYPES_OF_SCHEMA_1 = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_KEYS_OF_SCHEMA_1 = ("name", "problem_type", "labels", "num_labels", "weight", "hidden_size")

_TASK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
# Keywords that `PreTrainedConfig` takes without declaring them as fields.
_BASE_KEYWORDS = frozenset(
    {
        "name_or_path", "attn_implementation", "experts_implementation", "output_attentions", "torch_dtype",
        "num_labels", "auto_map", "custom_pipelines", "quantization_config", "per_layer_config", "use_cache",
        "tie_last_hidden_states", "model_type",
    }
)  # fmt: skip


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


@strict
class MTLConfig(PreTrainedConfig):
    """Configuration of [`MTLModel`]: a nested backbone configuration, the pooling, and the list of tasks.

    Args:
        text_config: The backbone's configuration (a config object or its dict), as `AutoConfig` gives it.
        tasks: Tasks as `TaskConfig` or as their dicts; every one with its number of labels known.
        pooling: `"mean"` over non-padding tokens, `"cls"` for the first token, `"max"` over non-padding tokens.
        head_dropout: Probability of dropout on the pooled embedding before the heads.
        normalize: Whether the embeddings that the model returns have L2 norm 1.
        normalize_for_heads: Whether the heads, too, see the embedding with L2 norm 1 (else the pooled one).
        max_seq_length: Limit, in tokens, at which `encode` and `predict` truncate; `None` takes the tokenizer's or
            the backbone's own.
        schema_version: Version of the layout that a file was read from; a file is written with the lowest one that
            holds its tasks.

    Raises:
        ValueError: For an illegal task, or a config of a newer layout.
        TypeError: For a keyword that the configuration does not have.
        StrictDataclassClassValidationError: For doubled or unresolved tasks, or a value out of range.
        StrictDataclassFieldValidationError: For a value of the wrong type.
    """

    model_type = "mtl"
    sub_configs_defaults: ClassVar = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}
    keys_to_ignore_at_inference: ClassVar = [
        "last_hidden_state", "embeddings", "task_losses", "hidden_states", "attentions"
    ]  # fmt: skip

    text_config: Any = None
    tasks: list[Any] | tuple[Any, ...] = ()
    pooling: Literal["mean", "cls", "max"] = "mean"
    head_dropout: float | int = 0.1
    normalize: bool = True
    normalize_for_heads: bool = False
    max_seq_length: int | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        """Builds the nested configurations; see the class."""
        if self.schema_version > SCHEMA_VERSION:
            raise ValueError(
                f"This config.json has schema_version {self.schema_version}, but this code reads at most "
                f"{SCHEMA_VERSION}: the model was saved by a newer release. Upgrade "
                "mtl-sentence-transformers, or, where this package is not imported, load with "
                "`trust_remote_code=True` to use its own code."
            )
        self._check_keywords(kwargs)
        self.tasks = [_as_task(task) for task in self.tasks]
        if isinstance(self.text_config, Mapping) and "AutoConfig" in (self.text_config.get("auto_map") or ()):
            self.text_config = _untrusted(self.text_config)
        super().__post_init__(**kwargs)
        if not self.text_config.is_remote_code():
            # A repository may offer code for an architecture that transformers has too; none of it was used.
            vars(self.text_config).pop("auto_map", None)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Makes the configuration of what a `config.json` holds; see `PreTrainedConfig.from_dict`.

        Raises:
            ValueError: If it names no encoder or no list of tasks, for which there are no good defaults.
        """
        missing = [key for key in ("text_config", "tasks") if key not in config_dict and key not in kwargs]
        if missing:
            raise ValueError(
                f"This config.json has no {missing}, so it was cut or is not of a multi-task model (its model_type is "
                f"{config_dict.get('model_type')!r}). Restore it from where the model was trained."
            )
        return super().from_dict(config_dict, **kwargs)

    def _check_keywords(self, kwargs: Mapping[str, Any]) -> None:
        names = {field.name for field in dataclasses.fields(self)}
        for key in kwargs:
            if key in _BASE_KEYWORDS or key.startswith("_"):
                continue
            # A file may come from another release of transformers, which may add keys of its own.
            if self.transformers_version is not None:
                logger.warning("MTLConfig: key %r of config.json is unknown and is kept as it is.", key)
                continue
            near = difflib.get_close_matches(key, sorted(names), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"MTLConfig has no setting {key!r}.{hint}")

    def validate_tasks(self) -> None:
        """Checks that task names are distinct and that every head's width is known."""
        seen: dict[str, str] = {}
        for task in self.tasks:
            if task.name.lower() in seen:
                raise ValueError(
                    f"Two tasks are named {seen[task.name.lower()]!r} and {task.name!r}; names must differ by more "
                    "than upper and lower case. Rename one."
                )
            seen[task.name.lower()] = task.name
            if not task.is_resolved:
                raise ValueError(f"Task {task.name!r} has neither `labels` nor `num_labels`. Give one of them.")

    def set_tasks(self, tasks: Sequence[TaskConfig | dict[str, Any]]) -> None:
        """Puts other tasks in the place of the present ones; see `MTLModel.add_task` for a model's.

        Raises:
            TypeError: If a task has a setting that is unknown.
            ValueError: If a task is illegal, unresolved or doubled; the tasks then stay as they were.
        """
        before, self.tasks = self.tasks, [_as_task(task) for task in tasks]
        try:
            self.validate_tasks()
        except ValueError:
            self.tasks = before
            raise

    def validate_ranges(self) -> None:
        """Checks the numeric settings."""
        if not 0.0 <= self.head_dropout < 1.0:
            raise ValueError(f"head_dropout must be in [0, 1), found {self.head_dropout}.")
        if self.max_seq_length is not None and self.max_seq_length < 1:
            raise ValueError(f"max_seq_length must be a positive number of tokens, found {self.max_seq_length}.")

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of the heads."""
        return [task.name for task in self.tasks]

    @property
    def needs_further_texts(self) -> bool:
        """Whether a task compares a text with others, so that batches hold `others` and `partners`."""
        return any(task.problem_type in FURTHER_TEXTS for task in self.tasks)

    @property
    def hidden_size(self) -> int:
        """Width of the sentence embedding."""
        return self.text_config.hidden_size

    def task(self, name: str) -> TaskConfig:
        """Returns the task of that name.

        Raises:
            KeyError: If there is none; the message lists those there are.
        """
        for task in self.tasks:
            if task.name == name:
                return task
        raise KeyError(f"No task {name!r}; the model has {self.task_names}.")

    def to_dict(self) -> dict[str, Any]:
        """Returns the configuration as JSON-ready values, the tasks as dicts."""
        output = super().to_dict()
        output["tasks"] = [task.to_dict() for task in self.tasks]
        output["schema_version"] = max(map(_schema_of_task, output["tasks"]), default=1)
        return output


MTLConfig.register_for_auto_class()


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


def _schema_of_task(fields: Mapping[str, Any]) -> int:
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


def _untrusted(fields: Mapping[str, Any]) -> PreTrainedConfig:
    # Stands for a configuration whose class is code beside the weights; `MTLModel.from_pretrained` puts the real one
    # in its place if that code is trusted.
    members = {"model_type": fields.get("model_type", ""), "_auto_class": "AutoConfig"}
    return type("UntrustedTextConfig", (PreTrainedConfig,), members)(**fields)


def _as_task(task: Any) -> TaskConfig:
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
