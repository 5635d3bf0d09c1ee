"""Reading a source: its files, folder or Hub data set -> the rows of each split as an Arrow table, checked."""

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, load_dataset, load_from_disk

from mtl.files import READERS, Table
from mtl.sources import KNOWN_SPLITS, SPLIT_OF_NAME, SPLITS, SourceConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one split of one source.

    Args:
        source: The source.
        split: One of `SPLITS`.
        table: The text and label columns, under the names that they have in the source.
        class_names: Names of the classes of each column that is a `ClassLabel` feature, or a list of them.
        rows: Position of each row in the file or split that it was read from, counted from 0. Shape (rows,).
    """

    source: SourceConfig
    split: str
    table: pa.Table
    class_names: Mapping[str, tuple[str, ...]]
    rows: npt.NDArray[np.int64]

    @property
    def texts(self) -> pa.ChunkedArray:
        """The texts, as they are in the source."""
        return self.table[self.source.text]

    def filter(self, keep: npt.NDArray[np.bool_], split: str | None = None) -> "Part":
        """Returns the rows where `keep`, of shape (rows,), is true; as another split, if one is given."""
        table = self.table.filter(pa.array(keep))
        return dataclasses.replace(self, table=table, rows=self.rows[keep], split=split or self.split)


def text_keys(texts: pa.ChunkedArray, pairs: pa.ChunkedArray | None) -> pa.ChunkedArray:
    """Returns a string for each row that is equal where its text, and its second text if there is one, are equal."""
    texts = texts.cast(pa.string())
    if pairs is None:
        return texts
    joined = pc.binary_join_element_wise(texts, pairs.cast(pa.string()), "\x00")  # Null where there is no second.
    return pc.coalesce(joined, texts)


def read_source(
    source: SourceConfig, *, base_dir: str | os.PathLike[str] | None = None, drop_empty: bool = False
) -> dict[str, Part]:
    """Reads the splits of one source, with texts that are all non-empty strings.

    Args:
        source: The source.
        base_dir: Folder from which relative paths start; the working directory if not given.
        drop_empty: Whether rows without text are left out, with a line in the log, instead of an error.

    Raises:
        FileNotFoundError: If there is no such file, folder or data set.
        ValueError: If a file cannot be read, a column or all rows are missing, a split is unknown, or a text is empty
            or no string.
    """
    parts = {split: _as_part(source, split, table) for split, table in _read_tables(source, base_dir).items()}
    if source.split_column is not None:
        parts = _by_split_column(source, parts)
    parts = {split: _with_texts(part, drop_empty) for split, part in parts.items()}
    for split, part in parts.items():
        if not len(part.rows):
            raise ValueError(f"Source {source.name!r}: split {split!r} has no rows. Fill it, or leave it out.")
    return {split: parts[split] for split in SPLITS if split in parts}


def column_names(source: SourceConfig, *, base_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Returns the columns that a source has in any of its splits; raises as `read_source` does."""
    return list(dict.fromkeys(name for columns, _ in _read_tables(source, base_dir).values() for name in columns))


def _read_tables(source: SourceConfig, base_dir: str | os.PathLike[str] | None) -> dict[str, Table]:
    if source.path is None:
        return {split: _read_file(source, _local(file, base_dir)) for split, file in (source.files or {}).items()}
    path = _local(source.path, base_dir)
    if path.is_dir():
        return _read_folder(source, path)
    # What looks like a path is one: a misspelt file name is never looked up on the Hub.
    is_path = path.suffix.lower() in READERS or source.path.startswith((".", "~")) or Path(source.path).is_absolute()
    if path.is_file() or is_path:
        if source.config_name is not None or source.revision is not None:
            raise ValueError(
                f"Source {source.name!r}: {source.path!r} is a file; `config_name` and `revision` are for data sets "
                "on the Hub. Leave them out."
            )
        return {"train": _read_file(source, path)}
    if Path(source.path).exists():  # The library would take it.
        raise FileNotFoundError(
            f"Source {source.name!r}: there is no {str(path)!r}, only {source.path!r} in the working directory "
            f"({os.getcwd()!r}). Give its full path, or correct `base_dir`."
        )
    return _read_with_datasets(source, source.path)


def _local(path: str, base_dir: str | os.PathLike[str] | None) -> Path:
    return Path(base_dir or ".") / Path(path).expanduser()


