"""Ctrl-C while a model trains: what is saved, what is said, and that the run goes on as if nothing had happened."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import training_args
from conftest import MakeModel
from datasets import DatasetDict
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from mtl.interrupt import checkpoint_when_interrupted
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


class Signals(TrainerCallback):
    """Sends signals to this process at the begin of a step."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sends them."""
        if state.global_step == self.step - 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)


@pytest.fixture
def make_trainer(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> Any:
    splits, tasks = toy_splits

    def make(name: str, *callbacks: TrainerCallback) -> MTLTrainer:
        args = training_args(tmp_path / name, max_steps=6, save_strategy="no", average_weights="ema:0.5")
        return MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"], callbacks=list(callbacks))

    return make


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_that_was_interrupted_goes_on_bit_for_bit(make_trainer: Any, tmp_path: Path, number: int) -> None:
    unbroken = make_trainer("unbroken")
    unbroken.train()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    broken = make_trainer("broken", Signals(3, number))
    with pytest.raises(KeyboardInterrupt), checkpoint_when_interrupted(broken):
        broken.train()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert [path.name for path in (tmp_path / "broken").glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = make_trainer("broken")
    with checkpoint_when_interrupted(resumed):
        resumed.train(resume_from_checkpoint=True)
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_second_signal_ends_at_once(make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer("out", Signals(3, signal.SIGINT, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), checkpoint_when_interrupted(trainer):
        trainer.train()
    assert trainer.state.global_step == 2
    assert not list((tmp_path / "out").glob("checkpoint-*"))
