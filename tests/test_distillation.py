"""What a task learns from labels and teachers, against numbers worked out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import NAN, training_args
from torch import Tensor

from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from mtl.distillation import (
    Distillation,
    count_items,
    gold_losses,
    has_gold,
    has_teacher,
    mixed,
    soft_losses,
)
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL

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
