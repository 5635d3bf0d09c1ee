"""Pooled embeddings of an encoder that does not change, computed once: heads then train without it.

An epoch with a frozen encoder is a forward pass that gives the same vectors every time. Here they are computed once
for each data set, kept as float32 in a file of the cache of `datasets`, and held in memory as one tensor, from which
batches are gathered. The file is found again by the content of the tokens and of the encoder.
"""

import contextlib
import hashlib
import json
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.utils.data
from datasets import Dataset, Features, List, Value
from torch import Tensor

from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.collation import POOLED, CollatedBatch, MTLCollator
from mtl.content_keys import cache_file, key_of, key_of_config, key_of_weights

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1  # raise it when other vectors come out for the same tokens and the same encoder
_ROWS_AT_ONCE = 1000
_WORTH_A_THREAD = 50_000_000
"""Multiplications, a millisecond or two of one core, below which a second one does not pay."""


def obstacle(model: MTLModel, args: MTLTrainingArguments, collator: Any) -> str | None:
    """Says what keeps the embeddings of a run from being computed once, or None if nothing does.

    Args:
        model: The model, frozen as it trains.
        args: The settings of training.
        collator: What makes its batches.
    """
    full_eval = args.bf16_full_eval or args.fp16_full_eval
    obstacles = {
        "the encoder learns": any(parameter.requires_grad for parameter in model.backbone.parameters()),
        "the encoder runs with dropout in training": "backbone" not in model.frozen_modules,
        "a task without a head compares texts, which needs their tokens": not all(
            task.has_head for task in model.config.tasks
        ),
        "`freeze_schedule` lets the encoder learn later": args.freeze_schedule is not None,
        "an adapter learns in the encoder (`peft`)": args.peft is not None,
        "a data collator other than MTLCollator may make other inputs": type(collator) is not MTLCollator,
        "evaluation in another precision (bf16_full_eval, fp16_full_eval) gives other embeddings": full_eval,
        "include_num_input_tokens_seen counts tokens": str(args.include_num_input_tokens_seen) not in ("no", "False"),
        "include_for_metrics asks for inputs": "inputs" in args.include_for_metrics,
        "FSDP and DeepSpeed cut the encoder into shards": bool(args.fsdp or args.deepspeed),
    }
    return next((reason for reason, is_so in obstacles.items() if is_so), None)


def make_embedding_cache(
    model: MTLModel,
    args: MTLTrainingArguments,
    collator: Any,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]],
) -> "EmbeddingCache | None":
    """Builds the cache that `cache_embeddings` asks for, or None.

    Args:
        model: The model, frozen as it trains.
        args: The settings of training.
        collator: What makes its batches.
        autocast: Gives the context in which the model runs.

    Raises:
        ValueError: If `cache_embeddings` is `"true"` and that is not possible.
    """
    reason = obstacle(model, args, collator)
    if args.cache_embeddings == "true" and reason is not None:
        raise ValueError(
            f"cache_embeddings='true' is not possible: {reason}. It needs an encoder that is frozen as a whole, "
            "`freeze: backbone`. Change that setting, or set `cache_embeddings: auto`."
        )
    if args.cache_embeddings == "false" or reason is not None:
        return None
    return EmbeddingCache(model, collator, args, autocast)


def with_lengths(sampler: Any) -> Any:
    """Returns a sampler with its `lengths`, if it has any, as a list: a column of `datasets` is slow to index."""
    if getattr(sampler, "lengths", None) is not None:
        sampler.lengths = list(sampler.lengths)
    return sampler


