"""Averages of the weights against numbers worked out by hand, and what is evaluated, saved and resumed with them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import output_layer, training_args
from conftest import MakeModel
from datasets import DatasetDict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.averaging import AVERAGE_NAME, AverageSetting, WeightAverage, load_average
from mtl.evaluation import evaluate_split, evaluation_of_final_model
from mtl.trainer import MTLTrainer

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
Weights = dict[str, Tensor]


class _Watch(TrainerCallback):
    """Keeps copies of the weights after each step, and of what `model` holds when an evaluation has ended."""

    def __init__(self) -> None:
        self.raw: list[Weights] = []
        self.after_evaluation: list[Weights] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.raw.append(_copy(kwargs["model"]))

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.after_evaluation.append(_copy(kwargs["model"]))


def _copy(model: nn.Module) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        # Weights 1, 2, 6: first the first, then 1 + 1/2 * (2 - 1), then 1.5 + 1/3 * (6 - 1.5).
        ("last:0.5", [1.0, 1.5, 3.0]),
        # D = 0.5, newest first: (0.5 * 2 + 0.25 * 1) / 0.75 = 5/3; (0.5 * 6 + 0.25 * 2 + 0.125 * 1) / 0.875 = 29/7.
        ("ema:0.5", [1.0, 5 / 3, 29 / 7]),
    ],
)
def test_averages_worked_out_by_hand(setting: str, expected: list[float]) -> None:
    average = WeightAverage(AverageSetting.parse(setting))
    weight = torch.tensor([1.0])
    for value, mean in zip((1.0, 2.0, 6.0), expected, strict=True):
        weight.fill_(value)
        average.update([("a.weight", weight)])
        # One rounding of a float32 number of about 4.
        assert average.state_dict()["a.weight"].item() == pytest.approx(mean, rel=2e-7)
    assert average.count == 3


def test_average_of_half_precision_is_kept_in_float32() -> None:
    average = WeightAverage(AverageSetting.parse("last:1"))
    for value in (1.0, 1.0078125):  # Neighbours in bfloat16, which has nothing between them.
        average.update([("a.weight", torch.tensor([value], dtype=torch.bfloat16))])
    assert average.state_dict()["a.weight"].item() == 1.00390625


def test_what_does_not_change_is_its_own_average() -> None:
    average = WeightAverage(AverageSetting.parse("ema:0.9"))
    weight = torch.tensor([0.1, -1e-30, 3e7])
    for _ in range(5):
        average.update([("a.weight", weight)])
    assert torch.equal(average.state_dict()["a.weight"], weight)


@pytest.mark.parametrize(
    ("setting", "max_steps", "first"),
    [("ema:0.9", 10, 1), ("last:0.5", 10, 6), ("last:1", 10, 1), ("last:0.3", 10, 8), ("last:0.01", 10, 10)],
)
def test_first_step(setting: str, max_steps: int, first: int) -> None:
    assert AverageSetting.parse(setting).first_step(max_steps) == first


@pytest.mark.parametrize("setting", ["ema", "ema:1", "ema:0", "last:0", "last:1.5", "last:x", "swa:0.5", "ema:nan"])
def test_illegal_settings(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"average_weights='{setting}' is not a setting. Use `ema:<decay>`"):
        training_args(tmp_path, average_weights=setting)


def test_sharded_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="average_weights does not go with FSDP or DeepSpeed"):
        training_args(tmp_path, average_weights="ema:0.9")


@pytest.mark.parametrize("setting", ["ema:0.5", "last:0.5"])
def test_model_ends_with_the_average_of_its_steps(
    setting: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    runs = []
    for average_weights in (None, setting):
        watch, model = _Watch(), tiny_model(tasks=tasks)
        args = training_args(
            tmp_path, max_steps=6, average_weights=average_weights, freeze="heads:tags", weighting="uncertainty"
        )
        MTLTrainer(model, args, train_dataset=splits["train"], callbacks=[watch]).train()
        runs.append((watch.raw, _copy(model)))
    (plain, last), (raw, averaged) = runs
    for before, after in zip(plain, raw, strict=True):  # Averaging does not touch the training.
        _assert_equal(after, before)
    _assert_equal(last, plain[-1])
    # Steps 4, 5, 6 of 6; or 1/2, 1/4, ... 1/64 of the steps backwards, over their sum of 63/64.
    shares = [0, 0, 0, 1 / 3, 1 / 3, 1 / 3] if setting == "last:0.5" else [2 ** (n - 7) * 64 / 63 for n in range(1, 7)]
    assert sum(shares) == pytest.approx(1.0)
    for name, value in averaged.items():
        mean = sum(share * weights[name].double() for share, weights in zip(shares, raw, strict=True))
        # Six roundings of float32 numbers of at most about 1.
        torch.testing.assert_close(value.double(), mean, rtol=1e-6, atol=1e-7)
        assert torch.equal(value, last[name]) == name.startswith("heads.tags."), name


def test_evaluation_sees_the_average_and_training_the_raw_weights(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    watch, model = _Watch(), tiny_model(tasks=tasks)
    args = training_args(
        tmp_path, max_steps=6, average_weights="last:0.5", eval_strategy="steps", eval_steps=1, eval_on_start=True
    )
    trainer = MTLTrainer(
        model, args, train_dataset=splits["train"], eval_dataset=splits["validation"], callbacks=[watch]
    )
    trainer.train()
    for raw, after in zip(watch.raw, watch.after_evaluation[1:], strict=True):
        _assert_equal(after, raw)
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log][1:]
    for step, (loss, weights) in enumerate(zip(losses, watch.raw, strict=True), start=1):
        expected = weights
        if step > 3:
            some = watch.raw[3:step]
            expected = {name: torch.stack([each[name] for each in some]).mean(dim=0) for name in weights}
        model.load_state_dict(expected, strict=False)
        # A mean in another order of sums.
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_best_model_is_the_average_that_was_measured(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    args = training_args(
        tmp_path,
        max_steps=6,
        average_weights="ema:0.8",
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="topic_loss",
        greater_is_better=True,  # The first checkpoint is the "best", unless nothing is learned.
    )
    model = tiny_model(tasks=tasks)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"])
    trainer.train()
    assert trainer.state.best_global_step == 2
    logged = evaluation_of_final_model(trainer, splits["validation"], "validation", tasks)
    assert logged is not None
    measured = evaluate_split(trainer, splits["validation"], "validation", tasks)
    assert logged == replace(measured, seconds=logged.seconds)
    checkpoint = tmp_path / "checkpoint-2"
    best = MTLModel.from_pretrained(checkpoint)
    assert not torch.equal(output_layer(best, "topic").weight, output_layer(model, "topic").weight)
    assert load_average(best, checkpoint)
    _assert_equal(_copy(best), _copy(model))
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / AVERAGE_NAME).exists()
    _assert_equal(_copy(MTLModel.from_pretrained(tmp_path / "final")), _copy(model))


@pytest.mark.parametrize("setting", ["ema:0.9", "last:0.7"])
def test_resuming_equals_the_unbroken_run(
    setting: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    settings = {
        "average_weights": setting,
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,  # After the average of the last 7 steps has begun.
        "eval_strategy": "steps",
        "eval_steps": 5,
    }
    data: dict[str, Any] = {"train_dataset": splits["train"], "eval_dataset": splits["validation"]}
    model = tiny_model(tasks=tasks)
    unbroken = MTLTrainer(model, training_args(tmp_path, **settings), **data)
    unbroken.train()
    average = load_file(tmp_path / "checkpoint-10" / AVERAGE_NAME)
    assert average.pop("num_averaged").item() == (10 if setting == "ema:0.9" else 7)
    _assert_equal(average, _copy(model))
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()
    resumed = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), **data)
    resumed.train(resume_from_checkpoint=True)
    _assert_equal(_copy(resumed.model), _copy(model))
    losses = [[log["eval_loss"] for log in run.state.log_history if "eval_loss" in log] for run in (unbroken, resumed)]
    assert losses[0] == losses[1]
    other = MTLTrainer(
        tiny_model(tasks=tasks), training_args(tmp_path, **{**settings, "average_weights": None}), **data
    )
    with pytest.raises(ValueError, match=f"its average_weights is {setting}, that of this run None"):
        other.train(resume_from_checkpoint=True)


def test_run_of_another_length_begins_its_average_anew(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    settings = {"average_weights": "last:0.5", "save_strategy": "steps", "save_steps": 4}
    for max_steps in (4, 8):  # Of the 8, the steps 5 to 8 are averaged; of the 4, those of 3 and 4 were.
        watch, model = _Watch(), tiny_model(tasks=tasks)
        args = training_args(tmp_path, max_steps=max_steps, **settings)
        trainer = MTLTrainer(model, args, train_dataset=splits["train"], callbacks=[watch])
        with caplog.at_level(logging.WARNING, "mtl.averaging"):
            trainer.train(resume_from_checkpoint=max_steps == 8)
    assert "an average of 2 steps, this run would have one of 0" in caplog.text
    mean = sum(weights["heads.topic.out_proj.weight"] for weights in watch.raw) / 4
    torch.testing.assert_close(_copy(model)["heads.topic.out_proj.weight"], mean, rtol=1e-6, atol=1e-7)


def test_training_that_stops_before_the_average_begins(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 2

    watch, model = _Watch(), tiny_model()
    args = training_args(tmp_path, max_steps=8, average_weights="last:0.5")
    MTLTrainer(model, args, train_dataset=toy_splits[0]["train"], callbacks=[watch, Stop()]).train()
    _assert_equal(_copy(model), watch.raw[-1])
    assert "The model holds no average: the weights in use are of a step before 5" in caplog.text
