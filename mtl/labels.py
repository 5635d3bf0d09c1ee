"""Label cells of a source -> label columns: class ids, multi-hot vectors or numbers, and missing where none is given.

What a cell means:

- `None`, the empty string and white space are missing; so is nan, where numbers are meant, and -1 in a `ClassLabel`
  column, by which `datasets` marks unlabelled rows.
- Integers, and strings that all look like integers, are class ids where a task has no label names, or where none of
  its names looks like an integer. Else a cell is a label's name, exactly as written; a boolean is "True" or "False".
- In a multi-label task a cell is a list, and an empty list says that no label applies. With `label_separator` it is a
  string: an empty one is missing, and one that holds nothing but separators says that no label applies.
- In a regression with several outputs a cell is a list (or a separated string) with one number for each; nan or None
  inside it is a missing output.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from configuration_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TaskConfig
from mtl.parts import Part

_INTEGER = r"^(0|-?[1-9][0-9]{0,17})$"  # what fits into int64, and comes back from it as it was
_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBER_KINDS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)
_MOST_SHOWN = 20  # labels listed in a message


def label_column(task_name: str) -> str:
    """Returns the name of the column that holds a task's labels."""
    return f"label_{task_name}"


@dataclass(frozen=True, eq=False)
class _Cells:
    """The values of a label column, laid flat: one a row, or any number a row where cells are lists.

    Args:
        values: The values. Shape (values,).
        parents: Row of each value. Shape (values,).
        given: Whether a row has a label at all. Shape (rows,).
    """

    values: pa.Array
    parents: npt.NDArray[np.int64]
    given: npt.NDArray[np.bool_]


def resolve_task(task: TaskConfig, parts: Sequence[Part]) -> TaskConfig:
    """Returns the task with its labels filled in from the data, where the configuration names none.

    They are the names of `ClassLabel` columns, in their order; else the distinct values of split train, sorted, as
    numbers if all are integers. A task with `num_labels` over integers stays as it is: the cells are its class ids.

    Args:
        task: The task.
        parts: All that was read, of every source and split.

    Raises:
        ValueError: If split train has no label, the labels are not as many as `num_labels`, or a cell cannot be read.
    """
    if task.problem_type == REGRESSION or task.labels is not None:
        return task
    mine = [part for part in parts if task.name in part.source.labels]
    names = [part.class_names.get(part.source.labels[task.name], ()) for part in mine]
    labels = list(dict.fromkeys(name for some in names for name in some))
    if not labels:
        labels = _labels_in_train(task, mine)
        if task.num_labels is not None and _all_integers(pa.array(labels, pa.string())):
            return task
    if task.num_labels not in (None, len(labels)):
        raise ValueError(
            f"Task {task.name!r}: num_labels is {task.num_labels}, but the data has {len(labels)} labels: "
            f"{labels[:_MOST_SHOWN]}. Correct `num_labels`, or name the labels in `labels`."
        )
    return dataclasses.replace(task, labels=tuple(labels))


def _labels_in_train(task: TaskConfig, parts: Sequence[Part]) -> list[str]:
    trains = [part for part in parts if part.split == "train"]
    names = pa.chunked_array([_read_names(task, part).values for part in trains], pa.string())
    labels = names.unique().drop_null().to_pylist()
    # Where there is no train at all, nothing is to be learned, and `num_labels` is enough.
    if not labels and (trains or task.num_labels is None):
        raise ValueError(f"Task {task.name!r} has no label in split 'train'. Fill its column, or name its `labels`.")
    return sorted(labels, key=int) if _all_integers(pa.array(labels, pa.string())) else sorted(labels)


def encode_labels(task: TaskConfig, part: Part) -> pa.Array:
    """Returns the label column of a resolved task for the rows of a part.

    Returns:
        int64 class ids with -100 for missing, (rows,); for multi-label float32 zeros and ones, (rows, C), and for
        regression float32 numbers, (rows,) or (rows, C), with nan for missing.

    Raises:
        ValueError: For a cell that is no label of the task: names source, split, row, column and value.
    """
    if task.name in part.source.labels:
        return _ENCODERS[task.problem_type](task, part)
    if task.problem_type == SINGLE_LABEL:
        return _as_column(task, np.full(len(part.rows), IGNORE_INDEX))
    return _as_column(task, np.full((len(part.rows), task.num_labels or 1), np.nan))


def count_labelled(task: TaskConfig, column: pa.ChunkedArray) -> int:
    """Returns in how many rows of a label column the task has a label."""
    if task.problem_type == SINGLE_LABEL:
        return pc.sum(pc.not_equal(column, IGNORE_INDEX)).as_py() or 0
    array = column.combine_chunks()
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return int((~np.isnan(values.to_numpy())).reshape(len(array), -1).any(axis=1).sum())


def _encode_single(task: TaskConfig, part: Part) -> pa.Array:
    ids = _class_ids(task, part, _read_names(task, part))
    return _as_column(task, ids)


