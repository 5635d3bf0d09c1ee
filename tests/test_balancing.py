"""Weighting, aggregation and conflicts in training: exact under accumulation, resumed bit-equal, refused by name."""

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import FirstGradients, training_args, without_dropout
from conftest import MakeModel
from datasets import DatasetDict
from safetensors.torch import load_file
from torch import Tensor

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.aggregation import AGGREGATIONS
from mtl.conflicts import summarize_conflicts
from mtl.trainer import MTLTrainer
from mtl.trainer_state import WEIGHTING_NAME

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def _first_gradients(model: MTLModel, splits: DatasetDict, folder: Path, **settings: Any) -> dict[str, Tensor]:
    gradients = FirstGradients()
    args = training_args(folder, max_steps=1, max_grad_norm=0.0, train_sampling_strategy="sequential", **settings)
    MTLTrainer(without_dropout(model), args, train_dataset=splits["train"], callbacks=[gradients]).train()
    return gradients.first


def _cut(batch_size: int, steps: int) -> dict[str, int]:
    return {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": steps}


@pytest.mark.parametrize(
    "settings",
    [
        *({"weighting": name} for name in ("equal", "dwa", "random", "initial_loss")),
        *({"aggregation": name} for name in AGGREGATIONS),
        {"weighting": "random", "aggregation": "upgrad"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_accumulation_does_not_change_the_gradient(
    settings: dict[str, str], tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    whole, single = (
        _first_gradients(tiny_model(tasks=tasks), splits, tmp_path, **settings, **cut)
        for cut in (_cut(8, 1), _cut(1, 8))
    )
    assert whole.keys() == single.keys()
    # Sums of float32 in another order, which aggregators that divide by small numbers let grow; UPGrad's, DualProj's
    # and CAGrad's solvers stop at a tolerance of their own.
    tolerance = 1e-3 if "aggregation" in settings else 1e-4
    for name, gradient in whole.items():
        torch.testing.assert_close(single[name], gradient, rtol=tolerance, atol=1e-5, msg=name)


def test_sum_trains_as_without_aggregation(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    tasks = (TaskConfig("topic", labels=tasks[0].labels, weight=0.3), *tasks[1:])
    common: dict[str, Any] = {"max_steps": 6, "optim": "sgd", "learning_rate": 0.1, **_cut(4, 2)}
    found = {}
    for aggregation in ("none", "sum"):
        model = tiny_model(tasks=tasks)
        args = training_args(tmp_path, aggregation=aggregation, **common)
        trainer = MTLTrainer(model, args, train_dataset=splits["train"])
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        norms = [entry["grad_norm"] for entry in trainer.state.log_history if "loss" in entry]
        found[aggregation] = (model.state_dict(), losses, norms)
    # The same gradients with dropout, whose draws are not disturbed; they are summed in another order, in float32.
    for name, weight in found["none"][0].items():
        torch.testing.assert_close(found["sum"][0][name], weight, rtol=1e-4, atol=1e-6, msg=name)
    for index in (1, 2):
        assert found["sum"][index] == pytest.approx(found["none"][index], rel=1e-5)


def test_task_without_label_or_weight_takes_no_part(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    tasks = (TaskConfig("topic", labels=tasks[0].labels, weight=0.0), *tasks[1:])
    rows = DatasetDict(train=splits["train"].filter(lambda row: math.isnan(row["label_valence"])))
    model = tiny_model(tasks=tasks)
    found = _first_gradients(model, rows, tmp_path, aggregation="mgda", **_cut(4, 1))
    # A row of zeros would be the shortest mix of all.
    assert any(gradient.any() for name, gradient in found.items() if name.startswith("backbone."))
    for name in ("topic", "valence"):
        assert not found[f"heads.{name}.out_proj.weight"].any()
    assert found["heads.tags.out_proj.weight"].any()


@pytest.mark.parametrize(
    ("freeze", "trains"), [("backbone", "heads."), ("heads:topic,sentiment,tags,valence", "backbone.")]
)
def test_frozen_parts(
    freeze: str,
    trains: str,
    tiny_model: MakeModel,
    toy_splits: Splits,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    splits, tasks = toy_splits
    with caplog.at_level("INFO"):
        found = _first_gradients(tiny_model(tasks=tasks), splits, tmp_path, freeze=freeze, aggregation="pcgrad")
    assert found
    assert all(name.startswith(trains) for name in found)
    assert ("the encoder is frozen, so the heads train as without it" in caplog.text) == (freeze == "backbone")
    if freeze == "backbone":
        plain = _first_gradients(tiny_model(tasks=tasks), splits, tmp_path, freeze=freeze)
        assert all(torch.equal(gradient, plain[name]) for name, gradient in found.items())


@pytest.mark.parametrize("save_steps", [8, 10])  # At the end of an epoch of 8 steps, and in one.
@pytest.mark.parametrize(
    "settings",
    [
        {"weighting": "dwa"},
        {"weighting": "random", "save_strategy": "epoch"},
        {"weighting": "geometric_mean", **_cut(8, 1)},
        {"weighting": "initial_loss"},
        {"aggregation": "pcgrad", "conflict_steps": 3},
    ],
    ids=lambda settings: "-".join(str(settings.get(key)) for key in ("weighting", "aggregation")),
)
def test_resuming_equals_the_unbroken_run(
    settings: dict[str, Any], save_steps: int, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    common = {"max_steps": 20, "save_strategy": "steps", "save_steps": save_steps, **_cut(4, 2), **settings}
    unbroken, resumed = (
        MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **common), train_dataset=splits["train"])
        for _ in range(2)
    )
    unbroken.train()
    (tmp_path / "checkpoint-20" / "trainer_state.json").unlink(missing_ok=True)
    first = 16 if save_steps == 8 or settings.get("save_strategy") == "epoch" else 10
    resumed.train(str(tmp_path / f"checkpoint-{first}"))
    for name, weight in unbroken.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], weight), name
    for name, value in unbroken.weighting.state_dict().items():
        torch.testing.assert_close(resumed.weighting.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert (tmp_path / f"checkpoint-{first}" / WEIGHTING_NAME).exists() == bool(unbroken.weighting.state_dict())
    prefixes = ("loss", "grad_", "weight_")
    logs = [
        [{key: value for key, value in entry.items() if key.startswith(prefixes)} for entry in run.state.log_history]
        for run in (unbroken, resumed)
    ]
    assert logs[0] == logs[1]
    weights = [entry["weight_topic"] for entry in logs[0] if "weight_topic" in entry]
    assert len(weights) == (20 if "weighting" in settings else 0)
    # DWA has two epochs behind it at step 16; what is left of the third follows its own weights.
    distinct = {"dwa": 2, "random": 20, "geometric_mean": 20, "initial_loss": 1}.get(settings.get("weighting", ""), 0)
    assert len(set(weights)) == distinct


def test_initial_losses_are_those_of_evaluation(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks)
    args = training_args(tmp_path, weighting="initial_loss", max_steps=1, save_strategy="steps", save_steps=1)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["train"])
    expected = trainer.evaluate()
    state = torch.get_rng_state()
    measured = trainer._initial_losses()
    assert torch.equal(torch.get_rng_state(), state)
    trainer.train()
    initial = load_file(tmp_path / "checkpoint-1" / WEIGHTING_NAME)["initial"].tolist()
    assert initial == pytest.approx(list(measured.values()))
    for task, loss in zip(tasks, initial, strict=True):
        assert loss == pytest.approx(expected[f"eval_{task.name}_loss"], rel=1e-5)
    rows = splits["train"].to_iterable_dataset()
    stream = MTLTrainer(model, training_args(tmp_path, weighting="initial_loss"), train_dataset=rows)
    with pytest.raises(ValueError, match="takes rows by their number, which IterableDataset does not give"):
        stream.train()


def test_sample_of_initial_losses_is_evenly_spaced(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    splits, tasks = toy_splits
    monkeypatch.setattr("mtl.initial_losses.ROWS_PER_TASK", 4)
    trainer = MTLTrainer(
        tiny_model(tasks=tasks[:1]), training_args(tmp_path, weighting="initial_loss"), train_dataset=splits["train"]
    )
    seen: list[int] = []
    collate = trainer.data_collator
    texts = splits["train"]["input_ids"][:]

    def watch(examples: list[dict[str, Any]]) -> dict[str, Any]:
        seen.extend(texts.index(example["input_ids"]) for example in examples)
        return collate(examples)

    trainer.data_collator = watch
    trainer._initial_losses()
    labelled = [row for row, label in enumerate(splits["train"]["label_topic"]) if label != -100]
    count = len(labelled)
    assert seen == [labelled[0], labelled[count // 4], labelled[count // 2], labelled[3 * count // 4]]


@pytest.mark.parametrize("aggregation", ["none", "upgrad"])
def test_measuring_conflicts_changes_nothing_else(
    aggregation: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    settings: dict[str, Any] = {"activation_checkpointing": True, **_cut(4, 2)}
    runs = []
    for steps in (None, 2):
        model = tiny_model(tasks=tasks)
        args = training_args(tmp_path, aggregation=aggregation, conflict_steps=steps, max_steps=5, **settings)
        trainer = MTLTrainer(model, args, train_dataset=splits["train"])
        trainer.train()
        runs.append(trainer)
    plain, measured = runs
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(measured.model.state_dict()[name], weight), name
    logs = [[entry for entry in run.state.log_history if "loss" in entry] for run in runs]
    keys = ("loss", "grad_norm", "loss_topic")
    assert [[entry[key] for key in keys] for entry in logs[0]] == [[entry[key] for key in keys] for entry in logs[1]]
    entries = [entry for entry in measured.state.log_history if "grad_norm_topic" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    names = [task.name for task in tasks]
    expected = [f"grad_norm_{name}" for name in names] + [f"grad_cos_{a}_{b}" for a, b in combinations(names, 2)]
    assert [key for key in entries[0] if key.startswith(("grad_norm_", "grad_cos_"))] == expected


def test_conflicts_are_those_of_the_gradients_of_the_whole_step(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    tasks = (TaskConfig("topic", labels=tasks[0].labels, weight=3.0), *tasks[1:])
    reference = tiny_model(tasks=tasks).eval()
    settings: dict[str, Any] = {"max_steps": 1, "train_sampling_strategy": "sequential", "conflict_steps": 1}
    args = training_args(tmp_path, **settings, **_cut(2, 4))
    trainer = MTLTrainer(without_dropout(tiny_model(tasks=tasks)), args, train_dataset=splits["train"])
    batch = trainer.data_collator([splits["train"][row] for row in range(8)])
    losses = reference(**batch).task_losses
    shared = list(reference.backbone.parameters())
    rows = {}
    for task in tasks:
        gradients = torch.autograd.grad(task.weight * losses[task.name], shared, retain_graph=True)
        rows[task.name] = torch.cat([gradient.flatten() for gradient in gradients])
    with caplog.at_level("INFO"):
        trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "grad_norm_topic" in entry]
    for name, row in rows.items():
        assert entry[f"grad_norm_{name}"] == pytest.approx(row.norm().item(), rel=1e-4)
    for (a, first), (b, second) in combinations(rows.items(), 2):
        cosine = torch.cosine_similarity(first, second, dim=0).item()
        assert entry[f"grad_cos_{a}_{b}"] == pytest.approx(cosine, abs=1e-4)
    summary = summarize_conflicts(trainer.state.log_history)
    assert summary is not None
    assert summary.table() in caplog.text
    assert summary.advice in caplog.text
    json.dumps(summary.to_dict(), allow_nan=False)


def test_absent_task_is_left_out_of_the_conflicts(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    rows = splits["train"].filter(lambda row: math.isnan(row["label_valence"]))
    args = training_args(tmp_path, max_steps=1, conflict_steps=1)
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=rows)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "grad_norm_topic" in entry]
    assert not [key for key in entry if "valence" in key]
    frozen = MTLTrainer(
        tiny_model(tasks=tasks),
        training_args(tmp_path, max_steps=1, conflict_steps=1, freeze="backbone"),
        train_dataset=rows,
    )
    frozen.train()
    assert summarize_conflicts(frozen.state.log_history) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weighting": "geometric_mean", **_cut(4, 2)}, "'geometric_mean' needs the losses of the whole step at once"),
        ({"aggregation": "mgda", "weighting": "uncertainty"}, "'mgda' does not go with weighting='uncertainty'"),
        ({"aggregation": "mgda", "weighting": "geometric_mean"}, "does not go with weighting='geometric_mean'"),
        ({"aggregation": "unknown"}, "aggregation 'unknown' is unknown"),
        ({"aggregation": "sum", "torch_compile": True}, "aggregation='sum' does not go with torch_compile"),
        ({"conflict_steps": 5, "torch_compile": True}, "conflict_steps=5 does not go with torch_compile"),
        (
            {
                "aggregation": "sum",
                "activation_checkpointing": True,
                "activation_checkpointing_kwargs": {"use_reentrant": True},
            },
            "aggregation='sum' does not go with activation_checkpointing_kwargs=.'use_reentrant': True.",
        ),
        ({"aggregation": "sum", "optim": "lomo"}, "aggregation='sum' does not go with optim='lomo'"),
        ({"conflict_steps": 0}, "conflict_steps must be a positive number of steps, found 0"),
    ],
)
def test_what_does_not_go_together_is_refused(
    settings: dict[str, Any], message: str, tiny_model: MakeModel, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        MTLTrainer(tiny_model(), training_args(tmp_path, **settings))


def test_fp16_and_several_processes_are_refused(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = training_args(tmp_path, aggregation="sum")
    args.fp16 = True  # Given as a setting it asks for a GPU first.
    with pytest.raises(ValueError, match="aggregation='sum' does not go with fp16"):
        MTLTrainer(tiny_model(), args)
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(ValueError, match="does not go with 2 processes"):
        MTLTrainer(tiny_model(), training_args(tmp_path, aggregation="sum"))


def test_pairs_that_would_share_a_name_are_refused(tiny_model: MakeModel, tmp_path: Path) -> None:
    tasks = [TaskConfig(name, num_labels=2) for name in ("a", "b_c", "a_b", "c")]
    with pytest.raises(ValueError, match="would both be logged as grad_cos_a_b_c"):
        MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, conflict_steps=1))


def test_run_with_another_aggregation_is_not_resumed(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    common = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **common), train_dataset=splits["train"]).train()
    other = MTLTrainer(
        tiny_model(tasks=tasks), training_args(tmp_path, **common, aggregation="mgda"), train_dataset=splits["train"]
    )
    with pytest.raises(ValueError, match="its aggregation is none, that of this run mgda"):
        other.train(resume_from_checkpoint=True)
