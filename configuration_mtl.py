"""Configuration of a multi-task sentence transformer: its backbone, its pooling and its tasks.

The file travels with every saved model, so it imports nothing but the standard library, torch,
huggingface_hub, transformers and the others that travel.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

try:
    if not TYPE_CHECKING:  # To a type checker these are top-level modules.
        from .tasks_mtl import FURTHER_TEXTS, TaskConfig, as_task, schema_of_task
except ImportError:
    # As an installed top-level module there is no parent package; inside one, a failed import is a real fault.
    if __package__:
        raise
    from tasks_mtl import FURTHER_TEXTS, TaskConfig, as_task, schema_of_task

__all__ = ["MTLConfig", "TaskConfig"]

logger = logging.get_logger(__name__)

SCHEMA_VERSION = 3
"""Newest layout of `config.json` that this code knows; a reader refuses a newer one.

2 has what 1 has not: problem types and settings of tasks that came later. 3 has what `predict` makes probabilities and
decisions with: temperature and thresholds. A file is written with the lowest that holds its tasks, so that earlier
code goes on reading what it understands.
"""
# Keywords that `PreTrainedConfig` takes without declaring them as fields.
_BASE_KEYWORDS = frozenset(
    {
        "name_or_path", "attn_implementation", "experts_implementation", "output_attentions", "torch_dtype",
        "num_labels", "auto_map", "custom_pipelines", "quantization_config", "per_layer_config", "use_cache",
        "tie_last_hidden_states", "model_type",
    }
)  # fmt: skip


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
        self.tasks = [as_task(task) for task in self.tasks]
        if isinstance(self.text_config, Mapping) and "AutoConfig" in (self.text_config.get("auto_map") or ()):
            self.text_config = _untrusted(self.text_config)
        # The base class gives the nested configuration our attention, and so would take away that of a live encoder
        # whose configuration it is, mask and all: padding would change what the encoder says.
        in_use = getattr(self.text_config, "_attn_implementation", None)
        super().__post_init__(**{"attn_implementation": in_use, **kwargs})
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
        before, self.tasks = self.tasks, [as_task(task) for task in tasks]
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
        output["schema_version"] = max(map(schema_of_task, output["tasks"]), default=1)
        return output


MTLConfig.register_for_auto_class()


def _untrusted(fields: Mapping[str, Any]) -> PreTrainedConfig:
    # Stands for a configuration whose class is code beside the weights; `MTLModel.from_pretrained` puts the real one
    # in its place if that code is trusted.
    members = {"model_type": fields.get("model_type", ""), "_auto_class": "AutoConfig"}
    return type("UntrustedTextConfig", (PreTrainedConfig,), members)(**fields)
