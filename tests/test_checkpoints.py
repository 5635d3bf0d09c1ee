"""An interrupted save leaves a checkpoint that is not resumed from."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtl.checkpoints import (
    check_checkpoint,
    checkpoint_fault,
    is_whole_safetensors,
    last_complete_checkpoint,
    warn_of_earlier_run,
)


def _checkpoint(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    save_file({"weight": torch.zeros(64, 8)}, checkpoint / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({"step": step}, checkpoint / name)
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "trainer_state.json").unlink(),
        lambda folder: (folder / "trainer_state.json").write_text('{"epoch": '),
        lambda folder: (folder / "trainer_state.json").write_bytes(b"\xff"),
        lambda folder: (folder / "optimizer.pt").unlink(),
        lambda folder: _truncate(folder / "optimizer.pt"),
        lambda folder: (folder / "scheduler.pt").write_bytes(b""),
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": '),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: _truncate(folder / "model.safetensors"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 40),
    ],
)
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    whole, damaged = _checkpoint(tmp_path, 9), _checkpoint(tmp_path, 10)
    assert last_complete_checkpoint(tmp_path) == str(damaged)
    damage(damaged)
    assert last_complete_checkpoint(tmp_path) == str(whole)


@pytest.mark.parametrize(
    ("long_log", "short_log", "seconds", "expected"),
    [
        ([1, 2, 3], [5, 6], 60, 9),  # What was written later is of another run.
        ([1, 2, 3], [], 60, 9),
        ([1, 2, 3], [1, 2], 60, 10),  # A copied folder has new times.
        ([1, 2, 3], [5, 6], 0, 10),
        ([1, 2, 3], [5, 6], -60, 10),
    ],
)
def test_checkpoint_of_an_earlier_run_is_passed_over(
    long_log: list[int], short_log: list[int], seconds: int, expected: int, tmp_path: Path
) -> None:
    for step, log in ((10, long_log), (9, short_log)):
        state = _checkpoint(tmp_path, step) / "trainer_state.json"
        state.write_text(json.dumps({"log_history": [{"step": entry} for entry in log]}))
        os.utime(state, (1e9, 1e9 + (seconds if step == 9 else 0)))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{expected}")


def test_folder_to_resume_from_is_checked_by_name_too(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no' cannot be resumed from: there is no such folder"):
        check_checkpoint("no")
    folder = _checkpoint(tmp_path, 3)
    check_checkpoint(folder)
    (folder / "optimizer.pt").unlink()  # The Trainer would begin with a fresh one, without a word.
    with pytest.raises(ValueError, match="checkpoint-3' cannot be resumed from: optimizer.pt is missing"):
        check_checkpoint(folder)


def test_no_checkpoint(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path) is None


def test_whole_checkpoint_has_no_fault_and_shards_are_checked(tmp_path: Path) -> None:
    folder = _checkpoint(tmp_path, 1)
    assert checkpoint_fault(folder) is None
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = (
        '{"weight_map": {"weight": "model-00001-of-00002.safetensors", "bias": "model-00002-of-00002.safetensors"}}'
    )
    (folder / "model.safetensors.index.json").write_text(index)
    assert checkpoint_fault(folder) == "model-00002-of-00002.safetensors is missing or cut off"


def test_is_whole_safetensors(tmp_path: Path) -> None:
    save_file({}, tmp_path / "empty.safetensors")
    assert is_whole_safetensors(tmp_path / "empty.safetensors")
    assert not is_whole_safetensors(tmp_path / "none.safetensors")


def test_checkpoints_of_an_earlier_run_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint-5").mkdir()
    warn_of_earlier_run(tmp_path)
    (tmp_path / "checkpoint-10").mkdir()
    warn_of_earlier_run(tmp_path)
    one, two = (record.getMessage() for record in caplog.records)
    assert " holds 1 checkpoint of an earlier run, up to checkpoint-5. " in one
    assert " holds 2 checkpoints of an earlier run, up to checkpoint-10. " in two