def _encode_multi(task: TaskConfig, part: Part) -> pa.Array:
    cells = _read_names(task, part)
    hot = np.zeros((len(cells.given), task.num_labels or 1))  # (rows, C)
    hot[~cells.given] = np.nan
    hot[cells.parents, _class_ids(task, part, cells)] = 1.0
    return _as_column(task, hot)


def _encode_regression(task: TaskConfig, part: Part) -> pa.Array:
    width = task.num_labels or 1
    if width == 1:
        column = _column(task, part)
        return _as_column(task, _numbers(task, part, _Cells(column, np.arange(len(column)), _is_given(column))))
    cells = _lists(task, part)
    counts = np.bincount(cells.parents, minlength=len(cells.given))
    wrong = np.flatnonzero(cells.given & (counts != width))
    if len(wrong):
        where = _where(task, part, int(wrong[0]))
        raise ValueError(f"{where} has {counts[wrong[0]]} numbers, but the task {width} outputs. Correct the cell.")
    numbers = np.full((len(cells.given), width), np.nan)  # (rows, C)
    numbers[cells.given] = _numbers(task, part, cells).reshape(-1, width)
    return _as_column(task, numbers)


_ENCODERS: dict[str, Callable[[TaskConfig, Part], pa.Array]] = {
    SINGLE_LABEL: _encode_single,
    MULTI_LABEL: _encode_multi,
    REGRESSION: _encode_regression,
}


def _as_column(task: TaskConfig, values: npt.NDArray) -> pa.Array:
    if task.problem_type == SINGLE_LABEL:
        return pa.array(values.reshape(-1).astype(np.int64))
    # `from_pandas` would turn nan into null, which no tensor can hold.
    flat = pa.array(values.reshape(-1).astype(np.float32), from_pandas=False)
    if task.problem_type == REGRESSION and task.num_labels == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, task.num_labels)


def _column(task: TaskConfig, part: Part) -> pa.Array:
    return part.table[part.source.labels[task.name]].combine_chunks()


def _where(task: TaskConfig, part: Part, row: int | None = None) -> str:
    place = f"column {part.source.labels[task.name]!r} of source {part.source.name!r}, split {part.split!r}"
    return f"Task {task.name!r}: {place}" + ("" if row is None else f", row {part.rows[row]} (the first row is 0),")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_given(values: pa.Array) -> npt.NDArray[np.bool_]:
    return values.is_valid().to_numpy(zero_copy_only=False)


def _read_names(task: TaskConfig, part: Part) -> _Cells:
    if task.problem_type == SINGLE_LABEL:
        names = _names(task, part, _column(task, part))
        return _Cells(names, np.arange(len(names)), _is_given(names))
    cells = _lists(task, part)
    _check_no_vectors(task, part, cells)
    names = _names(task, part, cells.values)
    blank = np.flatnonzero(~_is_given(names))
    if len(blank):
        where = _where(task, part, int(cells.parents[blank[0]]))
        raise ValueError(f"{where} has an empty label in its list. Leave it out of the list.")
    return dataclasses.replace(cells, values=names)


def _lists(task: TaskConfig, part: Part) -> _Cells:
    column, separator = _column(task, part), part.source.label_separator
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    text = _is_text(column.type)
    if text and separator is not None:
        written = np.flatnonzero(pc.match_substring_regex(column, r"^\s*\[.*\]\s*$").fill_null(False))
        if len(written):
            raise ValueError(
                f"{_where(task, part, int(written[0]))} has {column[int(written[0])].as_py()!r}, a list written out "
                "as text. Leave out brackets and quotes, or store lists (JSON, Parquet)."
            )
        column = pc.split_pattern(_without_blanks(column.cast(pa.string())), separator)
    if not any(is_kind(column.type) for is_kind in _LIST_KINDS):
        raise ValueError(
            f"{_where(task, part)} is {column.type}, but the cells of this task are lists. Store lists (JSON, "
            "Parquet), or strings with `label_separator` set in the source."
        )
    values, parents = pc.list_flatten(column), pc.list_parent_indices(column).to_numpy()
    if text:
        values = pc.utf8_trim_whitespace(values)
        if task.problem_type == MULTI_LABEL:
            full = pc.not_equal(values, "")
            values, parents = values.filter(full), parents[full.to_numpy(zero_copy_only=False)]
    return _Cells(values, parents, _is_given(column))