def _read_file(source: SourceConfig, path: Path) -> Table:
    if not path.is_file():
        raise FileNotFoundError(
            f"Source {source.name!r}: there is no file {str(path)!r}. Correct the path; a relative one starts at "
            f"`base_dir`, or else at the working directory ({os.getcwd()!r})."
        )
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(
            f"Source {source.name!r}: {str(path)!r} has suffix {path.suffix!r}; known are {list(READERS)}. "
            "Convert the file, or rename it."
        )
    try:
        return reader(path, _wanted(source))
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"Source {source.name!r}: cannot read {str(path)!r}: {error}") from error


def _wanted(source: SourceConfig) -> set[str]:
    columns = {*(column for _, column in source.text_columns), *source.labels.values(), *source.teachers.values()}
    columns |= {*source.slices}
    return columns | ({source.split_column} if source.split_column else set())


def _read_folder(source: SourceConfig, folder: Path) -> dict[str, Table]:
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in READERS]
    by_split = [file for file in files if file.stem.lower() in SPLIT_OF_NAME]
    # Read by ourselves where it can be: `datasets` takes the cells `NA`, `null` and `None` of a CSV file for missing.
    if by_split and source.config_name is None:
        splits = {SPLIT_OF_NAME[file.stem.lower()]: file for file in by_split}
        if len(splits) < len(by_split):
            raise ValueError(
                f"Source {source.name!r}: folder {str(folder)!r} has several files for one split: "
                f"{[file.name for file in by_split]}. Name the right ones in `files`."
            )
        return {split: _read_file(source, file) for split, file in splits.items()}
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _from_datasets(source, load_from_disk(str(folder)))
    return _read_with_datasets(source, str(folder))


def _read_with_datasets(source: SourceConfig, path: str) -> dict[str, Table]:
    try:
        loaded = load_dataset(path, name=source.config_name, revision=source.revision)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError | ConnectionError) else ValueError
        raise kind(
            f"Source {source.name!r}: {path!r} cannot be loaded as a folder or a data set on the Hub: {error} Correct "
            "`path`, `config_name` or `revision`."
        ) from error
    return _from_datasets(source, loaded)


def _from_datasets(source: SourceConfig, loaded: Dataset | DatasetDict) -> dict[str, Table]:
    datasets = {"train": loaded} if isinstance(loaded, Dataset) else loaded
    known = {name: SPLIT_OF_NAME[name.lower()] for name in datasets if name.lower() in SPLIT_OF_NAME}
    if not known or len(set(known.values())) < len(known):
        raise ValueError(
            f"Source {source.name!r}: its splits are {list(datasets)}, but one each of {KNOWN_SPLITS} is needed. "
            "Write the splits to files and set `files`."
        )
    skipped = [name for name in datasets if name not in known]
    if skipped:
        logger.warning("Source %r: splits %s are skipped; known are %s.", source.name, skipped, KNOWN_SPLITS)
    tables = {}
    for name, split in known.items():
        columns = datasets[name].column_names
        chosen = datasets[name].select_columns([column for column in columns if column in _wanted(source)])
        table = chosen.with_format("arrow")[:]
        tables[split] = columns, table.replace_schema_metadata(chosen.features.arrow_schema.metadata)
    return tables


def _as_part(source: SourceConfig, split: str, loaded: Table) -> Part:
    columns, table = loaded
    where = f"split {split!r} of source {source.name!r} (found {columns})"
    for key, column in source.text_columns:
        if column not in columns:
            raise ValueError(f"Text column {column!r} is not in {where}. Set `{key}` in the source.")
    for setting, column in _label_columns(source, split).items():
        if column not in columns:
            task = setting.partition(".")[2]
            raise ValueError(f"Task {task!r}: column {column!r} is not in {where}. Set `{setting}` in the source.")
    _check_slices(source, table, where)
    if source.split_column is not None and source.split_column not in columns:
        raise ValueError(f"Split column {source.split_column!r} is not in {where}. Set `split_column` in the source.")
    return Part(source, split, _plain(table), _class_names(table.schema), np.arange(table.num_rows))


