"""Training with teachers: gradients, the log, evaluation, and resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import NAN, output_layer, training_args, without_dropout
from conftest import MakeModel
from datasets import DatasetDict
from torch import Tensor
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from mtl.distillation import (
    has_teacher,
    soft_losses,
)
from mtl.teacher_columns import as_teacher_column
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def taught_rows(splits: DatasetDict, tasks: tuple[TaskConfig, ...], *, seed: int = 0) -> DatasetDict:
    """Returns the splits with random teachers in train, for about two rows of three."""
    train, generator = splits["train"], torch.Generator().manual_seed(seed)
    for task in tasks:
        logits = torch.randn(len(train), task.num_labels or 1, generator=generator)  # (N, C)
        says = {SINGLE_LABEL: logits.softmax(-1), MULTI_LABEL: logits.sigmoid(), REGRESSION: logits}
        values = says[task.problem_type]
        values[torch.rand(len(train), generator=generator) < 1 / 3] = NAN
        train = train.add_column(f"teacher_{task.name}", as_teacher_column(values.numpy()))
    return DatasetDict({**splits, "train": train})


def test_collator_gives_what_teachers_say(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    taught = taught_rows(splits, tasks)["train"]
    collator = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path)).data_collator
    rows = [taught[row] for row in range(5)]
    batch = collator(rows)
    assert {name: tuple(values.shape) for name, values in batch["teachers"].items()} == {
        "topic": (5, 3), "sentiment": (5, 3), "tags": (5, 4), "valence": (5, 1)
    }  # fmt: skip
    for name, values in batch["teachers"].items():
        expected = torch.tensor([row[f"teacher_{name}"] for row in rows])
        torch.testing.assert_close(values, expected, equal_nan=True)
    assert "teachers" not in collator([splits["train"][row] for row in range(5)])
    absent = [{key: value for key, value in row.items() if key != "teacher_valence"} for row in rows]
    assert set(collator(absent)["teachers"]) == {"topic", "sentiment", "tags"}
    one = collator([{**rows[0], "teacher_valence": 0.5}, {**rows[1], "teacher_valence": None}])["teachers"]["valence"]
    assert one[0].item() == 0.5 and bool(one[1].isnan())


class _FirstGradients(TrainerCallback):
    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.found:
            named = kwargs["model"].named_parameters()
            self.found = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}


@pytest.mark.parametrize("preserve", [0.0, 0.5])
def test_accumulation_does_not_change_the_gradient(
    preserve: float, make_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    splits, results = taught_rows(splits, tasks), []
    for batch_size, steps in ((8, 1), (1, 8), (4, 2)):
        gradients = _FirstGradients()
        args = training_args(
            tmp_path / "out",
            max_steps=1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            distillation_temperature=2.0,
            gold_share=0.3,
            preserve_embeddings=preserve,
        )
        model = make_model(tasks=tasks, backbone_dropout=0.0)
        # Moved, as at the original embedding the loss that preserves it is flat.
        trainer = MTLTrainer(model, args, train_dataset=splits["train"], callbacks=[gradients, _Moved()])
        trainer.train()
        results.append(gradients.found)
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, gradient in results[0].items():
            # Sums of float32 in another order.
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=2e-6)


class _Moved(TrainerCallback):
    """Moves the encoder after the originals were computed."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for weight in kwargs["model"].backbone.parameters():
                weight.add_(0.05 * torch.randn(weight.shape, generator=generator))


def test_row_with_neither_moves_no_head(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    train = taught_rows(splits, tasks)["train"]
    rows = train.filter(
        lambda row: row["label_topic"] == IGNORE_INDEX and math.isnan(row["teacher_topic"][0]),
        load_from_cache_file=False,
    )
    assert len(rows) > 0
    gradients = _FirstGradients()
    args = training_args(tmp_path, max_steps=1, per_device_train_batch_size=2)
    MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=rows, callbacks=[gradients]).train()
    assert torch.count_nonzero(gradients.found["heads.topic.out_proj.weight"]) == 0
    assert torch.count_nonzero(gradients.found["heads.sentiment.out_proj.weight"]) > 0


def test_log_tells_labels_and_teachers_apart(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    splits = taught_rows(splits, tasks)
    args = training_args(
        tmp_path, learning_rate=0.0, per_device_train_batch_size=6, max_steps=11, logging_steps=11, gold_share=0.25
    )
    model = tiny_model(tasks=tasks, head_dropout=0.0)
    without_dropout(model)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["train"])
    trainer.train()  # With learning rate 0, one epoch over the 64 rows.
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    batch = trainer.data_collator([splits["train"][row] for row in range(64)])
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    evaluated = trainer.evaluate()  # By labels alone, though the rows have teachers.
    for task in tasks:
        assert logged[f"loss_{task.name}"] == pytest.approx(evaluated[f"eval_{task.name}_loss"], rel=1e-4)
        taught = has_teacher(task.problem_type, batch["teachers"][task.name])
        soft = soft_losses(task.problem_type, logits[task.name], batch["teachers"][task.name], 1.0)[taught].mean()
        assert logged[f"teacher_loss_{task.name}"] == pytest.approx(soft.item(), rel=1e-4)


def test_evaluation_is_that_without_teachers(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    trainer = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path))
    clock = ("runtime", "per_second", "preparation_time")
    found = [
        {key: value for key, value in trainer.evaluate(rows).items() if not key.endswith(clock)}
        for rows in (splits["train"], taught_rows(splits, tasks)["train"])
    ]
    assert found[0] == found[1]


def test_settings_that_have_no_effect_without_a_teacher(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    args = training_args(tmp_path, max_steps=1, distillation_temperature=2.0)
    for rows in (taught_rows(splits, tasks), splits):
        assert "no effect" not in caplog.text
        MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=rows["train"]).train()
    assert "distillation_temperature=2.0 and gold_share=0.5 have no effect: no task has a teacher" in caplog.text


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_resuming_amid_annealing_equals_the_unbroken_run(
    weighting: str, make_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    splits = taught_rows(splits, tasks)
    settings: dict[str, Any] = {
        "weighting": weighting,
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "teacher_annealing": True,
        "distillation_temperature": 2.0,
        "preserve_embeddings": 0.5,
    }
    runs = []
    for resume in (None, str(tmp_path / "out" / "checkpoint-5")):
        args = training_args(tmp_path / "out", **settings)
        trainer = MTLTrainer(make_model(tasks=tasks), args, train_dataset=splits["train"])
        trainer.train(resume_from_checkpoint=resume)
        runs.append(trainer)
    unbroken, resumed = runs
    for name, parameter in resumed.model.state_dict().items():
        assert torch.equal(parameter, unbroken.model.state_dict()[name]), name
    keys = ("loss", "grad_norm", "loss_topic", "teacher_loss_topic", "loss_preservation")
    logs = [[{key: log[key] for key in keys} for log in run.state.log_history if "loss" in log] for run in runs]
    assert len(logs[0]) == 10 and logs[0] == logs[1]
    # What is resumed is amid the annealing: with a constant share the same steps come out otherwise.
    args = training_args(tmp_path / "constant", **{**settings, "teacher_annealing": False})
    constant = MTLTrainer(make_model(tasks=tasks), args, train_dataset=splits["train"])
    constant.train()
    weights = [output_layer(run.model, "topic").weight for run in (constant, resumed)]
    assert not torch.equal(*weights)
