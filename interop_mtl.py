"""Starting from a sentence-transformers model: its encoder, pooling, normalisation and limit, as its folder says.

The file travels with every saved model; see `modeling_mtl.py`.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.hub import cached_file

logger = logging.get_logger(__name__)

POOLING_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
}
"""Each pooling that `MTLConfig` has -> its switch in the configuration of a `Pooling` module."""
_OTHER_POOLINGS = {
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
_TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What the configuration of a `Transformer` may say without changing what texts become.
_UNCHANGING = ("max_seq_length", "do_lower_case", "unpad_inputs", "query_length", "document_length")
_LOADING = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
_UNCHANGING_LOADING = ("dtype", "torch_dtype", "attn_implementation", "trust_remote_code")
_PLAIN = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}


class InteropMixin(PreTrainedModel):
    """Gives a model with `from_backbone` a way to start from a sentence-transformers model."""

    from_backbone: Callable[..., Any]

    @classmethod
    def from_sentence_transformer(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        tasks: Any,
        revision: str | None = None,
        token: str | bool | None = None,
        **settings: Any,
    ) -> Any:
        """Puts fresh heads on the encoder of a sentence-transformers model, whose embeddings `encode` goes on giving.

        Pooling, normalisation and the limit in tokens are those of the folder. The files are read, so that
        sentence-transformers need not be installed.

        Args:
            name_or_path: Folder, or name on the Hub, with a `modules.json`.
            tasks: The tasks, as for [`MTLModel.from_backbone`].
            revision: Branch, tag or commit.
            token: Token for the Hub.
            **settings: Further settings of [`MTLModel.from_backbone`], such as `head_dropout`.

        Raises:
            OSError: If there is no such model.
            TypeError: If a setting is unknown, or one that the folder decides.
            ValueError: If it has no `modules.json`, or does to texts what an `MTLModel` cannot: a module such as
                `Dense`, another pooling, several at once, a default prompt, an adapter, fewer numbers.
        """
        hub = {"revision": revision, "token": token}
        encoder = read_sentence_encoder(name_or_path, hub)
        decided = sorted({"pooling", "normalize", "max_seq_length", "subfolder"} & settings.keys())
        if decided:
            raise TypeError(
                f"{decided} cannot be given: the folder decides, so that embeddings stay what they are. Leave them "
                "out, or use `MTLModel.from_backbone`."
            )
        lowers = encoder.pop("do_lower_case")
        model = cls.from_backbone(name_or_path, tasks=tasks, **encoder, **hub, **settings)
        if encoder["max_seq_length"] is not None:  # It counts, also where the tokenizer's own limit is lower.
            model.tokenizer.model_max_length = encoder["max_seq_length"]
        if lowers:
            _check_lower_case(name_or_path, model.tokenizer)
        return model


def read_sentence_encoder(name_or_path: str | os.PathLike[str], hub: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a sentence-transformers model does, as settings of the model, with `subfolder` and `do_lower_case`.

    Args:
        name_or_path: Folder, or name on the Hub.
        hub: Keywords of `cached_file`, such as `revision`.

    Raises:
        OSError: If there is no such model.
        ValueError: If it has no `modules.json`, or does what these settings cannot say.
    """
    modules = _read(name_or_path, "modules.json", hub)
    if modules is None:
        raise ValueError(
            f"{str(name_or_path)!r} has no modules.json, so it is no sentence-transformers model. Put heads on a "
            "plain encoder by `MTLModel.from_backbone`, with the pooling that it was trained for."
        )
    kinds = [_kind(name_or_path, module["type"]) for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise _refusal(name_or_path, f"its modules are {kinds}")
    _check_whole(name_or_path, hub)
    subfolder = modules[0]["path"]
    if _read(name_or_path, _join(subfolder, "adapter_config.json"), hub) is not None:
        raise _refusal(name_or_path, "its encoder is an adapter on another model (merge it and save that)")
    transformer = _transformer_config(name_or_path, subfolder, hub)
    _check_transformer(name_or_path, transformer)
    pooling = _read(name_or_path, _join(modules[1]["path"], "config.json"), hub) or {}
    if len(kinds) == 3:
        _check_normalize(name_or_path, _read(name_or_path, _join(modules[2]["path"], "config.json"), hub) or {})
    return {
        "subfolder": subfolder,
        "pooling": _pooling(name_or_path, pooling),
        "normalize": len(kinds) == 3,
        "max_seq_length": transformer.get("max_seq_length"),
        "do_lower_case": bool(transformer.get("do_lower_case")),
    }


def _check_lower_case(name_or_path: Any, tokenizer: Any) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normalizer = json.loads(backend.to_str())["normalizer"] if backend is not None else None
    if not _lowers(normalizer):
        raise _refusal(name_or_path, "`do_lower_case` is set, but its tokenizer does not lower the case")


def _lowers(normalizer: Any) -> bool:
    if not isinstance(normalizer, dict):
        return False
    inner = any(map(_lowers, normalizer.get("normalizers", ())))
    return inner or normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))


