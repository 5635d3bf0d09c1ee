"""Labelled data for `mtl evaluate` and `mtl export --int8`: from the command line to splits, and what they label."""

import argparse
import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from configuration_mtl import TaskConfig
from mtl.data import load_sources
from mtl.labels import count_labelled, label_column
from mtl.parts import column_names
from mtl.rejection import rejects
from mtl.settings import parse_settings
from mtl.sources import TEXT_COLUMN, SourceConfig
from tasks_mtl import FURTHER_TEXTS, OUT_OF_SCOPE_INDEX, POSITIVE_PAIRS, TRIPLETS
from train_setup import read_sources

ALL_ROWS = "all"
"""Name of the split of a file that is not parted into splits."""
DATA_HELP = "File, folder or data set; or a settings file (YAML), whose sources and cuts are used."
_SETTINGS = (".yaml", ".yml")
_WITHOUT_LABEL = (POSITIVE_PAIRS, TRIPLETS)
_PREFERRED = ("test", "validation", "train")
_OF_SOURCE = ("text", "text_pair", "compare_with", "pairs", "split_column", "label_separator")
_NOT_OF_SETTINGS = ("labels", *_OF_SOURCE)

logger = logging.getLogger(__name__)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say what is in the columns of data which is no settings file."""
    add = parser.add_argument
    add(
        "--labels",
        type=_mapping,
        metavar="JSON",
        help="Column of each task; one of the task's name if not given. A task with null for a column is left out.",
    )
    add("--text", metavar="COLUMN", help="Column of the texts; `text` if not given.")
    add("--text_pair", metavar="COLUMN", help="Column of second texts, read together with the first.")
    add("--split_column", metavar="COLUMN", help="Column that says in which split a row is.")
    add("--label_separator", help="What stands between the labels of a cell.")
    add("--drop_empty", action="store_true", help="Leave rows without text out, instead of refusing them.")


def load_data(
    options: argparse.Namespace, rest: Sequence[str], tasks: Sequence[TaskConfig]
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Reads the data; returns its splits, and those of a model's tasks that it labels.

    Of a settings file the splits are those of a training with it, with the same cuts.

    Raises:
        OSError: If the data cannot be read.
        ValueError: If it has no label of any of the tasks, lacks a column that was named, has a label that the model
            does not know, or an option has no effect on it.
    """
    if Path(options.data).suffix in _SETTINGS:
        return _of_settings(options, rest, tasks)
    if rest:
        raise ValueError(f"{rest[0]!r} is unknown. `--help` lists what the command takes.")
    source = source_of(options, tasks)
    labelled = labelled_tasks([source], tasks, options)
    splits, known = load_sources(
        [source],
        labelled,
        validation_fraction=0.0,
        test_fraction=0.0,
        drop_empty=options.drop_empty,
        taught=_names(labelled),  # Which of them have no label at all is told by `measured_tasks`.
    )
    if Path(options.data).is_file() and source.split_column is None:
        splits = DatasetDict({ALL_ROWS: splits["train"]})  # As a part of a training nobody has marked these rows.
    return splits, known


