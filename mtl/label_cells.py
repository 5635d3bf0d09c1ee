"""Label cells of a source as they stand in its files -> flat values, each with its row; nothing is encoded yet.

What a cell means is said in `mtl.labels`.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from configuration_mtl import TaskConfig
from mtl.parts import Part
from tasks_mtl import CLASS_ID_TYPES, MULTI_LABEL, REGRESSION

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"  # what fits into int64, and comes back from it as it was
_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBER_KINDS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)


class CellError(ValueError):
    """A cell or column that cannot be read as labels of its task.

    Args:
        fact: What was found, and where.
        fix: What to do about it, which a program that has other settings says in its own words.
    """

    def __init__(self, fact: str, fix: str) -> None:
        super().__init__(f"{fact} {fix}")
        self.fact, self.fix = fact, fix


@dataclass(frozen=True, eq=False)
class Cells:
    """The values of a label column, laid flat: one a row, or any number a row where cells are lists.

    Args:
        values: The values. Shape (values,).
        parents: Row of each value. Shape (values,).
        given: Whether a row has a label at all. Shape (rows,).
    """

    values: pa.Array
    parents: npt.NDArray[np.int64]
    given: npt.NDArray[np.bool_]


def _column(task: TaskConfig, part: Part) -> pa.Array:
    return part.table[part.source.labels[task.name]].combine_chunks()


def place_of(task: TaskConfig, part: Part, row: int | None = None) -> str:
    """Says, for a message, where a task's column stands, and in which row of it."""
    place = f"column {part.source.labels[task.name]!r} of source {part.source.name!r}, split {part.split!r}"
    return f"Task {task.name!r}: {place}" + ("" if row is None else f", row {part.rows[row]} (the first row is 0),")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_given(values: pa.Array) -> npt.NDArray[np.bool_]:
    return values.is_valid().to_numpy(zero_copy_only=False)


def read_single(task: TaskConfig, part: Part) -> Cells:
    """Returns the cells of a column that holds one value a row."""
    column = _column(task, part)
    return Cells(column, np.arange(len(column)), _is_given(column))


def read_names(task: TaskConfig, part: Part) -> Cells:
    """Returns the labels of a classification as strings, null where missing.

    Raises:
        ValueError: For cells that cannot be labels, or lists where none are meant, and the other way round.
    """
    if task.problem_type in CLASS_ID_TYPES:
        cells = read_single(task, part)
        names = _names(task, part, cells.values)
        return dataclasses.replace(cells, values=names, given=_is_given(names))
    cells = read_lists(task, part)
    _check_no_vectors(task, part, cells)
    names = _names(task, part, cells.values)
    blank = np.flatnonzero(~_is_given(names))
    if len(blank):
        where = place_of(task, part, int(cells.parents[blank[0]]))
        raise ValueError(f"{where} has an empty label in its list. Leave it out of the list.")
    return dataclasses.replace(cells, values=names)


def read_lists(task: TaskConfig, part: Part) -> Cells:
    """Returns the values of a column of lists, or of strings that `label_separator` cuts into lists.

    Raises:
        ValueError: If the column holds something else.
    """
    column, separator = _column(task, part), part.source.label_separator
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    text = _is_text(column.type)
    if text and separator is not None:
        written = np.flatnonzero(pc.match_substring_regex(column, r"^\s*\[.*\]\s*$").fill_null(False))
        if len(written):
            raise ValueError(
                f"{place_of(task, part, int(written[0]))} has {column[int(written[0])].as_py()!r}, a list written out "
                "as text. Leave out brackets and quotes, or store lists (JSON, Parquet)."
            )
        column = pc.split_pattern(_without_blanks(column.cast(pa.string())), separator)
    if not any(is_kind(column.type) for is_kind in _LIST_KINDS):
        raise CellError(
            f"{place_of(task, part)} is {column.type}, but the cells of this task are lists.",
            "Store lists (JSON, Parquet), or strings with `label_separator` set in the source.",
        )
    values, parents = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
    if text:
        values = pc.utf8_trim_whitespace(values)
        if task.problem_type == MULTI_LABEL:
            full = pc.not_equal(values, "")
            values, parents = values.filter(full), parents[full.to_numpy(zero_copy_only=False)]
    return Cells(values, parents, _is_given(column))


