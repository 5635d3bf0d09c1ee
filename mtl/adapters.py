"""Adapters: a few new weights in the encoder learn in place of its own, through the package `peft`.

The adapter is put into the encoder alone, so the model stays an [`MTLModel`]: its heads learn as they are, `encode`
and `predict` go through the adapter, and merging it leaves a plain model. Of the methods of `peft` those fit that add
to or scale the encoder's layers (LoRA of Hu et al., ICLR 2022, DoRA, IA3, VeRA, LoHa, LoKr, OFT ...), not those that
put tokens into its input.
"""

import copy
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from modeling_mtl import MTLModel
from mtl.content_keys import key_of_weights
from mtl.freezing import Freezing, count_parameters

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

logger = logging.getLogger(__name__)

HEADS_NAME = "heads.safetensors"
"""The heads of a model whose adapter is saved alone, beside the two files that `peft` itself reads."""

_NEEDS_PEFT = "Adapters need `pip install peft`."
_KEY = "_adapter"  # Among the model's plain attributes: as a module it would be a second name for the encoder.
_BASE = "base_key"
# Others change the encoder's own weights, so that the adapter would not fit the encoder that it was added to.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal")


@dataclasses.dataclass(frozen=True)
class _Adapter:
    peft_model: "PeftModel"
    base_key: str


