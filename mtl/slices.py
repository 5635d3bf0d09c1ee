"""The rows of a split in groups: which tasks they are labelled for, and groups by source, length and column."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from mtl.sources import SLICE_PREFIX
from mtl.weighted_metrics import labelled_rows

MOST_VALUES = 30
"""Count of the values of a column that are a slice each; rarer ones are left out."""
MOST_PATTERNS = 100
"""Count of sets of tasks that are labelled together; of many tasks each row may have its own."""
_QUARTERS = (0.25, 0.5, 0.75)


def coverage(labels: Mapping[str, npt.NDArray], sources: Sequence[str]) -> dict[str, Any]:
    """Counts which rows are labelled for which tasks, JSON-ready.

    Args:
        labels: Labels of each task, see `Predictions`; an out-of-scope row counts as labelled.
        sources: Name of each row's source.

    Returns:
        `rows`; `labelled`, rows by task; `patterns`, each `tasks` that are labelled together with its `rows`, the 100
        most frequent ones of `num_patterns`; and `by_source`, of each source its `rows` and those `labelled` by task.
    """
    known = {task: labelled_rows(values) | _is_outside(values) for task, values in labels.items()}  # (N,) each
    names = np.asarray(sources, dtype=object)
    table = np.stack(list(known.values()), axis=1)  # (N, tasks)
    tasks = list(known)
    counted = Counter(tuple(task for task, is_known in zip(tasks, row, strict=True) if is_known) for row in table)
    by_source = {
        str(name): {
            "rows": int((names == name).sum()),
            "labelled": {task: int(some[names == name].sum()) for task, some in known.items()},
        }
        for name in dict.fromkeys(sources)
    }
    return {
        "rows": len(names),
        "labelled": {task: int(some.sum()) for task, some in known.items()},
        "patterns": [{"tasks": list(pattern), "rows": rows} for pattern, rows in counted.most_common(MOST_PATTERNS)],
        "num_patterns": len(counted),
        "by_source": by_source,
    }


def _is_outside(labels: npt.NDArray) -> npt.NDArray[np.bool_]:
    return np.zeros(len(labels), dtype=bool) if labels.dtype.kind == "f" else labels == -1


def slices_of(rows: Dataset) -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    """Returns groups of rows, each by what it is made, its name, and which rows are in it, (N,).

    There is one for each source, if there are several; for each quarter by length in tokens; and for each value of the
    columns `slice_<column>`, of which numbers with many values go by quarters. A row without a value is in none.

    Args:
        rows: The split, with the columns `source` and `length`.
    """
    found = []
    sources = np.asarray(rows["source"][:], dtype=object)
    if len(set(sources)) > 1:
        found += _by_value("source", sources)
    lengths = np.asarray(rows["length"][:], dtype=np.float64)
    found += _by_quarter("length", lengths, unit=" tokens")
    for column in rows.column_names:
        if column.startswith(SLICE_PREFIX):
            found += _by_column(column.removeprefix(SLICE_PREFIX), rows[column][:])
    return found


def _by_column(name: str, values: Sequence[str | None]) -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    # An empty cell of a CSV file is the empty string where its column holds text.
    given = [value if value is not None and value.strip() else None for value in values]
    if len(set(given)) > MOST_VALUES and all(value is None or _is_number(value) for value in given):
        return _by_quarter(name, np.array([np.nan if value is None else float(value) for value in given]))
    return _by_value(name, np.asarray(given, dtype=object))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _by_value(name: str, values: npt.NDArray) -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    counted = Counter(value for value in values if value is not None).most_common(MOST_VALUES)
    return [(name, str(value), values == value) for value, _ in counted]


def _by_quarter(name: str, values: npt.NDArray, unit: str = "") -> list[tuple[str, str, npt.NDArray[np.bool_]]]:
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    # Each quarter ends at a value that occurs, and its name tells the least and the greatest value in it.
    ends = np.unique([*np.quantile(known, _QUARTERS, method="lower"), known.max()])
    groups = []
    for place, end in enumerate(ends):
        inside = (values <= end) & ((values > ends[place - 1]) if place else True)  # (N,), False of nan
        least = values[inside].min()
        span = f"{least:g}" if least == end else f"{least:g} to {end:g}"
        groups.append((name, f"{span}{unit}", inside))
    return groups
