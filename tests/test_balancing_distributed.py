"""Each weighting, and the conflicts, of two ranks are those of one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from balancing_worker import WEIGHTINGS
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
WORKER = str(Path(__file__).parent / "balancing_worker.py")


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
    for weighting in WEIGHTINGS:
        expected, found = (load_file(tmp_path / name / f"{weighting}.safetensors") for name in ("one", "two"))
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)  # Float32 sums in another order.
        measured, weights = 0, set()
        for first, second in zip(one["history"][weighting], two["history"][weighting], strict=True):
            keys = [key for key in first if key.startswith(("loss", "weight_", "grad_"))]
            assert [second[key] for key in keys] == pytest.approx([first[key] for key in keys], rel=1e-4, abs=1e-6)
            measured += "grad_cos_topic_valence" in first
            weights |= {first["weight_topic"]} if "weight_topic" in first else set()
        assert measured == (6 if weighting == "geometric_mean" else 3)
        distinct = {"equal": 0, "dwa": 2, "random": 6, "geometric_mean": 12, "initial_loss": 1}
        assert len(weights) == distinct[weighting]
