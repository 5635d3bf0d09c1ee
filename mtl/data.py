"""Sources -> one `DatasetDict`, whose rows carry a text and every task's label or "missing" -> its tokens.

Columns: `text`, one `label_<task>` for each task (see [`label_column`]), and `source`, the name of the source; where a
source has them, `text_pair`, encoded together with the text, `further_1` and `further_2`, each for itself, a
`teacher_<task>`, and a `slice_<column>` for each of its `slices`. Which rows are in which split is told in
`mtl.splits`, what a label cell means in `mtl.labels`, a teacher's in `mtl.teacher_columns`.
"""

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    List,
    NamedSplit,
    Value,
    concatenate_datasets,
)
from transformers import PreTrainedTokenizerBase

from batching_mtl import Text, tokenize
from configuration_mtl import TaskConfig
from mtl.content_keys import cache_file, key_of, key_of_rows, key_of_tokenizer
from mtl.labels import count_labelled, encode_labels, label_column, resolve_task
from mtl.parts import Part, is_blank, read_source
from mtl.sources import FURTHER_COLUMNS, PAIR_COLUMN, SLICE_PREFIX, SPLITS, TEXT_COLUMN, SourceConfig
from mtl.splits import check_overlap, cut_missing_splits
from mtl.teacher_columns import encode_teacher, teacher_column
from tasks_mtl import FURTHER_TEXTS, POSITIVE_PAIRS, TRIPLETS

__all__ = ["SourceConfig", "label_column", "load_sources", "tokenize_splits"]

logger = logging.getLogger(__name__)

_WITHOUT_LABEL = (POSITIVE_PAIRS, TRIPLETS)
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
    columns = _text_columns(sources)
    sliced = list(dict.fromkeys(name for source in sources for name in source.slices))
    tables = {
        split: [_encode(part, tasks, columns, in_columns, sliced) for part in parts if part.split == split]
        for split in SPLITS
    }
    splits = {split: pa.concat_tables(some) for split, some in tables.items() if some}
    splits = check_overlap(splits, drop=drop_overlap)
    _check_labelled(splits, tasks, taught)
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
    names = _checked_names(sources)
    known = [task.name for task in tasks]
    for source in sources:
        for key, given in (("labels", source.labels), ("teachers", source.teachers), ("pairs", source.pairs)):
            unknown = [name for name in given if name not in known]
            if unknown:
                raise ValueError(
                    f"Source {source.name!r}: `{key}` has {unknown}, but the tasks are {known}. Correct it."
                )
        _check_comparisons(source, tasks)
    for task in [task for task in tasks if task.name not in taught]:
        has_column = task.problem_type not in _WITHOUT_LABEL
        if not any(task.name in (source.labels if has_column else source.pairs) for source in sources):
            found, fix = ("label column", f"labels.{task.name}") if has_column else ("rows", "pairs")
            raise ValueError(f"Task {task.name!r} has no {found} in any source {names}. Set `{fix}` in one.")


def _checked_names(sources: Sequence[SourceConfig]) -> list[str]:
    names = [str(source.name) for source in sources]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled or not sources:
        found = f"Sources {doubled} stand more than once" if doubled else "No sources are given"
        raise ValueError(f"{found}. Give at least one source, each with a `name` of its own.")
    return names


def _check_comparisons(source: SourceConfig, tasks: Sequence[TaskConfig]) -> None:
    where, columns = f"Source {source.name!r}", list(source.compare_with)
    headless = [task.name for task in tasks if not task.has_head and task.name in source.teachers]
    if headless:
        raise ValueError(f"{where}: `teachers` has {headless}, tasks without a head to learn. Leave them out.")
    most = 0
    for task in tasks:
        least, takes = FURTHER_TEXTS.get(task.problem_type, (0, 0))
        own, other = ("pairs", "labels") if task.problem_type in _WITHOUT_LABEL else ("labels", "pairs")
        if task.name in getattr(source, other):
            raise ValueError(
                f"{where}: task {task.name!r} is {task.problem_type} and stands under `{other}`. List it in `{own}`."
            )
        if task.name in getattr(source, own):
            most = max(most, takes)
            if len(columns) < least:
                raise ValueError(
                    f"{where}: task {task.name!r} ({task.problem_type}) needs {least} further texts a row, but "
                    f"`compare_with` is {columns}. Name the columns there."
                )
    if len(columns) > most:
        raise ValueError(f"{where}: no task uses {columns[most:]} of `compare_with`. Leave it out, or name the task.")


