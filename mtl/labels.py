"""Label cells of a source -> label columns: class ids, multi-hot vectors or numbers, and missing where none is given.

What a cell means:

- `None`, the empty string and white space are missing; so is nan, where numbers are meant, and -1 in a `ClassLabel`
  column, by which `datasets` marks unlabelled rows.
- Integers, and strings that all look like integers, are class ids where a task has no label names, or where none of
  its names looks like an integer. Else a cell is a label's name, exactly as written; a boolean is "True" or "False".
- A cell that is the task's `out_of_scope_label` says that the row is of none of the classes: id -1.
- In a multi-label task a cell is a list, and an empty list says that no label applies. With `label_separator` it is a
  string: an empty one is missing, and one that holds nothing but separators says that no label applies.
- A positive pair or a triplet has no label: a row is one if the texts that it needs are there.
- In a regression with several outputs a cell is a list (or a separated string) with one number for each; nan or None
  inside it is a missing output.
"""

import dataclasses
import difflib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from configuration_mtl import TaskConfig
from mtl.label_cells import (
    CellError,
    Cells,
    all_integers,
    is_integer,
    place_of,
    read_lists,
    read_names,
    read_numbers,
    read_single,
)
from mtl.near_labels import shown, warn_of_near_labels
from mtl.parts import Part, is_blank
from tasks_mtl import (
    CONTRASTIVE,
    FURTHER_TEXTS,
    IGNORE_INDEX,
    INTEGER_LABEL_TYPES,
    MULTI_LABEL,
    ORDINAL,
    OUT_OF_SCOPE_INDEX,
    POSITIVE_PAIRS,
    REGRESSION,
    SCORED_PAIRS,
    SINGLE_LABEL,
    TRIPLETS,
)

_MOST_SHOWN = 20  # labels listed in a message


def label_column(task_name: str) -> str:
    """Returns the name of the column that holds a task's labels."""
    return f"label_{task_name}"


def resolve_task(task: TaskConfig, parts: Sequence[Part]) -> TaskConfig:
    """Returns the task with its labels filled in from the data, where the configuration names none.

    They are the names of `ClassLabel` columns, in their order; else the distinct values of split train, sorted, as
    numbers if all are integers. A task with `num_labels` over integers stays as it is: the cells are its class ids.
    Ordered labels must be integers, or be named: neither the alphabet nor a `ClassLabel` tells their order.

    Args:
        task: The task.
        parts: All that was read, of every source and split.

    Raises:
        ValueError: If split train has no label, the labels are not as many as `num_labels`, their order is asked for
            and not known, or a cell cannot be read.
    """
    if task.problem_type in (REGRESSION, *FURTHER_TEXTS) or task.labels is not None:
        return task
    mine = [part for part in parts if task.name in part.source.labels]
    names = [part.class_names.get(part.source.labels[task.name], ()) for part in mine]
    labels = list(dict.fromkeys(name for some in names for name in some if name != task.out_of_scope_label))
    if not labels:
        labels = _labels_in_train(task, mine)
        if task.num_labels is not None and all_integers(pa.array(labels, pa.string())):
            return task
    if task.num_labels not in (None, len(labels)):
        raise ValueError(
            f"Task {task.name!r}: num_labels is {task.num_labels}, but the data has {len(labels)} labels: "
            f"{labels[:_MOST_SHOWN]}. Correct `num_labels`, or name the labels in `labels`."
        )
    return dataclasses.replace(task, labels=tuple(_ordered(task, labels, mine)))


def _ordered(task: TaskConfig, labels: list[str], parts: Sequence[Part]) -> list[str]:
    if task.problem_type != ORDINAL:
        return labels
    names = pa.array(labels, pa.string())
    if not all_integers(names):
        odd = names.filter(pc.invert(is_integer(names)))
        if 2 * len(odd) < len(names):
            _refuse_odd_cells(task, odd, parts)
        raise ValueError(
            f"Task {task.name!r}: nothing says which of the labels {labels[:_MOST_SHOWN]} comes before which. Name "
            "them in `labels`, from the lowest to the highest."
        )
    return sorted(labels, key=int)


def _refuse_odd_cells(task: TaskConfig, odd: pa.Array, parts: Sequence[Part]) -> None:
    """Names the first cell of train with one of a few labels that are no integers, where the others are."""
    for part in [part for part in parts if part.split == "train"]:
        cells = read_names(task, part)
        places = np.flatnonzero(pc.is_in(cells.values, value_set=odd).to_numpy(zero_copy_only=False))
        if len(places):
            value, row = cells.values[int(places[0])].as_py(), int(cells.parents[places[0]])
            raise ValueError(
                f"{place_of(task, part, row)} has {shown(value)}, but other labels are integers ({len(places):,} such "
                "cells in all). Correct the cell, or name all `labels` of the task, from the lowest to the highest."
            )


