"""Pairs of texts with a score of how near they are, on which an embedding is measured: a file, or a task's rows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from configuration_mtl import TaskConfig
from mtl.data import load_sources
from mtl.labels import label_column
from mtl.sources import FURTHER_COLUMNS, TEXT_COLUMN, SourceConfig
from tasks_mtl import SCORED_PAIRS

PAIR_FILE_COLUMNS = ("sentence1", "sentence2", "score")


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Pairs of texts and their scores.

    Args:
        name: Name of the set, for messages.
        first: The first texts.
        second: The second texts.
        scores: The scores, higher where the two are nearer. Shape (P,).
    """

    name: str
    first: list[str]
    second: list[str]
    scores: npt.NDArray[np.floating]


def read_scored_pairs(path: str | os.PathLike[str]) -> ScoredPairs:
    """Reads a file with the columns `sentence1`, `sentence2` and `score`; rows without a score are left out.

    Args:
        path: What `path` of a source may be: a CSV, TSV, JSON, JSONL or Parquet file, a folder with a file a split,
            or a data set on the Hub. Of several splits it is `test`, else `validation`, else `train`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, or a cell is no text or no number.
    """
    task = TaskConfig("similarity", SCORED_PAIRS)
    first, second, score = PAIR_FILE_COLUMNS
    path = os.fspath(path)
    source = SourceConfig(path=path, text=first, compare_with=[second], labels={task.name: score})
    try:
        splits, _ = load_sources([source], [task], validation_fraction=0.0, test_fraction=0.0)
    except ValueError as error:
        raise ValueError(
            f"Scored pairs {path!r}: {error} They need the columns {list(PAIR_FILE_COLUMNS)}, a number in the last."
        ) from error
    split = next(name for name in ("test", "validation", "train") if name in splits)
    return _pairs(splits[split], task, Path(path).stem)


def pairs_of_tasks(rows: Dataset, tasks: Sequence[TaskConfig]) -> ScoredPairs | None:
    """Returns the scored pairs of the first task that has some among the rows, or None.

    Args:
        rows: Rows of a split, with the columns of texts and labels.
        tasks: The tasks.
    """
    for task in tasks:
        if task.problem_type == SCORED_PAIRS and label_column(task.name) in rows.column_names:
            pairs = _pairs(rows, task, task.name)
            if pairs.first:
                return pairs
    return None


def _pairs(rows: Dataset, task: TaskConfig, name: str) -> ScoredPairs:
    columns = [TEXT_COLUMN, FURTHER_COLUMNS[0], label_column(task.name)]
    cells: Any = rows.select_columns(columns)[:]
    scores = np.asarray(cells[columns[2]], np.float64).reshape(-1)  # (N,)
    given = np.flatnonzero(~np.isnan(scores))
    first, second = ([cells[column][row] for row in given] for column in columns[:2])
    return ScoredPairs(name, first, second, scores[given])
