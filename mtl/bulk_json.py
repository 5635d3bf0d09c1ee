"""JSON lines as tables: nothing that a line says is lost, and what cannot be kept is told with its row."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

BATCH_ROWS = 4096
"""Rows that are read at once."""


def json_records(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields the objects of lines, of which empty ones are passed over.

    Args:
        path: The file, for messages.
        lines: Its lines.

    Raises:
        ValueError: If a line is no JSON object; the message names it.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: this is not JSON ({error}). Mend or remove the line.") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r} is no object with the columns as keys.")
        yield record


def json_tables(
    path: Path, records: Iterable[dict[str, Any]], names: Sequence[str], texts: Sequence[str]
) -> Iterator[pa.Table]:
    """Yields tables of objects, in their order.

    Args:
        path: The file, for messages.
        records: The objects.
        names: Which keys become columns.
        texts: Those among them that have strings; another has in the whole file the type that it begins with.

    Raises:
        ValueError: If a value is not of the type of its column; the message names the rows.
    """
    types: dict[str, pa.DataType] = dict.fromkeys(texts, pa.string())
    batch: list[dict[str, Any]] = []
    first = 0
    for record in records:
        batch.append(record)
        if len(batch) == BATCH_ROWS:
            yield _table(path, names, batch, first, types)
            first, batch = first + len(batch), []
    if batch:
        yield _table(path, names, batch, first, types)


def _table(
    path: Path, names: Sequence[str], records: list[dict[str, Any]], first: int, types: dict[str, pa.DataType]
) -> pa.Table:
    arrays = {}
    for name in names:
        arrays[name] = _array(path, name, [record.get(name) for record in records], first, types.get(name))
        if not pa.types.is_null(arrays[name].type):
            types.setdefault(name, arrays[name].type)
    return pa.table(arrays)


def _array(path: Path, name: str, values: list[Any], first: int, known: pa.DataType | None) -> pa.Array:
    try:
        array = pa.array(values, known)
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise ValueError(
            f"{path}, rows {first} to {first + len(values) - 1}: column {name!r} has values of more than one type, or "
            f"that no Unicode string or 64-bit number can hold ({error}). Give all one type."
        ) from error
    for row, (cell, value) in enumerate(zip(array.to_pylist(), values, strict=True), start=first):
        if not _holds(cell, value):
            raise ValueError(
                f"{path}, row {row} (counted from 0): column {name!r} has {value!r}, of which the type of the rows "
                f"before, {array.type}, would keep {cell!r}. Give all rows one type, or leave it out of --keep."
            )
    return array


def _holds(cell: Any, value: Any) -> bool:
    """Returns whether a cell has all that is in a JSON value: Arrow cuts fractions, and drops keys that are new."""
    if isinstance(value, dict):
        return isinstance(cell, dict) and all(_holds(cell.get(key), inner) for key, inner in value.items())
    if isinstance(value, list):
        return isinstance(cell, list) and len(cell) == len(value) and all(map(_holds, cell, value))
    is_nan = value != value  # The one value that is no equal of itself.
    return isinstance(cell, bool) == isinstance(value, bool) and (cell == value or is_nan)
