"""Which parameters learn: the strategies of transfer learning as one setting.

| setting               | frozen                                     | learns                          |
|-----------------------|--------------------------------------------|---------------------------------|
| `none`                | nothing                                    | everything                      |
| `all`                 | everything                                 | nothing: for evaluation only    |
| `backbone`            | the encoder                                | every head                      |
| `heads:a,b`           | the heads of tasks a and b                 | the encoder and the other heads |
| `heads_except:a`      | every head but that of task a              | the encoder and that head       |
| `lower_layers:N`      | the embeddings and the N lowest layers     | the upper layers and every head |
| `<one>+<another>`     | what either freezes                        | the rest                        |
"""

import logging
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from modeling_mtl import MTLModel

logger = logging.getLogger(__name__)

# The word embeddings, and what may stand between them and the first layer: ELECTRA projects, ALBERT maps inside its
# encoder, BLOOM normalises, GPT-2 has positions beside the words.
_BELOW_THE_LAYERS = (
    "embeddings", "embeddings_project", "embed_tokens", "embed_in", "word_embeddings", "word_embeddings_layernorm",
    "wte", "wpe",
)  # fmt: skip


@dataclass(frozen=True)
class Freezing:
    """What a strategy froze.

    Args:
        setting: The setting; None if the model was taken as it was.
        modules: Names of the frozen modules; they stay in evaluation mode, without dropout, while they are frozen.
        num_trainable: Count of parameters that learn.
        num_total: Count of all parameters.
    """

    setting: str | None
    modules: tuple[str, ...]
    num_trainable: int
    num_total: int

    def __str__(self) -> str:
        """Says it in a line for the log."""
        share = 100 * self.num_trainable / self.num_total
        shown = f"{share:.2f}" if share >= 0.01 else "less than 0.01" if share else "0"
        counts = f"{self.num_trainable:,} of {self.num_total:,} parameters train ({shown} %)"
        if self.setting is None:
            return f"freeze is not set, the model is taken as it is: {counts}"
        return f"freeze={self.setting}: {counts}; frozen: {', '.join(self.modules) if self.modules else 'nothing'}"


def apply_freezing(model: MTLModel, setting: str | None) -> Freezing:
    """Freezes what the setting says, unfreezes the rest, and says so in the log.

    Args:
        model: The model; its parameters' `requires_grad` and its `frozen_modules` are set.
        setting: A setting from the table in this module's docstring; None leaves the model as it is.

    Raises:
        ValueError: If the setting is unknown, names a task that the model has not, or asks for more layers than
            there are.
    """
    if setting is not None:
        modules = frozen_modules(model, setting)
        model.requires_grad_(True)
        for name in modules:
            model.get_submodule(name).requires_grad_(False)
        model.frozen_modules = modules
        model.train(model.training)
    freezing = Freezing(setting, tuple(model.frozen_modules), *count_parameters(model))
    logger.info("%s", freezing)
    return freezing


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Returns the count of the parameters that learn now, and that of all."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(count for count, learns in counts if learns), sum(count for count, _ in counts)


def frozen_modules(model: MTLModel, setting: str) -> tuple[str, ...]:
    """Returns the names of the modules that a setting freezes.

    Raises:
        ValueError: See [`apply_freezing`].
    """
    names = [name for part in setting.split("+") for name in _frozen_modules(model, part.strip(), setting)]
    return tuple(dict.fromkeys(names))


def _frozen_modules(model: MTLModel, part: str, setting: str) -> tuple[str, ...]:
    kind, _, argument = part.partition(":")
    heads = list(model.heads)
    whole = {"none": (), "all": ("backbone", *(f"heads.{name}" for name in heads)), "backbone": ("backbone",)}
    if kind in whole and not argument:
        return whole[kind]
    if kind in ("heads", "heads_except") and argument:
        named = [name.strip() for name in argument.split(",")]
        for name in named:
            if name not in heads:
                raise ValueError(
                    f"freeze={setting!r}: there is no task {name!r} with a head; those that have one are {heads}."
                )
        chosen = named if kind == "heads" else [name for name in heads if name not in named]
        return tuple(f"heads.{name}" for name in chosen)
    if kind == "lower_layers" and argument.isdecimal():
        return _lower_modules(model.backbone, int(argument), setting)
    raise ValueError(
        f"freeze={setting!r} is not a setting. Use one of 'none', 'all', 'backbone', 'heads:<task>,...', "
        "'heads_except:<task>', 'lower_layers:<N>', or several joined by '+'."
    )


def _lower_modules(backbone: PreTrainedModel, count: int, setting: str) -> tuple[str, ...]:
    name, layers, below = find_layers(backbone, f"freeze={setting!r}", "Use 'backbone' or 'none'.")
    if count > len(layers):
        raise ValueError(f"freeze={setting!r}: backbone {type(backbone).__name__} has only {len(layers)} layers.")
    return tuple(f"backbone.{lower}" for lower in [*below, *(f"{name}.{index}" for index in range(count))])


def find_layers(backbone: PreTrainedModel, setting: str, fix: str) -> tuple[str, nn.ModuleList, list[str]]:
    """Returns the name and the list of an encoder's layers, lowest first, and the names of the modules below them.

    Args:
        backbone: The encoder.
        setting: What asks for them, for the message.
        fix: What to do without them, for the message.

    Raises:
        ValueError: If the encoder has no list of layers with weights of their own, or the module of its word
            embeddings is of a name that is not known.
    """
    count, kind = backbone.config.num_hidden_layers, type(backbone).__name__
    lists = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.ModuleList)}
    names = [name for name, module in lists.items() if len(module) == count]
    siblings = {name for name in names if name.rpartition(".")[0] == names[0].rpartition(".")[0]}
    if len(siblings) != 1:
        raise ValueError(
            f"{setting}: backbone {kind} has no list of {count} layers (its layers may share weights, or be spread "
            f"over several lists). {fix}"
        )
    below = [child for child, _ in backbone.named_children() if child in _BELOW_THE_LAYERS]
    if not below:
        raise ValueError(f"{setting}: the word embeddings of backbone {kind} are not where they are looked for. {fix}")
    return names[0], lists[names[0]], below
