"""The parts of a comparison: which rows each learns from, what its figures depend on, what it leaves behind."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from datasets import Dataset, DatasetDict, NamedSplit
from safetensors.numpy import load_file, save_file

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.checkpoints import is_whole_safetensors
from mtl.comparison_plan import MULTI, PlannedPart
from mtl.labels import label_column
from mtl.paired_intervals import Said
from mtl.report import write_report
from mtl.settings import RunSettings
from mtl.sources import FURTHER_COLUMNS
from mtl.teacher_columns import teacher_column
from mtl.weighted_metrics import labelled_rows as has_label
from tasks_mtl import FURTHER_TEXTS, IGNORE_INDEX, INTEGER_LABEL_TYPES

PLACE = "place"
"""Column of the position that a row has among all rows of its split, by which parts agree on their rows."""
_FINGERPRINT, _RECORD, _PREDICTIONS = "fingerprint.json", "part.json", "predictions.safetensors"
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "scikit-learn")
_WITHOUT_EFFECT = frozenset({
    "output_dir", "run_name", "project", "report_to", "disable_tqdm", "debug", "local_rank", "save_adapter",
    "conflict_steps", "resume_from_checkpoint", "save_total_limit", "save_only_model", "save_on_each_node",
    "skip_memory_metrics", "torch_empty_cache_steps", "include_num_input_tokens_seen", "enable_jit_checkpoint",
    "precision", "cache_embeddings", "do_train", "do_eval", "do_predict",
})  # fmt: skip
"""Settings of training on which no figure depends; `bf16` says what `precision` came to."""
_PREFIXES_WITHOUT_EFFECT = ("logging_", "log_", "hub_", "push_", "dataloader_", "ddp_", "trackio_")
_OF_MODEL = (
    "backbone_revision", "backbone_dropout", "pooling", "normalize_for_heads", "head_dropout", "max_length",
    "other_tasks", "fit_rejection", "rejection_acceptance", "calibrate", "fit_label_thresholds",
    "abstention_error_rate",
)  # fmt: skip
"""Settings of a run on which figures depend, beside the rows, the tasks and the encoder."""


def with_places(splits: DatasetDict) -> DatasetDict:
    """Returns the splits with the column `place`."""
    return DatasetDict({name: some.add_column(PLACE, np.arange(len(some))) for name, some in splits.items()})


def part_rows(splits: DatasetDict, part: PlannedPart, tasks: Sequence[TaskConfig]) -> DatasetDict:
    """Returns what a part trains on and is measured on: all rows for the multi-task model, else those of its tasks.

    A row of train is one of a task if it has a label that carries a loss, or a teacher says something of it; a row of
    another split if it has a label, which may be that it is out of scope. Columns of other tasks are dropped, and
    further texts that no task of the part compares. A split without rows is left out.

    Args:
        splits: All rows, not yet tokenised, with the column `place`.
        part: The part.
        tasks: All tasks.
    """
    if part.kind == MULTI:
        return splits
    mine = [task for task in tasks if task.name in part.tasks]
    found = {name: _rows_of(some, mine, tasks, is_train=name == "train") for name, some in splits.items()}
    return DatasetDict({name: some for name, some in found.items() if len(some)})


def _rows_of(dataset: Dataset, mine: Sequence[TaskConfig], tasks: Sequence[TaskConfig], *, is_train: bool) -> Dataset:
    table: pa.Table = dataset.with_format("arrow")[:]
    kept = np.any([labelled_rows(table, task, with_loss=is_train) for task in mine], axis=0)  # (rows,)
    if is_train:
        kept |= np.any([_taught_rows(table, task) for task in mine], axis=0)
    texts = max((FURTHER_TEXTS.get(task.problem_type, (0, 0))[1] for task in mine), default=0)
    names = {task.name for task in mine}
    others = [
        column(task.name) for task in tasks if task.name not in names for column in (label_column, teacher_column)
    ]
    dropped = {*others, *FURTHER_COLUMNS[texts:]} & set(table.column_names)
    return Dataset(table.filter(pa.array(kept)).drop_columns(sorted(dropped)), split=NamedSplit(str(dataset.split)))


def labelled_rows(table: pa.Table, task: TaskConfig, *, with_loss: bool = False) -> npt.NDArray[np.bool_]:
    """Returns in which rows of a table a task has a label, or one that carries a loss. Shape (rows,)."""
    values = _as_array(table, label_column(task.name))  # (rows,) or (rows, C)
    if task.problem_type in INTEGER_LABEL_TYPES:
        return values >= 0 if with_loss else values != IGNORE_INDEX
    return ~np.isnan(values).reshape(len(values), -1).all(axis=1)


def _taught_rows(table: pa.Table, task: TaskConfig) -> npt.NDArray[np.bool_]:
    if teacher_column(task.name) not in table.column_names:
        return np.zeros(len(table), dtype=bool)
    return ~np.isnan(_as_array(table, teacher_column(task.name))).reshape(len(table), -1).all(axis=1)


def _as_array(table: pa.Table, column: str) -> npt.NDArray:
    values = table[column].combine_chunks()
    if pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
        flat = values.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(values), -1)  # (rows, C)
    return values.to_numpy(zero_copy_only=False)  # (rows,)


def fingerprint(
    settings: RunSettings, args: MTLTrainingArguments | None, tasks: Sequence[TaskConfig], *, rows: str, encoder: str
) -> dict[str, Any]:
    """Returns all that the figures of a part depend on, as JSON-ready values by name.

    Args:
        settings: Settings of the part.
        args: Settings of its training; None if there is none.
        tasks: Its tasks.
        rows: Key of its rows.
        encoder: Key of the untuned encoder's weights.
    """
    given = {} if args is None else json.loads(args.to_json_string())
    training = {
        key: value
        for key, value in given.items()
        if key not in _WITHOUT_EFFECT and not key.startswith(_PREFIXES_WITHOUT_EFFECT)
    }
    model = {key: getattr(settings, key) for key in _OF_MODEL}
    versions = {f"version of {name}": version(name) for name in _PACKAGES}
    own = {"tasks": [task.to_dict() for task in tasks], "rows": rows, "encoder": encoder}
    return json.loads(json.dumps({**training, **model, **own, **versions}))


@dataclass(frozen=True)
class PartFolder:
    """The folder of a part.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def model(self) -> Path:
        """Folder of the training and its model."""
        return self.path / "model"

    def is_done(self) -> bool:
        """Returns whether the part was trained and measured to the end."""
        return (self.path / _RECORD).is_file() and is_whole_safetensors(self.path / _PREDICTIONS)

    def other_settings(self, now: Mapping[str, Any]) -> list[str]:
        """Returns which settings of what the folder holds are other than now, each with both values."""
        path = self.path / _FINGERPRINT
        if not path.is_file():
            return []
        before = json.loads(path.read_text(encoding="utf-8"))
        keys = dict.fromkeys([*now, *before])
        return [f"{key}: {before.get(key)}, now {now.get(key)}" for key in keys if before.get(key) != now.get(key)]

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder, and writes what its figures will depend on."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_report(dict(settings), self.path / _FINGERPRINT)

    def remove(self) -> None:
        """Removes the folder and all in it, its settings last: cut off, it is still known to be of these."""
        for name in (_RECORD, _PREDICTIONS):
            (self.path / name).unlink(missing_ok=True)
        for folder in (self.model, self.path):
            if folder.exists():
                shutil.rmtree(folder)

    def finish(self, record: dict[str, Any], predictions: Mapping[str, npt.NDArray]) -> None:
        """Writes predictions and figures; with the figures, which come last, the part is done."""
        save_file({name: np.ascontiguousarray(some) for name, some in predictions.items()}, self.path / _PREDICTIONS)
        write_report(record, self.path / _RECORD)

    def read(self) -> "FinishedPart":
        """Returns what a finished part has left."""
        record = json.loads((self.path / _RECORD).read_text(encoding="utf-8"))
        arrays = load_file(self.path / _PREDICTIONS)
        by_kind = {
            kind: {name.removeprefix(f"{kind}."): some for name, some in arrays.items() if name.startswith(f"{kind}.")}
            for kind in ("logits", "labels")
        }
        part = PlannedPart(record["kind"], tuple(record["tasks"]), record["seed"])
        return FinishedPart(part, record, arrays[PLACE], **by_kind)


