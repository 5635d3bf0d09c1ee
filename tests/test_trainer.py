"""Normalisation, logs, selection and resumption of the trainer, on tiny random models."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checks import FirstGradients, training_args, without_dropout
from conftest import MakeModel
from datasets import DatasetDict
from torch import Tensor
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.trainer import MTLTrainer
from tasks_mtl import valid_labels

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def _first_gradients(model: MTLModel, splits: DatasetDict, folder: Path, **settings: Any) -> dict[str, Tensor]:
    gradients = FirstGradients()
    args = training_args(folder, max_steps=1, max_grad_norm=0.0, train_sampling_strategy="sequential", **settings)
    MTLTrainer(model, args, train_dataset=splits["train"], callbacks=[gradients]).train()
    return gradients.first


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_accumulation_does_not_change_the_gradient(
    weighting: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    # Without dropout, whose draws depend on the cut; labels are missing unevenly among the micro-batches.
    settings: dict[str, Any] = {"head_dropout": 0.0}
    results = []
    for batch_size, steps in ((8, 1), (1, 8), (4, 2)):
        model = tiny_model(tasks=tasks, **settings)
        model.eval()
        without_dropout(model)
        model.backbone.config.attention_probs_dropout_prob = 0.0
        results.append(
            _first_gradients(
                model,
                splits,
                tmp_path,
                weighting=weighting,
                per_device_train_batch_size=batch_size,
                gradient_accumulation_steps=steps,
            )
        )
    for other in results[1:]:
        assert other.keys() == results[0].keys()
        for name, gradient in results[0].items():
            # Sums of float32 in another order.
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=2e-6)


def test_gradient_is_that_of_the_mean_over_valid_labels(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks, head_dropout=0.0)
    without_dropout(model)
    trainer = MTLTrainer(model, training_args(tmp_path), train_dataset=splits["train"])
    batch = trainer.data_collator([splits["train"][row] for row in range(8)])
    reference = tiny_model(tasks=tasks, head_dropout=0.0).eval()
    logits = reference(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = [
        summed_loss(task.problem_type, logits[task.name], batch["labels"][task.name])
        / valid_labels(batch["labels"][task.name]).sum()
        for task in tasks
    ]
    torch.stack(losses).sum().backward()
    found = _first_gradients(model, splits, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=2e-6)


def test_log_has_every_task_and_adds_up(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    tasks = (TaskConfig("topic", labels=tasks[0].labels, weight=3.0), *tasks[1:])
    args = training_args(tmp_path, per_device_train_batch_size=16, max_steps=4)
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"])
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    for entry in logs:
        total = sum(task.weight * entry[f"loss_{task.name}"] for task in tasks)
        assert entry["loss"] == pytest.approx(total, rel=1e-5)


def test_logged_task_loss_is_the_mean_over_labels_and_not_over_steps(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    args = training_args(tmp_path, learning_rate=0.0, per_device_train_batch_size=3, max_steps=22, logging_steps=22)
    model = tiny_model(tasks=tasks, head_dropout=0.0)
    without_dropout(model)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["train"])
    trainer.train()  # With learning rate 0, one epoch over the 64 rows.
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    evaluated = trainer.evaluate()
    for task in tasks:
        assert logged[f"loss_{task.name}"] == pytest.approx(evaluated[f"eval_{task.name}_loss"], rel=1e-4)


def test_evaluation_is_exact_whatever_the_batch_size(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    found = []
    for batch_size in (1, 7, 64):
        args = training_args(tmp_path, per_device_eval_batch_size=batch_size)
        trainer = MTLTrainer(tiny_model(tasks=tasks), args, eval_dataset=splits["validation"])
        metrics = trainer.evaluate()
        clock = ("runtime", "per_second", "preparation_time")
        found.append({key: value for key, value in metrics.items() if not key.endswith(clock)})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, nan_ok=True)
    primary = ["topic_accuracy", "sentiment_accuracy", "tags_f1_micro", "valence_pearson"]
    assert found[0]["eval_score"] == pytest.approx(np.mean([found[0][f"eval_{name}"] for name in primary]))


def test_predictions_keep_the_order_of_the_rows(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    args = training_args(tmp_path, train_sampling_strategy="group_by_length", per_device_eval_batch_size=4)
    model = tiny_model(tasks=tasks)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"])
    dataset = splits["train"].shuffle(seed=3)
    predictions: Any = trainer.predict(dataset).predictions
    for row in (0, 11, 39):
        batch = trainer.data_collator([dataset[row]])
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        for task in tasks:
            np.testing.assert_allclose(predictions[task.name][row], logits[task.name][0], atol=1e-5)


def test_arguments_without_effect_are_refused(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="compute_loss_func would have no effect"):
        MTLTrainer(model, training_args(tmp_path), compute_loss_func=lambda *_: None)
    with pytest.raises(ValueError, match="head_learning_rate=0.1, layer_decay=None and weighting='fixed' would"):
        MTLTrainer(model, training_args(tmp_path, head_learning_rate=0.1), optimizers=(optimizer, None))
    trainer = MTLTrainer(model, training_args(tmp_path), train_dataset=splits["train"], optimizers=(optimizer, None))
    trainer.train()
    assert trainer.optimizer is not None


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("topic_acuracy", "'topic_acuracy' is not measured on the evaluation data. Did you mean 'topic_accuracy'"),
        ("eval_sentiment_accuracy", "'eval_sentiment_accuracy' is not measured"),  # Its column is empty.
        ("topic_pearson", "'topic_pearson' is not measured"),
        ("topic_f1_macro", None),
        ("eval_score", None),
        ("sentiment_support", None),
    ],
)
def test_metric_that_will_not_be_measured_is_told_before_training(
    metric: str, message: str | None, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    rows = splits["validation"].map(lambda row: {"label_sentiment": -100})
    args = training_args(tmp_path, metric_for_best_model=metric, eval_strategy="steps", eval_steps=1, max_steps=1)
    with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match=message):
        MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"], eval_dataset=rows).train()
    with contextlib.nullcontext() if message is None else pytest.raises(ValueError, match="'dev_score'"):
        several = training_args(tmp_path, metric_for_best_model=f"dev_{metric.removeprefix('eval_')}",
                                eval_strategy="steps", eval_steps=1, max_steps=1)  # fmt: skip
        data = {"dev": rows}
        MTLTrainer(tiny_model(tasks=tasks), several, train_dataset=splits["train"], eval_dataset=data).train()


def test_best_metric_goes_with_rows_that_stream(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 1}
    args = training_args(tmp_path, metric_for_best_model="topic_accuracy", **settings)
    rows = splits["validation"].to_iterable_dataset()
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"], eval_dataset=rows)
    trainer.train()
    assert any("eval_topic_accuracy" in log for log in trainer.state.log_history)


def test_metrics_of_two_tasks_under_one_name_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    intent = TaskConfig("intent", num_labels=3, out_of_scope_label="oos")
    model = tiny_model(tasks=[intent, TaskConfig("intent_oos", num_labels=2)])
    with pytest.raises(ValueError, match="'intent' and 'intent_oos' both have a metric named 'intent_oos_support'"):
        MTLTrainer(model, training_args(tmp_path))


def test_weights_that_are_all_zero_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model(tasks=[TaskConfig("topic", num_labels=3, weight=0.0)])
    with pytest.raises(ValueError, match=r"All tasks \['topic'\] have weight 0"):
        MTLTrainer(model, training_args(tmp_path))
    MTLTrainer(model, training_args(tmp_path, weighting="equal"))


def test_head_learning_rate_of_zero_is_zero(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    before = {name: value.clone() for name, value in model.heads.state_dict().items()}
    MTLTrainer(model, training_args(tmp_path, head_learning_rate=0.0), train_dataset=splits["train"]).train()
    assert all(torch.equal(value, before[name]) for name, value in model.heads.state_dict().items())


def test_own_evaluation_needs_no_score(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    trainer = MTLTrainer(
        tiny_model(tasks=tasks),
        training_args(tmp_path, eval_strategy="steps", eval_steps=2),
        train_dataset=splits["train"],
        eval_dataset={"one": splits["validation"], "two": splits["validation"]},
        compute_metrics=lambda prediction: {"rows": len(prediction.predictions["topic"])},
    )
    trainer.train()
    assert [log["eval_one_rows"] for log in trainer.state.log_history if "eval_one_rows" in log] == [40, 40]


def test_dwa_sees_the_epochs_of_data_without_a_length(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    args = training_args(tmp_path, weighting="dwa", max_steps=24)
    rows = splits["train"].to_iterable_dataset()  # 64 of them are 8 steps.
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=rows)
    trainer.train()
    weights = [[log[f"weight_{task.name}"] for task in tasks] for log in trainer.state.log_history if "loss" in log]
    assert weights[0] == weights[15] == [1.0] * 4, "Two epochs give the first rate."
    assert weights[16] == weights[23] != [1.0] * 4


def test_learned_weights_step_once_a_step(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    args = training_args(
        tmp_path, weighting="uncertainty", max_steps=3, optim="sgd", lr_scheduler_type="constant", learning_rate=0.1
    )
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"])
    seen: list[Tensor] = []
    learned: Any = trainer.weighting.log_variance

    class Watch(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seen.append(learned.grad.clone())

    trainer.add_callback(Watch())
    trainer.train()
    # SGD: the parameter is minus the rate times the sum of the gradients of each step alone.
    torch.testing.assert_close(learned.detach(), -0.1 * torch.stack(seen).sum(0))
    assert any(f"weight_{tasks[0].name}" in entry for entry in trainer.state.log_history)


def test_heads_have_their_own_learning_rate(tiny_model: MakeModel, tmp_path: Path) -> None:
    model = tiny_model()
    trainer = MTLTrainer(model, training_args(tmp_path, learning_rate=1e-4, head_learning_rate=1e-3))
    optimizer = trainer.create_optimizer()
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(1 for _ in model.parameters())
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (1e-3 if name.startswith("heads.") else 1e-4)
    assert decays[id(model.get_parameter("heads.topic.out_proj.bias"))] == 0.0


def test_batch_without_any_label_of_a_task(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    rows = splits["train"].filter(lambda row: math.isnan(row["label_valence"]))
    assert len(rows) > 4
    model = tiny_model(tasks=tasks)
    gradients = _first_gradients(model, DatasetDict(train=rows), tmp_path, per_device_train_batch_size=4)
    assert torch.count_nonzero(gradients["heads.valence.out_proj.weight"]) == 0
    assert torch.count_nonzero(gradients["heads.topic.out_proj.weight"]) > 0
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_bf16_autocast_trains_with_a_float32_loss(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    args = training_args(tmp_path, precision="bf16", max_steps=2)
    trainer = MTLTrainer(
        tiny_model(tasks=tasks), args, train_dataset=splits["train"], eval_dataset=splits["validation"]
    )
    assert trainer.args.precision_in_use == "bf16 autocast"
    trainer.train()
    batch = trainer._prepare_inputs(trainer.data_collator([splits["train"][row] for row in range(4)]))
    with trainer.accelerator.autocast():
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert loss.dtype == torch.float32
    assert {logits.dtype for logits in outputs.logits.values()} == {torch.float32}
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_follows_the_processor(fast: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mtl.arguments.has_fast_bf16", lambda use_cpu: fast)
    assert training_args(tmp_path, precision="auto").precision_in_use == ("bf16 autocast" if fast else "fp32")
    assert training_args(tmp_path, precision="fp32").precision_in_use == "fp32"


def test_bf16_of_a_processor_needs_no_word_of_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mtl.arguments.has_fast_bf16", lambda use_cpu: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    for precision in ("auto", "bf16"):
        args = MTLTrainingArguments(str(tmp_path), precision=precision)
        assert args.precision_in_use == "bf16 autocast"
        assert args.use_cpu
    assert not MTLTrainingArguments(str(tmp_path), precision="fp32").use_cpu


def test_training_rows_without_a_column_of_a_task(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Columns under other names would be no labels: the loss would be 0, and nothing said."""
    splits, tasks = toy_splits
    rows = splits["train"]
    own = rows.rename_columns({f"label_{task.name}": task.name for task in tasks})
    trainer = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, max_steps=1), train_dataset=own)
    with pytest.raises(ValueError, match=r"no column 'label_<task>' or 'teacher_<task>' of any task of \['topic', .*"):
        trainer.train()
    trainer.train_dataset = rows.remove_columns("label_valence")
    trainer.train()
    assert "of the tasks ['valence'] (found [" in caplog.text and "they learn nothing" in caplog.text
    caplog.clear()
    args = training_args(tmp_path, max_steps=1, freeze="heads:valence")
    MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=trainer.train_dataset).train()
    assert "learn nothing" not in caplog.text  # That is how a task is kept.
