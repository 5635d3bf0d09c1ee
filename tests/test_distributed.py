"""Two ranks give the training of one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
WORKER = str(Path(__file__).parent / "distributed_worker.py")


def _run(folder: Path, command: list[str], batch_size: int) -> None:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = ["--folder", str(folder), "--batch-size", str(batch_size)]
    done = subprocess.run(
        [*command, WORKER, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    _run(tmp_path / "one", [sys.executable], batch_size=8)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    _run(tmp_path / "two", torchrun, batch_size=4)
    one, two = (json.loads((tmp_path / name / "log.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    for name in ("weights.safetensors", "weighting.safetensors"):
        expected, found = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        for key, value in expected.items():
            # AdamW divides by the root of tiny second moments, which lets float32 noise grow.
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
    for first, second in zip(one["history"], two["history"], strict=True):
        for key in ("loss", "loss_topic", "loss_valence", "loss_stars", "grad_norm"):
            if key in first:
                assert second[key] == pytest.approx(first[key], rel=1e-5), key
    for key, value in one["evaluated"].items():
        if key.startswith(("eval_topic", "eval_valence", "eval_stars")) or key in ("eval_loss", "eval_score"):
            assert two["evaluated"][key] == pytest.approx(value, rel=1e-4), key
