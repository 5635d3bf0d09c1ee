"""The mean loss of each task before training, on a sample of the training rows."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configuration_mtl import TaskConfig
from mtl.collation import TEACHERS, without_guidance
from mtl.distillation import Distillation, count_items
from mtl.labels import label_column
from mtl.teacher_columns import teacher_column
from tasks_mtl import valid_labels

ROWS_PER_TASK = 512
"""Rows with a label or a teacher that the sample has of each task: a mean over so many is within some per cent."""


def initial_losses(
    model: nn.Module,
    dataset: Any,
    tasks: Sequence[TaskConfig],
    *,
    distillation: Distillation,
    max_steps: int,
    collate: Callable[[list[Any]], dict[str, Any]],
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    context: Callable[[], AbstractContextManager[Any]],
    batch_size: int,
) -> dict[str, float]:
    """Returns the mean loss of each task that has labels or a teacher, in evaluation mode and without gradient.

    Where there is a teacher it is the mixture with which training begins. The rows are evenly spaced among those that
    have a label or a teacher of the task, so that no draw disturbs the run's own, and every process finds the same.

    Args:
        model: The model, wrapped or not.
        dataset: The tokenised training rows.
        tasks: The tasks.
        distillation: Gives the losses of what has a teacher.
        max_steps: Count of optimizer steps of the training.
        collate: Makes a batch of rows.
        prepare: Moves a batch to the device.
        context: Gives the context of the forward pass, for its precision.
        batch_size: Rows a batch.

    Raises:
        ValueError: If rows cannot be taken by their number.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(
            f"weighting='initial_loss' takes rows by their number, which {type(dataset).__name__} does not give. "
            "Load the rows as a `datasets.Dataset`, or choose another weighting."
        )
    rows = sorted({row for task in tasks for row in _sample(dataset, task)})
    gold_share = distillation.gold_share(0, max_steps)
    sums: dict[str, Tensor] = {}
    items: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), batch_size):
        inputs = prepare(collate([dataset[row] for row in rows[start : start + batch_size]]))
        counts = count_items(tasks, [inputs])
        with torch.no_grad(), context():
            outputs = model(**without_guidance(inputs), num_items_in_batch=counts)
        teachers: Mapping[str, Tensor] = inputs.get(TEACHERS, {})
        taught = distillation.task_losses(outputs.logits, inputs["labels"], teachers, counts, gold_share)
        for name, loss in {**outputs.task_losses, **taught}.items():
            sums[name] = sums.get(name, 0.0) + loss * counts[name]
            items[name] = items.get(name, 0) + counts[name]
    model.train(was_training)
    distillation.take_means()  # Which are for the log, of training alone.
    return {name: (total / items[name]).item() for name, total in sums.items() if items[name] > 0}


def _sample(dataset: Any, task: TaskConfig) -> list[int]:
    present = getattr(dataset, "column_names", ())
    columns = [column for column in (label_column(task.name), teacher_column(task.name)) if column in present]
    found = list(range(len(dataset)))
    if columns:
        cells = zip(*(dataset[column] for column in columns), strict=True)
        found = [row for row, given in enumerate(cells) if any(map(_is_given, given))]
    count = min(ROWS_PER_TASK, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _is_given(label: Any) -> bool:
    return label is not None and bool(valid_labels(torch.from_numpy(np.asarray(label))).any())
