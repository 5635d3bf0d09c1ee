"""Learning from a teacher: a task's loss where rows have a label, a teacher's probabilities, both, or neither.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", NIPS 2014 Deep Learning Workshop,
arXiv:1503.02531: cross-entropy with the teacher's probabilities, both at temperature T, times T squared, so that the
size of its gradient does not depend on T. Clark et al., "BAM! Born-Again Multi-Task Networks for Natural Language
Understanding", ACL 2019: the share of the labels rises from 0 to 1 over training (teacher annealing).

What is counted and averaged is an item: a row of a task of classes, ordered or not, else a cell (a label or an output
of a row).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from classification_mtl import ordinal_log_probabilities
from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.collation import TEACHERS
from mtl.task_losses import TaskLossMeans
from tasks_mtl import CLASS_TYPES, IGNORE_INDEX, ORDINAL, REGRESSION, valid_labels


class Distillation:
    """Computes the losses of tasks that have a teacher, and keeps the means of the teachers' part for the log.

    Args:
        tasks: The tasks.
        args: The settings of training; give the temperature and how labels and teachers are mixed.
        smoothing: Label smoothing of the loss with the label, of each task that has any.
    """

    def __init__(
        self, tasks: Sequence[TaskConfig], args: MTLTrainingArguments, smoothing: Mapping[str, float] | None = None
    ) -> None:
        self.tasks = tuple(tasks)
        self.smoothing = smoothing or {}
        self.temperature = args.distillation_temperature
        self.anneals = args.teacher_annealing
        self.constant_share = args.gold_share
        self._means = TaskLossMeans()

    def gold_share(self, step: int, max_steps: int) -> float:
        """Returns the share of the label in the loss of an item that has a teacher too.

        Args:
            step: Count of optimizer steps done; alone decides, so that a resumed run has what the unbroken one had.
            max_steps: Count of optimizer steps of the whole training.
        """
        return min(1.0, step / max(1, max_steps)) if self.anneals else self.constant_share

    def task_losses(
        self,
        logits: Mapping[str, Tensor],
        labels: Mapping[str, Tensor],
        teachers: Mapping[str, Tensor],
        num_items: Mapping[str, Tensor],
        gold_share: float,
    ) -> dict[str, Tensor]:
        """Returns the loss of each task that has a teacher, shape () each.

        Args:
            logits: Each task's logits. Shape (B, C) each.
            labels: Each task's labels, as in `MTLModel.forward`.
            teachers: What the teacher of each task that has one says. Shape (B, C) each.
            num_items: Count of items with a label or a teacher over the whole optimizer step, by task.
            gold_share: Share of the label where an item has both.
        """
        losses = {}
        for task in self.tasks:
            if task.name not in teachers:
                continue
            outputs, targets = logits[task.name], labels[task.name]
            taught = has_teacher(task.problem_type, teachers[task.name])  # (items)
            soft = soft_losses(task.problem_type, outputs, teachers[task.name], self.temperature)  # (items)
            smoothing = self.smoothing.get(task.name, 0.0)
            hard = gold_losses(task.problem_type, outputs, targets, smoothing)  # (items)
            total = mixed(hard, soft, has_gold(task.problem_type, outputs, targets), taught, gold_share).sum()  # ()
            losses[task.name] = total / num_items[task.name].clamp(min=1)
            self._means.note(task.name, soft.sum(), taught.sum())
        return losses

    def take_means(self, reduce: Callable[[Any], Any] | None = None) -> dict[str, float]:
        """Returns `teacher_loss_<task>`, the mean over items with a teacher since the last call; see `TaskLossMeans`.

        Args:
            reduce: Sums tensors over processes; None for one process.
        """
        return {f"teacher_loss_{name}": mean for name, mean in self._means.take(reduce).items()}


def mixed(gold: Tensor, soft: Tensor, has_gold: Tensor, has_teacher: Tensor, gold_share: float) -> Tensor:
    """Mixes losses item by item: by `gold_share` where an item has both, else the one it has in full, else 0.

    Args:
        gold: Loss with the label, 0 where there is none. Shape (items).
        soft: Loss with the teacher, 0 where there is none. Shape (items).
        has_gold: Whether there is a label. Shape (items).
        has_teacher: Whether there is a teacher. Shape (items).
        gold_share: Share of the label, from 0 to 1.
    """
    both = has_gold & has_teacher  # (items)
    share = torch.where(both, gold_share, 1.0)  # (items)
    return share * gold + torch.where(both, 1.0 - gold_share, 1.0) * soft


def has_gold(problem_type: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns which items have a label: (B,) for classes, else (B, C)."""
    return valid_labels(labels if problem_type in CLASS_TYPES else labels.view_as(logits))


