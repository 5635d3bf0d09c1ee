"""What a training leaves: the best model, checkpoints, and runs that go on from them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import training_args
from conftest import MakeModel, SaveBackbone
from datasets import DatasetDict

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.evaluation import evaluate_split, evaluation_of_final_model
from mtl.metrics import compute_task_metrics
from mtl.trainer import MTLTrainer
from mtl.trainer_state import WEIGHTING_NAME

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def test_model_learns_and_the_best_by_score_is_kept(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    args = training_args(
        tmp_path,
        max_steps=-1,
        num_train_epochs=12,
        per_device_train_batch_size=8,
        learning_rate=5e-3,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    trainer = MTLTrainer(
        tiny_model(tasks=tasks), args, train_dataset=splits["train"], eval_dataset=splits["validation"]
    )
    before = trainer.evaluate()["eval_score"]
    trainer.train()
    scores = [entry["eval_score"] for entry in trainer.state.log_history if "eval_score" in entry][1:]
    assert trainer.state.best_metric == max(scores)
    assert max(scores) > before + 0.3
    logged = evaluation_of_final_model(trainer, splits["validation"], "validation", tasks)
    assert logged is not None
    measured = evaluate_split(trainer, splits["validation"], "validation", tasks)
    assert logged.score == pytest.approx(max(scores))
    assert logged == replace(measured, seconds=logged.seconds)
    assert set(logged.metrics["topic"]) == {"accuracy", "f1_macro", "mcc", "loss", "support"}


def test_a_result_is_that_of_its_task_whatever_the_others_are_called(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, (topic, sentiment, *_) = toy_splits
    tasks = [topic, replace(sentiment, name="test_topic"), replace(sentiment, name="test")]
    dataset = splits["validation"].rename_column("label_sentiment", "label_test_topic")
    dataset = dataset.add_column("label_test", dataset["label_test_topic"][:])
    trainer = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path), eval_dataset=dataset)
    assert evaluation_of_final_model(trainer, dataset, "test", tasks) is None, "Nothing is measured yet."
    result = evaluate_split(trainer, dataset, "test", tasks)
    output: Any = trainer.predict(dataset, metric_key_prefix="other")
    for task in tasks:
        by_hand = compute_task_metrics(task.problem_type, output.predictions[task.name], output.label_ids[task.name])
        assert {key: result.metrics[task.name][key] for key in by_hand} == pytest.approx(by_hand)
    assert result.metrics["test"]["loss"] == pytest.approx(output.metrics["other_test_loss"])
    assert result.metrics["topic"] != result.metrics["test_topic"]
    json.dumps(result.to_dict(), allow_nan=False)
    with pytest.raises(ValueError, match="Task 'test_topic': a name that begins with `test_` .* another prefix"):
        trainer.predict(dataset, metric_key_prefix="test")
    with pytest.raises(ValueError, match="Task 'eval_topic': a name that begins with `eval_`"):
        MTLTrainer(tiny_model(tasks=[replace(topic, name="eval_topic")]), training_args(tmp_path))


def test_evaluation_between_checkpoints_is_not_that_of_the_loaded_model(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    args = training_args(
        tmp_path, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps", eval_steps=500
    )
    trainer = MTLTrainer(tiny_model(tasks=tasks), args, eval_dataset=splits["validation"])
    trainer.state.log_history = [
        {"step": step, "eval_score": score, "eval_runtime": 1.0} for step, score in ((20, 0.5), (30, 0.6), (40, 0.4))
    ]
    trainer.state.global_step, trainer.state.best_global_step = 40, 30
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-20")
    result = evaluation_of_final_model(trainer, splits["validation"], "validation", tasks)
    assert result is not None
    assert result.score == 0.5


@pytest.mark.parametrize("model_type", ["bert", "nomic_bert"])  # The weights of the second are renamed as they load.
def test_best_model_is_loaded_in_full(
    model_type: str, backbone_dir: SaveBackbone, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    args = training_args(
        tmp_path / "out",
        max_steps=6,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="topic_loss",
        greater_is_better=True,  # The first checkpoint is the "best", unless nothing is learned.
    )
    model = MTLModel.from_backbone(backbone_dir(model_type), tasks=tasks)
    trainer = MTLTrainer(model, args, train_dataset=splits["train"], eval_dataset=splits["validation"])
    trainer.train()
    logged = evaluation_of_final_model(trainer, splits["validation"], "validation", tasks)
    assert logged is not None
    assert trainer.state.best_global_step != trainer.state.global_step
    measured = evaluate_split(trainer, splits["validation"], "validation", tasks)
    assert logged == replace(measured, seconds=logged.seconds)
    best = MTLModel.from_pretrained(str(trainer.state.best_model_checkpoint)).state_dict()
    assert all(torch.equal(value, best[name]) for name, value in model.state_dict().items())


def test_checkpoint_of_another_model_is_refused(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    args = training_args(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"]).train()
    other = MTLTrainer(tiny_model("distilbert", tasks=tasks), args, train_dataset=splits["train"])
    with pytest.raises(ValueError, match="checkpoint does not fit the model"):
        other.train(str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"tasks": lambda tasks: tasks[::-1]}, {}, "its tasks is"),
        ({"tasks": lambda tasks: [replace(tasks[0], labels=("x", "y", "z")), *tasks[1:]]}, {}, "its tasks is"),
        ({"pooling": "cls"}, {}, "its pooling is mean, that of this run cls"),
        ({}, {"freeze": "heads:sentiment"}, "its freeze is heads:topic, that of this run heads:sentiment"),
        ({}, {"weighting": "uncertainty"}, "its weighting is fixed"),
        ({}, {"optim": "sgd"}, "its optim is"),
        # Groups of the optimizer of their own, which its saved state has not.
        ({}, {"head_learning_rate": 2e-2}, "its head_learning_rate is None, that of this run 0.02"),
    ],
)
def test_checkpoint_of_another_run_is_refused(
    changes: dict[str, Any],
    settings: dict[str, Any],
    message: str,
    tiny_model: MakeModel,
    toy_splits: Splits,
    tmp_path: Path,
) -> None:
    splits, tasks = toy_splits
    common = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "freeze": "heads:topic"}
    MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **common), train_dataset=splits["train"]).train()
    other_tasks = changes.get("tasks", lambda tasks: tasks)(list(tasks))
    model = tiny_model(tasks=other_tasks, **{key: value for key, value in changes.items() if key != "tasks"})
    other = MTLTrainer(model, training_args(tmp_path, **{**common, **settings}), train_dataset=splits["train"])
    with pytest.raises(ValueError, match=message):
        other.train(resume_from_checkpoint=True)


def test_early_stopping_watches_the_score(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    args = training_args(
        tmp_path,
        max_steps=40,
        learning_rate=0.0,  # Nothing changes, so no evaluation after the first is better.
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        load_best_model_at_end=True,
        early_stopping_patience=3,
    )
    trainer = MTLTrainer(
        tiny_model(tasks=tasks), args, train_dataset=splits["train"], eval_dataset=splits["validation"]
    )
    trainer.train()
    assert trainer.state.global_step == 2 * (1 + 3)
    assert trainer.state.best_metric == next(
        log["eval_score"] for log in trainer.state.log_history if "eval_score" in log
    )


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_resuming_equals_the_unbroken_run(
    weighting: str, tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    settings = {
        "weighting": weighting,
        "max_steps": 10,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 5,  # In the middle of the first epoch of 8 steps.
        "train_sampling_strategy": "group_by_length",
        "head_learning_rate": 2e-2,
    }
    model = tiny_model(tasks=tasks)
    unbroken = MTLTrainer(model, training_args(tmp_path, **settings), train_dataset=splits["train"])
    unbroken.train()
    (tmp_path / "checkpoint-10" / "trainer_state.json").unlink()  # As an interrupted save would leave it.
    resumed = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=splits["train"])
    resumed.train(resume_from_checkpoint=True)
    for name, parameter in resumed.model.state_dict().items():
        assert torch.equal(parameter, model.state_dict()[name]), name
    for name, value in resumed.weighting.state_dict().items():
        assert torch.equal(value, unbroken.weighting.state_dict()[name]), name
        assert not torch.equal(value, torch.zeros_like(value))
    assert (tmp_path / "checkpoint-5" / WEIGHTING_NAME).exists() == (weighting == "uncertainty")
    keys = ("loss", "grad_norm", "loss_topic")
    logs = [
        [{key: entry[key] for key in keys} for entry in run.state.log_history if "loss" in entry]
        for run in (unbroken, resumed)
    ]
    assert logs[0] == logs[1]


def test_a_run_that_is_over_makes_no_step_more(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    splits, tasks = toy_splits
    # 64 rows are 8 steps an epoch, so the last step is amid the second one.
    settings = {"max_steps": 10, "per_device_train_batch_size": 8, "save_strategy": "steps", "save_steps": 10}
    whole = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=splits["train"])
    whole.train()
    resumed = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=splits["train"])
    output = resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert output.global_step == 10
    for name, parameter in resumed.model.state_dict().items():
        assert torch.equal(parameter, whole.model.state_dict()[name]), name


def test_other_count_of_rows_is_told_when_a_run_goes_on(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splits, tasks = toy_splits
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 4}
    for rows, told in ((64, False), (64, False), (63, True)):
        caplog.clear()
        data = splits["train"].select(range(rows))
        trainer = MTLTrainer(tiny_model(tasks=tasks), training_args(tmp_path, **settings), train_dataset=data)
        is_first = not (tmp_path / "checkpoint-1").exists()
        trainer.train(resume_from_checkpoint=None if is_first else str(tmp_path / "checkpoint-1"))
        assert ("num_train_rows is 64 in" in caplog.text and "and now 63: the rows of an epoch" in caplog.text) == told


@pytest.mark.parametrize(
    ("before", "after", "is_taken"), [(3e-2, 2e-2, True), (3e-2, 7e-3, False), (7e-3, 3e-3, False)]
)
def test_rates_stay_and_are_told_to(
    before: float,
    after: float,
    is_taken: bool,
    tiny_model: MakeModel,
    toy_splits: Splits,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The layers have the rates 1e-2, 5e-3 and 2.5e-3: the heads' group stands before, between or after theirs.
    splits, tasks = toy_splits
    common = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "layer_decay": 0.5}
    trainers = []
    for settings in ({"head_learning_rate": before}, {"head_learning_rate": after, "weight_decay": 0.3}):
        args = training_args(tmp_path, **common, **settings)
        trainers.append(MTLTrainer(tiny_model(tasks=tasks), args, train_dataset=splits["train"]))
    trainers[0].train()
    if not is_taken:
        with pytest.raises(ValueError, match=f"its head_learning_rate is {before}, that of this run {after}"):
            trainers[1].train(str(tmp_path / "checkpoint-1"))
        return
    trainers[1].train(str(tmp_path / "checkpoint-1"))
    for name in ("head_learning_rate stays 0.03", "weight_decay stays 0.0"):
        assert name in caplog.text
    for first, second in zip(*(trainer.model.parameters() for trainer in trainers), strict=True):
        assert torch.equal(first, second)


def test_saved_folder_holds_no_pickle(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    trainer = MTLTrainer(tiny_model(), training_args(tmp_path), train_dataset=toy_splits[0]["train"])
    trainer.save_model()
    names = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "training_args.json"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))}
    assert json.loads((tmp_path / "training_args.json").read_text())["learning_rate"] == 1e-2


def test_nothing_to_resume_from(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    trainer = MTLTrainer(tiny_model(), training_args(tmp_path / "new"), train_dataset=toy_splits[0]["train"])
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer.train(resume_from_checkpoint=True)