def _text_columns(sources: Sequence[SourceConfig]) -> list[str]:
    pair = [PAIR_COLUMN] if any(source.text_pair for source in sources) else []
    return [*pair, *FURTHER_COLUMNS[: max(len(source.compare_with) for source in sources)]]


def _encode(
    part: Part,
    tasks: Sequence[TaskConfig],
    columns: Sequence[str],
    in_columns: Collection[str],
    sliced: Sequence[str],
) -> pa.Table:
    own = dict(zip(FURTHER_COLUMNS, part.source.compare_with, strict=False)) | {PAIR_COLUMN: part.source.text_pair}
    texts = {column: _texts_or_null(part, own.get(column)) for column in columns}
    labels = {label_column(task.name): encode_labels(task, part) for task in tasks}
    teachers = {teacher_column(task.name): encode_teacher(task, part) for task in tasks if task.name in in_columns}
    sources = pa.repeat(part.source.name, len(part.rows))
    slices = {f"{SLICE_PREFIX}{name}": _slice_or_null(part, name) for name in sliced}
    own = {TEXT_COLUMN: part.texts.cast(pa.string()), **texts, **labels, **teachers, "source": sources}
    return pa.table(own | slices)


def _slice_or_null(part: Part, column: str) -> pa.Array | pa.ChunkedArray:
    is_there = column in part.source.slices
    return part.table[column].cast(pa.string()) if is_there else pa.nulls(len(part.rows), pa.string())


def _texts_or_null(part: Part, column: str | None) -> pa.Array | pa.ChunkedArray:
    if column is None:
        return pa.nulls(len(part.rows), pa.string())
    texts = part.table[column].cast(pa.string())
    return pc.if_else(pa.array(is_blank(texts)), pa.scalar(None, pa.string()), texts)


def row_texts(rows: Mapping[str, Sequence[Any]]) -> list[Text]:
    """Returns the text of each row, or its pair of texts, as `MTLModel.encode` and `predict` take them."""
    pairs = rows[PAIR_COLUMN] if PAIR_COLUMN in rows else [None] * len(rows[TEXT_COLUMN])
    return [text if pair is None else (text, pair) for text, pair in zip(rows[TEXT_COLUMN], pairs, strict=True)]


def _check_labelled(splits: Mapping[str, pa.Table], tasks: Sequence[TaskConfig], taught: Collection[str]) -> None:
    unlabelled: dict[str, list[str]] = {}
    for split, table in splits.items():
        counts = {task.name: count_labelled(task, table[label_column(task.name)]) for task in tasks}
        shown = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        logger.info("Split %r: %s rows; labelled: %s.", split, f"{table.num_rows:,}", shown)
        for name in [name for name, count in counts.items() if not count]:
            if name in taught:
                unlabelled.setdefault(name, []).append(split)
            elif split == "train":
                raise ValueError(
                    f"Task {name!r} has no labelled row in split 'train'. Fill its column, or drop the task."
                )
            else:
                logger.warning("Task %r has no labelled row in split %r: nothing is measured there.", name, split)
    if unlabelled:
        told = "; ".join(f"{name} in {', '.join(names)}" for name, names in unlabelled.items())
        logger.info("Without any label, known to a teacher alone: %s.", told)


def tokenize_splits(
    datasets: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, max_length: int, keep_text: bool = False
) -> tuple[DatasetDict, dict[str, int]]:
    """Tokenizes the texts of every split; done once, then read from the cache of `datasets`.

    The cache is keyed by the texts, `max_length` and the saved form of the tokenizer, whatever it was called with.

    Args:
        datasets: Splits with column `text`, and the other columns of texts, as [`load_sources`] gives them.
        tokenizer: The tokenizer.
        max_length: Limit at which a text is truncated, in tokens, special tokens included.
        keep_text: Whether the columns of texts stay.

    Returns:
        The splits, and for each one the count of its truncated texts. New columns are what the tokenizer gives but
        the attention mask (`input_ids` as a rule), `length` in tokens, and `row`, the position that the row had. Pairs
        are cut token by token from the longer text. Tokens of further texts are in columns `further_1_input_ids` and
        so on, empty where there is no text, and `length` is that of the longest text of a row.
        Splits other than train are ordered by `length`, longest first, so that their batches hold little padding.

    Raises:
        ValueError: If a split has no column `text`, or `max_length` leaves no room beside the special tokens.
    """
    has_pairs = any(PAIR_COLUMN in columns for columns in datasets.column_names.values())
    special = tokenizer.num_special_tokens_to_add(pair=has_pairs)
    if max_length <= special:
        raise ValueError(f"max_length is {max_length} tokens, of which {special} are special ones. Set it to more.")
    tokenizer_key = key_of_tokenizer(tokenizer)
    splits, truncated = DatasetDict(), {}
    for split, dataset in datasets.items():
        if TEXT_COLUMN not in dataset.column_names:
            raise ValueError(f"Split {split!r} has no column {TEXT_COLUMN!r} (found {dataset.column_names}).")
        own, further = (
            [name for name in names if name in dataset.column_names]
            for names in ((TEXT_COLUMN, PAIR_COLUMN), FURTHER_COLUMNS)
        )
        texts = [dataset.select_columns(own)]
        texts += [dataset.select_columns(name).rename_column(name, TEXT_COLUMN) for name in further]
        pieces = [_tokenize(some, tokenizer, max_length, tokenizer_key) for some in texts]
        count = truncated[split] = sum(pc.sum(piece.data["truncated"]).as_py() or 0 for piece in pieces)
        logger.info("%s: truncated %s of %s texts to %d tokens", split, f"{count:,}", f"{len(dataset):,}", max_length)
        rest = dataset if keep_text else dataset.remove_columns([*own, *further])
        splits[split] = concatenate_datasets([*_joined(pieces, further), rest], axis=1)
        if split != "train":
            lengths = splits[split].data["length"].to_numpy()
            splits[split] = splits[split].select(np.argsort(-lengths, kind="stable"))
    return splits, truncated


