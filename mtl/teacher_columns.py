"""Teacher cells of a source -> teacher columns: what a teacher says of a text, and nan where it says nothing.

A cell is a list of numbers, in the order of the task's labels (or a string that `label_separator` cuts into one):

- single-label and ordinal: the probabilities of the C classes, which sum to 1 up to rounding;
- multi-label: the probability of each of the C labels, by itself; None or nan inside the list says nothing of a label;
- regression: the C outputs; for a task of one output just the number.

`None`, nan and a list of nan alone are rows without a teacher. A task of one output or label has a number for a cell.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from configuration_mtl import TaskConfig
from mtl.label_cells import place_of
from mtl.labels import encode_labels
from mtl.parts import Part
from tasks_mtl import CLASS_TYPES, REGRESSION

_ROUNDING = 0.01
"""How far a sum of probabilities may be from 1: many classes, each written with a few decimals."""


def teacher_column(task_name: str) -> str:
    """Returns the name of the column that holds what a task's teacher says."""
    return f"teacher_{task_name}"


def encode_teacher(task: TaskConfig, part: Part) -> pa.Array:
    """Returns the teacher column of a resolved task for the rows of a part: float32, (rows, C), nan for missing.

    Probabilities of classes are scaled to sum to 1.

    Raises:
        ValueError: For a cell that is not what a teacher says of this task: names source, split, row, column and
            value.
    """
    width = task.num_labels or 1
    if part.source.teachers.get(task.name) not in part.table.column_names:
        return as_teacher_column(np.full((len(part.rows), width), np.nan))
    # Numbers, as many as the task has outputs: what a regression has for labels.
    part = dataclasses.replace(part, source=dataclasses.replace(part.source, labels=part.source.teachers))
    column = encode_labels(TaskConfig(task.name, REGRESSION, num_labels=width), part)
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    values = flat.to_numpy(zero_copy_only=False).reshape(-1, width)  # (rows, C)
    if task.problem_type != REGRESSION:
        values = _checked(task, part, values)
    return as_teacher_column(values)


def as_teacher_column(values: npt.NDArray) -> pa.Array:
    """Returns values, (rows, C), as a column of float32 lists of C."""
    # `from_pandas` would turn nan into null, which no tensor can hold.
    flat = pa.array(values.reshape(-1).astype(np.float32), from_pandas=False)
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _checked(task: TaskConfig, part: Part, values: npt.NDArray) -> npt.NDArray:
    """Checks probabilities, (rows, C), and scales those of classes to sum to 1."""
    outside = ((values < 0) | (values > 1)).any(axis=1)  # nan is neither.
    if task.problem_type in CLASS_TYPES:
        sums = values.sum(axis=1)
        partial = np.isnan(sums) & ~np.isnan(values).all(axis=1)
        outside |= partial | (np.abs(sums - 1) > _ROUNDING)
        values = values / sums[:, None]
        wanted = f"{task.num_labels} probabilities that sum to 1"
    else:
        wanted = f"{task.num_labels} probabilities, each from 0 to 1"
    rows = np.flatnonzero(outside)
    if len(rows):
        row = int(rows[0])
        cell = part.table[part.source.labels[task.name]][row].as_py()
        raise ValueError(
            f"{place_of(task, part, row)} has {cell!r}, but a teacher gives {wanted}, in the order of the task's "
            f"labels ({len(rows):,} such cells in all). Correct the cell; a null one is a row without a teacher."
        )
    return values