def _kind(name_or_path: Any, reference: str) -> str:
    if not reference.startswith("sentence_transformers."):
        raise _refusal(name_or_path, f"its module {reference!r} is code of its own")
    return reference.rpartition(".")[2]


def _check_whole(name_or_path: Any, hub: Mapping[str, Any]) -> None:
    config = _read(name_or_path, "config_sentence_transformers.json", hub) or {}
    if config.get("model_type", "SentenceTransformer") != "SentenceTransformer":
        raise _refusal(name_or_path, f"it is a {config['model_type']}")
    if config.get("truncate_dim") is not None:
        raise _refusal(name_or_path, f"of each it keeps the first {config['truncate_dim']} numbers (`truncate_dim`)")
    prompts = {name: text for name, text in (config.get("prompts") or {}).items() if text}
    default = config.get("default_prompt_name")
    if default in prompts:
        raise _refusal(
            name_or_path, f"every text gets the prompt {prompts[default]!r} before it (`default_prompt_name`)"
        )
    if prompts:
        logger.warning(
            "%r has prompts, which `encode` does not add: %s. Put them before the texts where they are wanted.",
            str(name_or_path),
            prompts,
        )


def _transformer_config(name_or_path: Any, subfolder: str, hub: Mapping[str, Any]) -> dict[str, Any]:
    found = (_read(name_or_path, _join(subfolder, name), hub) for name in _TRANSFORMER_CONFIGS)
    return next((config for config in found if config), {})


def _check_transformer(name_or_path: Any, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key in _LOADING:
            value = {name: what for name, what in (value or {}).items() if name not in _UNCHANGING_LOADING}
        if value and key not in _UNCHANGING and _PLAIN.get(key) != value:
            raise _refusal(name_or_path, f"its Transformer has {key}={value!r}")


def _pooling(name_or_path: Any, config: Mapping[str, Any]) -> str:
    modes = config.get("pooling_mode")
    if modes is None:
        switches = {**POOLING_KEYS, **_OTHER_POOLINGS}
        modes = [mode for mode, switch in switches.items() if config.get(switch)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLING_KEYS:
        raise _refusal(name_or_path, f"it pools by {' and '.join(modes)}")
    return str(modes[0])


def _check_normalize(name_or_path: Any, config: Mapping[str, Any]) -> None:
    names = {config.get(key) or "sentence_embedding" for key in ("module_input_name", "module_output_name")}
    if names != {"sentence_embedding"}:
        raise _refusal(name_or_path, f"its Normalize has {dict(config)}")


def _refusal(name_or_path: Any, what: str) -> ValueError:
    return ValueError(
        f"{str(name_or_path)!r} gives embeddings that an MTLModel would not: {what}. What it has is one encoder, "
        "pooling by mean, cls or max, and normalisation or none. Take a model of that kind, or only the encoder of "
        "this one: `MTLModel.from_backbone`."
    )


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read(name_or_path: Any, file: str, hub: Mapping[str, Any]) -> Any:
    """Returns what a JSON file of a folder or repository holds; None if there is none."""
    path = cached_file(name_or_path, file, _raise_exceptions_for_missing_entries=False, **hub)
    if path is None:
        return None
    with open(path, encoding="utf-8") as content:
        return json.load(content)