def has_teacher(problem_type: str, teacher: Tensor) -> Tensor:
    """Returns for which items the teacher says something, from (B, C): (B,) for classes, else (B, C)."""
    return ~(teacher[:, 0] if problem_type in CLASS_TYPES else teacher).isnan()


def gold_losses(problem_type: str, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns each item's loss with its label, as in `summed_loss`; exactly 0, as its gradient, where it has none.

    Args:
        problem_type: The task's problem type.
        logits: Outputs of the head. Shape (B, C), (B, C - 1) for ordered classes.
        labels: See `MTLModel.forward`. Shape (B,) or (B, C).
        label_smoothing: Share of the loss that goes to all classes alike; single-label only.
    """
    if problem_type in CLASS_TYPES:
        targets = labels.masked_fill(labels < 0, IGNORE_INDEX)  # (B,)
        if problem_type == ORDINAL:  # With log-probabilities for logits the cross-entropy is minus that of the label.
            logits = ordinal_log_probabilities(logits)  # (B, C)
        return F.cross_entropy(
            logits, targets, ignore_index=IGNORE_INDEX, reduction="none", label_smoothing=label_smoothing
        )  # (B,)
    targets = labels.view_as(logits)  # (B, C)
    filled = targets.nan_to_num().to(logits.dtype)  # (B, C)
    loss: Callable[..., Tensor] = F.mse_loss if problem_type == REGRESSION else F.binary_cross_entropy_with_logits
    return loss(logits, filled, reduction="none").masked_fill(~valid_labels(targets), 0.0)  # (B, C)


def soft_losses(problem_type: str, logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns each item's loss with its teacher; exactly 0, as its gradient, where it has none.

    T^2 times the cross-entropy of the student at T with the teacher at T; of a regression the squared difference,
    which knows no temperature. Probabilities p stand for the logits of the teacher: at T they are p^(1/T), scaled to
    sum to 1; so are those of a student with ordered classes.

    Args:
        problem_type: The task's problem type.
        logits: Outputs of the student's head. Shape (B, C), (B, C - 1) for ordered classes.
        teacher: Probabilities, or outputs of a regression; nan for nothing. Shape (B, C).
        temperature: T.
    """
    taught = has_teacher(problem_type, teacher)  # (items)
    teacher = teacher.nan_to_num().to(logits.dtype)  # (B, C)
    if problem_type == REGRESSION:
        return F.mse_loss(logits, teacher, reduction="none").masked_fill(~taught, 0.0)  # (B, C)
    cooled = teacher.pow(1.0 / temperature)  # (B, C)
    if problem_type in CLASS_TYPES:
        if problem_type == ORDINAL:
            logits = ordinal_log_probabilities(logits)  # (B, C)
        cooled = cooled / cooled.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(cooled.dtype).tiny)  # (B, C)
        losses = -(cooled * F.log_softmax(logits / temperature, dim=-1)).sum(dim=-1)  # (B,)
    else:
        cooled = cooled / (cooled + (1.0 - teacher).pow(1.0 / temperature))  # (B, C)
        losses = F.binary_cross_entropy_with_logits(logits / temperature, cooled, reduction="none")  # (B, C)
    return temperature**2 * losses.masked_fill(~taught, 0.0)


def count_items(tasks: Sequence[TaskConfig], batches: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Counts, by task, the items of batches that have a label or a teacher, shape () each.

    Args:
        tasks: The tasks.
        batches: Batches of a collator, with `labels` and maybe `teachers`.
    """
    return {task.name: torch.stack([_count(task, batch) for batch in batches]).sum() for task in tasks}


def _count(task: TaskConfig, batch: Mapping[str, Any]) -> Tensor:
    labels, teacher = batch["labels"][task.name], batch.get(TEACHERS, {}).get(task.name)
    if teacher is None:
        return valid_labels(labels).sum()
    return (has_gold(task.problem_type, teacher, labels) | has_teacher(task.problem_type, teacher)).sum()
