"""A schedule changes what learns at its epochs and not before, and a resumed run takes it up where it stood."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import training_args
from conftest import MakeModel
from datasets import DatasetDict
from torch import Tensor
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.freeze_schedule import FreezeSchedule
from mtl.settings import parse_settings
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]

# 64 rows in batches of 16: four steps an epoch.
SCHEDULE = {0: "backbone", 0.5: "lower_layers:1", 1: "none", 2: "backbone+heads:topic"}
LOWER = ("backbone.embeddings.", "backbone.encoder.layer.0.")


def _is_frozen(name: str, step: int) -> bool:
    """Says whether a parameter is frozen in a step, counted from 1; apart from the code under test."""
    if step <= 2:
        return name.startswith("backbone.")
    if step <= 4:
        return name.startswith(LOWER)
    if step <= 8:
        return False
    return name.startswith(("backbone.", "heads.topic."))


class _Watch(TrainerCallback):
    """Keeps the weights before and after each step, whether they had gradients, and Adam's moments after it."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.gradients: list[set[str]] = []
        self.moments: list[dict[str, Tensor]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.weights:
            self._keep(kwargs["model"])

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.gradients.append({name for name, p in kwargs["model"].named_parameters() if p.grad is not None})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._keep(kwargs["model"])
        states = kwargs["optimizer"].state
        names = {id(p): name for name, p in kwargs["model"].named_parameters()}
        self.moments.append({names[id(p)]: values["exp_avg"].clone() for p, values in states.items() if values})

    def _keep(self, model: torch.nn.Module) -> None:
        self.weights.append({name: p.detach().clone() for name, p in model.named_parameters()})


def test_each_phase_trains_what_it_says(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    watch = _Watch()
    args = training_args(
        tmp_path,
        freeze_schedule=SCHEDULE,
        max_steps=12,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        weight_decay=0.1,
        lr_scheduler_type="constant",
    )
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"], callbacks=[watch])
    # The upper layer, and every head, in some phase; the lower parts too.
    assert trainer.freezing.num_trainable == trainer.freezing.num_total
    assert trainer.freezing.modules == ()
    trainer.train()
    for step in range(1, 13):
        before, after = watch.weights[step - 1], watch.weights[step]
        for name, weight in after.items():
            frozen = _is_frozen(name, step)
            assert torch.equal(weight, before[name]) == frozen, (step, name)
            assert (name in watch.gradients[step - 1]) != frozen, (step, name)
            learned = any(not _is_frozen(name, earlier) for earlier in range(1, step + 1))
            assert (name in watch.moments[step - 1]) == learned, (step, name)
            if frozen and learned:
                assert torch.equal(watch.moments[step - 1][name], watch.moments[step - 2][name])


def test_first_phase_is_the_run_with_that_freeze(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    runs = []
    # Embeddings that were computed before round otherwise than those of the training batch.
    for settings in (
        {"freeze": "backbone", "cache_embeddings": "false"},
        {"freeze_schedule": {0: "backbone", 1: "none"}},
    ):
        watch = _Watch()
        args = training_args(tmp_path, max_steps=6, per_device_train_batch_size=16, **settings)
        MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"], callbacks=[watch]).train()
        runs.append(watch.weights)
    for step, (frozen, scheduled) in enumerate(zip(*runs, strict=True)):
        same = all(torch.equal(weight, frozen[name]) for name, weight in scheduled.items())
        assert same == (step <= 4), step


@pytest.mark.parametrize("checkpoint", [2, 5])
def test_resuming_equals_the_unbroken_run(
    checkpoint: int, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {
        "freeze_schedule": {0: "backbone", 0.75: "lower_layers:1", 1.5: "none"},
        "max_steps": 8,
        "per_device_train_batch_size": 16,
        "save_strategy": "steps",
        "save_steps": 1,
        "layer_decay": 0.8,
        "average_weights": "last:0.9",
    }
    model = tiny_model(tasks=tasks)
    MTLTrainer(model, training_args(tmp_path, **settings), train_dataset=splits["train"]).train()
    resumed = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=splits["train"])
    caplog.clear()
    with caplog.at_level(logging.INFO, "mtl"):
        resumed.train(str(tmp_path / f"checkpoint-{checkpoint}"))
    for name, parameter in resumed.model.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name
    taken = [record.getMessage() for record in caplog.records if "freeze_schedule takes" in record.getMessage()]
    expected = {
        2: ["Epoch 0.50, step 2: freeze_schedule takes 'backbone'."],
        5: [],
    }[checkpoint] + [
        f"Epoch {'0.75, step 3' if checkpoint == 2 else '1.25, step 5'}: freeze_schedule takes 'lower_layers:1'.",
        "Epoch 1.50, step 6: freeze_schedule takes 'none'.",
    ]
    assert taken == expected
    total = sum(parameter.numel() for parameter in model.parameters())
    assert f"freeze=none: {total:,} of {total:,} parameters train" in caplog.text
    other = training_args(tmp_path, **{**settings, "freeze_schedule": {0: "backbone"}})
    with pytest.raises(ValueError, match="its freeze_schedule is .* that of this run"):
        MTLTrainer(tiny_model(tasks=tasks), other, train_dataset=splits["train"]).train(resume_from_checkpoint=True)


def test_what_never_learns_is_not_in_the_optimizer(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model()
    schedule = {0: "backbone+heads:topic", 1: "lower_layers:1+heads:topic"}
    trainer = MTLTrainer(model, training_args(tmp_path, freeze_schedule=schedule))
    optimizer = trainer.create_optimizer()
    learning = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) not in learning) == name.startswith((*LOWER, "heads.topic.")), name
    assert trainer.freezing.num_trainable == sum(p.numel() for p in model.parameters() if id(p) in learning)
    assert trainer.freezing.modules == ("heads.topic",)
    assert str(trainer.freezing).startswith("freeze=backbone+heads:topic from epoch 0, lower_layers:1+heads:topic fr")


def test_optimizer_of_the_callers_own(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    watch, model = _Watch(), tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    args = training_args(
        tmp_path, freeze_schedule={0: "backbone", 1: "none"}, max_steps=6, per_device_train_batch_size=16
    )
    data = toy_splits[0]["train"]
    trainer = MTLTrainer(model, args, train_dataset=data, optimizers=(optimizer, None), callbacks=[watch])
    trainer.create_optimizer()
    # As DistributedDataParallel is to find it.
    assert all(parameter.requires_grad for parameter in model.parameters())
    trainer.train()
    name = "backbone.encoder.layer.1.output.dense.weight"
    moved = [not torch.equal(b[name], a[name]) for b, a in zip(watch.weights, watch.weights[1:], strict=False)]
    assert moved == [False] * 4 + [True] * 2


def test_training_twice_begins_the_schedule_again(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    watch, model = _Watch(), tiny_model()
    args = training_args(
        tmp_path, freeze_schedule={0: "backbone", 1: "none"}, max_steps=6, per_device_train_batch_size=16
    )
    trainer = MTLTrainer(model, args, train_dataset=toy_splits[0]["train"], callbacks=[watch])
    trainer.train()
    trainer.train()
    name = "backbone.encoder.layer.1.output.dense.weight"
    moved = [not torch.equal(b[name], a[name]) for b, a in zip(watch.weights, watch.weights[1:], strict=False)]
    assert moved == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2


@pytest.mark.parametrize(
    ("epoch", "setting"),
    [(0.0, "a"), (0.49, "a"), (0.5, "b"), (1.2, "b"), (1 + 3 / 10, "c"), (0.1 * 13, "c"), (99, "c")],
)
def test_setting_at_an_epoch(epoch: float, setting: str) -> None:
    assert FreezeSchedule.parse({"1.3": "c", "0": "a", 0.5: "b"}).at(epoch) == setting


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (["backbone"], r"must be a mapping from epochs to settings, found \['backbone'\]"),
        ({}, "has no epoch 0, so nothing says what learns first"),
        ({1: "none"}, "has no epoch 0"),
        ({0: "backbone", "soon": "none"}, "'soon' is no epoch"),
        ({0: "backbone", -1: "none"}, "-1 is no epoch"),
        ({0: "backbone", True: "none"}, "True is no epoch"),
        ({0: "backbone", "0.0": "none"}, "epoch 0 stands twice"),
        ({0: "backbone", 2: None}, "epoch 2 has None, .* write 'none'"),
    ],
)
def test_illegal_schedules(schedule: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training_args(tmp_path, freeze_schedule=schedule)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({0: "backbone", 1: "lower_layers:7"}, "freeze='lower_layers:7': backbone BertModel has only 2 layers"),
        ({0: "backbone", 1: "all"}, "'all', from epoch 1 on, leaves no parameter to learn"),
        ({0: "backbone+heads_except:topic+heads:topic"}, "from epoch 0 on, leaves no parameter to learn"),
    ],
)
def test_phases_that_do_not_fit_the_model(schedule: Any, message: str, tiny_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        MTLTrainer(tiny_model(), training_args(tmp_path, freeze_schedule=schedule))


def test_freeze_beside_a_schedule_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="freeze='backbone' and freeze_schedule are both given"):
        training_args(tmp_path, freeze="backbone", freeze_schedule={0: "none"})


@pytest.mark.parametrize("setting", ["ddp_static_graph", "gradient_checkpointing"])
def test_ranks_that_do_not_look_for_what_is_frozen(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MTLTrainingArguments, "world_size", 2)
    assert training_args(tmp_path, **{setting: True}).freeze_schedule is None
    with pytest.raises(ValueError, match="freeze_schedule over several processes does not go with"):
        training_args(tmp_path, freeze_schedule={0: "none"}, **{setting: True})


def test_phase_after_the_end_is_told(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = training_args(tmp_path, freeze_schedule={0: "backbone", 3: "none"}, max_steps=1)
    MTLTrainer(tiny_model(), args, train_dataset=toy_splits[0]["train"]).train()
    assert "freeze_schedule: 'none', from epoch 3 on, is never reached in 1 epochs" in caplog.text


@pytest.mark.parametrize("on_the_command_line", [True, False])
def test_schedule_from_a_file_and_from_the_command_line(on_the_command_line: bool, tmp_path: Path) -> None:
    text = f"tasks: [{{name: a}}]\nsources: [{{path: a.csv}}]\noutput_dir: {tmp_path}\nuse_cpu: true\n"
    written = '{"0": "backbone", "1.5": "none"}'
    if not on_the_command_line:
        text += "freeze_schedule: {0: backbone, 1.5: none}\n"
    (tmp_path / "run.yaml").write_text(text)
    argv = ["--freeze_schedule", written] if on_the_command_line else []
    _, args = parse_settings([str(tmp_path / "run.yaml"), *argv])
    assert args.freeze_schedule == {"0": "backbone", "1.5": "none"}
