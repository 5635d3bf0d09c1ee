"""Linear maps from features to logits, in units in which the modules of a stock classifier pass them on unharmed."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LinearMap:
    """A linear map from features to logits: logits = unit * (weight @ features + bias).

    Args:
        weight: In float64. Shape (C, H).
        bias: In float64. Shape (C,).
        unit: The length of the longest logits that there can be, so that what it multiplies is never longer than 1.
    """

    weight: Tensor
    bias: Tensor
    unit: float


def map_of_normalised(layer: nn.Linear, norm: nn.LayerNorm, divisor: float = 1.0) -> LinearMap:
    """Returns a linear layer behind a LayerNorm as a map of what that gives before its own weight and bias.

    Normalised features are at most sqrt(H) long, and so are their means over tokens: that bounds the logits.

    Args:
        layer: The linear layer; of the features, or of their mean over tokens.
        norm: The LayerNorm that the features come from.
        divisor: What logits are divided by.
    """
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()  # (C, H), (C,)
    if norm.bias is not None:
        bias = bias + weight @ norm.bias.detach().double()  # (C,)
    weight = weight * norm.weight.detach().double()  # (C, H)
    return bounded_map(weight / divisor, bias / divisor, math.sqrt(weight.shape[1]))


def map_of_features(layer: nn.Linear, norm: nn.LayerNorm, divisor: float = 1.0) -> LinearMap:
    """Returns a linear layer as a map of the features that a LayerNorm gives; see [`map_of_normalised`]."""
    unit = map_of_normalised(layer, norm, divisor).unit
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()  # (C, H), (C,)
    return LinearMap(weight / (divisor * unit), bias / (divisor * unit), unit)


def bounded_map(weight: Tensor, bias: Tensor, length: float) -> LinearMap:
    """Returns the map weight @ features + bias, of features that are at most so long, with its unit."""
    bound = torch.linalg.matrix_norm(weight, ord=2) * length + torch.linalg.vector_norm(bias)  # ()
    unit = float(bound) or 1.0
    return LinearMap(weight / unit, bias / unit, unit)


def set_linear(layer: nn.Linear, weight: Tensor | float = 0.0, bias: Tensor | float = 0.0) -> None:
    """Sets the first rows and columns of a layer's weight, and the first of its bias, and what is left to zero.

    Args:
        layer: The layer.
        weight: Shape (rows, columns), or one number for all.
        bias: Shape (rows,), or one number for all.
    """
    _set(layer.weight, weight)
    _set(layer.bias, bias)


def set_norm(norm: nn.LayerNorm, weight: Tensor | float, bias: Tensor | float = 0.0) -> None:
    """Sets weight and bias of a LayerNorm, (H,) each or one number; one that has no bias keeps none."""
    _set(norm.weight, weight)
    if norm.bias is not None:
        _set(norm.bias, bias)


@torch.no_grad()
def _set(parameter: Tensor, values: Tensor | float) -> None:
    values = torch.as_tensor(values, dtype=torch.float64)
    parameter.zero_()
    parameter[tuple(slice(size) for size in values.shape)] = values.to(parameter)
