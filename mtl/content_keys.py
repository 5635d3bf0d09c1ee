"""What a computed column depends on, as a short key, and the file of the cache of `datasets` that it names.

`Dataset.map` hashes what it is called with, live models included, and keeps no file for a data set that is in memory.
Here the key is that of the content: the rows, the weights, the tokenizer.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, is_caching_enabled
from datasets import config as datasets_config
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
"""What an Arrow stream ends with: https://arrow.apache.org/docs/format/Columnar.html#ipc-streaming-format"""

_OF_LOADING = frozenset({"is_local", "local_files_only", "name_or_path"})
_OF_CALLS = frozenset({"max_length", "pad_to_multiple_of", "stride", "truncation_strategy"})
_ATTRIBUTES = ("truncation_side", "padding_side", "pad_token_type_id")


def key_of(*parts: Any) -> str:
    """Returns the key of JSON-ready values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def key_of_rows(dataset: Dataset, columns: Sequence[str]) -> str:
    """Returns the key of some columns of a data set, in the order of its rows."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in dataset.select_columns(list(columns)).iter(batch_size=_ROWS_AT_ONCE):
        digest.update(json.dumps(batch).encode())
    return digest.hexdigest()


def key_of_weights(module: nn.Module) -> str:
    """Returns the key of a module's parameters and buffers, by name, type, shape and value."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def key_of_config(config: PreTrainedConfig) -> str:
    """Returns the key of what a configuration says of a model's outputs in evaluation."""
    return key_of(_less_names(json.loads(config.to_json_string(use_diff=False))))


def _less_names(fields: dict[str, Any]) -> dict[str, Any]:
    # Folders and releases change no output, and in evaluation dropout changes none either.
    ignored = ("_name_or_path", "transformers_version", "architectures", "dtype")
    return {
        key: _less_names(value) if isinstance(value, dict) else value
        for key, value in fields.items()
        if key not in ignored and "dropout" not in key
    }


def key_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the key of a tokenizer's saved form, whatever it was called with."""
    # These are saved only if the tokenizer was made with them.
    attributes = [getattr(tokenizer, name) for name in _ATTRIBUTES]
    digest = hashlib.blake2b(json.dumps(attributes).encode(), digest_size=16)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*")):
            content = file.read_bytes() if file.is_file() else b""
            if file.name == "tokenizer.json":
                # How the tokenizer was last called; every call sets both anew.
                state = json.loads(content) | {"truncation": None, "padding": None}
                content = json.dumps(state, sort_keys=True).encode()
            elif file.name == "tokenizer_config.json":
                # From where the tokenizer was loaded, and how it was called before it was saved.
                settings = json.loads(content)
                kept = sorted(settings.keys() - _OF_LOADING - _OF_CALLS - set(_ATTRIBUTES))
                content = json.dumps({key: settings[key] for key in kept}).encode()
            digest.update(json.dumps([file.name, len(content)]).encode() + content)
    return digest.hexdigest()


def key_of_model(model: Any) -> str:
    """Returns the key of all that the answers of a model in evaluation depend on; it has a tokenizer."""
    return key_of(key_of_config(model.config), key_of_weights(model), key_of_tokenizer(model.tokenizer))


def cache_file(kind: str, key: str) -> str | None:
    """Returns the path of a file of the cache of `datasets`, or None if caching is disabled.

    A file that is there but was cut off is removed: it would be read as fewer rows, or not at all.

    Args:
        kind: What the file holds; the first part of its name.
        key: Key of everything that its content depends on.
    """
    if not is_caching_enabled():
        return None
    file = Path(datasets_config.HF_DATASETS_CACHE) / "mtl" / f"{kind}-{key}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file() and not _is_whole(file):
        logger.warning("%s was cut off, perhaps by a full disk: it is made anew.", file)
        file.unlink(missing_ok=True)
    return str(file)


def _is_whole(file: Path) -> bool:
    with file.open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - len(_END_OF_STREAM)))
        return content.read() == _END_OF_STREAM
