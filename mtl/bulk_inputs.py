"""Reading texts from files of any size: blocks of rows, one after another, so that memory is flat.

A cell is kept as the file has it, as in `mtl.files`: in CSV every cell is a string, `""` is an empty one, and nothing
between two commas is a missing one.
"""

import contextlib
import csv
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mtl.bulk_json import BATCH_ROWS, json_records, json_tables

_COMPRESSIONS = (".gz", ".bz2", ".zst")
_CSV_BLOCK_BYTES = 1 << 22  # A row must fit into one block.


@dataclass(frozen=True)
class InputColumns:
    """Which columns of the files are read.

    Args:
        text: Column of the sentences.
        pair: Column of the second sentence, where each row is a pair that is read together.
        kept: Columns that the output has too.
    """

    text: str
    pair: str | None = None
    kept: tuple[str, ...] = ()

    @property
    def texts(self) -> list[str]:
        """The columns of texts."""
        return [self.text] if self.pair is None else [self.text, self.pair]

    @property
    def all(self) -> list[str]:
        """All columns, each once."""
        return list(dict.fromkeys([*self.texts, *self.kept]))


def check_inputs(paths: Sequence[Path], columns: InputColumns) -> None:
    """Looks at the head of every file, so that what is missing is told before any work.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If a file has another ending than those that are read, is a folder or damaged, or lacks a column.
    """
    for path in paths:
        if path.is_dir():
            raise ValueError(f"The input {str(path)!r} is a folder. Give its files, as a pattern: '{path}/*.parquet'.")
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
        if suffix_of(path) not in READERS:
            endings = ", ".join(READERS)
            raise ValueError(
                f"{path}: its ending is none of {endings}, also with {', '.join(_COMPRESSIONS)} after it."
            )
        with _naming(path):
            found = _column_names(path)
        if not found and suffix_of(path) in _JSON:  # A shard without a row has no columns either.
            continue
        if missing := [name for name in columns.all if name not in found]:
            raise ValueError(f"{path}: there is no column {missing[0]!r}, found {found}. Name one of them.")
        if doubled := [name for name in columns.all if found.count(name) > 1]:
            raise ValueError(f"{path}: column {doubled[0]!r} stands twice in {found}. Rename one.")


def check_contents(paths: Sequence[Path], columns: InputColumns) -> None:
    """Reads all files but those of Parquet once, so that a bad row at their end is told before hours of work.

    A file that is mended is another input, so all that was answered until such a row would be lost. Reading takes
    about a hundredth of the time that a small encoder takes to answer. Of Parquet only the types are looked at.

    Raises:
        ValueError: If a file cannot be read as what its ending says, or a kept column has another type than before.
    """
    known = pa.schema([])
    for path in paths:
        for schema in _schemas(path, columns):
            try:
                known = pa.unify_schemas([known, schema])
            except pa.ArrowException as error:
                raise ValueError(
                    f"{path}: a column that is kept has another type than in the files before ({error}). Give it one "
                    "type, or leave it out of --keep."
                ) from error


def read_blocks(paths: Sequence[Path], columns: InputColumns, rows: int, skip: int = 0) -> Iterator[pa.Table]:
    """Yields the rows of all files in their order, so many at once; only the last block may have fewer.

    Args:
        paths: The files, one after another.
        columns: Which columns are read.
        rows: Rows of a block.
        skip: Rows that are left out at the begin.

    Raises:
        ValueError: If a file cannot be read as what its ending says; the message names the line where that is known.
    """
    held: list[pa.Table] = []
    count = 0
    for table in _after(skip, paths, columns):
        held.append(table)
        count += table.num_rows
        while count >= rows:
            whole = _joined(held)
            yield whole.slice(0, rows)
            held, count = [whole.slice(rows)], count - rows
    if count:
        yield _joined(held)


def count_rows(paths: Sequence[Path]) -> int | None:
    """Returns how many rows the files have, or None if that takes reading them."""
    if any(suffix_of(path) != ".parquet" for path in paths):
        return None
    return sum(pyarrow.parquet.read_metadata(path).num_rows for path in paths)


def suffix_of(path: Path) -> str:
    """Returns the ending that says what a file is, without that of its compression."""
    name = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return name.suffix.lower()


