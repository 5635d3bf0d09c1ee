"""What a model says of the rows of a split, beside what is true of them: what every measure of quality starts from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
from datasets import Dataset
from transformers import Trainer

from configuration_mtl import TaskConfig
from mtl.evaluation import EvaluationResult


@dataclass(frozen=True, eq=False)
class Predictions:
    """The outputs of every task for the rows of a split.

    Args:
        tasks: The tasks.
        logits: Outputs of each task, float32. Shape (N, C) each, for ordinal classification (N, C - 1).
        labels: Labels of each task, as the collator gives them: class ids with -100 for missing and -1 for out of
            scope, (N,); floats with nan for missing, (N,) or (N, C).
        rows: The split, in the order of the outputs, with the columns `text`, `source` and `length` (tokens).
        result: The metrics of these outputs.
    """

    tasks: tuple[TaskConfig, ...]
    logits: dict[str, npt.NDArray]
    labels: dict[str, npt.NDArray]
    rows: Dataset
    result: EvaluationResult


def predict_split(trainer: Trainer, dataset: Dataset, split: str, tasks: Sequence[TaskConfig]) -> Predictions:
    """Runs a trainer's model over a split; what it says is kept, and measured.

    Args:
        trainer: An `MTLTrainer`.
        dataset: The tokenised split.
        split: Its name, for the result.
        tasks: The tasks.
    """
    # The Trainer puts the prefix only before names that do not begin with it, and no task's name begins with this one.
    output = trainer.predict(dataset, metric_key_prefix="_")
    metrics = output.metrics or {}
    result = EvaluationResult.from_log(metrics, tasks, split=split, num_rows=len(dataset), prefix="_")
    arrays: tuple[Any, Any] = (output.predictions, output.label_ids)
    logits, labels = ({task.name: some[task.name] for task in tasks} for some in arrays)
    return Predictions(tuple(tasks), logits, labels, dataset, result)
