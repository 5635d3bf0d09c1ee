"""Numbers through a LayerNorm, and maps through tanh, ReLU, GELU and LayerNorm, against what is worked out by hand."""

import pytest
import torch
from torch import Tensor, nn

from mtl.linear_maps import LinearMap, bounded_map, map_of_features, map_of_normalised
from mtl.norm_carrier import CONSTANT, Carrier
from mtl.stock_heads import write_norm, write_pairs, write_tanh


def unit_numbers(count: int, rows: int = 200) -> Tensor:
    """Returns rows of numbers of length 1, in float64."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(rows, count, generator=generator, dtype=torch.float64)  # (B, count)
    return numbers / numbers.norm(dim=1, keepdim=True)


def test_carrier_by_hand() -> None:
    carrier = Carrier(count=1, width=7, first=2)
    assert carrier.spread().flatten().tolist() == [0, 0, 1, -1, 0, 0, 0]
    assert carrier.read().flatten().tolist() == [0, 0, 0.5, -0.5, 0, 0, 0]
    assert carrier.places().tolist() == [0, 0, 1, 1, 0, 0, 0]
    # Five are left over, one too many for as many of one sign as of the other.
    assert carrier.constants().tolist() == [1, 1, 0, 0, -1, -1, 0]
    assert carrier.factor(3.0, eps=0.0) == pytest.approx((4 * 9 / 7) ** -0.5)
    assert carrier.gain(1.0) == 2.0**-8  # 2**-9 sqrt(4)
    assert carrier.gain() == 2.0**7


@pytest.mark.parametrize(
    ("count", "width", "first", "fits"), [(15, 32, 0, True), (16, 32, 0, False), (3, 8, 0, True), (3, 8, 4, False)]
)
def test_carrier_knows_whether_it_fits(count: int, width: int, first: int, fits: bool) -> None:
    assert Carrier(count, width, first).fits is fits


@pytest.mark.parametrize(("count", "width"), [(1, 32), (15, 32), (150, 384), (4, 384)])
def test_layer_norm_multiplies_by_the_factor(count: int, width: int) -> None:
    carrier, numbers = Carrier(count, width), unit_numbers(count)  # (B, count)
    vectors = carrier.gain() * numbers @ carrier.spread().T + CONSTANT * carrier.constants()  # (B, H)
    norm = nn.LayerNorm(width, eps=1e-5).double()
    found = norm(vectors) @ carrier.read().T / (carrier.gain() * carrier.factor(eps=1e-5))  # (B, count)
    error = ((found - numbers).norm(dim=1) / numbers.norm(dim=1)).max()  # ()
    assert error <= 2.0**-18
    # The same in float32, whose rounding is all that is added.
    found = norm.float()(vectors.float()).double() @ carrier.read().T / (carrier.gain() * carrier.factor(eps=1e-5))
    assert (found - numbers).abs().max() < 2.0**-18 + 2e-7


def a_map(count: int, width: int, unit: float = 4.0) -> tuple[LinearMap, Tensor]:
    """Returns a map and features, (B, H), for which what the unit multiplies is 1 long."""
    weight = torch.linalg.qr(unit_numbers(count, rows=width)).Q.T  # (C, H), orthonormal rows
    return LinearMap(weight, torch.zeros(count, dtype=torch.float64), unit), unit_numbers(count) @ weight


def apply(head: LinearMap, features: Tensor) -> Tensor:
    """Returns the logits of a map, (B, C), of features, (B, H)."""
    return head.unit * (features @ head.weight.T + head.bias)


def test_tanh_errs_as_its_fifth_power() -> None:
    head = LinearMap(torch.ones(1, 2, dtype=torch.float64) / 2, torch.zeros(1, dtype=torch.float64), 1.0)
    dense, classifier = nn.Linear(2, 2).double(), nn.Linear(2, 1).double()
    write_tanh(dense, classifier, head)
    for value, error in ((1.0, 8 / 15 * 2.0**-20), (0.5, 8 / 15 * 2.0**-24)):
        found = classifier(dense(torch.full((1, 2), value, dtype=torch.float64)).tanh()).item()
        assert (value - found) / value == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("count", [1, 5, 15])
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "norm"])
def test_stock_layers_compute_the_map(name: str, count: int) -> None:
    head, features = a_map(count, 32)
    dense, norm, classifier = nn.Linear(32, 32), nn.LayerNorm(32, eps=1e-5, bias=False), nn.Linear(32, count)
    between = {"tanh": nn.Tanh(), "relu": nn.ReLU(), "gelu": nn.GELU(), "norm": norm}[name]
    if name == "norm":
        write_norm(dense, norm, classifier, head)
    else:
        (write_tanh if name == "tanh" else write_pairs)(dense, classifier, head)
    found = classifier(between(dense(features.float()))).double()  # (B, C)
    # Beside the error of the tanh, some roundings of float32.
    assert (found - apply(head, features)).abs().max() < head.unit * 1.5e-6


def test_maps_are_those_of_the_layer_behind_the_norm() -> None:
    torch.manual_seed(0)
    layer, norm = nn.Linear(8, 3).double(), nn.LayerNorm(8).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0)
    inputs = torch.randn(5, 8, dtype=torch.float64)  # (B, H)
    expected = layer(norm(inputs)) / 2  # (B, C)
    plain = nn.LayerNorm(8, elementwise_affine=False)(inputs)  # (B, H)
    torch.testing.assert_close(apply(map_of_normalised(layer, norm, 2.0), plain), expected)
    of_features = map_of_features(layer, norm, 2.0)
    torch.testing.assert_close(apply(of_features, norm(inputs)), expected)
    assert of_features.unit == map_of_normalised(layer, norm, 2.0).unit


def test_unit_is_a_length_that_no_logits_exceed() -> None:
    weight, bias = torch.tensor([[3.0, 0.0], [0.0, 4.0]]).double(), torch.tensor([0.0, 2.0]).double()
    head = bounded_map(weight, bias, length=2.0)  # At most 4 * 2 + 2 = 10 long.
    assert head.unit == 10.0
    assert head.weight.tolist() == [[0.3, 0.0], [0.0, 0.4]]
    nothing = bounded_map(torch.zeros(2, 2).double(), torch.zeros(2).double(), length=2.0)
    assert nothing.unit > 0
    assert apply(nothing, torch.ones(1, 2).double()).tolist() == [[0.0, 0.0]]