def _check_slices(source: SourceConfig, table: pa.Table, where: str) -> None:
    for column in source.slices:
        if column not in table.column_names:
            raise ValueError(f"Column {column!r} of `slices` is not in {where}. Correct it, or leave it out.")
        if pa.types.is_nested(table.schema.field(column).type):
            raise ValueError(f"Column {column!r} of `slices` holds lists or records in {where}. Leave it out.")


def _plain(table: pa.Table) -> pa.Table:
    """Returns a table whose columns are of the types that the rest of the house knows."""
    for index, item in enumerate(table.schema):
        if pa.types.is_dictionary(item.type):
            table = table.set_column(index, item.name, table[item.name].cast(item.type.value_type))
        elif pa.types.is_string_view(item.type):
            table = table.set_column(index, item.name, table[item.name].cast(pa.string()))
    return table


def _label_columns(source: SourceConfig, split: str) -> dict[str, str]:
    # Nobody is taught by another split than train, so its file may lack the teachers' columns.
    teachers = source.teachers if split == "train" else {}
    labels = {f"labels.{task}": column for task, column in source.labels.items()}
    return labels | {f"teachers.{task}": column for task, column in teachers.items()}


def _class_names(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    features = Features.from_arrow_schema(schema)
    single = {name: getattr(feature, "names", None) for name, feature in features.items()}
    lists = {name: getattr(getattr(feature, "feature", None), "names", None) for name, feature in features.items()}
    return {name: tuple(names) for name in features if (names := single[name] or lists[name])}


def _by_split_column(source: SourceConfig, parts: Mapping[str, Part]) -> dict[str, Part]:
    if list(parts) != ["train"]:
        raise ValueError(
            f"Source {source.name!r} has the splits {list(parts)} and `split_column` {source.split_column!r}. Leave "
            "out `split_column`."
        )
    part = parts["train"]
    column = part.table[source.split_column]
    if pa.types.is_nested(column.type):
        raise ValueError(
            f"Source {source.name!r}: split column {source.split_column!r} is {column.type}, but a split is a name. "
            "Set another column."
        )
    column = column.cast(pa.string())
    names = pc.utf8_lower(pc.utf8_trim_whitespace(column)).to_pylist()
    splits = np.array([SPLIT_OF_NAME.get(name or "", "") for name in names])
    unknown = np.flatnonzero(splits == "")
    if len(unknown):
        row = int(unknown[0])
        raise ValueError(
            f"Source {source.name!r}: split column {source.split_column!r} has {column[row].as_py()!r} in row {row}; "
            f"{len(unknown):,} rows in all have no known split; known are {KNOWN_SPLITS}. Correct the cells."
        )
    return {split: part.filter(splits == split, split) for split in SPLITS if (splits == split).any()}


def _with_texts(part: Part, drop_empty: bool) -> Part:
    for key, column in part.source.text_columns:
        _check_strings(part, column, key)
        if key != "compare_with":
            part = _without_empty(part, column, drop_empty)
    return part


def _place(part: Part, column: str) -> str:
    return f"Source {part.source.name!r}, split {part.split!r}, column {column!r}"


def _check_strings(part: Part, column: str, key: str) -> None:
    texts = part.table[column]
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type) or pa.types.is_null(texts.type)):
        row, value = next((row, value) for row, value in enumerate(texts.to_pylist()) if value is not None)
        raise ValueError(
            f"{_place(part, column)}: a text must be a string, but the column is {texts.type} (row {part.rows[row]} "
            f"is {value!r}). Set `{key}` to the column of the texts, or convert it to strings."
        )


def is_blank(texts: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Returns where a text is missing, empty or white space. Shape (rows,)."""
    blank = pc.equal(pc.utf8_trim_whitespace(texts.cast(pa.string())), "").fill_null(True)
    return blank.combine_chunks().to_numpy(zero_copy_only=False)


def _without_empty(part: Part, column: str, drop_empty: bool) -> Part:
    where, empty = _place(part, column), is_blank(part.table[column])
    if not empty.any():
        return part
    found = f"{int(empty.sum()):,} of {len(empty):,} texts are missing, empty or white space"
    if not drop_empty:
        rows = part.rows[empty][:5].tolist()
        raise ValueError(
            f"{where}: {found}, first in rows {rows} (the first row is 0). Fill them in, or set `drop_empty: true` to "
            "leave these rows out."
        )
    logger.info("%s: %s; these rows are left out.", where, found)
    return part.filter(~empty)
