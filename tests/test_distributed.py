"""Two ranks give the training of one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
WORKER = str(Path(__file__).parent / "distributed_worker.py")


# Every transition of a schedule falls between two of the five steps, which end at epochs 1/6, 2/6 ... 5/6.
TRANSFER = {
    "freeze_schedule": {"0": "backbone", "0.25": "lower_layers:1", "0.5": "none", "0.75": "heads:topic"},
    "layer_decay": 0.5,
    "average_weights": "ema:0.5",
    "weight_decay": 5.0,  # So much that a decay of what is frozen would show.
}

TAUGHT = {"teacher_annealing": True, "distillation_temperature": 2.0, "preserve_embeddings": 0.5}

ADAPTER = {"peft": {"peft_type": "LORA", "r": 2}, "average_weights": "last:0.6"}


def _run(folder: Path, command: list[str], batch_size: int, settings: dict[str, Any]) -> None:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    arguments = ["--folder", str(folder), "--batch-size", str(batch_size), "--settings", json.dumps(settings)]
    done = subprocess.run(
        [*command, WORKER, *arguments], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, {"freeze": "backbone"}, TRANSFER, ADAPTER, TAUGHT],
    ids=["plain", "heads", "transfer", "adapter", "taught"],
)
def test_two_ranks_equal_one_process(settings: dict[str, Any], tmp_path: Path) -> None:
    _run(tmp_path / "one", [sys.executable], 8, settings)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    _run(tmp_path / "two", torchrun, 4, settings)
    one, two = (json.loads((tmp_path / name / "log.json").read_text()) for name in ("one", "two"))
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["is_cached"] == two["is_cached"] == ("freeze" in settings)
    for name in ("weights.safetensors", "weighting.safetensors"):
        expected, found = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
        for key, value in expected.items():
            # AdamW divides by the root of tiny second moments, which lets float32 noise grow.
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4)
    for first, second in zip(one["history"], two["history"], strict=True):
        taught = ("teacher_loss_topic", "teacher_loss_valence", "loss_preservation")
        for key in ("loss", "loss_topic", "loss_valence", "loss_stars", "grad_norm", *taught):
            assert "loss" not in first or key not in taught or (key in first) == (settings is TAUGHT)
            if key in first:
                # At first the embedding is the original one, and its distance from it nothing but rounding.
                assert second[key] == pytest.approx(first[key], rel=1e-5, abs=1e-6), key
    assert one["temperatures"].keys() == {"topic", "stars"}
    # Where the likelihood is flat, its maximum moves by more than the logits.
    assert two["temperatures"] == pytest.approx(one["temperatures"], rel=1e-2)
    for key, value in one["evaluated"].items():
        if key.startswith(("eval_topic", "eval_valence", "eval_stars")) or key in ("eval_loss", "eval_score"):
            assert two["evaluated"][key] == pytest.approx(value, rel=1e-4), key
