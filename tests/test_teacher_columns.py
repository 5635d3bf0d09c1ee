"""What teachers say, as columns of a source."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from checks import training_args
from conftest import MakeModel, ToyRows, WriteRows

from configuration_mtl import TaskConfig
from mtl.data import SourceConfig, load_sources, tokenize_splits
from mtl.trainer import MTLTrainer

TEACHERS = {"topic": "p_topic", "tags": "p_tags", "valence": "p_valence"}


def _source(path: Any, **settings: Any) -> SourceConfig:
    return SourceConfig(
        str(path), labels={name: name for name in ("topic", "tags", "valence")}, teachers=TEACHERS, **settings
    )


def _tasks(tasks: tuple[TaskConfig, ...]) -> list[TaskConfig]:
    return [task for task in tasks if task.name != "sentiment"]


def test_columns_of_a_source(write: WriteRows, toy_rows: ToyRows, tasks: tuple[TaskConfig, ...]) -> None:
    rows = toy_rows(20, 0)
    cells: list[dict[str, Any]] = [
        {"p_topic": [0.2, 0.3, 0.49], "p_tags": [0.1, None, 1.0, 0.0], "p_valence": 2.5},
        {"p_topic": None, "p_tags": None, "p_valence": None},
    ]
    path = write([{**row, **cells[min(number, 1)]} for number, row in enumerate(rows)])
    splits, _ = load_sources([_source(path)], _tasks(tasks), validation_fraction=0.0, test_fraction=0.0)
    train = splits["train"]
    assert train[0]["teacher_topic"] == pytest.approx([0.2 / 0.99, 0.3 / 0.99, 0.49 / 0.99])
    assert train[0]["teacher_tags"] == pytest.approx([0.1, math.nan, 1.0, 0.0], nan_ok=True)
    assert train[0]["teacher_valence"] == [2.5]
    for name in TEACHERS:
        assert all(math.isnan(cell) for cell in train[1][f"teacher_{name}"])
    assert "teacher_sentiment" not in train.column_names


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"p_topic": [0.5, 0.5]}, "row 3 .*has 2 numbers, but the task 3 outputs"),
        ({"p_topic": [0.5, 0.4, 0.3]}, r"row 3 .*has \[0.5, 0.4, 0.3\], but a teacher gives 3 probabilities that sum"),
        ({"p_topic": [1.5, -0.5, 0.0]}, r"has \[1.5, -0.5, 0.0\], but a teacher gives 3 probabilities"),
        ({"p_topic": [0.5, None, 0.5]}, "but a teacher gives 3 probabilities that sum to 1"),
        ({"p_tags": [0.5, 2.0, 0.5, 0.5]}, "but a teacher gives 4 probabilities, each from 0 to 1"),
    ],
)
def test_cells_that_no_teacher_gives(
    cells: dict[str, Any], message: str, write: WriteRows, toy_rows: ToyRows, tasks: tuple[TaskConfig, ...]
) -> None:
    good: dict[str, Any] = {"p_topic": [0.2, 0.3, 0.5], "p_tags": [0.1, 0.2, 0.3, 0.4], "p_valence": 1.0}
    rows = [{**row, **good, **(cells if number == 3 else {})} for number, row in enumerate(toy_rows(20, 0))]
    with pytest.raises(ValueError, match=message):
        load_sources([_source(write(rows))], _tasks(tasks))


def test_teachers_of_a_source_are_checked(write: WriteRows, toy_rows: ToyRows, tasks: tuple[TaskConfig, ...]) -> None:
    path = write(toy_rows(20, 0))
    with pytest.raises(ValueError, match=r"Task 'topic': column 'p_topic' is not in .* Set `teachers.topic`"):
        load_sources([_source(path)], _tasks(tasks))
    with pytest.raises(ValueError, match=r"`teachers` has \['tone'\], but the tasks are"):
        load_sources([SourceConfig(str(path), teachers={"tone": "p"})], _tasks(tasks))


def test_task_without_a_label_learns_from_its_teacher_alone(
    write: WriteRows, toy_rows: ToyRows, tiny_model: MakeModel, tmp_path: Path
) -> None:
    names = ("sport", "film", "shop")
    rows = [{"text": row["text"], "p": [0.7, 0.2, 0.1]} for row in toy_rows(40, 0)]
    (tmp_path / "dev.json").write_text(json.dumps([{"text": row["text"]} for row in toy_rows(10, 1)]))
    files = {"train": str(write(rows, "train.json")), "dev": str(tmp_path / "dev.json")}  # Nobody is taught by dev.
    source = SourceConfig(files=files, teachers={"topic": "p"})
    with pytest.raises(ValueError, match="Task 'topic' has no label in split 'train'. Fill its column, or name its"):
        load_sources([source], [TaskConfig("topic")], test_fraction=0.0)
    splits, tasks = load_sources([source], [TaskConfig("topic", labels=names)], test_fraction=0.0)
    model = tiny_model(tasks=tasks)
    tokens, _ = tokenize_splits(splits, model.tokenizer, max_length=32)
    args = training_args(tmp_path / "out", max_steps=60, per_device_train_batch_size=16, learning_rate=2e-2)
    trainer = MTLTrainer(model, args, train_dataset=tokens["train"])
    trainer.train()
    logs = [log for log in trainer.state.log_history if "teacher_loss_topic" in log]
    assert len(logs) == 60 and "loss_topic" not in logs[0]
    probabilities = model.predict("match team goal")["topic"]["probabilities"]
    # The least cross-entropy with a constant is at that constant; dropout and the last steps' noise move it a little.
    assert list(probabilities.values()) == pytest.approx([0.7, 0.2, 0.1], abs=0.05)
