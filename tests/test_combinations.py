"""Capabilities used together: what each promises alone still holds beside the others."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from checks import training_args
from conftest import MakeModel, SaveBackbone, ToyRows
from datasets import Dataset, DatasetDict

import merge_models
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.search import search
from mtl.search_space import SearchConfig
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX
from train_trainer import main

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
Run = Callable[..., dict[str, Any]]
STARS = {"name": "stars", "problem_type": "ordinal_classification"}


@pytest.fixture
def run(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> Run:
    """Gives a function that runs the program on toy rows with ordered stars and partners; returns the report."""
    backbone = str(backbone_dir("bert"))
    for split, count, seed in (("train", 48, 0), ("dev", 24, 1)):
        rows = toy_rows(count, seed)
        for row, other in zip(rows, rows[::-1], strict=True):
            row["stars"] = {"negative": 1, "neutral": 2, "positive": 5}.get(row["sentiment"])
            row["partner"] = f"{other['text']} {split}"
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(tasks: Sequence[dict[str, Any]], source: dict[str, Any], **settings: Any) -> dict[str, Any]:
        files = {"train": str(tmp_path / "train.jsonl"), "dev": str(tmp_path / "dev.jsonl")}
        common = {
            "backbone": backbone, "tasks": list(tasks), "sources": [{"name": "toy", "files": files, **source}],
            "output_dir": str(tmp_path / "out"), "max_steps": 2, "per_device_train_batch_size": 8, "max_length": 32,
            "learning_rate": 1e-3, "save_strategy": "no", "test_fraction": 0.0, "logging_steps": 1, "use_cpu": True,
            "precision": "fp32", "disable_tqdm": True,
        }  # fmt: skip
        (tmp_path / "run.yaml").write_text(yaml.safe_dump({**common, **settings}))
        return main([str(tmp_path / "run.yaml")])

    return run


def _search(
    make: MakeModel, splits: Splits, folder: Path, **training: Any
) -> tuple[dict[str, Any], list[MTLModel], MTLTrainer]:
    data, tasks = splits
    models = []

    def make_model(tasks: Sequence[TaskConfig]) -> MTLModel:
        models.append(make(tasks=tasks))
        return models[-1]

    args = training_args(folder, **training)
    trainer = MTLTrainer(make(tasks=tasks), args, train_dataset=data["train"], eval_dataset=data["validation"])
    config = SearchConfig(n_trials=2, space={"learning_rate": (1e-3, 1e-2)})
    return search(trainer, make_model, config), models, trainer


def test_each_trial_of_a_search_trains_an_adapter(tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path) -> None:
    peft = {"peft_type": "LORA", "r": 2, "target_modules": ["query"]}
    results, models, _ = _search(tiny_model, toy_splits, tmp_path, peft=peft)
    assert [trial["state"] for trial in results["trials"]] == ["complete"] * 2
    before = tiny_model(tasks=toy_splits[1]).state_dict()
    for model in models:
        # Of the encoder only what the adapter was merged into has moved.
        state = model.state_dict()
        moved = {name for name in state if name.startswith("backbone.") and not state[name].equal(before[name])}
        assert moved
        assert all(name.endswith("query.weight") for name in moved)


def test_each_trial_of_a_search_preserves_the_original(
    make_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    make = partial(make_model, backbone_dropout=0.0)
    _, models, trainer = _search(make, toy_splits, tmp_path, preserve_embeddings=1.0)
    assert len(models) == 2
    losses = [log["loss_preservation"] for log in trainer.state.log_history if "loss_preservation" in log]
    assert losses[0] == pytest.approx(0.0, abs=1e-6)  # The second trial, too, begins with the original encoder.
    assert losses[-1] > 1e-4


def test_search_leaves_out_tasks_that_are_kept_without_data(run: Run, tmp_path: Path) -> None:
    run([{"name": "topic"}, STARS], {"labels": {"topic": "topic", "stars": "stars"}}, output_dir=str(tmp_path / "old"))
    results = run(
        [STARS], {"labels": {"stars": "stars"}}, backbone=str(tmp_path / "old"), other_tasks="keep",
        search={"n_trials": 1, "objectives": "tasks", "space": {"weight": [0.5, 2.0]}},
    )  # fmt: skip
    (trial,) = results["trials"]
    assert trial["state"] == "complete"
    assert trial["params"].keys() == {"weight_stars"}
    assert math.isfinite(trial["metrics"]["stars"])


def test_a_teacher_says_nothing_of_a_row_that_is_out_of_scope(
    tiny_model: MakeModel, toy_splits: Splits, tmp_path: Path
) -> None:
    task = TaskConfig("topic", labels=("film", "sport"), out_of_scope_label="shop")
    model = tiny_model(tasks=[task])
    rows = toy_splits[0]["train"].select_columns(["input_ids"]).select(range(4))
    rows = rows.add_column("label_topic", [0, -1, -100, -1]).add_column("teacher_topic", [[0.9, 0.1]] * 4)
    trainer = MTLTrainer(model, training_args(tmp_path), train_dataset=rows)
    outside = trainer.data_collator([rows[1], rows[3]])
    assert outside["teachers"]["topic"].isnan().all()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(model.train(), outside)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
    batch = trainer.data_collator(list(rows))  # A label and a teacher, a teacher alone, and two rows of neither.
    counts = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    assert counts["topic"].item() == 2


def test_settings_that_leave_nothing_to_compare_or_measure_are_told(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = [{"name": "topic"}, {"name": "near", "problem_type": "contrastive"}]
    source = {"labels": {"topic": "topic", "near": "topic"}}
    run(tasks, source, max_steps=2, per_device_train_batch_size=1, conflict_steps=3)
    assert "The tasks ['near'] compare the rows of a micro-batch, and per_device_train_batch_size=1" in caplog.text
    assert "conflict_steps=3 measures nothing in 2 steps" in caplog.text
    caplog.clear()
    run(tasks, source, max_steps=2, per_device_train_batch_size=2, conflict_steps=2)
    assert "compare the rows" not in caplog.text and "measures nothing" not in caplog.text


COMPARED = {"labels": {"topic": "topic", "scored": "valence"}, "compare_with": "partner"}
SCORED = [{"name": "topic"}, {"name": "scored", "problem_type": "scored_pairs"}]


def test_tasks_without_a_head_are_told_what_a_frozen_encoder_means(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run(SCORED, COMPARED, freeze="backbone")
    assert "The tasks ['scored'] have no head, and the encoder is frozen" in caplog.text
    caplog.clear()
    run(SCORED, COMPARED, freeze_schedule={0: "backbone", 1: "none"}, conflict_steps=1, max_steps=8)
    assert "the encoder is frozen" not in caplog.text and "measures nothing" not in caplog.text
    assert "Task gradients on the shared encoder" in caplog.text
    with pytest.raises(ValueError, match="no task 'scored' with a head; those that have one are \\['topic'\\]"):
        run(SCORED, COMPARED, freeze="heads:scored")


def test_initial_loss_is_of_labels_and_teachers(tiny_model: MakeModel, tmp_path: Path) -> None:
    task = TaskConfig("topic", labels=("film", "sport"))
    rows = Dataset.from_dict(
        {
            "input_ids": [[2, 7, 3], [2, 8, 9, 3], [2, 3]],
            "label_topic": [0, IGNORE_INDEX, IGNORE_INDEX],
            "teacher_topic": [[0.9, 0.1], [0.2, 0.8], [math.nan, math.nan]],
        }
    )
    model = tiny_model(tasks=[task])
    args = training_args(tmp_path, weighting="initial_loss", gold_share=0.25, max_steps=1, learning_rate=0.0)
    trainer = MTLTrainer(model, args, train_dataset=rows)
    trainer.train()
    with torch.no_grad():
        logs = [
            model.eval()(input_ids=torch.tensor([ids])).logits["topic"].log_softmax(-1)[0] for ids in rows["input_ids"]
        ]
    mixed = -0.25 * logs[0][0] - 0.75 * (0.9 * logs[0][0] + 0.1 * logs[0][1])  # A label and a teacher.
    taught = -(0.2 * logs[1][0] + 0.8 * logs[1][1])  # A teacher alone.
    expected = 2.0 / (mixed + taught).item()
    assert trainer.weighting.current_weights() == {"topic": pytest.approx(expected, rel=1e-5)}
    log = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert "teacher_loss_topic" in log


def test_settings_without_effect_are_refused(run: Run, tiny_model: MakeModel, tmp_path: Path) -> None:
    topic = {"labels": {"topic": "topic"}}
    with pytest.raises(ValueError, match="fit_rejection=True has no effect"):
        run([{"name": "topic"}], topic, fit_rejection=True)
    with pytest.raises(ValueError, match=r"\['weight_topic'\] are sampled, but weighting='equal' gives"):
        run([{"name": "topic"}], topic, weighting="equal", search={"n_trials": 1})
    trainer = MTLTrainer(tiny_model(), training_args(tmp_path))
    with pytest.raises(ValueError, match=r"\['topik'\] are no tasks with an `out_of_scope_label`"):
        trainer.fit_rejection(task_names=["topik"])
    for name, value in (("label_smoothing_factor", "0.1"), ("teacher_annealing", "true"), ("gold_share", "0.2")):
        with pytest.raises(ValueError, match=f"{name}=.* has no effect in merge_models.py: nothing learns"):
            merge_models.main(["--teachers", "a=b", "--texts", "t.txt", f"--{name}", value, "--use_cpu", "true"])


def test_a_saved_task_that_rejects_is_told_from_one_with_a_class_more(run: Run, tmp_path: Path) -> None:
    source = {"labels": {"topic": "topic"}}
    run([{"name": "topic", "out_of_scope_label": "shop"}], source, output_dir=str(tmp_path / "old"))
    with pytest.raises(ValueError, match="It has `out_of_scope_label: shop`, the settings None"):
        run([{"name": "topic"}], source, backbone=str(tmp_path / "old"))


def test_a_run_is_not_resumed_with_another_share_of_its_teachers(run: Run) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1}
    run([{"name": "topic"}], {"labels": {"topic": "topic"}}, **settings)
    with pytest.raises(ValueError, match="cannot be resumed from: its gold_share is 0.5, that of this run 0.25"):
        run([{"name": "topic"}], {"labels": {"topic": "topic"}}, **settings, gold_share=0.25,
            resume_from_checkpoint="true")  # fmt: skip
