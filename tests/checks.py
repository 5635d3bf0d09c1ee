"""What tests of the model and the trainer share: labels, settings, tolerances, and numbers computed by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BatchEncoding, TrainerCallback

from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from tasks_mtl import IGNORE_INDEX

NAN = math.nan


def full_labels() -> dict[str, Tensor]:
    """Returns labels of every task for the four sentences, some of them missing."""
    return {
        "topic": torch.tensor([0, 2, IGNORE_INDEX, 1]),
        "sentiment": torch.tensor([IGNORE_INDEX, 1, 1, 2]),
        "tags": torch.tensor([[1, 0, 0, 0], [NAN] * 4, [0, NAN, 0, 1], [0, 1, 0, 0]], dtype=torch.float32),
        "valence": torch.tensor([2.0, NAN, 0.0, -2.0]),
    }


def assert_close(actual: Tensor | None, expected: Tensor | None, atol: float = 1e-6) -> None:
    """Asserts that numbers differ by no more than float32 sums of some numbers below 4 do in another order."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0.0)


def same(actual: Tensor | None, expected: Tensor | None) -> bool:
    """Returns whether two tensors are there and equal bit for bit."""
    return actual is not None and expected is not None and torch.equal(actual, expected)


def watch_passes(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Returns a list that gets the sentences and the tokens of each pass through the encoder, from now on."""
    shapes: list[tuple[int, int]] = []
    forward = model.backbone.forward

    def watch(**batch: Tensor) -> Any:
        rows, tokens = batch["input_ids"].shape
        shapes.append((rows, tokens))
        return forward(**batch)

    monkeypatch.setattr(model.backbone, "forward", watch)
    return shapes


def output_layer(model: MTLModel, task: str) -> nn.Linear:
    """Returns the last layer of a task's head."""
    layer = model.heads.get_submodule(f"{task}.out_proj")
    assert isinstance(layer, nn.Linear)
    return layer


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Returns copies of the gradients by the parameters' names."""
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


class FirstGradients(TrainerCallback):
    """Keeps the gradients of the first step, before they are clipped or used."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes them, once."""
        self.first = self.first or gradients(kwargs["model"])


def without_dropout(model: MTLModel) -> MTLModel:
    """Returns the model, whose dropout layers from now on do nothing."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def logits_of(model: MTLModel, inputs: BatchEncoding) -> dict[str, Tensor]:
    """Returns the logits of a batch in evaluation mode, in which the model stays."""
    model.eval()
    with torch.no_grad():
        logits: dict[str, Tensor] = model(**inputs).logits
    return logits


def mean_by_hand(states: Tensor, mask: Tensor) -> Tensor:
    """Averages the states of the tokens, sentence by sentence, (B, H)."""
    return torch.stack([row[kept.bool()].mean(dim=0) for row, kept in zip(states, mask, strict=True)])


def training_args(folder: Path, **settings: Any) -> MTLTrainingArguments:
    """Returns settings of a short training on the CPU that writes nothing unless asked to."""
    values: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no"}
    values["precision"] = "fp32"  # The tolerances are those of fp32, whatever the processor has.
    return MTLTrainingArguments(output_dir=str(folder), disable_tqdm=True, use_cpu=True, **{**values, **settings})
