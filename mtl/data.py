"""Sources -> one `DatasetDict`, whose rows carry a text and every task's label or "missing" -> its tokens.

Columns: `text`, one `label_<task>` for each task (see [`label_column`]), one `teacher_<task>` for each that a source
has a teacher's column for, and `source`, the name of the source. Which rows are in which split is told in
`mtl.splits`, what a label cell means in `mtl.labels`, a teacher's in `mtl.teacher_columns`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, NamedSplit, concatenate_datasets, is_caching_enabled
from datasets import config as datasets_config
from transformers import PreTrainedTokenizerBase

from configuration_mtl import TaskConfig
from mtl.content_keys import key_of_tokenizer
from mtl.labels import count_labelled, encode_labels, label_column, resolve_task
from mtl.parts import Part, read_source
from mtl.sources import SPLITS, TEXT_COLUMN, SourceConfig
from mtl.splits import check_overlap, cut_missing_splits
from mtl.teacher_columns import encode_teacher, teacher_column

__all__ = ["SourceConfig", "label_column", "load_sources", "tokenize_splits"]

logger = logging.getLogger(__name__)

_CACHE_VERSION = 1  # raise it when `_tokenize_batch` gives something else for the same texts


def load_sources(
    sources: Sequence[SourceConfig],
    tasks: Sequence[TaskConfig],
    *,
    base_dir: str | os.PathLike[str] | None = None,
    seed: int = 42,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    drop_empty: bool = False,
    drop_overlap: bool = False,
    taught: Collection[str] = (),
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Reads the sources into one `DatasetDict` and completes the tasks with the labels that the data has.

    Args:
        sources: The sources; their names must differ.
        tasks: The tasks; each one labelled, or taught, by at least one source.
        base_dir: Folder from which relative paths of sources start; the working directory if not given.
        seed: Seed of the cuts.
        validation_fraction: Share of a source's distinct train texts that becomes validation where it has none; 0 for
            no cut.
        test_fraction: The same for test.
        drop_empty: Whether rows without text are left out, where they are an error otherwise.
        drop_overlap: Whether rows of validation and test whose text is also in train are left out.
        taught: Tasks that a teacher will label, so that no source needs to.

    Returns:
        The splits that there are, of train, validation and test, and the tasks with their number of labels known
        (without a split train, the configuration or `ClassLabel` columns must tell it).

    Raises:
        FileNotFoundError: If a file, folder or data set is not there.
        ValueError: If a source, a task, a text or a label is not as it must be; the message says where, and the fix.
    """
    in_columns = {name for source in sources for name in source.teachers}
    taught = in_columns | set(taught)
    _check_settings(sources, tasks, validation_fraction, test_fraction, taught)
    parts = [
        part for source in sources for part in read_source(source, base_dir=base_dir, drop_empty=drop_empty).values()
    ]
    # Before the cuts: a rare label can have all its rows in what is cut off.
    tasks = tuple(resolve_task(task, parts) for task in tasks)
    parts = cut_missing_splits(parts, {"test": test_fraction, "validation": validation_fraction}, seed)
    if not any(part.split == "train" for part in parts):
        logger.warning("No source has a split 'train': there is nothing to train on.")
    tables = {split: [_encode(part, tasks, in_columns) for part in parts if part.split == split] for split in SPLITS}
    splits = {split: pa.concat_tables(some) for split, some in tables.items() if some}
    splits = check_overlap(splits, drop=drop_overlap)
    for split, table in splits.items():
        _check_labelled(split, table, tasks, taught)
    return DatasetDict({name: Dataset(table, split=NamedSplit(name)) for name, table in splits.items()}), tasks


def _check_settings(
    sources: Sequence[SourceConfig],
    tasks: Sequence[TaskConfig],
    validation_fraction: float,
    test_fraction: float,
    taught: Collection[str],
) -> None:
    shares = (validation_fraction, test_fraction)
    if not all(0 <= share < 1 for share in shares) or sum(shares) >= 1:
        raise ValueError(f"validation_fraction and test_fraction are {shares}; each must be >= 0 and their sum < 1.")
    names = [source.name for source in sources]
    doubled = sorted({str(name) for name in names if names.count(name) > 1})
    if doubled or not sources:
        found = f"Sources {doubled} stand more than once" if doubled else "No sources are given"
        raise ValueError(f"{found}. Give at least one source, each with a `name` of its own.")
    known = [task.name for task in tasks]
    for source in sources:
        for key, by_task in (("labels", source.labels), ("teachers", source.teachers)):
            unknown = [name for name in by_task if name not in known]
            if unknown:
                raise ValueError(
                    f"Source {source.name!r}: `{key}` has {unknown}, but the tasks are {known}. Correct it."
                )
    for name in known:
        if name not in taught and not any(name in source.labels for source in sources):
            raise ValueError(f"Task {name!r} has no label column in any source {names}. Set `labels.{name}` in one.")


