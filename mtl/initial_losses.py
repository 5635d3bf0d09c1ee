"""The mean loss of each task before training, on a sample of the training rows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import nn

from configuration_mtl import TaskConfig
from modeling_mtl import valid_labels
from mtl.collation import without_guidance
from mtl.labels import label_column
from mtl.task_losses import TaskLossMeans

ROWS_PER_TASK = 512
"""Rows with a label that the sample has of each task: a mean over so many is within some per cent."""


def initial_losses(
    model: nn.Module,
    dataset: Any,
    tasks: Sequence[TaskConfig],
    *,
    collate: Callable[[list[Any]], dict[str, Any]],
    prepare: Callable[[dict[str, Any]], dict[str, Any]],
    context: Callable[[], AbstractContextManager[Any]],
    batch_size: int,
) -> dict[str, float]:
    """Returns the mean loss of each task that has labels, in evaluation mode and without gradient.

    The rows are evenly spaced among those that have a label of the task, so that no draw disturbs the run's own, and
    every process finds the same.

    Args:
        model: The model, wrapped or not.
        dataset: The tokenised training rows.
        tasks: The tasks.
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
    means = TaskLossMeans()
    was_training = model.training
    model.eval()
    for start in range(0, len(rows), batch_size):
        inputs = prepare(collate([dataset[row] for row in rows[start : start + batch_size]]))
        counts = {task.name: valid_labels(inputs["labels"][task.name]).sum() for task in tasks}
        with torch.no_grad(), context():
            outputs = model(**without_guidance(inputs), num_items_in_batch=counts)
        means.add(outputs.task_losses, inputs["labels"], counts)
    model.train(was_training)
    return means.take()


def _sample(dataset: Any, task: TaskConfig) -> list[int]:
    column = label_column(task.name)
    labelled = list(range(len(dataset)))
    if column in getattr(dataset, "column_names", ()):
        labelled = [row for row, label in enumerate(dataset[column]) if _is_given(label)]
    count = min(ROWS_PER_TASK, len(labelled))
    return [labelled[index * len(labelled) // count] for index in range(count)]


def _is_given(label: Any) -> bool:
    return label is not None and bool(valid_labels(torch.from_numpy(np.asarray(label))).any())
