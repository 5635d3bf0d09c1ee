"""Examples of unequal length, with labels that may be absent -> one padded batch with a label tensor a task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from configuration_mtl import CLASS_ID_TYPES, IGNORE_INDEX, REGRESSION, TaskConfig
from mtl.labels import label_column


@dataclass(frozen=True)
class MTLCollator:
    """Makes a batch of examples: `input_ids` and `attention_mask`, (B, T), and `labels`, a tensor for every task.

    Labels are int64 class ids with -100 for missing and -1 for out of scope, (B,); for multi-label float32 with nan,
    (B, C); for regression float32 with nan, (B,) for one output and else (B, C). An example without a task's column
    has no label for it. What else the tokenizer makes, such as `token_type_ids`, is padded with it; other columns are
    left out.

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
        names = [name for name in ("input_ids", *self.tokenizer.model_input_names) if name in examples[0]]
        inputs = [{name: example[name] for name in names} for example in examples]
        batch = self.tokenizer.pad(
            inputs, pad_to_multiple_of=self.pad_to_multiple_of, return_attention_mask=True, return_tensors="pt"
        )
        return {**batch, "labels": {task.name: _label_tensor(task, examples) for task in self.tasks}}


def _label_tensor(task: TaskConfig, examples: Sequence[Mapping[str, Any]]) -> Tensor:
    column = label_column(task.name)
    is_classes = task.problem_type in CLASS_ID_TYPES
    is_scalar = is_classes or (task.problem_type == REGRESSION and task.num_labels == 1)
    missing = IGNORE_INDEX if is_classes else np.nan
    absent = missing if is_scalar else [missing] * (task.num_labels or 1)
    values = [absent if example.get(column) is None else example[column] for example in examples]
    return torch.from_numpy(np.asarray(values, dtype=np.int64 if is_classes else np.float32))  # (B,) or (B, C)
