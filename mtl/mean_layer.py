"""A layer more for a post-norm encoder, after which the first token has what a head makes of the mean over tokens.

Queries are zero, so attention is the same for every token that is no padding: a mean, which the output projection maps
to logits. What is in the way is the residual connection, which adds the token's own state, and the LayerNorm after it.

- The encoder's last LayerNorm is to give normalised states times 2**-17; its weight and bias go into the projection.
  What such a state adds to a logit is at most sqrt(H / 2) 2**-17 / gain, with the gain of [`Carrier`], 2**6 sqrt(H)
  where labels are few: 8e-8. It is that only if the whole state stands in the two dimensions of that logit.
- The LayerNorm passes logits on with a relative error of at most 2**-18, as [`Carrier`] says.

Both are in units of the longest logits that there can be, which real ones are far from. float32 and bfloat16 have no
trouble with such scales; in float16 all values are in range, and states keep seven bits behind the point.
"""

from dataclasses import dataclass

import torch
from torch import nn

from mtl.linear_maps import LinearMap, bounded_map, map_of_normalised, set_linear, set_norm
from mtl.norm_carrier import CONSTANT, Carrier

_SMALL = 2.0**-17
"""What states are multiplied by: smaller, and float16 would lose too much of them."""

_CONSTANT_BETWEEN = 2.0**6
"""Size of the constants between the two LayerNorms of the layer, beside numbers that the first made small."""


@dataclass(frozen=True)
class PostNormLayer:
    """The modules of an encoder's layer whose LayerNorms come after its residual connections, as in BERT."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    intermediate: nn.Linear
    output: nn.Linear
    output_norm: nn.LayerNorm


def write_mean(layer: PostNormLayer, last_norm: nn.LayerNorm, head: nn.Linear, divisor: float) -> LinearMap:
    """Sets a layer so that it gives a linear head's logits of the mean over tokens, and returns the map to read them.

    Args:
        layer: The layer that is added.
        last_norm: The LayerNorm at the end of the layer before it, which is changed.
        head: The head of the mean, with at most H / 2 - 1 logits.
        divisor: What logits are divided by.
    """
    logits = map_of_normalised(head, last_norm, divisor)
    carrier = Carrier(len(logits.bias), last_norm.normalized_shape[0])
    factor = _write_attention(layer, last_norm, logits, carrier)
    set_norm(layer.attention_norm, carrier.places(), _CONSTANT_BETWEEN * carrier.constants())
    set_linear(layer.intermediate)
    set_linear(layer.output)
    factor *= carrier.factor(_CONSTANT_BETWEEN, eps=layer.output_norm.eps)
    set_norm(layer.output_norm, carrier.places() / factor)
    return _reading(carrier, logits.unit)


def write_mean_and_hidden(
    layer: PostNormLayer, last_norm: nn.LayerNorm, hidden: nn.Linear, head: nn.Linear, divisor: float
) -> LinearMap:
    """Does as [`write_mean`] for a head with a hidden layer, whose GELU is that of the layer's feed-forward part.

    Args:
        layer: The layer that is added, with GELU between its `intermediate` and `output`.
        last_norm: The LayerNorm at the end of the layer before it, which is changed.
        hidden: The hidden layer of the head, with K outputs.
        head: Its last layer, with C logits; K + C is at most H / 2 - 1.
        divisor: What logits are divided by.
    """
    inner = map_of_normalised(hidden, last_norm)
    carrier = Carrier(len(inner.bias), last_norm.normalized_shape[0])
    factor = _write_attention(layer, last_norm, inner, carrier)
    set_norm(layer.attention_norm, carrier.places())
    set_linear(layer.intermediate, inner.unit / factor * carrier.read())
    # Logits stand where the residual connection, which has the hidden numbers, adds nothing.
    return _write_output(
        layer, head, divisor, inner.unit, Carrier(head.out_features, carrier.width, 2 * carrier.count)
    )


def write_hidden(
    layer: PostNormLayer, last_norm: nn.LayerNorm, hidden: nn.Linear, head: nn.Linear, divisor: float
) -> LinearMap:
    """Sets a layer so that it gives the logits that a head with a hidden layer makes of a token's own state.

    Its attention adds nothing. Its first LayerNorm sees states that are normalised already, and gives them without the
    `eps` of the last one: that, over the variance of the states before them, is what the logits differ by. The weights
    of `intermediate` are too large for float16.

    Args:
        layer: The layer that is added, with GELU between its `intermediate` and `output`.
        last_norm: The LayerNorm at the end of the layer before it, which is changed.
        hidden: The hidden layer of the head.
        head: Its last layer, with at most H / 2 - 1 logits.
        divisor: What logits are divided by.
    """
    inner = map_of_normalised(hidden, last_norm)
    set_norm(last_norm, 1.0)
    for linear in (layer.query, layer.key, layer.value, layer.attention_output):
        set_linear(linear)
    set_norm(layer.attention_norm, _SMALL)
    set_linear(layer.intermediate, inner.unit / _SMALL * inner.weight, inner.unit * inner.bias)
    return _write_output(layer, head, divisor, inner.unit, Carrier(head.out_features, last_norm.normalized_shape[0]))


def _write_attention(layer: PostNormLayer, last_norm: nn.LayerNorm, wanted: LinearMap, carrier: Carrier) -> float:
    """Lets the first LayerNorm see what a map makes of the mean of states, and returns by what it multiplies that."""
    set_norm(last_norm, _SMALL)
    set_linear(layer.query)
    set_linear(layer.key)
    # As large as a float16 holds; the projection does the rest.
    set_linear(layer.value, CONSTANT * torch.eye(carrier.width, dtype=torch.float64))
    gain, spread = carrier.gain(), carrier.spread()  # spread: (H, C)
    set_linear(
        layer.attention_output,
        gain / (_SMALL * CONSTANT) * spread @ wanted.weight,
        gain * spread @ wanted.bias + CONSTANT * carrier.constants(),
    )
    return gain * carrier.factor(eps=layer.attention_norm.eps)


def _write_output(
    layer: PostNormLayer, head: nn.Linear, divisor: float, hidden_bound: float, carrier: Carrier
) -> LinearMap:
    """Lets the feed-forward part give the logits of its hidden numbers, which GELU makes no longer than they were."""
    weight, bias = head.weight.detach().double() / divisor, head.bias.detach().double() / divisor  # (C, K), (C,)
    logits = bounded_map(weight, bias, hidden_bound)
    gain, spread = carrier.gain(), carrier.spread()  # spread: (H, C)
    set_linear(
        layer.output, gain * spread @ logits.weight, gain * spread @ logits.bias + CONSTANT * carrier.constants()
    )
    set_norm(layer.output_norm, carrier.places() / (gain * carrier.factor(eps=layer.output_norm.eps)))
    return _reading(carrier, logits.unit)


def _reading(carrier: Carrier, unit: float) -> LinearMap:
    return LinearMap(carrier.read(), torch.zeros(carrier.count, dtype=torch.float64), unit)