def _check_no_vectors(task: TaskConfig, part: Part, cells: Cells) -> None:
    """Refuses vectors of zeros and ones, which would be taken for lists of the ids 0 and 1."""
    kind, values = cells.values.type, cells.values
    if _is_text(kind):
        if not len(values) or not all_integers(values):
            return
        values = values.cast(pa.int64())
    elif not any(is_kind(kind) for is_kind in (pa.types.is_integer, pa.types.is_boolean, pa.types.is_floating)):
        return
    values = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    order = np.lexsort((values, cells.parents))
    rows, values = cells.parents[order], values[order]
    doubled = rows[1:][(rows[1:] == rows[:-1]) & (values[1:] == values[:-1])]
    widths = np.bincount(cells.parents, minlength=len(cells.given))[cells.given]
    # Two classes, of which every row has both, would be no task.
    if len(doubled) or (set(values) == {0, 1} and set(widths) == {2}):
        row = int(doubled[0] if len(doubled) else rows[0])
        raise ValueError(
            f"{place_of(task, part, row)} looks like a vector of zeros and ones. Give the labels that hold, by name "
            "or by id."
        )


def _without_blanks(strings: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(pc.utf8_trim_whitespace(strings), ""), pa.scalar(None, pa.string()), strings)


def _names(task: TaskConfig, part: Part, values: pa.Array) -> pa.Array:
    """Returns labels as strings, null where missing."""
    kind, declared = values.type, part.class_names.get(part.source.labels[task.name])
    if declared is not None:
        return _declared_names(task, part, values, declared)
    if pa.types.is_boolean(kind):
        return pc.if_else(values, "True", "False")
    if pa.types.is_floating(kind):
        # What pandas makes of integers with gaps.
        whole = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
        try:
            return whole.cast(pa.int64()).cast(pa.string())
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{place_of(task, part)} holds fractions ({error}), which are no class labels. Set another column, or "
                f"problem_type: {REGRESSION}."
            ) from error
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return values.cast(pa.string())
    if _is_text(kind):
        return _without_blanks(values.cast(pa.string()))
    raise _no_label(task, part, kind)


def _no_label(task: TaskConfig, part: Part, kind: pa.DataType) -> ValueError:
    return ValueError(
        f"{place_of(task, part)} is {kind}, but a label is a string, an integer or a boolean. Convert it, or set "
        f"another column as `labels.{task.name}` in the source."
    )


def _declared_names(task: TaskConfig, part: Part, values: pa.Array, declared: Sequence[str]) -> pa.Array:
    if not pa.types.is_integer(values.type):  # A list of classes, where one is meant.
        raise _no_label(task, part, values.type)
    ids = values.cast(pa.int64())
    ids = pc.if_else(pc.equal(ids, -1), pa.scalar(None, pa.int64()), ids)
    bounds = pc.min_max(ids).as_py()
    if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(declared):
        raise ValueError(
            f"{place_of(task, part)} is a ClassLabel with {len(declared)} names, but its ids go from {bounds['min']} "
            f"to {bounds['max']}. Correct the ids, or give the feature all its names."
        )
    return pa.array(declared, pa.string()).take(ids)


def is_integer(names: pa.Array) -> pa.Array:
    """Returns, value by value, whether a string is an integer as it would be written; null stays null."""
    return pc.match_substring_regex(names, _INTEGER)


def all_integers(names: pa.Array) -> bool:
    """Returns whether all strings that are there are integers."""
    return bool(pc.all(is_integer(names), min_count=0).as_py())


def read_numbers(task: TaskConfig, part: Part, cells: Cells) -> npt.NDArray[np.float64]:
    """Returns each value as a number that float32 holds, nan where missing. Shape (values,).

    Raises:
        ValueError: For a value that is no number, or not finite in float32.
    """
    values = cells.values
    if _is_text(values.type):
        values = _parsed(task, part, cells)
    elif not any(is_kind(values.type) for is_kind in _NUMBER_KINDS):
        raise ValueError(
            f"{place_of(task, part)} is {values.type}, but this task needs numbers. Convert it, or set another "
            f"column as `labels.{task.name}` in the source."
        )
    numbers = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        infinite = np.flatnonzero(np.isinf(numbers.astype(np.float32)))
    if len(infinite):
        where = place_of(task, part, int(cells.parents[infinite[0]]))
        raise ValueError(f"{where} has {numbers[infinite[0]]}, which is not finite in float32. Correct the cell.")
    return numbers


def _parsed(task: TaskConfig, part: Part, cells: Cells) -> pa.Array:
    strings = _without_blanks(pc.utf8_trim_whitespace(cells.values.cast(pa.string())))
    try:
        return strings.cast(pa.float64())
    except pa.ArrowInvalid:
        for place, string in enumerate(strings):
            try:
                string.cast(pa.float64())
            except pa.ArrowInvalid as error:
                where = place_of(task, part, int(cells.parents[place]))
                raise ValueError(
                    f"{where} has {string.as_py()!r}, which is not a number. Correct the cell; an empty one is a "
                    "missing label."
                ) from error
        raise
