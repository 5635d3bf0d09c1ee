"""Examples of unequal length, with labels that may be absent -> one padded batch with a label tensor a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from configuration_mtl import TaskConfig
from mtl.labels import label_column
from mtl.sources import FURTHER_COLUMNS
from mtl.teacher_columns import teacher_column
from tasks_mtl import FURTHER_TEXTS, IGNORE_INDEX, INTEGER_LABEL_TYPES, OUT_OF_SCOPE_INDEX, REGRESSION, SCORED_PAIRS

POOLED = "pooled"
"""Column, and argument of the model, of embeddings that were computed before."""
TEACHERS = "teachers"
"""Key of a batch that holds what teachers say, by task."""
ORIGINALS = "original_embeddings"
"""Key of a batch that holds the embeddings of the original encoder."""
ORIGINAL_COLUMN = "original_embedding"
"""Column of a row's embedding by the original encoder."""


@dataclass(frozen=True)
class CollatedBatch:
    """A batch that a data set gathered itself; collating gives its inputs as they are."""

    inputs: dict[str, Any]


@dataclass(frozen=True)
class MTLCollator:
    """Makes a batch of examples: `input_ids` and `attention_mask`, (B, T), and `labels`, a tensor for every task.

    Labels are int64 class ids with -100 for missing and -1 for out of scope, (B,); for multi-label float32 with nan,
    (B, C); for regression float32 with nan, (B,) for one output and else (B, C). An example without a task's column
    has no label for it. What else the tokenizer makes, such as `token_type_ids`, is padded with it; other columns are
    left out. Examples with a vector `pooled` instead of tokens give `pooled`, (B, H).

    Where a task compares texts, every batch also has `others`, the padded inputs of all further texts in it, (M, T')
    each, and `partners`, (B, 2): the row in `others` of an example's second and third text, -1 for none.

    Where examples have columns of teachers or of original embeddings (see `mtl.distillation`, `mtl.preservation`), a
    batch has `teachers`, (B, C) float32 with nan for each such task, and `original_embeddings`, (B, H). Of a row that
    is out of scope a teacher, who knows the classes alone, says nothing.

    Args:
        tokenizer: The tokenizer; says with what, and on which side, to pad.
        tasks: The tasks, with their number of labels known.
        pad_to_multiple_of: Number of tokens of which T is a multiple; the longest example's if not given.

    Raises:
        ValueError: If the tokenizer has no pad token, or a task's number of labels is not known.
    """

    tokenizer: PreTrainedTokenizerBase
    tasks: Sequence[TaskConfig]
    pad_to_multiple_of: int | None = None

    def __post_init__(self) -> None:
        """Checks that padding and labels have a definite shape."""
        if self.tokenizer.pad_token_id is None:
            raise ValueError("The tokenizer has no pad token. Set one: `tokenizer.pad_token = tokenizer.eos_token`.")
        for task in self.tasks:
            if not task.is_resolved:
                raise ValueError(f"Task {task.name!r} has neither `labels` nor `num_labels`. Give one of them.")

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the batch of the examples."""
        if isinstance(examples[0], CollatedBatch):
            return examples[0].inputs
        if POOLED in examples[0]:
            batch: dict[str, Any] = {POOLED: torch.stack([example[POOLED] for example in examples])}  # (B, H)
        else:
            names = [name for name in self.input_names if name in examples[0]]
            batch = {**self.pad({name: [example[name] for example in examples] for name in names})}
        batch["labels"] = {task.name: _label_tensor(task, examples) for task in self.tasks}
        if any(task.problem_type in FURTHER_TEXTS for task in self.tasks):
            batch["others"], batch["partners"] = self._further(examples)
        return {**batch, **_guidance(self.tasks, examples, batch["labels"])}

    @property
    def input_names(self) -> list[str]:
        """Names of the columns that the tokenizer pads."""
        return input_names(self.tokenizer)

    def pad(self, columns: dict[str, list[Any]]) -> BatchEncoding:
        """Pads columns of tokens to tensors, (B, T), and adds their `attention_mask`."""
        return self.tokenizer.pad(
            columns, pad_to_multiple_of=self.pad_to_multiple_of, return_attention_mask=True, return_tensors="pt"
        )

    def _further(self, examples: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Tensor], Tensor]:
        partners = torch.full((len(examples), len(FURTHER_COLUMNS)), -1)  # (B, 2)
        inputs: list[dict[str, Any]] = []
        for row, example in enumerate(examples):
            for which, column in enumerate(FURTHER_COLUMNS):
                given = {name: example.get(f"{column}_{name}") for name in self.input_names}
                if given["input_ids"]:
                    partners[row, which] = len(inputs)
                    inputs.append({name: values for name, values in given.items() if values is not None})
        if inputs:
            return {**self.pad({name: [given[name] for given in inputs] for name in inputs[0]})}, partners
        nothing = torch.zeros(0, 1, dtype=torch.int64)  # (M, T'), as tensors of padded texts are.
        return {"input_ids": nothing, "attention_mask": nothing}, partners


def input_names(tokenizer: Any) -> list[str]:
    """Returns the names of the columns that a tokenizer makes and pads."""
    return list(dict.fromkeys(["input_ids", *tokenizer.model_input_names]))


def further_columns(tokenizer: Any) -> list[str]:
    """Returns the names that columns with the tokens of further texts may have."""
    return [f"{column}_{name}" for column in FURTHER_COLUMNS for name in input_names(tokenizer)]


def without_guidance(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch less what teachers and the original encoder say: what the model itself takes."""
    return {key: value for key, value in batch.items() if key not in (TEACHERS, ORIGINALS)}


def _label_tensor(task: TaskConfig, examples: Sequence[Mapping[str, Any]]) -> Tensor:
    column = label_column(task.name)
    is_integer = task.problem_type in INTEGER_LABEL_TYPES
    is_scalar = is_integer or (task.problem_type in (REGRESSION, SCORED_PAIRS) and task.num_labels == 1)
    missing = IGNORE_INDEX if is_integer else np.nan
    absent = missing if is_scalar else [missing] * (task.num_labels or 1)
    values = [absent if example.get(column) is None else example[column] for example in examples]
    return torch.from_numpy(np.asarray(values, dtype=np.int64 if is_integer else np.float32))  # (B,) or (B, C)


def _guidance(
    tasks: Sequence[TaskConfig], examples: Sequence[Mapping[str, Any]], labels: Mapping[str, Tensor]
) -> dict[str, Any]:
    # The rows of a data set have the same columns, so all its batches have the same keys.
    taught = [task for task in tasks if teacher_column(task.name) in examples[0]]
    guidance: dict[str, Any] = {}
    if taught:
        guidance[TEACHERS] = {task.name: _teacher_tensor(task, examples, labels[task.name]) for task in taught}
    if ORIGINAL_COLUMN in examples[0]:
        vectors = np.asarray([example[ORIGINAL_COLUMN] for example in examples], dtype=np.float32)
        guidance[ORIGINALS] = torch.from_numpy(vectors)  # (B, H)
    return guidance


def _teacher_tensor(task: TaskConfig, examples: Sequence[Mapping[str, Any]], labels: Tensor) -> Tensor:
    column, width = teacher_column(task.name), task.num_labels or 1
    says = [np.full(width, np.nan) if example.get(column) is None else example[column] for example in examples]
    cells = np.stack([np.asarray(cell, dtype=np.float32).reshape(width) for cell in says])  # (B, C)
    if task.out_of_scope_label is not None:
        cells[(labels == OUT_OF_SCOPE_INDEX).numpy()] = np.nan
    return torch.from_numpy(cells)
