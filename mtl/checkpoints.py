"""Which checkpoints of a training run can be resumed from: an interrupted save leaves one that can not."""

import json
import logging
import os
import re
from pathlib import Path

from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

logger = logging.getLogger(__name__)

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def last_complete_checkpoint(output_dir: str | os.PathLike[str]) -> str | None:
    """Returns the newest checkpoint of a run whose every file is whole, or None if there is none."""
    folders = [
        (int(match[1]), folder)
        for folder in Path(output_dir).glob("checkpoint-*")
        if (match := _CHECKPOINT.fullmatch(folder.name))
    ]
    for _, folder in sorted(folders, reverse=True):
        fault = checkpoint_fault(folder)
        if fault is None:
            return str(folder)
        logger.warning("Checkpoint %s is left out: %s.", folder, fault)
    return None


def checkpoint_fault(folder: Path) -> str | None:
    """Says what keeps a checkpoint from being resumed, or None if nothing does."""
    # The trainer writes its state last, so that file stands for the others.
    try:
        json.loads((folder / TRAINER_STATE_NAME).read_text())
    except (OSError, json.JSONDecodeError):
        return f"{TRAINER_STATE_NAME} is missing or cut off, so its save was interrupted"
    for name in (OPTIMIZER_NAME, SCHEDULER_NAME):
        if not (folder / name).is_file():
            return f"{name} is missing, so training cannot go on from it"
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        index = json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())
        files = sorted(set(index["weight_map"].values()))
    else:
        files = [SAFE_WEIGHTS_NAME]
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
