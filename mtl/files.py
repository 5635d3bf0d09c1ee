"""Reading one local file: path -> names of its columns, and an Arrow table of those that are wanted.

A cell is kept as the file has it: the text `null`, the label `NA` and the label `007` stay what they are.
"""

import csv
import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

_CSV_BLOCK_BYTES = 1 << 24  # a row must fit into one block

Table = tuple[list[str], pa.Table]
"""Names of all columns of a file, and the table of the wanted ones among them."""


def read_csv(path: Path, wanted: Collection[str], delimiter: str = ",") -> Table:
    """Reads a UTF-8 file with a header; every cell is a string.

    Raises:
        ValueError: For a wanted column that stands twice, or a file that is no CSV.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        columns = next(csv.reader(file, delimiter=delimiter), [])
    present = _present(columns, wanted)
    # Arrow takes an empty list of columns for all of them.
    if not present:
        return columns, pa.table({})
    table = pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # Everything is read as a string: what a cell means is for the task to say, not for a guess per file.
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=present, column_types=dict.fromkeys(present, pa.string())
        ),
    )
    return columns, table


def read_json(path: Path, wanted: Collection[str]) -> Table:
    """Reads a UTF-8 file that holds one list of objects, or one object a line; an absent key is a missing cell.

    Raises:
        ValueError: For anything else, or a column that mixes types.
    """
    records = _json_records(path.read_text(encoding="utf-8-sig"))
    columns = list(dict.fromkeys(key for record in records for key in record))
    return columns, pa.table(
        {name: _json_column(name, [record.get(name) for record in records]) for name in columns if name in wanted}
    )


def _json_records(content: str) -> list[dict[str, Any]]:
    if content.lstrip().startswith("["):
        records = json.loads(content)
    else:
        # Not `splitlines`, which also breaks at characters that JSON strings may hold.
        records = []
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                try:
                    records.append(json.loads(line))
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} is not a JSON object ({error})") from error
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"row {row} is {record!r}, not a JSON object with the columns as keys.")
    return records


def _json_column(name: str, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except OverflowError as error:
        row = next(row for row, value in enumerate(values) if isinstance(value, int) and abs(value) >= 2**63)
        raise ValueError(
            f"column {name!r} has {values[row]} in row {row}, more than 64 bits hold. Write such numbers as strings."
        ) from error
    except pa.ArrowException as error:
        kinds = {row: type(value).__name__ for row, value in enumerate(values) if value is not None}
        first = next(iter(kinds))
        odd = next((row for row, kind in kinds.items() if kind != kinds[first]), first)
        raise ValueError(
            f"column {name!r} has {values[first]!r} in row {first} and {values[odd]!r} in row {odd}: {error}. Give "
            "all rows of a column one type."
        ) from error


def read_parquet(path: Path, wanted: Collection[str]) -> Table:
    """Reads a Parquet file, with the features that `datasets` may have written into its schema.

    Raises:
        ValueError: For a wanted column that stands twice, or a file that is no Parquet.
    """
    with pyarrow.parquet.ParquetFile(path) as file:
        columns = list(file.schema_arrow.names)
        return columns, file.read(columns=_present(columns, wanted))


def read_lines(path: Path, wanted: Collection[str]) -> Table:
    """Reads a UTF-8 file that holds one text a line, as column `text`; an empty line is an empty text."""
    # Not `splitlines`, which also breaks at characters that a text may hold.
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    if lines[-1] == "":  # What follows the last line break is no line.
        lines.pop()
    texts = pa.array([line.removesuffix("\r") for line in lines], pa.string())
    return ["text"], pa.table({"text": texts} if "text" in wanted else {})


def _present(columns: list[str], wanted: Collection[str]) -> list[str]:
    present = [column for column in columns if column in wanted]
    if len(set(present)) < len(present):
        raise ValueError(f"a column stands twice in the header {columns}. Rename one.")
    return present


READERS: dict[str, Callable[[Path, Collection[str]], Table]] = {
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".json": read_json,
    ".jsonl": read_json,
    ".parquet": read_parquet,
    ".txt": read_lines,
}
"""How to read a file, by its suffix."""