def _labels_in_train(task: TaskConfig, parts: Sequence[Part]) -> list[str]:
    trains = [part for part in parts if part.split == "train"]
    found = [
        (str(part.source.name), read_names(task, part).values.unique().drop_null().to_pylist()) for part in trains
    ]
    warn_of_near_labels(task.name, found)
    distinct = dict.fromkeys(name for _, names in found for name in names)
    labels = [name for name in distinct if name != task.out_of_scope_label]
    # Where there is no train at all, nothing is to be learned, and `num_labels` is enough.
    if not labels and (trains or task.num_labels is None):
        raise ValueError(f"Task {task.name!r} has no label in split 'train'. Fill its column, or name its `labels`.")
    if str(IGNORE_INDEX) in labels:
        raise ValueError(
            f"Task {task.name!r}: {IGNORE_INDEX} in its column would be a class, but often stands for a missing "
            f"label. Leave such cells empty, or name all `labels` of the task, if it is one: {labels[:_MOST_SHOWN]}."
        )
    return sorted(labels, key=int) if all_integers(pa.array(labels, pa.string())) else sorted(labels)


def encode_labels(task: TaskConfig, part: Part) -> pa.Array:
    """Returns the label column of a resolved task for the rows of a part.

    Returns:
        int64 class ids with -100 for missing and -1 for out of scope, (rows,); for multi-label float32 zeros and ones,
        (rows, C), and for regression float32 numbers, (rows,) or (rows, C), with nan for missing.

    Raises:
        ValueError: For a cell that is no label of the task: names source, split, row, column and value.
    """
    if task.name in (*part.source.labels, *part.source.pairs):
        return _ENCODERS[task.problem_type](task, part)
    if task.problem_type in INTEGER_LABEL_TYPES:
        return _as_column(task, np.full(len(part.rows), IGNORE_INDEX))
    return _as_column(task, np.full((len(part.rows), task.num_labels or 1), np.nan))


def count_labelled(task: TaskConfig, column: pa.ChunkedArray) -> int:
    """Returns in how many rows of a label column the task has a label that carries a loss."""
    if task.problem_type in INTEGER_LABEL_TYPES:
        return pc.sum(pc.greater_equal(column, 0)).as_py() or 0
    array = column.combine_chunks()
    values = array.flatten() if pa.types.is_fixed_size_list(array.type) else array
    return int((~np.isnan(values.to_numpy())).reshape(len(array), -1).any(axis=1).sum())


def _encode_single(task: TaskConfig, part: Part) -> pa.Array:
    ids = _class_ids(task, part, read_names(task, part))
    return _as_column(task, ids)


def _encode_multi(task: TaskConfig, part: Part) -> pa.Array:
    cells = read_names(task, part)
    hot = np.zeros((len(cells.given), task.num_labels or 1))  # (rows, C)
    hot[~cells.given] = np.nan
    hot[cells.parents, _class_ids(task, part, cells)] = 1.0
    return _as_column(task, hot)


def _encode_regression(task: TaskConfig, part: Part) -> pa.Array:
    width = task.num_labels or 1
    if width == 1:
        return _as_column(task, read_numbers(task, part, read_single(task, part)))
    cells = read_lists(task, part)
    counts = np.bincount(cells.parents, minlength=len(cells.given))
    wrong = np.flatnonzero(cells.given & (counts != width))
    if len(wrong):
        where = place_of(task, part, int(wrong[0]))
        raise ValueError(f"{where} has {counts[wrong[0]]} numbers, but the task {width} outputs. Correct the cell.")
    numbers = np.full((len(cells.given), width), np.nan)  # (rows, C)
    numbers[cells.given] = read_numbers(task, part, cells).reshape(-1, width)
    return _as_column(task, numbers)


