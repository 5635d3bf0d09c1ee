"""What a model says of rows, as columns of a table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from configuration_mtl import TaskConfig
from tasks_mtl import MULTI_LABEL, REGRESSION

EMBEDDING = "embedding"
"""Name of the column of the embeddings."""


@dataclass(frozen=True)
class OutputColumn:
    """A column of predictions.

    Args:
        name: Its name.
        type: Its Arrow type.
        value: Gets a cell from what `predict` says of a row.
    """

    name: str
    type: pa.DataType
    value: Callable[[dict[str, Any]], Any]


def prediction_columns(
    tasks: Sequence[TaskConfig], *, prefix: str = "", probabilities: bool = False
) -> list[OutputColumn]:
    """Returns the columns that tasks with a head have.

    A task's own column has its label, its list of labels (multi-label), its number (regression), or a struct of
    numbers where there are several. Beside it are `<task>_score`, and, where the task has such a threshold,
    `<task>_in_scope` and `<task>_abstains`; with `probabilities`, `<task>_probabilities`, a struct with a field for
    each label.

    Args:
        tasks: The tasks.
        prefix: What stands before each name.
        probabilities: Whether probabilities have columns.
    """
    return [
        column
        for task in tasks
        if task.has_head
        for column in _COLUMNS.get(task.problem_type, _class_columns)(task, f"{prefix}{task.name}", probabilities)
    ]


def _class_columns(task: TaskConfig, name: str, probabilities: bool) -> list[OutputColumn]:
    columns = [
        OutputColumn(name, pa.string(), lambda said: said[task.name]["label"]),
        OutputColumn(f"{name}_score", pa.float32(), lambda said: said[task.name]["score"]),
    ]
    if task.rejection_threshold is not None:
        columns.append(OutputColumn(f"{name}_in_scope", pa.bool_(), lambda said: said[task.name]["in_scope"]))
    if task.abstention_threshold is not None:
        columns.append(OutputColumn(f"{name}_abstains", pa.bool_(), lambda said: said[task.name]["abstains"]))
    return [*columns, *_probabilities(task, name, probabilities)]


def _multi_label_columns(task: TaskConfig, name: str, probabilities: bool) -> list[OutputColumn]:
    labels = OutputColumn(name, pa.list_(pa.string()), lambda said: said[task.name]["labels"])
    return [labels, *_probabilities(task, name, probabilities)]


def _regression_columns(task: TaskConfig, name: str, probabilities: bool) -> list[OutputColumn]:
    if task.num_labels == 1:
        return [OutputColumn(name, pa.float32(), lambda said: said[task.name])]
    return [OutputColumn(name, _struct(task), lambda said: said[task.name])]


def _probabilities(task: TaskConfig, name: str, wanted: bool) -> list[OutputColumn]:
    if not wanted:
        return []
    return [OutputColumn(f"{name}_probabilities", _struct(task), lambda said: said[task.name]["probabilities"])]


def _struct(task: TaskConfig) -> pa.DataType:
    return pa.struct([(label, pa.float32()) for label in task.id2label.values()])


_COLUMNS: dict[str, Callable[[TaskConfig, str, bool], list[OutputColumn]]] = {
    MULTI_LABEL: _multi_label_columns,
    REGRESSION: _regression_columns,
}


def check_names(kept: Sequence[str], columns: Sequence[OutputColumn], embeddings: bool) -> None:
    """Refuses names that two columns of the output would have.

    Raises:
        ValueError: If there are such; the message names the first.
    """
    names = [*kept, *(column.name for column in columns), *([EMBEDDING] if embeddings else [])]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"Two columns of the output would be called {name!r}. Give the predictions another name "
                "(`--prefix predicted_`), or leave the column out of --keep-columns."
            )


def output_table(
    kept: pa.Table,
    is_text: Sequence[bool],
    columns: Sequence[OutputColumn],
    predictions: Sequence[dict[str, Any]] | None,
    embeddings: npt.NDArray[np.float32] | None,
) -> pa.Table:
    """Makes the output of some rows.

    Args:
        kept: The columns that are kept, of all N rows.
        is_text: Whether each row has a text; those without have nulls in every other column. Length N.
        columns: The columns of predictions.
        predictions: What `predict` says of the rows with a text, in their order.
        embeddings: Their embeddings, (M, H), if they are wanted.
    """
    # From the schema: a table without a kept column has no rows of its own.
    arrays = {name: kept[name] for name in kept.column_names}
    places = np.flatnonzero(np.asarray(is_text, dtype=bool))
    for column in columns if predictions is not None else []:
        cells: list[Any] = [None] * len(is_text)
        for place, said in zip(places.tolist(), predictions or [], strict=True):
            cells[place] = column.value(said)
        arrays[column.name] = pa.array(cells, column.type)
    if embeddings is not None:
        arrays[EMBEDDING] = _vectors(np.asarray(is_text, dtype=bool), places, embeddings)
    return pa.table(arrays)


def _vectors(
    is_text: npt.NDArray[np.bool_], places: npt.NDArray[np.intp], embeddings: npt.NDArray[np.float32]
) -> pa.Array:
    width = embeddings.shape[1]
    values = np.zeros((len(is_text), width), dtype=np.float32)  # (N, H)
    values[places] = embeddings
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width, mask=pa.array(~is_text))
