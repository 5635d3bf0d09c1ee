"""Early stopping and stale checkpoints: a run that goes on is the unbroken one, and only that."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import training_args
from conftest import MakeModel
from datasets import DatasetDict

from configuration_mtl import TaskConfig
from mtl.averaging import AVERAGE_NAME
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def _trainer(make: MakeModel, splits: Splits, folder: Path, **settings: Any) -> MTLTrainer:
    data, tasks = splits
    args = training_args(folder, **settings)
    return MTLTrainer(make(tasks=tasks), args, train_dataset=data["train"], eval_dataset=data["validation"])


def test_a_resumed_run_stops_where_the_unbroken_one_does(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    settings = {
        "max_steps": 40, "learning_rate": 0.0, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1,
        "save_steps": 1, "early_stopping_patience": 4,
    }  # fmt: skip
    unbroken = _trainer(tiny_model, toy_splits, tmp_path, **settings)
    unbroken.train()
    assert unbroken.state.global_step == 1 + 4  # With a rate of 0 no evaluation is better than the first.
    resumed = _trainer(tiny_model, toy_splits, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 5
    # The checkpoint of its last step goes on with nothing, unless it is allowed more evaluations.
    stopped = _trainer(tiny_model, toy_splits, tmp_path, **settings)
    stopped.train(resume_from_checkpoint=True)
    assert stopped.state.global_step == 5
    longer = _trainer(tiny_model, toy_splits, tmp_path, **{**settings, "early_stopping_patience": 6})
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert longer.state.global_step == 1 + 6
    longer.train()
    assert longer.state.global_step == 1 + 6, "A training from the start counts from 0."


def test_order_of_rows_follows_from_the_seed_alone(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    unbroken = _trainer(tiny_model, toy_splits, tmp_path, **settings)
    unbroken.train()
    resumed = _trainer(tiny_model, toy_splits, tmp_path, **settings)
    torch.manual_seed(7)  # As whatever is built between a trainer and its training may do.
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, weights in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weights), name


def test_nothing_of_an_earlier_run_stays_in_a_checkpoint(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    _trainer(tiny_model, toy_splits, tmp_path, average_weights="ema:0.9", **settings).train()
    assert (tmp_path / "checkpoint-1" / AVERAGE_NAME).is_file()
    _trainer(tiny_model, toy_splits, tmp_path, average_weights="last:0.5", **settings).train()
    assert not (tmp_path / "checkpoint-1" / AVERAGE_NAME).exists(), "The last half has step 2 alone."
    # A save that is cut off leaves no checkpoint, where the earlier run's optimizer would stand beside new weights.
    again = _trainer(tiny_model, toy_splits, tmp_path, average_weights="last:0.5", **settings)

    def cut_off(output_dir: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_save_optimizer_and_scheduler", cut_off)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert {path.name for path in (tmp_path / "checkpoint-1").iterdir()}.isdisjoint(
        {"optimizer.pt", "scheduler.pt", "trainer_state.json"}
    )