def _check_no_vectors(task: TaskConfig, part: Part, cells: _Cells) -> None:
    """Refuses vectors of zeros and ones, which would be taken for lists of the ids 0 and 1."""
    kind, values = cells.values.type, cells.values
    if _is_text(kind):
        if not len(values) or not _all_integers(values):
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
            f"{_where(task, part, row)} looks like a vector of zeros and ones. Give the labels that hold, by name or "
            "by id."
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
                f"{_where(task, part)} holds fractions ({error}), which are no class labels. Set another column, or "
                f"problem_type: {REGRESSION}."
            ) from error
    if pa.types.is_integer(kind) or pa.types.is_null(kind):
        return values.cast(pa.string())
    if _is_text(kind):
        return _without_blanks(values.cast(pa.string()))
    raise ValueError(
        f"{_where(task, part)} is {kind}, but a label is a string, an integer or a boolean. Convert it, or set "
        f"another column as `labels.{task.name}` in the source."
    )


def _declared_names(task: TaskConfig, part: Part, values: pa.Array, declared: Sequence[str]) -> pa.Array:
    ids = values.cast(pa.int64())
    ids = pc.if_else(pc.equal(ids, -1), pa.scalar(None, pa.int64()), ids)
    bounds = pc.min_max(ids).as_py()
    if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(declared):
        raise ValueError(
            f"{_where(task, part)} is a ClassLabel with {len(declared)} names, but its ids go from {bounds['min']} to "
            f"{bounds['max']}. Correct the ids, or give the feature all its names."
        )
    return pa.array(declared, pa.string()).take(ids)


def _all_integers(names: pa.Array) -> bool:
    return bool(pc.all(pc.match_substring_regex(names, _INTEGER), min_count=0).as_py())


def _class_ids(task: TaskConfig, part: Part, cells: _Cells) -> npt.NDArray[np.int64]:
    """Returns the class id of each value, -100 where missing. Shape (values,)."""
    named = task.labels is not None and (
        part.source.labels[task.name] in part.class_names
        or not _all_integers(cells.values)
        or any(_all_integers(pa.array([label])) for label in task.labels)
    )
    if named:
        ids = pc.index_in(cells.values, value_set=pa.array(task.labels, pa.string()))
        wrong = ids.is_null()
    elif _all_integers(cells.values):
        ids = cells.values.cast(pa.int64())
        wrong = pc.or_(pc.less(ids, 0), pc.greater_equal(ids, task.num_labels))
    else:
        ids = pa.nulls(len(cells.values), pa.int64())
        wrong = pc.invert(pc.match_substring_regex(cells.values, _INTEGER))
    places = np.flatnonzero(pc.and_(wrong.fill_null(False), cells.values.is_valid()).to_numpy(zero_copy_only=False))
    if len(places):
        value, row = cells.values[int(places[0])].as_py(), int(cells.parents[places[0]])
        problem = _unknown_label(task, value) if named else _unknown_id(task, value)
        raise ValueError(f"{_where(task, part, row)} has {problem} ({len(places):,} such cells in all)")
    return ids.fill_null(IGNORE_INDEX).to_numpy().astype(np.int64)


def _unknown_label(task: TaskConfig, value: str) -> str:
    labels = list(task.labels or ())
    near = difflib.get_close_matches(value, labels, n=3, cutoff=0.5)
    hint = f"nearest are {near}" if near else f"known are {labels[:_MOST_SHOWN]}"
    return f"the unknown label {value!r}; {hint}. Correct the cell, or add the label to `labels` of the task."


def _unknown_id(task: TaskConfig, value: str) -> str:
    return (
        f"the class id {value!r}, but ids go from 0 to {(task.num_labels or 1) - 1}. Correct the cell (an empty one "
        "is a missing label) or `num_labels` of the task, or name its `labels`."
    )


def _numbers(task: TaskConfig, part: Part, cells: _Cells) -> npt.NDArray[np.float64]:
    """Returns each value as a number that float32 holds, nan where missing. Shape (values,)."""
    values = cells.values
    if _is_text(values.type):
        values = _parsed(task, part, cells)
    elif not any(is_kind(values.type) for is_kind in _NUMBER_KINDS):
        raise ValueError(
            f"{_where(task, part)} is {values.type}, but this task needs numbers. Convert it, or set another "
            f"column as `labels.{task.name}` in the source."
        )
    numbers = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        infinite = np.flatnonzero(np.isinf(numbers.astype(np.float32)))
    if len(infinite):
        where = _where(task, part, int(cells.parents[infinite[0]]))
        raise ValueError(f"{where} has {numbers[infinite[0]]}, which is not finite in float32. Correct the cell.")
    return numbers


def _parsed(task: TaskConfig, part: Part, cells: _Cells) -> pa.Array:
    strings = _without_blanks(pc.utf8_trim_whitespace(cells.values.cast(pa.string())))
    try:
        return strings.cast(pa.float64())
    except pa.ArrowInvalid:
        for place, string in enumerate(strings):
            try:
                string.cast(pa.float64())
            except pa.ArrowInvalid as error:
                where = _where(task, part, int(cells.parents[place]))
                raise ValueError(
                    f"{where} has {string.as_py()!r}, which is not a number. Correct the cell; an empty one is a "
                    "missing label."
                ) from error
        raise