class EmbeddedRows(torch.utils.data.Dataset):
    """Rows as whole tensors, from which a batch is gathered at once instead of being collated row by row.

    Args:
        columns: Tensors of N rows, or mappings of such, as a collator makes them of a batch.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[POOLED])

    def __getitem__(self, row: int) -> CollatedBatch:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[CollatedBatch]:
        """Returns the batch of some rows, as the only item of a list, as data loaders want one."""
        return [CollatedBatch(_gathered(self.columns, torch.tensor(rows)))]


class EmbeddingCache:
    """Gives data sets of tokens as data sets of pooled embeddings.

    Args:
        model: The model; its encoder must be frozen.
        collator: Makes the label tensors.
        args: The settings of training; give the batch size of evaluation and the order of processes.
        autocast: Gives the context in which the model runs.
    """

    def __init__(
        self,
        model: MTLModel,
        collator: MTLCollator,
        args: MTLTrainingArguments,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.model, self.collator, self.args, self.autocast = model, collator, args, autocast
        self._known: weakref.WeakKeyDictionary[Any, tuple[str, EmbeddedRows]] = weakref.WeakKeyDictionary()
        self._key: tuple[Any, str] | None = None

    def rows(self, dataset: Any) -> EmbeddedRows | None:
        """Returns the rows of a data set with their embeddings in place of tokens; None if it has no rows or tokens.

        Args:
            dataset: A `datasets.Dataset` with `input_ids` that are not padded, and label columns.
        """
        if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names or not len(dataset):
            return None
        model_key = self._model_key()
        known = self._known.get(dataset)
        if known is None or known[0] != model_key:
            known = self._known[dataset] = (model_key, self._embedded_rows(dataset.with_format(None), model_key))
        return known[1]

    def take_over(self, other: "EmbeddingCache") -> None:
        """Takes what another cache holds in memory, of a model that may have the same encoder."""
        self._known = other._known

    @contextlib.contextmanager
    def prepared(self, *datasets: Any) -> Iterator[None]:
        """Embeds data sets, or mappings of them, and gives the context in which heads train from them.

        On a CPU small heads train in one thread: several would wait for each other at each of many short operations,
        on a busy machine a hundred times as long as these take.
        """
        for some in datasets:
            for dataset in some.values() if isinstance(some, Mapping) else [some]:
                self.rows(dataset)
        threads = torch.get_num_threads()
        if self._multiplications_per_step() < _WORTH_A_THREAD:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)

    def _multiplications_per_step(self) -> int:
        return self.args.train_batch_size * sum(parameter.numel() for parameter in self.model.heads.parameters())

    def _embedded_rows(self, dataset: Dataset, model_key: str) -> EmbeddedRows:
        inputs = [name for name in self.collator.input_names if name in dataset.column_names]
        # The main process of each node writes the file that the others read.
        with self.args.main_process_first(desc="embeddings"):
            pooled = self._pooled(dataset.select_columns(inputs), model_key)  # (N, H)
        rest = dataset.remove_columns(inputs)
        batches = []
        for start in range(0, len(dataset), _ROWS_AT_ONCE):
            vectors = pooled[start : start + _ROWS_AT_ONCE].unbind()
            cells: Mapping[str, list[Any]] = rest[start : start + _ROWS_AT_ONCE]
            rows = [{name: values[row] for name, values in cells.items()} for row in range(len(vectors))]
            batches.append(self.collator([{**row, POOLED: vector} for row, vector in zip(rows, vectors, strict=True)]))
        return EmbeddedRows(_joined(batches))

    def _pooled(self, tokens: Dataset, model_key: str) -> Tensor:
        started = time.perf_counter()
        fingerprint, lengths = _fingerprint(tokens, model_key)
        order = np.argsort(-lengths, kind="stable")  # Batches of like length hold little padding.
        file = cache_file("embeddings", fingerprint)
        origin = "read from the cache" if file is not None and Path(file).is_file() else "computed"
        width = self.model.config.hidden_size
        embedded = tokens.select(order).map(
            self._encode,
            batched=True,
            batch_size=self.args.per_device_eval_batch_size,
            remove_columns=tokens.column_names,
            features=Features({POOLED: List(Value("float32"), length=width)}),
            new_fingerprint=fingerprint,
            cache_file_name=file,
            desc="Embedding",
        )
        pooled = torch.empty(len(tokens), width)  # (N, H)
        for start, table in enumerate(embedded.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)):
            vectors = table[POOLED].combine_chunks().flatten().to_numpy().reshape(-1, width)  # (rows, H)
            rows = order[start * _ROWS_AT_ONCE :][: len(vectors)]
            pooled[torch.from_numpy(rows)] = torch.tensor(vectors)
        logger.info(
            "Embeddings of %s rows %s in %.1f s: %d x %d x 4 bytes = %.1f MiB in memory%s.",
            f"{len(tokens):,}",
            origin,
            time.perf_counter() - started,
            *pooled.shape,
            pooled.nbytes / 2**20,
            "" if file is None else f", and in {file}",
        )
        return pooled

    def _encode(self, batch: dict[str, list[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        padded = self.collator.pad(dict(batch)).to(self.model.device)  # (B, T)
        with torch.inference_mode(), self.autocast():
            states = self.model.backbone(**padded, return_dict=True).last_hidden_state  # (B, T, H)
            return {POOLED: self.model.pool(states, padded["attention_mask"]).cpu().numpy()}  # (B, H)

    def _model_key(self) -> str:
        """Returns a key of all that the embeddings of given tokens depend on."""
        tensors = [*self.model.backbone.parameters(), *self.model.backbone.buffers()]
        # Loading a checkpoint writes into the same tensors, which torch counts; the hash is taken anew only then.
        counts = tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)
        state = (self.model.config.pooling, counts)
        if self._key is None or self._key[0] != state:
            self._key = (state, self._key_of_model())
        return self._key[1]

    def _key_of_model(self) -> str:
        backbone, tokenizer = self.model.backbone, self.collator.tokenizer
        settings = {
            "version": [_CACHE_VERSION, version("torch"), version("transformers")],
            "class": f"{type(backbone).__module__}.{type(backbone).__qualname__}",
            "config": key_of_config(backbone.config),
            "attention": backbone.config._attn_implementation,
            "pooling": self.model.config.pooling,
            "padding": [tokenizer.pad_token_id, tokenizer.padding_side],
            "precision": [self.args.precision_in_use, torch.get_float32_matmul_precision()],
            "device": self.model.device.type,
        }
        return key_of(settings, key_of_weights(backbone))


def _fingerprint(tokens: Dataset, model_key: str) -> tuple[str, npt.NDArray[np.int64]]:
    """Returns the key of the embeddings of some tokens, and the length of each row, (N,)."""
    digest = hashlib.blake2b(json.dumps([model_key, sorted(tokens.column_names)]).encode(), digest_size=16)
    lengths = []
    for table in tokens.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
        for name in sorted(tokens.column_names):
            lists = table[name].combine_chunks()
            counts = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
            values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
            digest.update(counts.tobytes() + values.tobytes())
        lengths.append(counts)
    return digest.hexdigest(), np.concatenate(lengths)


def _joined(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: _joined([batch[name] for batch in batches])
        if isinstance(value, Mapping)
        else torch.cat([batch[name] for batch in batches])
        for name, value in batches[0].items()
    }


def _gathered(columns: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
    return {
        name: _gathered(value, index) if isinstance(value, Mapping) else value.index_select(0, index)
        for name, value in columns.items()
    }
