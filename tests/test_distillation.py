"""What a task learns from labels and teachers, against numbers worked out by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import NAN, output_layer, training_args, without_dropout
from conftest import MakeModel, ToyRows, WriteRows
from datasets import DatasetDict
from torch import Tensor
from transformers import TrainerCallback

from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from mtl.data import SourceConfig, load_sources, tokenize_splits
from mtl.distillation import (
    Distillation,
    count_items,
    gold_losses,
    has_gold,
    has_teacher,
    mixed,
    soft_losses,
)
from mtl.teacher_columns import as_teacher_column
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
LOG2, LOG3 = math.log(2.0), math.log(3.0)


def test_cross_entropy_with_the_teacher_at_temperature_one() -> None:
    # Student: logits (0, log 3), so probabilities (1/4, 3/4). Teacher (1/2, 1/2):
    # -1/2 log(1/4) - 1/2 log(3/4) = log 4 - 1/2 log 3.
    found = soft_losses(SINGLE_LABEL, torch.tensor([[0.0, LOG3]]), torch.tensor([[0.5, 0.5]]), 1.0)
    assert found.tolist() == pytest.approx([2 * LOG2 - LOG3 / 2])


def test_cross_entropy_with_the_teacher_at_temperature_two() -> None:
    # At T = 2 a teacher of (0.9, 0.1) is (sqrt 0.9, sqrt 0.1) scaled to 1: 3 to 1, so (3/4, 1/4). The student's logits
    # (0, 2 log 3) halve to (0, log 3), so (1/4, 3/4). T^2 = 4 times -(3/4) log(1/4) - (1/4) log(3/4)
    # = 4 log 4 - log 3, as log(3/4) = log 3 - log 4.
    found = soft_losses(SINGLE_LABEL, torch.tensor([[0.0, 2 * LOG3]]), torch.tensor([[0.9, 0.1]]), 2.0)
    assert found.tolist() == pytest.approx([8 * LOG2 - LOG3], rel=1e-6)


def test_label_probabilities_at_temperature_two() -> None:
    # A probability of 0.9 has the logit log 9, at T = 2 log 3: 3/4. A student's logit 2 log 3 is 3/4 as well:
    # 4 times -(3/4) log(3/4) - (1/4) log(1/4) = 4 (log 4 - 3/4 log 3) = 8 log 2 - 3 log 3. The second label has no
    # teacher.
    logits = torch.tensor([[2 * LOG3, 5.0]])
    found = soft_losses(MULTI_LABEL, logits, torch.tensor([[0.9, NAN]]), 2.0)
    assert found[0].tolist() == pytest.approx([8 * LOG2 - 3 * LOG3, 0.0], rel=1e-5)


def test_certain_teachers_are_labels() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    classes, hot = torch.tensor([2, 0]), torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    for temperature in (1.0, 4.0):
        expected = temperature**2 * gold_losses(SINGLE_LABEL, logits / temperature, classes)
        torch.testing.assert_close(soft_losses(SINGLE_LABEL, logits, hot, temperature), expected)
        expected = temperature**2 * gold_losses(MULTI_LABEL, logits / temperature, hot)
        torch.testing.assert_close(soft_losses(MULTI_LABEL, logits, hot, temperature), expected)


def test_regression_knows_no_temperature() -> None:
    found = soft_losses(REGRESSION, torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [NAN]]), 7.0)
    assert found.tolist() == [[4.0], [0.0]]


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (SINGLE_LABEL, torch.tensor([1, IGNORE_INDEX])),
        (MULTI_LABEL, torch.tensor([[1.0, NAN], [NAN, NAN]])),
        (REGRESSION, torch.tensor([[0.5, -1.0], [NAN, 2.0]])),
    ],
)
def test_losses_of_items_add_up_to_the_loss_of_a_batch(problem_type: str, labels: Tensor) -> None:
    logits = torch.tensor([[0.3, -0.2], [1.0, 0.5]])
    found = gold_losses(problem_type, logits, labels).sum()
    torch.testing.assert_close(found, summed_loss(problem_type, logits, labels))


def test_mixture_goes_by_what_an_item_has() -> None:
    gold, soft = torch.tensor([4.0, 4.0, 0.0, 0.0]), torch.tensor([8.0, 0.0, 8.0, 0.0])
    both = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    # 1/4 of 4 and 3/4 of 8; the label in full; the teacher in full; nothing.
    assert mixed(gold, soft, *both, 0.25).tolist() == [1.0 + 6.0, 4.0, 8.0, 0.0]


def test_share_of_the_label_rises_with_the_steps(tmp_path: Path) -> None:
    annealing = Distillation((), training_args(tmp_path, teacher_annealing=True))
    assert [annealing.gold_share(step, 40) for step in (0, 10, 20, 40, 50)] == [0.0, 0.25, 0.5, 1.0, 1.0]
    constant = Distillation((), training_args(tmp_path, gold_share=0.2))
    assert [constant.gold_share(step, 40) for step in (0, 40)] == [0.2, 0.2]


def test_loss_of_a_step_by_hand(tmp_path: Path) -> None:
    task = TaskConfig("topic", num_labels=2)
    batch: dict[str, Any] = {
        "labels": {"topic": torch.tensor([1, 1, IGNORE_INDEX, IGNORE_INDEX])},
        "teachers": {"topic": torch.tensor([[0.5, 0.5], [NAN, NAN], [0.5, 0.5], [NAN, NAN]])},
    }
    logits = torch.tensor([[0.0, LOG3]] * 4, requires_grad=True)
    counts = count_items([task], [batch])
    assert counts["topic"] == 3
    distillation = Distillation([task], training_args(tmp_path, gold_share=0.25))
    loss = distillation.task_losses({"topic": logits}, batch["labels"], batch["teachers"], counts, 0.25)["topic"]
    # Label 1 at probability 3/4 costs log(4/3) = 2 log 2 - log 3, the teacher 2 log 2 - 1/2 log 3 (as above).
    gold, soft = 2 * LOG2 - LOG3, 2 * LOG2 - LOG3 / 2
    assert loss.item() == pytest.approx(((0.25 * gold + 0.75 * soft) + gold + soft) / 3, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    # p - target: (1/4, 3/4) less (0, 1), and less (1/2, 1/2); each third a row.
    to_gold, to_soft = torch.tensor([0.25, -0.25]), torch.tensor([-0.25, 0.25])
    expected = torch.stack([0.25 * to_gold + 0.75 * to_soft, to_gold, to_soft, torch.zeros(2)]) / 3
    torch.testing.assert_close(logits.grad, expected)
    assert torch.count_nonzero(logits.grad[3]) == 0
    assert distillation.take_means() == pytest.approx({"teacher_loss_topic": soft})
    assert distillation.take_means() == {}


@pytest.mark.parametrize(
    ("task", "teacher", "items"),
    [
        (TaskConfig("topic", num_labels=2), [[0.3, 0.7], [NAN, NAN]], (2,)),
        (TaskConfig("tags", MULTI_LABEL, num_labels=2), [[0.3, NAN], [NAN, NAN]], (2, 2)),
        (TaskConfig("valence", REGRESSION), [[0.3], [NAN]], (2, 1)),
    ],
)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_what_is_missing_has_exactly_no_gradient(
    task: TaskConfig, teacher: list[list[float]], items: tuple[int, ...], temperature: float
) -> None:
    values = torch.tensor(teacher)
    logits = torch.full(values.shape, 1.5, requires_grad=True)
    assert has_teacher(task.problem_type, values).shape == items
    soft_losses(task.problem_type, logits, values, temperature).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert torch.count_nonzero(logits.grad[values.isnan()]) == 0
    assert torch.count_nonzero(logits.grad[~values.isnan()]) == (~values.isnan()).sum()


def test_items_with_a_label_or_a_teacher_are_counted() -> None:
    tasks = (
        TaskConfig("topic", num_labels=2),
        TaskConfig("tags", MULTI_LABEL, num_labels=2),
        TaskConfig("valence", REGRESSION),
    )
    labels = {
        "topic": torch.tensor([0, IGNORE_INDEX, IGNORE_INDEX]),
        "tags": torch.tensor([[1.0, NAN], [NAN, NAN], [0.0, 1.0]]),
        "valence": torch.tensor([NAN, 1.0, NAN]),
    }
    teachers = {
        "topic": torch.tensor([[0.5, 0.5], [0.1, 0.9], [NAN, NAN]]),
        "tags": torch.tensor([[0.5, 0.5], [NAN, 0.2], [NAN, NAN]]),
    }
    counts = count_items(tasks, [{"labels": labels, "teachers": teachers}, {"labels": labels}])
    # topic: rows 0 and 1, then row 0. tags: cells (0,0), (0,1), (1,1), (2,0), (2,1), then 3. valence: 1, then 1.
    assert {name: int(count) for name, count in counts.items()} == {"topic": 3, "tags": 8, "valence": 2}
    assert has_gold(REGRESSION, torch.zeros(3, 1), labels["valence"]).tolist() == [[False], [True], [False]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distillation_temperature": 0.0}, "distillation_temperature must be more than 0, found 0.0"),
        ({"gold_share": 1.5}, "gold_share must be from 0 to 1, found 1.5"),
        ({"gold_share": 0.2, "teacher_annealing": True}, "gold_share=0.2 would have no effect with teacher_annealing"),
        ({"preserve_embeddings": -1.0}, "preserve_embeddings must be a finite weight >= 0, found -1.0"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        training_args(tmp_path, **settings)


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
