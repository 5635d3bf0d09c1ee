"""Which checkpoints can be resumed from, and by which run: an interrupted save leaves one that can not."""

import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_SAFE_WEIGHTS_NAME,
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
)

from configuration_mtl import MTLConfig
from mtl.adapters import HEADS_NAME
from mtl.arguments import MTLTrainingArguments
from mtl.sampling import NONE

logger = logging.getLogger(__name__)

TRAINING_ARGS_JSON = "training_args.json"
NUM_TRAIN_ROWS = "num_train_rows"
"""What stands there beside the settings."""

# Settings of a task that say what is learned from its labels; a checkpoint of before they were has none.
_LOSS_KEYS = ("label_smoothing", "loss", "temperature", "margin", "symmetric")
# Settings that an optimizer's saved state holds too, and brings back.
_OF_OPTIMIZER = ("learning_rate", "head_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Returns the newest checkpoint of a run whose every file is whole, or None if there is none.

    It is that of most steps, but not one that an earlier run in the same folder has left.
    """
    whole: list[Path] = []
    for folder in _checkpoints(output_dir):
        fault = checkpoint_fault(folder)
        if fault is None:
            whole.append(folder)
        else:
            logger.warning("Checkpoint %s is left out: %s.", folder, fault)
    if not whole:
        return None
    latest = max(reversed(whole), key=_time_of_writing)  # Of equal times that of most steps.
    if _time_of_writing(latest) <= _time_of_writing(whole[0]) + 1.0 or _goes_on_from(whole[0], latest):
        latest = whole[0]
    else:
        logger.warning("Checkpoint %s is left out: it is of an earlier run than %s.", whole[0], latest)
    return str(latest)


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """Returns the folders of checkpoints, that of most steps first."""
    folders = [
        (int(match[1]), folder)
        for folder in Path(output_dir).glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(folder.name))
    ]
    return [folder for _, folder in sorted(folders, reverse=True)]


def _time_of_writing(folder: Path) -> float:
    return (folder / TRAINER_STATE_NAME).stat().st_mtime  # s


def _goes_on_from(folder: Path, earlier: Path) -> bool:
    """Returns whether what a checkpoint has logged begins with all that another has; times differ if it was copied."""
    log, begin = ((_read_json(some / TRAINER_STATE_NAME) or {}).get("log_history") or [] for some in (folder, earlier))
    return bool(begin) and log[: len(begin)] == begin


def warn_of_earlier_run(output_dir: str | os.PathLike[str]) -> None:
    """Tells which checkpoints a run that begins anew finds in its folder."""
    found = _checkpoints(output_dir)
    if found:
        logger.warning(
            "%r holds %d checkpoint%s of an earlier run, up to %s. This run begins anew, and writes beside and over "
            "what is there; `resume_from_checkpoint` goes on with one.",
            os.fspath(output_dir), len(found), "" if len(found) == 1 else "s", found[0].name,
        )  # fmt: skip


def check_checkpoint(folder: str | os.PathLike[str]) -> None:
    """Checks that a checkpoint is there and whole.

    Raises:
        ValueError: If it is not.
    """
    fault = checkpoint_fault(Path(folder)) if Path(folder).is_dir() else "there is no such folder"
    if fault is not None:
        raise ValueError(
            f"{os.fspath(folder)!r} cannot be resumed from: {fault}. Give the folder of a whole checkpoint, or 'last'."
        )


def checkpoint_fault(folder: Path) -> str | None:
    """Says what keeps a checkpoint from being resumed, or None if nothing does."""
    # The trainer writes its state last, so that file stands for the others.
    if _read_json(folder / TRAINER_STATE_NAME) is None:
        return f"{TRAINER_STATE_NAME} is missing or cut off, so its save was interrupted"
    is_sharded = (folder / OPTIMIZER_NAME_BIN).is_file()  # The name that FSDP gives it.
    for name in (OPTIMIZER_NAME_BIN if is_sharded else OPTIMIZER_NAME, SCHEDULER_NAME):
        if not zipfile.is_zipfile(folder / name):  # What torch writes.
            return f"{name} is missing or cut off, so training cannot go on from it"
    has_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    files = [ADAPTER_SAFE_WEIGHTS_NAME, HEADS_NAME] if has_adapter else [SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = _read_json(folder / SAFE_WEIGHTS_INDEX_NAME)
        if index is None or "weight_map" not in index:
            return f"{SAFE_WEIGHTS_INDEX_NAME} is cut off"
        files = sorted(set(index["weight_map"].values()))
    files += sorted({path.name for path in folder.glob("*.safetensors")} - set(files))
    cut = [name for name in files if not is_whole_safetensors(folder / name)]
    return f"{', '.join(cut)} is missing or cut off" if cut else None


def is_whole_safetensors(path: Path) -> bool:
    """Returns whether a safetensors file has the size that its header says."""
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if header_bytes > path.stat().st_size:
                return False
            header = json.loads(file.read(header_bytes))
    except (OSError, ValueError):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return path.stat().st_size == 8 + header_bytes + max(ends, default=0)


def check_same_run(checkpoint: str | os.PathLike[str], config: MTLConfig, args: MTLTrainingArguments) -> None:
    """Checks that a checkpoint is of a run like this one, before its state is read by position.

    Args:
        checkpoint: Folder of the checkpoint.
        config: Configuration of the model that is to go on.
        args: Settings of the run that is to go on.

    Raises:
        ValueError: If it is missing or not whole, or its tasks, in their order, its pooling, or what trains, and how,
            is another.
    """
    check_checkpoint(checkpoint)
    saved = _read_json(Path(checkpoint) / CONFIG_NAME)
    pairs = [] if saved is None else [(_meaning(saved), _meaning(config.to_dict()))]
    settings, now = _read_json(Path(checkpoint) / TRAINING_ARGS_JSON), json.loads(args.to_json_string())
    if settings is not None:
        keys = (
            "freeze", "freeze_schedule", "peft", "weighting", "aggregation", "optim", "average_weights", "layer_decay",
            "label_smoothing_factor",
        )  # fmt: skip
        settings.setdefault("aggregation", "none")  # Of a run before there was another.
        pairs.append(({key: settings.get(key) for key in keys}, {key: now.get(key) for key in keys}))
        # Absent from checkpoints of before there were mixtures and teachers.
        later = ("mixture", "homogeneous_batches", "distillation_temperature", "teacher_annealing", "gold_share")
        present = [key for key in later if key in settings]
        pairs.append(({key: settings[key] for key in present}, {key: now[key] for key in present}))
        if _place_of_heads(settings) != _place_of_heads(now):
            rates = ("head_learning_rate", "learning_rate")
            pairs.append(({key: settings.get(key) for key in rates}, {key: now[key] for key in rates}))
    for before, after in pairs:
        changed = [key for key in before if before[key] != after[key]]
        if changed:
            raise ValueError(
                f"{str(checkpoint)!r} cannot be resumed from: its {changed[0]} is {before[changed[0]]}, that of this "
                f"run {after[changed[0]]}. Set it alike, or start anew in another `output_dir`."
            )


def warn_of_changes(
    checkpoint: str | os.PathLike[str], args: MTLTrainingArguments, num_train_rows: int | None = None
) -> None:
    """Tells what is another in the run that is to go on, where it may be; see [`check_same_run`].

    Args:
        checkpoint: Folder of the checkpoint.
        args: Settings of the run that is to go on.
        num_train_rows: Its count of rows to train on, if that is known.
    """
    settings = _read_json(Path(checkpoint) / TRAINING_ARGS_JSON)
    now = {**json.loads(args.to_json_string()), NUM_TRAIN_ROWS: num_train_rows}
    if settings is not None:
        for key in _OF_OPTIMIZER:
            if settings.get(key) != now.get(key):
                logger.warning("%s stays %s, as in %s.", key, settings.get(key), checkpoint)
        for key in (
            "seed", "data_seed", "per_device_train_batch_size", "gradient_accumulation_steps", NUM_TRAIN_ROWS
        ):  # fmt: skip
            if settings.get(key, now[key]) not in (now[key], None):
                logger.warning(
                    "%s is %s in %s, and now %s: the rows of an epoch come in another order, or in other batches, "
                    "than in the run that is resumed, so some may be seen twice in it, others not.",
                    key, settings[key], checkpoint, now[key],
                )  # fmt: skip
    _warn_of_another_order(checkpoint, args)


def _warn_of_another_order(checkpoint: str | os.PathLike[str], args: MTLTrainingArguments) -> None:
    epoch = (_read_json(Path(checkpoint) / TRAINER_STATE_NAME) or {}).get("epoch") or 0.0
    is_plain = args.mixture == NONE and not args.homogeneous_batches and args.world_size == 1
    # The Trainer draws this order from torch's global generator, which in the first epoch only is as it was.
    if is_plain and args.train_sampling_strategy == "group_by_length" and epoch > 1 and epoch % 1:
        logger.warning(
            "The rest of epoch %d comes in another order than in the run that is resumed: some rows are seen twice, "
            "others not. With `mixture: proportional` group_by_length resumes exactly.",
            int(epoch) + 1,
        )


def _place_of_heads(settings: Mapping[str, Any]) -> str | float:
    """Returns what decides where the groups of the heads stand in an optimizer: its states go by position."""
    rate, head = settings["learning_rate"], settings.get("head_learning_rate")
    if head in (None, rate):
        return "with the encoder"
    is_apart = settings.get("layer_decay") is None or head > rate
    return "apart" if is_apart else head / rate  # Else among the layers.


def head_meaning(task: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a task, given as its dict, without which its head's weights mean something else."""
    keys = ("name", "problem_type", "hidden_size", "num_labels", "labels", "cosine_scale")
    return {key: task.get(key) for key in keys}


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    tasks = config.get("tasks", ())
    settings = {key: config.get(key) for key in ("pooling", "normalize_for_heads")}
    losses = {key: [task.get(key) for task in tasks] for key in _LOSS_KEYS}
    # Tasks in their order: optimizer states go by it.
    return {"tasks": [head_meaning(task) for task in tasks], **settings, **losses}


def _read_json(path: Path) -> dict[str, Any] | None:
    """Returns what a JSON file holds, or None if it is missing, cut off, or holds no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
