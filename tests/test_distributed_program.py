"""The program over several processes: the curve of one, nothing done twice, and launches that go wrong are told."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import SaveBackbone, ToyRows
from safetensors.torch import load_file

import train_trainer
from modeling_mtl import MTLModel
from mtl.launch import launcher, refuse_lone_process
from mtl.sharded import check_sharding

ROOT = Path(__file__).parent.parent
PROGRAM = str(ROOT / "train_trainer.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
DDP = [*LAUNCH, "--config_file", str(ROOT / "configs" / "accelerate" / "ddp.yaml")]
MIXTURE = ["--mixture=temperature:2", "--train_sampling_strategy=group_by_length", "--gradient_accumulation_steps=3"]
# Sums of float32 in another order.
TOLERANCE = 1e-5


@pytest.fixture
def settings_file(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> str:
    """Gives a settings file of a run without dropout on two sources, whose rows do not divide by any batch."""
    sources = []
    for name, count, columns in (("reviews", 45, ["topic", "valence"]), ("posts", 14, ["sentiment"])):
        files = {}
        for split, number, seed in (("train", count, 0), ("validation", 7, 1), ("test", 6, 2)):
            files[split] = f"{name}-{split}.csv"
            with (tmp_path / files[split]).open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["text", *columns])
                # Of other seeds than the other source's, so that no text stands in both.
                for row in toy_rows(number, seed + len(columns) * 10):
                    cells = ["" if row[column] is None else row[column] for column in columns]
                    writer.writerow([f"{row['text']} {name} {split}", *cells])
        sources.append({"name": name, "files": files, "labels": {column: column for column in columns}})
    settings = {
        "backbone": str(backbone_dir("bert")),
        "backbone_dropout": 0.0,
        "head_dropout": 0.0,
        "data_dir": str(tmp_path),
        "tasks": [{"name": "topic"}, {"name": "sentiment"}, {"name": "valence", "problem_type": "regression"}],
        "sources": sources,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "max_length": 32,
        "precision": "fp32",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def launch(command: list[str], *, is_refused: bool = False) -> tuple[str, str]:
    """Runs a command with the environment of the tests; returns what it wrote to stdout and stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode != 0) == is_refused, done.stderr[-3000:]
    return done.stdout, done.stderr


def check_alike(one: dict[str, Any], two: dict[str, Any]) -> None:
    """Asserts that two reports have the same loss curves, measurements and results."""
    # Clocks, and the padded tokens, which are fewer where each process pads its own rows.
    own = ("runtime", "per_second", "preparation_time", "total_flos")
    for first, second in zip(one["history"], two["history"], strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            if not key.endswith(own):
                assert second[key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE, nan_ok=True), key
    for split, result in one["results"].items():
        for task, metrics in result["tasks"].items():
            found = two["results"][split]["tasks"][task]
            assert found["support"] == metrics["support"]
            assert found == pytest.approx(metrics, rel=TOLERANCE, abs=TOLERANCE), (split, task)


@pytest.mark.slow
@pytest.mark.parametrize(("command", "mixture"), [(TORCHRUN, []), (DDP, MIXTURE)], ids=["torchrun", "accelerate"])
def test_two_processes_give_the_curve_of_one(
    command: list[str], mixture: list[str], settings_file: str, tmp_path: Path
) -> None:
    whole = ["--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")]
    one = json.loads(json.dumps(train_trainer.main([settings_file, *mixture, *whole])))
    shown, _ = launch([*command, PROGRAM, settings_file, *mixture, "--output_dir", str(tmp_path / "two")])
    two = json.loads((tmp_path / "two" / "report.json").read_text())
    # 59 rows in global batches of 8 are 8 a epoch.
    assert sum("loss" in entry for entry in one["history"]) == (6 if mixture else 16)
    check_alike(one, two)
    assert two["data"]["rows"]["validation"] == 14
    assert shown.count("Saved to") == 1
    assert two["training"]["num_processes"] == 2
    rows = two["training"]["effective_batch_size"]
    assert rows == one["training"]["effective_batch_size"] == (24 if mixture else 8)
    card = (tmp_path / "two" / "README.md").read_text()
    assert (
        f"{'accelerate launch --multi_gpu --num_processes' if mixture else 'torchrun --nproc_per_node'}=2 "
    ) in card
    assert " s in 2 processes: " in card and f" steps of {rows} rows, 2 epochs, in " in card
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in expected.items():
        # AdamW divides by the root of tiny second moments, which lets float32 noise grow.
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_shards_give_the_curve_of_one_and_resume(settings_file: str, tmp_path: Path) -> None:
    common = [settings_file, "--head_learning_rate", "5e-3", "--gradient_accumulation_steps", "2"]
    common += ["--abstention_error_rate", "0.6"]
    whole = ["--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "one")]
    one = json.loads(json.dumps(train_trainer.main([*common, *whole])))
    folder = tmp_path / "two"
    sharded = [*LAUNCH, "--config_file", str(ROOT / "configs" / "accelerate" / "fsdp.yaml")]
    command = [*sharded, str(ROOT / "tests" / "sharded_worker.py"), *common, "--output_dir", str(folder)]
    command += ["--save_strategy", "steps", "--save_steps", "6"]  # Of 8: in the middle of the second epoch.
    launch(command)
    check_alike(one, json.loads((folder / "report.json").read_text()))
    thresholds = [task.abstention_threshold for task in MTLModel.from_pretrained(folder).config.tasks[:2]]
    assert thresholds == pytest.approx([task["abstention_threshold"] for task in one["tasks"][:2]], abs=TOLERANCE)
    assert max(thresholds) > 0.0
    assert (folder / "modeling_mtl.py").is_file()
    saved = MTLModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    launch([*command, "--resume_from_checkpoint", str(folder / "checkpoint-6")])
    resumed = MTLModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(saved[name], resumed[name]) for name in saved)