def _joined(pieces: Sequence[Dataset], names: Sequence[str]) -> list[Dataset]:
    """Returns the tokens of the first texts, and those of the further ones under their column's name."""
    if not names:
        return [pieces[0].remove_columns("truncated")]
    longest = np.max([piece.data["length"].to_numpy() for piece in pieces], axis=0)  # (rows,)
    joined = [pieces[0].remove_columns(["truncated", "length"]).add_column("length", longest)]
    for piece, name in zip(pieces[1:], names, strict=True):
        tokens = piece.remove_columns(["truncated", "length", "row"])
        joined.append(tokens.rename_columns({column: f"{name}_{column}" for column in tokens.column_names}))
    return joined


def _tokenize(texts: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int, tokenizer_key: str) -> Dataset:
    # `map` would hash the live tokenizer, which remembers how it was last called, and would keep no file at all for a
    # data set that is in memory. So both the key and the file are chosen here.
    key = key_of(_CACHE_VERSION, tokenizer_key, max_length, key_of_rows(texts, texts.column_names))
    return texts.map(
        _tokenize_columns,
        batched=True,
        with_indices=True,
        remove_columns=texts.column_names,
        features=_token_features(texts, tokenizer),
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        new_fingerprint=key,
        cache_file_name=cache_file("tokens", key),
        desc="Tokenizing",
    )


def _token_features(texts: Dataset, tokenizer: PreTrainedTokenizerBase) -> Features | None:
    # Of a batch without any text `map` would not see what its empty lists are lists of.
    if not texts.data[TEXT_COLUMN].null_count:
        return None
    lists = dict.fromkeys(_tokenize_batch([""], [0], tokenizer=tokenizer, max_length=512), "int32")
    scalars = {name: Value(kind) for name, kind in (("length", "int64"), ("row", "int64"), ("truncated", "bool"))}
    return Features({name: List(Value(kind)) for name, kind in lists.items()} | scalars)


def _tokenize_columns(batch: Mapping[str, Sequence[Any]], rows: list[int], **settings: Any) -> dict[str, list[Any]]:
    return _tokenize_batch(row_texts(batch), rows, **settings)


def _tokenize_batch(
    texts: Sequence[Any], rows: list[int], *, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    options = {"padding": False, "return_attention_mask": False, "verbose": False}
    columns = tokenize(tokenizer, ["" if text is None else text for text in texts], truncation=False, **options)
    too_long = [len(ids) > max_length for ids in columns["input_ids"]]
    places = [place for place, is_long in enumerate(too_long) if is_long]
    if places:
        # Of a pair the longer text loses its last tokens first: `truncation=True` is `longest_first`.
        short = tokenize(
            tokenizer, [texts[place] or "" for place in places], truncation=True, max_length=max_length, **options
        )
        for name, values in columns.items():
            for place, value in zip(places, short[name], strict=True):
                values[place] = value
    absent = [text is None for text in texts]
    columns = {
        name: [[] if is_absent else value for is_absent, value in zip(absent, values, strict=True)]
        for name, values in columns.items()
    }
    truncated = [is_long and not is_absent for is_long, is_absent in zip(too_long, absent, strict=True)]
    lengths = [len(ids) for ids in columns["input_ids"]]
    return {**columns, "length": lengths, "row": rows, "truncated": truncated}
