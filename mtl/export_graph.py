"""A model as one graph: token ids in, the sentence embedding and calibrated logits of every task out."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_mtl import MTLModel
from predictor_mtl import EMBEDDING, LOGITS

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class GraphNames:
    """Names of what goes into a graph and comes out, in their order.

    Args:
        inputs: Names of the inputs, (B, T) int64 each.
        outputs: Names of the outputs: the embedding, (B, H), then the logits of each task with a head, (B, C).
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, model: MTLModel) -> "GraphNames":
        """Returns those of a model: the inputs are what its tokenizer makes."""
        made = model.tokenizer("a", return_tensors="pt")
        outputs = [EMBEDDING, *(f"{LOGITS}{task.name}" for task in model.config.tasks if task.has_head)]
        return cls(tuple(name for name in TOKEN_INPUTS if name in made), tuple(outputs))


class ExportGraph(nn.Module):
    """What is exported of a model: encoder, pooling, normalisation, heads, and the temperatures of calibration.

    Args:
        model: The model, in evaluation mode.
        names: Names of its inputs and outputs.
    """

    def __init__(self, model: MTLModel, names: GraphNames) -> None:
        super().__init__()
        self.model = model
        self._inputs = names.inputs
        self._temperatures = {task.name: task.calibration_temperature for task in model.config.tasks if task.has_head}

    def forward(self, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Returns embeddings, (B, H), and logits, (B, C) each, of token inputs, (B, T) each."""
        inputs: Mapping[str, Tensor] = dict(zip(self._inputs, tokens, strict=True))
        states = self.model.backbone(**inputs, return_dict=True).last_hidden_state  # (B, T, H)
        pooled = self.model.pool(states, inputs["attention_mask"])  # (B, H)
        unit = F.normalize(pooled, dim=-1)  # (B, H)
        features = unit if self.model.config.normalize_for_heads else pooled  # (B, H)
        outputs = [unit if self.model.config.normalize else pooled]
        for name, temperature in self._temperatures.items():
            logits = self.model.heads[name](features)  # (B, C)
            outputs.append(logits if temperature is None else logits / temperature)
        return tuple(outputs)


def example_tokens(names: GraphNames) -> tuple[Tensor, ...]:
    """Returns inputs to trace a graph with: sizes above 1 and unequal, so that none is taken for a constant."""
    ids = torch.full((2, 7), 5)  # (B, T)
    mask = torch.ones_like(ids)  # (B, T)
    mask[1, 4:] = 0
    made = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    return tuple(made[name] for name in names.inputs)


def in_float32(model: MTLModel) -> MTLModel:
    """Returns the model, or, where it has weights in half precision, a copy whose weights are the same in float32."""
    dtypes = {weight.dtype for weight in model.parameters()}
    return model if dtypes == {torch.float32} else copy.deepcopy(model).float()