def adapter_config(settings: Mapping[str, Any]) -> "PeftConfig":
    """Reads the settings of an adapter: `peft_type`, and what the configuration of that type in `peft` takes.

    Without `target_modules` every linear layer of the encoder gets the adapter.

    Raises:
        ImportError: If `peft` is not installed.
        ValueError: If the type is unknown or does not fit, or a setting is unknown or illegal.
    """
    try:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING
    except ImportError as error:
        raise ImportError(_NEEDS_PEFT) from error
    given = {**settings} if isinstance(settings, Mapping) else {}
    name = str(given.pop("peft_type", None)).upper()
    types = {str(kind.value): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if name not in types:
        raise ValueError(
            f"peft={settings!r} names no peft_type that is known. Use a mapping such as "
            f"`{{peft_type: LORA, r: 8, lora_alpha: 16}}` with one of {sorted(types)}."
        )
    names = {field.name for field in dataclasses.fields(types[name])}
    if "target_modules" in names and name != "LN_TUNING":  # Which is for norms, as `peft` has them by architecture.
        given.setdefault("target_modules", "all-linear")
        if "feedforward_modules" in names and given["target_modules"] == "all-linear":
            given.setdefault("feedforward_modules", [])
    try:
        config: PeftConfig = types[name](**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft={settings!r} does not fit {types[name].__name__}: {error}.") from error
    _check_fits(config)
    return config


def _check_fits(config: "PeftConfig") -> None:
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if config.is_prompt_learning or config.is_adaption_prompt or config.peft_type not in PEFT_TYPE_TO_TUNER_MAPPING:
        raise ValueError(
            f"peft_type {kind} puts tokens into the input, which a sentence embedding would pool. Use LORA."
        )
    if kind in ("ADALORA", "XLORA"):
        raise ValueError(f"peft_type {kind} needs calls of its own in every step, which are not made. Use LORA.")
    if kind == "VBLORA":
        raise ValueError(f"peft_type {kind} cannot be loaded as it was saved. Use LORA.")
    init = getattr(config, "init_lora_weights", True)
    if init not in _PLAIN_INITS:
        raise ValueError(
            f"peft: init_lora_weights={init!r} changes the encoder's own weights, so the adapter would fit no encoder "
            f"that one could load again. Use one of {_PLAIN_INITS}."
        )
    if getattr(config, "layer_replication", None):
        raise ValueError("peft: layer_replication changes the encoder's layers, and is not supported. Leave it out.")


def add_adapter(model: MTLModel, config: "Mapping[str, Any] | PeftConfig") -> None:
    """Puts a fresh adapter into the encoder; from then on the adapter and the heads learn, and nothing else does.

    Args:
        model: The model.
        config: A configuration of `peft`, or its settings with their `peft_type`; see [`adapter_config`].

    Raises:
        ImportError: If `peft` is not installed.
        ValueError: If the model has an adapter already, or the configuration does not fit.
    """
    if has_adapter(model):
        raise ValueError("The model has an adapter already. Merge it first: `merge_adapter(model)`.")
    if isinstance(config, Mapping):
        config = adapter_config(config)
    else:
        _check_fits(config)
    from peft import get_peft_model

    base_key = key_of_weights(model.backbone)
    vars(model)[_KEY] = _Adapter(get_peft_model(model.backbone, config), base_key)
    model.train(model.training)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    counts = adapter_parameters(model, kind)
    logger.info(
        "A %s adapter is added: it and the heads train, %s of %s parameters.",
        kind, f"{counts.num_trainable:,}", f"{counts.num_total:,}",
    )  # fmt: skip


def has_adapter(model: nn.Module) -> bool:
    """Returns whether there is an adapter in a model."""
    return _KEY in vars(model)


def adapter_parameters(model: MTLModel, kind: str) -> Freezing:
    """Returns how many parameters learn, for the log and the report."""
    modules = tuple(model.frozen_modules)
    return Freezing(f"all but the {kind} adapter and the heads", modules, *count_parameters(model))


def save_adapter(model: MTLModel, folder: str | Path) -> None:
    """Saves the adapter and the heads without the encoder, which [`load_adapter`] puts into that encoder again.

    `peft` itself reads the adapter of the folder too: `PeftModel.from_pretrained(encoder, folder)`.

    Args:
        model: The model, with an adapter.
        folder: Where to write.

    Raises:
        ValueError: If there is no adapter.
    """
    from peft import get_peft_model_state_dict

    adapter, folder = _adapter_of(model), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # "auto" would ask the Hub whether the vocabulary was changed.
    state = get_peft_model_state_dict(adapter.peft_model, save_embedding_layers=False)
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(weights, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    heads = {f"heads.{name}": tensor.detach().cpu().contiguous() for name, tensor in model.heads.state_dict().items()}
    save_file(heads, folder / HEADS_NAME, metadata={"format": "pt", _BASE: adapter.base_key})
    config = copy.copy(adapter.peft_model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))


def remove_adapter_files(folder: str | Path) -> None:
    """Removes what [`save_adapter`] wrote, if it is there, and the folder, if nothing else is in it."""
    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        return
    for name in (ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, HEADS_NAME):
        (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()
    logger.info("Removed an adapter of an earlier run from %s.", folder)


def load_adapter(model: MTLModel, folder: str | Path) -> None:
    """Puts a saved adapter and its heads into the model that it was added to, bit for bit as they were.

    Args:
        model: A model with the encoder and the tasks that the adapter's had.
        folder: What [`save_adapter`] wrote, or a checkpoint of a training with an adapter.

    Raises:
        ImportError: If `peft` is not installed.
        ValueError: If the encoder or the heads are not those of the adapter.
    """
    if not Path(folder, ADAPTER_CONFIG_NAME).is_file():
        raise ValueError(f"There is no {ADAPTER_CONFIG_NAME} in {str(folder)!r}. Give a folder that has an adapter.")
    if not has_adapter(model):
        try:
            from peft import PeftConfig
        except ImportError as error:
            raise ImportError(_NEEDS_PEFT) from error
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = False
        add_adapter(model, config)
    load_adapter_weights(model, folder)


def load_adapter_weights(model: MTLModel, folder: str | Path) -> None:
    """Loads a saved adapter and its heads into a model that has such an adapter; see [`load_adapter`]."""
    from peft import set_peft_model_state_dict

    adapter, folder = _adapter_of(model), Path(folder)
    with safe_open(folder / HEADS_NAME, framework="pt") as file:
        base = (file.metadata() or {}).get(_BASE)
    if base != adapter.base_key:
        raise ValueError(
            f"The adapter in {str(folder)!r} is of another encoder: the weights below it are not those it was trained "
            "on. Load the encoder, or the saved model, that the adapter was added to."
        )
    heads = {name.removeprefix("heads."): tensor for name, tensor in load_file(folder / HEADS_NAME).items()}
    expected = {name: tensor.shape for name, tensor in model.heads.state_dict().items()}
    if expected != {name: tensor.shape for name, tensor in heads.items()}:
        raise ValueError(
            f"The adapter in {str(folder)!r} has the heads {_tasks(heads)}, the model {_tasks(expected)}, or heads of "
            "another size. Load it into a model with the same tasks."
        )
    state = load_file(folder / ADAPTER_SAFE_WEIGHTS_NAME)
    result: Any = set_peft_model_state_dict(adapter.peft_model, state)
    missing = set(result.missing_keys)  # Those of the encoder are among them.
    lacking = [name for name, p in adapter.peft_model.named_parameters() if p.requires_grad and name in missing]
    if lacking or result.unexpected_keys:
        raise ValueError(
            f"The adapter in {str(folder)!r} is another than that of the model: {lacking[:3]} are missing, "
            f"{result.unexpected_keys[:3]} are not of the model."
        )
    model.heads.load_state_dict(heads)


def merge_adapter(model: MTLModel) -> None:
    """Adds the adapter to the encoder's own weights, which leaves a plain model that needs no `peft`.

    Its outputs are those with the adapter up to rounding. All of the encoder's weights can learn again.

    Args:
        model: The model, with an adapter.

    Raises:
        ValueError: If there is no adapter, or a merged weight would not be finite.
    """
    peft_model: Any = _adapter_of(model).peft_model
    peft_model.merge_and_unload(safe_merge=True)
    del vars(model)[_KEY]
    model.backbone.requires_grad_(True)


def _adapter_of(model: MTLModel) -> _Adapter:
    if not has_adapter(model):
        raise ValueError("The model has no adapter. Add one: `add_adapter(model, {'peft_type': 'LORA'})`.")
    adapter: _Adapter = vars(model)[_KEY]
    return adapter


def _tasks(names: Mapping[str, Any]) -> list[str]:
    return sorted({name.split(".")[0] for name in names})