@dataclass(frozen=True, eq=False)
class FinishedPart:
    """What a part says of the test rows, and its figures.

    Args:
        part: The part.
        record: Its figures, and under `task_configs` its tasks with the thresholds by which it decides.
        places: Place of each of its test rows among all of them, rising. Shape (N,).
        logits: Outputs by task, see `mtl.predictions`. Shape (N, C) each.
        labels: Labels by task. Shape (N,) or (N, C) each.
    """

    part: PlannedPart
    record: dict[str, Any]
    places: npt.NDArray[np.int64]
    logits: dict[str, npt.NDArray]
    labels: dict[str, npt.NDArray]

    def of_task(self, task: str) -> tuple[npt.NDArray[np.int64], npt.NDArray, Said]:
        """Returns places and labels of the test rows of a task, less those out of scope, and what is said of them."""
        config = next(TaskConfig(**fields) for fields in self.record["task_configs"] if fields["name"] == task)
        labels = self.labels[task]
        given = has_label(labels)  # (N,)
        return self.places[given], labels[given], Said(config, self.logits[task][given])


def in_order(predictions: Any) -> dict[str, npt.NDArray]:
    """Returns what a part is to save of `mtl.predictions.Predictions`: outputs and labels in the order of places."""
    places = np.asarray(predictions.rows[PLACE][:])
    order = np.argsort(places)
    arrays = {f"logits.{name}": np.asarray(some)[order] for name, some in predictions.logits.items()}
    arrays |= {f"labels.{name}": np.asarray(some)[order] for name, some in predictions.labels.items()}
    return {PLACE: places[order], **arrays}