def _of_settings(
    options: argparse.Namespace, rest: Sequence[str], tasks: Sequence[TaskConfig]
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    without_effect = [f"--{key}" for key in _NOT_OF_SETTINGS if getattr(options, key)]
    if without_effect:
        raise ValueError(
            f"{', '.join(without_effect)}: the sources in {options.data!r} say this themselves. Leave it out, or "
            "correct it there."
        )
    settings, args = parse_settings([options.data, *rest])
    sources = [_with_tasks(source, tasks, options.by) for source in settings.source_configs()]
    measured = [str(source.name) for source in sources if source.labels or source.pairs]
    labelled = labelled_tasks(sources, tasks, options)
    kept = dataclasses.replace(
        settings,
        sources=[_as_settings(source) for source in sources],
        drop_empty=settings.drop_empty or options.drop_empty,
    )
    # The other sources are read as well: which rows are cut off depends on the texts of all.
    splits, known = read_sources(kept, args, labelled, taught=_names(labelled))
    return _rows_of(measured, splits), known


def _rows_of(sources: Sequence[str], splits: DatasetDict) -> DatasetDict:
    """Returns the rows of some sources; a split without one is left out."""
    found = DatasetDict()
    for split, rows in splits.items():
        places = np.flatnonzero(np.isin(rows["source"][:], sources))
        if len(places):
            found[split] = rows.select(places)
    return found


def source_of(options: argparse.Namespace, tasks: Sequence[TaskConfig]) -> SourceConfig:
    """Returns the data as a source: the label column of each task is what was said, or has the task's name.

    Raises:
        ValueError: If `--labels` or `--pairs` name a task that the model does not have.
    """
    settings = {key: value for key in _OF_SOURCE if (value := getattr(options, key))}
    said, names = options.labels or {}, _names(tasks)
    for option, given in (("labels", said), ("pairs", options.pairs)):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ValueError(f"--{option} has {unknown}, but the tasks of the model are {names}. Correct it.")
    there = column_names(SourceConfig(path=options.data, **{"text": TEXT_COLUMN, **settings}))
    with_column = [task.name for task in tasks if task.problem_type not in _WITHOUT_LABEL]
    labels = {name: name for name in with_column if name in there} | said
    labels = {name: column for name, column in labels.items() if column is not None}
    return SourceConfig(path=options.data, labels=labels, slices=options.by, **settings)


def labelled_tasks(
    sources: Sequence[SourceConfig], tasks: Sequence[TaskConfig], options: argparse.Namespace
) -> list[TaskConfig]:
    """Returns the tasks that a source has a column for, or the texts, and says which ones none has.

    Raises:
        ValueError: If that is all of them.
    """
    names = {name for source in sources for name in (*source.labels, *source.pairs)}
    missing = [task.name for task in tasks if task.name not in names]
    if len(missing) == len(tasks):
        raise ValueError(
            f"{options.data!r} has no labels of any task of {options.model!r}, which are {missing}. Name their "
            f"""columns: `--labels '{{"{missing[0]}": "<column>"}}'`."""
        )
    if missing:
        logger.warning("The data has no labels of %s: these tasks are not measured.", missing)
    return [task for task in tasks if task.name in names]


def chosen_split(name: str | None, splits: Mapping[str, Any]) -> str:
    """Returns the split to measure: the one that is named, or the first there is of test, validation and train.

    Raises:
        ValueError: If there is none of that name.
    """
    if name is None:
        return next((split for split in _PREFERRED if split in splits), ALL_ROWS)
    if name not in splits:
        raise ValueError(f"The data has no split {name!r}, but {list(splits)}. Name one of them, or leave it out.")
    return name


def measured_tasks(tasks: Sequence[TaskConfig], rows: Dataset, split: str) -> list[TaskConfig]:
    """Returns the tasks that have a labelled row in a split, and says which ones have none.

    Raises:
        ValueError: If none has one.
    """
    measured = [task for task in tasks if _has_labels(task, rows)]
    empty = [task.name for task in tasks if task not in measured]
    if not measured:
        raise ValueError(
            f"No row of split {split!r} has a label of {empty}. Fill their columns, or name another split."
        )
    if empty:
        logger.warning("No row of split %r has a label of %s: these tasks are not measured.", split, empty)
    return measured


def _has_labels(task: TaskConfig, rows: Dataset) -> bool:
    column = rows.data[label_column(task.name)]
    is_outside = rejects(task) and pc.any(pc.equal(column, OUT_OF_SCOPE_INDEX)).as_py()
    return bool(is_outside or count_labelled(task, column))


def _with_tasks(source: SourceConfig, tasks: Sequence[TaskConfig], slices: Sequence[str]) -> SourceConfig:
    """Returns a source with the labels and texts of these tasks, and of one that has none of them the texts alone."""
    mine = [task for task in tasks if task.name in (*source.labels, *source.pairs)]
    names = _names(mine)
    texts = max((FURTHER_TEXTS.get(task.problem_type, (0, 0))[1] for task in mine), default=0)
    return dataclasses.replace(
        source,
        labels={name: column for name, column in source.labels.items() if name in names},
        pairs=[name for name in source.pairs if name in names],
        compare_with=source.compare_with[:texts],
        teachers={},
        slices=[*source.slices, *slices] if mine else [],
    )


def _as_settings(source: SourceConfig) -> Any:
    return {key: value for key, value in dataclasses.asdict(source).items() if value}


def _names(tasks: Sequence[TaskConfig]) -> list[str]:
    return [task.name for task in tasks]


def _mapping(text: str) -> dict[str, str | None]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    is_mapping = isinstance(found, dict) and all(value is None or isinstance(value, str) for value in found.values())
    if not is_mapping:
        raise argparse.ArgumentTypeError(
            f"""expected JSON that gives tasks their columns, such as '{{"topic": "category"}}'; found {text!r}"""
        )
    return dict(found)
