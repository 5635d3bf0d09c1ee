"""Where labelled texts come from: the settings of a source, checked."""

import dataclasses
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl.files import READERS

TEXT_COLUMN = "text"
PAIR_COLUMN = "text_pair"
SLICE_PREFIX = "slice_"
"""What stands before the name of a column by which figures are broken down."""
FURTHER_COLUMNS = ("further_1", "further_2")
"""Columns of a row's second and third text, which are encoded for themselves."""
SPLITS = ("train", "validation", "test")

SPLIT_OF_NAME = {name: name for name in SPLITS} | dict.fromkeys(("valid", "val", "dev"), "validation")
KNOWN_SPLITS = "'train', 'validation' (or 'valid', 'val', 'dev') and 'test'"

_STRINGS = (
    "path", "text", "text_pair", "name", "split_column", "label_separator", "config_name", "revision", "license"
)  # fmt: skip


@dataclass(frozen=True)
class SourceConfig:
    """One data set to train on: where it lies, and which of its columns is the text and which label which task.

    Args:
        path: A local CSV, TSV, JSON, JSONL, Parquet or TXT file (of one text a line); a local folder, either with one
            such file a split (`train.csv`, `dev.csv` ...), or as `save_to_disk` or a clone of a Hub data set leaves
            it; or, where nothing of that name exists, the name of a data set on the Hub. Give `path` or `files`.
        files: One local file a split, for example `{"train": "train.csv", "dev": "dev.csv"}`.
        labels: Column of each task that the source labels.
        text: Column of the texts.
        name: Name in messages and in column `source`; by default the last part of the path, without suffix.
        split_column: Column that says in which split a row is, for a source that is one table.
        label_separator: What stands between the labels of a multi-label cell, or between the numbers of a regression
            with several outputs, where the cell is a string.
        config_name: Configuration of a data set on the Hub, or of a folder.
        revision: Branch, tag or commit of a data set on the Hub.
        text_pair: Column of second texts, each encoded together with the first one, as one input.
        compare_with: Column, or two columns, of further texts, each encoded for itself, to which tasks on the
            embedding compare the first text: partner or positive, then the negative. An empty cell is no text.
        pairs: Tasks that learn from the texts alone, without a label: `positive_pairs` and `triplets`.
        teachers: Column of each task that holds what a teacher says of the text; see `mtl.teacher_columns`.
        slices: Further columns by which an evaluation breaks its figures down; see `mtl.slices`.
        license: Licence of the data, as the Hub writes it (`cc-by-4.0`), for the card of a model.

    Raises:
        ValueError: For a value that is empty or of the wrong type, an unknown split name, or settings that exclude
            each other.
    """

    path: str | None = None
    files: Mapping[str, str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    text: str = TEXT_COLUMN
    name: str | None = None
    split_column: str | None = None
    label_separator: str | None = None
    config_name: str | None = None
    revision: str | None = None
    text_pair: str | None = None
    compare_with: Sequence[str] = ()
    pairs: Sequence[str] = ()
    teachers: Mapping[str, str] = field(default_factory=dict)
    slices: Sequence[str] = ()
    license: str | None = None

    def __post_init__(self) -> None:
        """Validates the settings and fills in the name."""
        if (self.path is None) == (self.files is None):
            raise ValueError(f"Source {self.name!r}: give `path` or `files`, and not both; found {self._given()}.")
        if self.files is not None:
            object.__setattr__(self, "files", self._files_by_split(_strings(self.name, "files", self.files)))
        elif isinstance(self.path, os.PathLike):
            object.__setattr__(self, "path", os.fspath(self.path))
        object.__setattr__(self, "labels", _strings(self.name, "labels", self.labels))
        object.__setattr__(self, "teachers", _strings(self.name, "teachers", self.teachers))
        for key in ("compare_with", "pairs", "slices"):
            object.__setattr__(self, key, self._names(key, getattr(self, key)))
        for key in _STRINGS:
            value = getattr(self, key)
            if not (isinstance(value, str) and value) and not (value is None and key != "text"):
                raise ValueError(f"Source {self.name!r}: `{key}` must be a non-empty string, found {value!r}.")
        self._check_texts()
        if self.name is None:
            object.__setattr__(self, "name", self._default_name())

    @property
    def text_columns(self) -> list[tuple[str, str]]:
        """The setting and the column of each text of a row, in their order."""
        pair = [] if self.text_pair is None else [("text_pair", self.text_pair)]
        return [("text", self.text), *pair, *(("compare_with", column) for column in self.compare_with)]

    def _names(self, key: str, value: Any) -> tuple[str, ...]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"Source {self.name!r}: `{key}` must be a list of names, found {value!r}.")
        return tuple(names)

    def _check_texts(self) -> None:
        columns = [column for _, column in self.text_columns]
        if len(self.compare_with) > len(FURTHER_COLUMNS) or len(set(columns)) < len(columns):
            raise ValueError(
                f"Source {self.name!r}: the columns of texts are {columns}. Give each once, and at most "
                f"{len(FURTHER_COLUMNS)} in `compare_with`."
            )
        if self.text_pair is not None and self.compare_with:
            raise ValueError(
                f"Source {self.name!r}: `text_pair` is encoded together with the text, `compare_with` for itself. "
                "Give one of them, or list the data twice, as two sources."
            )
        if self.pairs and not self.compare_with:
            raise ValueError(f"Source {self.name!r}: `pairs` {list(self.pairs)} needs `compare_with`, the columns.")

    def _given(self) -> str:
        return "both" if self.path is not None else "neither"

    def _files_by_split(self, files: Mapping[str, str]) -> dict[str, str]:
        for key in ("split_column", "config_name", "revision"):
            if getattr(self, key) is not None:
                raise ValueError(f"Source {self.name!r}: `{key}` goes with `path`, not with `files`. Leave it out.")
        splits: dict[str, str] = {}
        for key, file in files.items():
            split = SPLIT_OF_NAME.get(key.lower())
            if split is None:
                raise ValueError(f"Source {self.name!r}: `files` has split {key!r}; known are {KNOWN_SPLITS}.")
            if split in splits:
                raise ValueError(f"Source {self.name!r}: `files` names split {split!r} twice. Give one file a split.")
            splits[split] = file
        return splits

    def _default_name(self) -> str:
        if self.path is not None:
            path = Path(self.path)
            return path.stem if path.suffix.lower() in READERS else path.name or str(path)
        first = Path(next(iter((self.files or {}).values())))
        return first.parent.name or first.stem if first.stem.lower() in SPLIT_OF_NAME else first.stem

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "SourceConfig":
        """Returns the source that a mapping, such as a block of a YAML file, describes.

        Raises:
            ValueError: For a key that a source does not have (the message names the nearest), and as the class does.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known are {known}."
                raise ValueError(
                    f"Source {settings.get('name') or settings.get('path')!r} has no setting {key!r}. {hint}"
                )
        return cls(**settings)


def _strings(name: str | None, key: str, value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else [(None, value)]
    strings: dict[Any, Any] = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in pairs}
    if (key == "files" and not strings) or not all(
        isinstance(item, str) and item for pair in strings.items() for item in pair
    ):
        raise ValueError(
            f"Source {name!r}: `{key}` must map {'splits to paths' if key == 'files' else 'tasks to columns'}, found "
            f"{value!r}."
        )
    return strings