@pytest.mark.slow
def test_launch_that_starts_one_process_of_two_is_refused(settings_file: str, tmp_path: Path) -> None:
    command = [*LAUNCH, "--cpu", "--num_processes", "2", PROGRAM, settings_file, "--output_dir", str(tmp_path / "out")]
    _, said = launch(command, is_refused=True)
    assert "train_trainer.py: error: `accelerate launch` was asked for several processes" in said
    assert "torchrun --nproc_per_node=<N>" in said
    assert not (tmp_path / "out").exists()


def test_environments_of_launchers() -> None:
    accelerate = {"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no"}
    lone = {**accelerate, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    refuse_lone_process({})
    refuse_lone_process(accelerate)  # `accelerate launch --cpu --num_processes 1`.
    refuse_lone_process({**lone, "WORLD_SIZE": "2", "RANK": "0"})
    refuse_lone_process({**lone, "OMPI_COMM_WORLD_SIZE": "2"})
    refuse_lone_process({"MASTER_ADDR": "127.0.0.1"})  # Set by a scheduler, for whatever runs.
    with pytest.raises(ValueError, match="it starts only this one"):
        refuse_lone_process(lone)


def test_command_that_started_the_process() -> None:
    assert launcher({}) == launcher({"ACCELERATE_MIXED_PRECISION": "bf16"}) == ["python"]  # Set by `bf16` itself.
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"}
    assert launcher(torchrun) == ["torchrun", "--nnodes=2", "--nproc_per_node=2"]
    assert launcher({**torchrun, "GROUP_WORLD_SIZE": "1"}) == ["torchrun", "--nproc_per_node=2"]
    accelerate = {**torchrun, "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False"}
    assert launcher(accelerate) == ["accelerate", "launch", "--multi_gpu", "--num_processes=4"]
    assert "--use_fsdp" in launcher({**accelerate, "ACCELERATE_USE_FSDP": "true"})


class _Plugin:
    def __init__(self, fsdp_version: int = 2, state_dict_type: str = "StateDictType.FULL_STATE_DICT") -> None:
        self.fsdp_version, self.state_dict_type = fsdp_version, state_dict_type


@pytest.mark.parametrize(
    ("plugin", "learned", "message"),
    [
        (None, False, "FSDP is asked for, but accelerate shards over several accelerators only"),
        (_Plugin(fsdp_version=1), False, "Set `fsdp_version: 2`"),
        (_Plugin(state_dict_type="StateDictType.SHARDED_STATE_DICT"), False, "Set `fsdp_state_dict_type: FULL"),
        (_Plugin(), True, "Learned task weights are outside of the sharded model"),
    ],
)
def test_shards_that_cannot_work_are_refused(plugin: _Plugin | None, learned: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sharding(plugin, is_asked_for=True, has_learned_weights=learned)
    check_sharding(None, is_asked_for=False, has_learned_weights=learned)
    check_sharding(_Plugin(), is_asked_for=True, has_learned_weights=False)