def _encode(part: Part, tasks: Sequence[TaskConfig], in_columns: Collection[str]) -> pa.Table:
    labels = {label_column(task.name): encode_labels(task, part) for task in tasks}
    teachers = {teacher_column(task.name): encode_teacher(task, part) for task in tasks if task.name in in_columns}
    sources = pa.repeat(part.source.name, len(part.rows))
    return pa.table({TEXT_COLUMN: part.texts.cast(pa.string()), **labels, **teachers, "source": sources})


def _check_labelled(split: str, table: pa.Table, tasks: Sequence[TaskConfig], taught: Collection[str]) -> None:
    counts = {task.name: count_labelled(task, table[label_column(task.name)]) for task in tasks}
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    logger.info("Split %r: %s rows; labelled: %s.", split, f"{table.num_rows:,}", shown)
    for name in [name for name, count in counts.items() if not count]:
        if name in taught:
            logger.info("Task %r has no labelled row in split %r: its teacher alone knows it there.", name, split)
            continue
        if split == "train":
            raise ValueError(f"Task {name!r} has no labelled row in split 'train'. Fill its column, or drop the task.")
        logger.warning("Task %r has no labelled row in split %r: nothing is measured there.", name, split)


def tokenize_splits(
    datasets: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, max_length: int, keep_text: bool = False
) -> tuple[DatasetDict, dict[str, int]]:
    """Tokenizes column `text` of every split; done once, then read from the cache of `datasets`.

    The cache is keyed by the texts, `max_length` and the saved form of the tokenizer, whatever it was called with.

    Args:
        datasets: Splits with column `text`, as [`load_sources`] gives them.
        tokenizer: The tokenizer.
        max_length: Limit at which a text is truncated, in tokens, special tokens included.
        keep_text: Whether column `text` stays.

    Returns:
        The splits, and for each one the count of its truncated texts. New columns are what the tokenizer gives but
        the attention mask (`input_ids` as a rule), `length` in tokens, and `row`, the position that the row had.
        Splits other than train are ordered by `length`, longest first, so that their batches hold little padding.

    Raises:
        ValueError: If a split has no column `text`, or `max_length` leaves no room beside the special tokens.
    """
    special = tokenizer.num_special_tokens_to_add(pair=False)
    if max_length <= special:
        raise ValueError(f"max_length is {max_length} tokens, of which {special} are special ones. Set it to more.")
    tokenizer_key = key_of_tokenizer(tokenizer)
    splits, truncated = DatasetDict(), {}
    for split, dataset in datasets.items():
        if TEXT_COLUMN not in dataset.column_names:
            raise ValueError(f"Split {split!r} has no column {TEXT_COLUMN!r} (found {dataset.column_names}).")
        tokens = _tokenize(dataset.select_columns(TEXT_COLUMN), tokenizer, max_length, tokenizer_key)
        count = truncated[split] = pc.sum(tokens.data["truncated"]).as_py() or 0
        logger.info("%s: truncated %s of %s texts to %d tokens", split, f"{count:,}", f"{len(dataset):,}", max_length)
        rest = dataset if keep_text else dataset.remove_columns(TEXT_COLUMN)
        splits[split] = concatenate_datasets([tokens.remove_columns("truncated"), rest], axis=1)
        if split != "train":
            lengths = tokens.data["length"].to_numpy()
            splits[split] = splits[split].select(np.argsort(-lengths, kind="stable"))
    return splits, truncated


def _tokenize(texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, tokenizer_key: str) -> Dataset:
    # `map` would hash the live tokenizer, which remembers how it was last called, and would keep no file at all for a
    # data set that is in memory. So both the key and the file are chosen here.
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_CACHE_VERSION, tokenizer_key, max_length]).encode())
    for batch in texts.iter(batch_size=1000):
        digest.update(json.dumps(batch[TEXT_COLUMN]).encode())
    fingerprint, cache_file = digest.hexdigest(), None
    if is_caching_enabled():
        cache_file = Path(datasets_config.HF_DATASETS_CACHE) / "mtl" / f"tokens-{fingerprint}.arrow"
        cache_file.parent.mkdir(parents=True, exist_ok=True)
    return texts.map(
        _tokenize_batch,
        batched=True,
        with_indices=True,
        input_columns=TEXT_COLUMN,
        remove_columns=TEXT_COLUMN,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        new_fingerprint=fingerprint,
        cache_file_name=None if cache_file is None else str(cache_file),
        desc="Tokenizing",
    )


def _tokenize_batch(
    texts: list[str], rows: list[int], *, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    options = {"padding": False, "return_attention_mask": False, "verbose": False}
    columns = {name: list(values) for name, values in tokenizer(texts, truncation=False, **options).items()}
    too_long = [len(ids) > max_length for ids in columns["input_ids"]]
    places = [place for place, is_long in enumerate(too_long) if is_long]
    if places:
        short = tokenizer([texts[place] for place in places], truncation=True, max_length=max_length, **options)
        for name, values in columns.items():
            for place, value in zip(places, short[name], strict=True):
                values[place] = value
    lengths = [len(ids) for ids in columns["input_ids"]]
    return {**columns, "length": lengths, "row": rows, "truncated": too_long}
