"""Linear maps through what a stock classifier has between the pooled features and its logits."""

import torch
from torch import Tensor, nn

from mtl.linear_maps import LinearMap, set_linear, set_norm
from mtl.norm_carrier import CONSTANT, Carrier

_SLOPE = 2.0**-5
"""Largest argument of a tanh whose slope is 1, and half of that whose slope is 2."""


def write_tanh(dense: nn.Linear, classifier: nn.Linear, head: LinearMap) -> None:
    """Sets two layers with a tanh between them so that they compute a linear map.

    Each number x goes through twice, as e x and 2 e x with e = 2**-5. In (8 tanh(e x) - tanh(2 e x)) / 6 the cubic
    terms cancel, and what is left is e x (1 - 8/15 (e x)^4): for |x| = 1, the largest there can be, a relative error
    of 5.1e-7, and for a tenth of that none that float32 shows.

    Args:
        dense: The layer before it, from H to H.
        classifier: The layer after it, from H to C.
        head: The map of the features, with at most H / 2 logits.
    """
    slopes = _SLOPE * torch.tensor([1.0, 2.0], dtype=torch.float64)
    set_linear(dense, _stacked(head.weight, slopes), _stacked(head.bias, slopes))
    back = head.unit / _SLOPE / 6 * torch.tensor([8.0, -1.0], dtype=torch.float64)
    set_linear(classifier, _stacked(torch.eye(len(head.bias), dtype=torch.float64), back).T)


def write_pairs(dense: nn.Linear, classifier: nn.Linear, head: LinearMap) -> None:
    """Sets two layers with a ReLU or GELU between them so that they compute a linear map.

    Each number goes through as x and -x: f(x) - f(-x) = x, for a ReLU, and for a GELU too, as Phi(x) + Phi(-x) = 1.

    Args:
        dense: The layer before it, from H to H.
        classifier: The layer after it, from H to C.
        head: The map of the features, with at most H / 2 logits.
    """
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
    set_linear(dense, _stacked(head.weight, signs), _stacked(head.bias, signs))
    identity = torch.eye(len(head.bias), dtype=torch.float64)  # (C, C)
    set_linear(classifier, _stacked(identity, head.unit * signs).T)


def write_norm(dense: nn.Linear, norm: nn.LayerNorm, classifier: nn.Linear, head: LinearMap) -> None:
    """Sets two layers with a LayerNorm between them so that they compute a linear map; see [`Carrier`].

    Args:
        dense: The layer before it, from H to H.
        norm: The LayerNorm.
        classifier: The layer after it, from H to C.
        head: The map of the features, with at most H / 2 - 1 logits.
    """
    carrier = Carrier(len(head.bias), norm.normalized_shape[0])
    # Nothing else stands beside the numbers, so they may be smaller still, and the error 2**-26.
    gain = carrier.gain() / 16
    spread, constants = carrier.spread(), carrier.constants()  # (H, C), (H,)
    set_linear(dense, gain * spread @ head.weight, gain * spread @ head.bias + CONSTANT * constants)
    set_norm(norm, carrier.places())
    set_linear(classifier, head.unit / (gain * carrier.factor(eps=norm.eps)) * carrier.read())


def _stacked(values: Tensor, factors: Tensor) -> Tensor:
    """Returns values, (C, ...), once times each of some factors, one below the other, (factors * C, ...)."""
    return torch.cat([factor * values for factor in factors])