def _after(skip: int, paths: Sequence[Path], columns: InputColumns) -> Iterator[pa.Table]:
    for path in paths:
        if skip and suffix_of(path) == ".parquet":
            rows = pyarrow.parquet.read_metadata(path).num_rows
            if rows <= skip:
                skip -= rows
                continue
        for table in _read(path, columns):
            passed = min(skip, table.num_rows)
            skip -= passed
            if passed < table.num_rows:
                yield table.slice(passed)


def _schemas(path: Path, columns: InputColumns) -> Iterator[pa.Schema]:
    """Yields the types of kept columns as they are met; those of texts are strings by then."""
    kept = [name for name in dict.fromkeys(columns.kept) if name not in columns.texts]
    if suffix_of(path) == ".parquet":
        with _naming(path):
            schema = pyarrow.parquet.read_schema(path)
        yield pa.schema([schema.field(name) for name in kept])
        return
    for table in _read(path, columns):
        yield pa.schema([table.schema.field(name) for name in kept])


def _read(path: Path, columns: InputColumns) -> Iterator[pa.Table]:
    with _naming(path):
        yield from READERS[suffix_of(path)](path, columns)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the name of a file before what is wrong in it."""
    try:
        yield
    except (pa.ArrowException, UnicodeError, csv.Error, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # It cannot be opened, and says so itself.
            raise
        raise ValueError(f"{path}: {error}. Mend the file, or take that row out of it.") from error


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="default").combine_chunks()
    except pa.ArrowException as error:
        raise ValueError(
            f"A column that is kept has another type in one file than in another: {error}. Give it one type, or leave "
            "it out of --keep."
        ) from error


def _column_names(path: Path) -> list[str]:
    suffix = suffix_of(path)
    if suffix == ".parquet":
        return list(pyarrow.parquet.read_schema(path).names)
    if suffix == ".txt":
        return ["text"]
    if suffix in (".csv", ".tsv"):
        return _csv_header(path, _DELIMITERS[suffix])
    # Not of the first one alone: what is missing may be left out.
    records = itertools.islice(json_records(path, _lines(path)), BATCH_ROWS)
    return list(dict.fromkeys(key for record in records for key in record))


def _open(path: Path) -> Any:
    return pa.input_stream(str(path), compression="detect")


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n") as text:
        yield from text


def _csv_header(path: Path, delimiter: str) -> list[str]:
    with _open(path) as stream, io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
        return next(csv.reader(text, delimiter=delimiter), [])


def _read_csv(path: Path, columns: InputColumns, delimiter: str) -> Iterator[pa.Table]:
    with _open(path) as stream:
        reader = pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=columns.all,
                column_types=dict.fromkeys(columns.all, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _read_json(path: Path, columns: InputColumns) -> Iterator[pa.Table]:
    return json_tables(path, json_records(path, _lines(path)), columns.all, columns.texts)


def _read_parquet(path: Path, columns: InputColumns) -> Iterator[pa.Table]:
    with pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns.all):
            table = pa.Table.from_batches([batch]).select(columns.all)
            for place, name in enumerate(columns.all):
                if name in columns.texts:  # Strings may be stored as categories, or as large ones.
                    table = table.set_column(place, name, table[name].cast(pa.string()))
            yield table.replace_schema_metadata(None)


def _read_lines(path: Path, columns: InputColumns) -> Iterator[pa.Table]:
    batch: list[str] = []
    for line in _lines(path):
        batch.append(line.removesuffix("\n").removesuffix("\r"))
        if len(batch) == BATCH_ROWS:
            yield pa.table({"text": pa.array(batch, pa.string())})
            batch = []
    if batch:
        yield pa.table({"text": pa.array(batch, pa.string())})


_JSON = (".jsonl", ".ndjson")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
READERS: dict[str, Callable[[Path, InputColumns], Iterator[pa.Table]]] = {
    ".csv": partial(_read_csv, delimiter=","),
    ".tsv": partial(_read_csv, delimiter="\t"),
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".parquet": _read_parquet,
    ".txt": _read_lines,
}
"""How to read a file, by its ending."""
