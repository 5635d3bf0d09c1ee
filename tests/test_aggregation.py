"""Aggregators against numbers worked out by hand, two tasks and two parameters, and against torchjd on matrices."""

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchjd import aggregation as torchjd_aggregation

from mtl.aggregation import AGGREGATIONS, CAGRAD_C, Aggregation
from mtl.task_gradients import StepGradients

ROOT_2 = math.sqrt(2)
CONFLICT = ((2.0, 0.0), (-1.0, 1.0))  # Inner product -2, squared norms 4 and 2.


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("sum", CONFLICT, (1.0, 1.0)),
        ("mean", CONFLICT, (0.5, 0.5)),
        # g1 - (-2 / 2) g2 = (1, 1), g2 - (-2 / 4) g1 = (0, 1); their sum.
        ("pcgrad", CONFLICT, (1.0, 2.0)),
        # The point nearest to 0 between g1 and g2: the share of g1 is (g2 - g1) g2 / |g1 - g2|^2 = 4 / 10.
        ("mgda", CONFLICT, (0.2, 0.6)),
        # a g1 + (1 - a) g2 = (3a - 1, 1 - a) has equal projections on both where 3a - 1 = (2 - 4a) / root 2, so that
        # a = root 2 - 1.
        ("imtl_g", CONFLICT, (3 * (ROOT_2 - 1) - 1, 1 - (ROOT_2 - 1))),
        # Orthogonal rows of norms 2 and 1: both are scaled to the least, 1, and averaged.
        ("aligned_mtl", ((2.0, 0.0), (0.0, 1.0)), (0.5, 0.5)),
        # The half of what PCGrad has of two tasks, as rows are averaged.
        ("upgrad", CONFLICT, (0.5, 1.0)),
        # The mean, (1.5, 0.5), is against g2 = (-1, 1): less its part along it, -1 / 2 g2.
        ("dualproj", ((4.0, 0.0), (-1.0, 1.0)), (1.0, 1.0)),
        # The mean is g0 = (0, 1), the worst mix of the rows too: g0 + c |g0| g0 / |g0|.
        ("cagrad", ((1.0, 1.0), (-1.0, 1.0)), (0.0, 1.0 + CAGRAD_C)),
    ],
)
def test_by_hand(name: str, rows: tuple[tuple[float, float], ...], expected: tuple[float, float]) -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    jacobian = torch.tensor(rows)  # (rows, 2)
    gradients = StepGradients(("a", "b"), [first, second], [jacobian[:, :1], jacobian[:, 1:]])
    Aggregation(name).apply(gradients, step=0)
    assert first.grad is not None
    assert second.grad is not None
    found = (first.grad.item(), second.grad.item())
    # The solvers add 1e-4 to the diagonal, or stop near the optimum; the others are exact in float32.
    tolerance = 1e-3 if name in ("upgrad", "dualproj", "cagrad") else 1e-5
    assert found == pytest.approx(expected, abs=tolerance)


def _matrix() -> Tensor:
    # Rows of squared norms near 1, as the thresholds of torchjd are absolute.
    return torch.randn(3, 20, generator=torch.Generator().manual_seed(0)) / 4


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_gradient_is_that_of_torchjds_aggregator(name: str) -> None:
    class_name, settings = AGGREGATIONS[name]
    aggregator = getattr(torchjd_aggregation, class_name.removesuffix("Weighting"))(**settings)
    matrix = _matrix()
    found = Aggregation(name).weights(matrix @ matrix.T, step=0) @ matrix
    if name == "pcgrad":  # Of three tasks the order of projections counts.
        orders = [aggregator(matrix) for _ in range(50)]
        assert any(torch.allclose(found, order, atol=1e-6) for order in orders)
        return
    torch.testing.assert_close(found, aggregator(matrix), rtol=1e-3, atol=1e-4)  # See above for the solvers.


@pytest.mark.parametrize("name", list(AGGREGATIONS))
def test_small_gradients_are_aggregated_as_large_ones(name: str) -> None:
    matrix, aggregation = _matrix(), Aggregation(name)
    weights = aggregation.weights(matrix @ matrix.T, step=0)
    small = matrix * 1e-4
    torch.testing.assert_close(aggregation.weights(small @ small.T, step=0), weights, rtol=1e-3, atol=1e-4)
    assert torch.isfinite(aggregation.weights(torch.zeros(3, 3), step=0)).all()
    single = aggregation.weights(torch.tensor([[0.3]]), step=0)
    assert single.item() == pytest.approx(1 + CAGRAD_C if name == "cagrad" else 1.0, rel=1e-3)


def test_draws_follow_from_the_step_and_leave_the_generator_alone() -> None:
    gramian = torch.tensor([[1.0, -0.5, -0.4], [-0.5, 1.0, -0.3], [-0.4, -0.3, 1.0]])
    before = torch.get_rng_state()
    found = [tuple(Aggregation("pcgrad", seed=3).weights(gramian, step).tolist()) for step in range(20)]
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(found)) > 1
    assert found[7] == tuple(Aggregation("pcgrad", seed=3).weights(gramian, step=7).tolist())


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="aggregation 'pc_grad' is unknown. Use one of .'none', 'sum', "):
        Aggregation("pc_grad")


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("mgda", "torchjd", "torchjd.quadprog_projector."),
        ("upgrad", "quadprog", "torchjd.quadprog_projector."),
        ("cagrad", "cvxpy", "torchjd.cagrad."),
    ],
)
def test_missing_package_is_told_by_its_extra(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec: Any = torchjd_aggregation._cagrad._WithOptionalDeps.__init__.__globals__["find_spec"]
    monkeypatch.setitem(
        torchjd_aggregation._cagrad._WithOptionalDeps.__init__.__globals__,
        "find_spec",
        lambda wanted: None if wanted == module else find_spec(wanted),
    )
    if module == "torchjd":
        monkeypatch.setitem(sys.modules, "torchjd", None)
    with pytest.raises(ImportError, match=f"aggregation='{name}' needs `pip install \"{extra}\"`"):
        Aggregation(name)
