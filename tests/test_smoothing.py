"""Label smoothing: the loss by hand, no gradient without a label, and only where it trains."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import training_args, without_dropout
from conftest import MakeModel
from datasets import DatasetDict
from torch.nn import functional as F

from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from mtl.smoothing import label_smoothing
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, ORDINAL, SINGLE_LABEL, valid_labels

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def test_loss_by_hand() -> None:
    # Probabilities 1/8, 3/8 and 4/8; with 0.3 the label has 0.7 + 0.1 of the loss, the other classes 0.1 each.
    logits = torch.tensor([[math.log(1.0), math.log(3.0), math.log(4.0)]] * 2)
    labels = torch.tensor([1, IGNORE_INDEX])
    expected = -(0.8 * math.log(3 / 8) + 0.1 * math.log(1 / 8) + 0.1 * math.log(4 / 8))
    assert summed_loss(SINGLE_LABEL, logits, labels, 0.3).item() == pytest.approx(expected, rel=1e-6)  # float32


@pytest.mark.parametrize("missing", [IGNORE_INDEX, -1])
def test_missing_label_gives_exactly_no_gradient(missing: int) -> None:
    logits = torch.tensor([[0.3, -2.0], [5.0, 80.0], [1.0, 0.1]], requires_grad=True)
    summed_loss(SINGLE_LABEL, logits, torch.tensor([1, missing, 0]), 0.2).backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0.0, 0.0]
    assert logits.grad[[0, 2]].all()


def test_which_task_is_smoothed_how_much() -> None:
    tasks = [
        TaskConfig("many", num_labels=150),
        TaskConfig("few", num_labels=3, label_smoothing=0.0),
        TaskConfig("own", num_labels=3, label_smoothing=0.2),
        TaskConfig("stars", ORDINAL, num_labels=3),
    ]
    assert label_smoothing(tasks, 0.1) == {"many": 0.1, "own": 0.2}
    assert label_smoothing(tasks, 0.0) == {"own": 0.2}
    assert label_smoothing(tasks[3:], 0.0) == {}
    for others in (tasks[1:], tasks[3:], [TaskConfig("tags", MULTI_LABEL, num_labels=2)]):
        with pytest.raises(ValueError, match="label_smoothing_factor=0.1 has no effect"):
            label_smoothing(others, 0.1)


def test_training_is_smoothed_and_evaluation_is_not(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks, head_dropout=0.0)
    without_dropout(model)
    trainer = MTLTrainer(model, training_args(tmp_path, label_smoothing_factor=0.2), eval_dataset=splits["validation"])
    batch = trainer.data_collator([splits["train"][row] for row in range(8)])
    logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def expected(smoothing: float) -> float:
        total = 0.0
        for task in tasks:
            outputs, labels = logits[task.name], batch["labels"][task.name]
            if task.problem_type == SINGLE_LABEL:
                kept = labels >= 0
                total += F.cross_entropy(outputs[kept], labels[kept], label_smoothing=smoothing).item()
            else:
                total += (summed_loss(task.problem_type, outputs, labels) / valid_labels(labels).sum()).item()
        return total

    trainer.current_gradient_accumulation_steps = 1
    losses = {}
    for is_training in (True, False):
        model.train(is_training)
        loss: Any = trainer.compute_loss(model, batch)
        losses[is_training] = loss.item()
    assert losses[True] == pytest.approx(expected(0.2), rel=1e-5)  # Sums of float32 in another order.
    assert losses[False] == pytest.approx(expected(0.0), rel=1e-5)
    plain = MTLTrainer(model, training_args(tmp_path), eval_dataset=splits["validation"])
    smoothed_log, plain_log = trainer.evaluate(), plain.evaluate()
    for name in ("eval_loss", "eval_topic_loss", "eval_score"):
        assert smoothed_log[name] == plain_log[name]


def _run(model: Any, splits: DatasetDict, folder: Path, **settings: Any) -> MTLTrainer:
    values = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "label_smoothing_factor": 0.1, **settings}
    return MTLTrainer(model, training_args(folder, **values), train_dataset=splits["train"])


def test_run_of_another_smoothing_is_not_resumed(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    unbroken = _run(tiny_model(tasks=tasks), splits, tmp_path)
    unbroken.train()
    same = _run(tiny_model(tasks=tasks), splits, tmp_path)
    same.train(str(tmp_path / "checkpoint-2"))
    for name, parameter in same.model.state_dict().items():
        assert torch.equal(parameter, unbroken.model.state_dict()[name]), name
    other = _run(tiny_model(tasks=tasks), splits, tmp_path, label_smoothing_factor=0.2)
    with pytest.raises(ValueError, match="its label_smoothing_factor is 0.1, that of this run 0.2"):
        other.train(str(tmp_path / "checkpoint-2"))
    own = [TaskConfig("topic", labels=tasks[0].labels, label_smoothing=0.3), *tasks[1:]]
    with pytest.raises(ValueError, match=r"its label_smoothing is \[None, None, None, None\], that of this run \[0.3"):
        _run(tiny_model(tasks=own), splits, tmp_path).train(str(tmp_path / "checkpoint-2"))


def test_micro_batches_add_up(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, (topic, sentiment, *_) = toy_splits
    tasks = [topic, TaskConfig("sentiment", ORDINAL, labels=sentiment.labels)]
    weights = []
    for batch_size, steps in ((8, 1), (2, 4)):
        model = tiny_model(tasks=tasks, head_dropout=0.0)
        without_dropout(model)
        model.backbone.config.attention_probs_dropout_prob = 0.0
        args = training_args(
            tmp_path,
            max_steps=3,
            optim="sgd",
            label_smoothing_factor=0.1,
            train_sampling_strategy="sequential",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
        )
        MTLTrainer(model, args, train_dataset=splits["train"]).train()
        weights.append(model.state_dict())
    for name, weight in weights[0].items():
        # Sums of float32 in another order.
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=2e-6, msg=name)