def _encode_scores(task: TaskConfig, part: Part) -> pa.Array:
    scores = read_numbers(task, part, read_single(task, part))
    lonely = np.flatnonzero(~np.isnan(scores) & is_blank(part.table[part.source.compare_with[0]]))
    if len(lonely):
        raise ValueError(
            f"{place_of(task, part, int(lonely[0]))} has a score, but column {part.source.compare_with[0]!r} no text "
            f"to compare with ({len(lonely):,} such rows in all). Fill it in, or leave the score empty."
        )
    outside = np.flatnonzero(np.abs(scores) > 1) if task.loss == "cosine" else np.array([], np.int64)
    if len(outside):
        raise ValueError(
            f"{place_of(task, part, int(outside[0]))} has the score {scores[outside[0]]}, but loss 'cosine' takes "
            f"scores in [-1, 1], as cosines are ({len(outside):,} such cells in all). Scale the column, or set `loss: "
            "cosent`, which needs only their order."
        )
    return _as_column(task, scores)


def _encode_presence(task: TaskConfig, part: Part) -> pa.Array:
    """Marks the rows that have the texts of the task."""
    needed = part.source.compare_with[: FURTHER_TEXTS[task.problem_type][0]]
    complete = ~np.any([is_blank(part.table[column]) for column in needed], axis=0)
    return _as_column(task, np.where(complete, 1, IGNORE_INDEX))


_ENCODERS: dict[str, Callable[[TaskConfig, Part], pa.Array]] = {
    SINGLE_LABEL: _encode_single,
    MULTI_LABEL: _encode_multi,
    REGRESSION: _encode_regression,
    ORDINAL: _encode_single,
    SCORED_PAIRS: _encode_scores,
    POSITIVE_PAIRS: _encode_presence,
    TRIPLETS: _encode_presence,
    CONTRASTIVE: _encode_single,
}


def _as_column(task: TaskConfig, values: npt.NDArray) -> pa.Array:
    if task.problem_type in INTEGER_LABEL_TYPES:
        return pa.array(values.reshape(-1).astype(np.int64))
    # `from_pandas` would turn nan into null, which no tensor can hold.
    flat = pa.array(values.reshape(-1).astype(np.float32), from_pandas=False)
    if task.problem_type in (REGRESSION, SCORED_PAIRS) and task.num_labels == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, task.num_labels)


def _class_ids(task: TaskConfig, part: Part, cells: Cells) -> npt.NDArray[np.int64]:
    """Returns the class id of each value, -100 where missing, -1 where out of scope. Shape (values,)."""
    outside = pc.equal(cells.values, pa.scalar(task.out_of_scope_label, pa.string())).fill_null(False)
    if pc.any(outside).as_py():
        inside = dataclasses.replace(cells, values=pc.if_else(outside, pa.scalar(None, pa.string()), cells.values))
        return np.where(outside.to_numpy(zero_copy_only=False), OUT_OF_SCOPE_INDEX, _class_ids(task, part, inside))
    named = task.labels is not None and (
        part.source.labels[task.name] in part.class_names
        or not all_integers(cells.values)
        or any(all_integers(pa.array([label])) for label in task.labels)
    )
    if named:
        ids = pc.index_in(cells.values, value_set=pa.array(task.labels, pa.string()))
        wrong = ids.is_null()
    elif all_integers(cells.values):
        ids = cells.values.cast(pa.int64())
        wrong = pc.or_(pc.less(ids, 0), pc.greater_equal(ids, task.num_labels))
    else:
        ids = pa.nulls(len(cells.values), pa.int64())
        wrong = pc.invert(is_integer(cells.values))
    places = np.flatnonzero(pc.and_(wrong.fill_null(False), cells.values.is_valid()).to_numpy(zero_copy_only=False))
    if len(places):
        value, row = cells.values[int(places[0])].as_py(), int(cells.parents[places[0]])
        problem, fix = _unknown_label(task, value) if named else _unknown_id(task, value)
        raise CellError(f"{place_of(task, part, row)} has {problem} ({len(places):,} such cells in all).", fix)
    return ids.fill_null(IGNORE_INDEX).to_numpy().astype(np.int64)


def _unknown_label(task: TaskConfig, value: str) -> tuple[str, str]:
    labels = list(task.labels or ())
    near = difflib.get_close_matches(value, labels, n=3, cutoff=0.5)
    listed = ", ".join(map(shown, near or labels[:_MOST_SHOWN]))
    hint = f"nearest are [{listed}]" if near else f"known are [{listed}]"
    return f"the unknown label {shown(value)}; {hint}", "Correct the cell, or add the label to `labels` of the task."


def _unknown_id(task: TaskConfig, value: str) -> tuple[str, str]:
    return (
        f"the class id {value!r}, but ids go from 0 to {(task.num_labels or 1) - 1}",
        "Correct the cell (an empty one is a missing label) or `num_labels` of the task, or name its `labels`.",
    )
