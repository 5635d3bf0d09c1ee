"""Weightings against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from configuration_mtl import TaskConfig
from mtl.weighting import WEIGHTINGS, EqualWeighting, FixedWeighting, UncertaintyWeighting, make_weighting
from tasks_mtl import REGRESSION, SCORED_PAIRS

TASKS = (TaskConfig("topic", num_labels=3, weight=2.0), TaskConfig("valence", REGRESSION))
LOSSES = {"topic": torch.tensor(0.5), "valence": torch.tensor(3.0)}
COUNTS = {"topic": torch.tensor(8), "valence": torch.tensor(4)}


def test_fixed_weights_are_those_of_the_tasks() -> None:
    weighting = FixedWeighting(TASKS)
    assert weighting(LOSSES, COUNTS).item() == 2.0 * 0.5 + 1.0 * 3.0
    assert weighting.current_weights() == {"topic": 2.0, "valence": 1.0}
    assert not list(weighting.parameters())


def test_uncertainty_starts_at_unit_variance() -> None:
    # exp(0) L + 0 / 2 for classification, exp(0) L / 2 + 0 / 2 for squared error; times the static weights.
    weighting = UncertaintyWeighting(TASKS)
    assert weighting(LOSSES, COUNTS).item() == pytest.approx(2.0 * 0.5 + 3.0 / 2)
    assert weighting.current_weights() == {"topic": 2.0, "valence": 0.5}


def test_uncertainty_halves_the_squared_error_of_cosines_too() -> None:
    pairs = (TaskConfig("scored", SCORED_PAIRS, loss="cosine"), TaskConfig("ranked", SCORED_PAIRS))
    assert UncertaintyWeighting(pairs).current_weights() == {"scored": 0.5, "ranked": 1.0}


def _at(log_variance: list[float]) -> UncertaintyWeighting:
    weighting = UncertaintyWeighting(TASKS)
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor(log_variance))
    return weighting


def test_uncertainty_follows_the_paper() -> None:
    weighting = _at([math.log(4.0), math.log(9.0)])
    by_hand = 2.0 * (0.5 / 4.0 + math.log(4.0) / 2) + (3.0 / 9.0 / 2 + math.log(9.0) / 2)
    assert weighting(LOSSES, COUNTS).item() == pytest.approx(by_hand, rel=1e-6)  # float32
    assert weighting.current_weights() == pytest.approx({"topic": 2.0 / 4.0, "valence": 0.5 / 9.0}, rel=1e-6)


def test_uncertainty_gradient_by_hand() -> None:
    weighting = _at([math.log(4.0), math.log(9.0)])
    weighting(LOSSES, COUNTS).backward()
    # d/ds of w (f exp(-s) L + s / 2) is w (1 / 2 - f exp(-s) L).
    expected = torch.tensor([2.0 * (0.5 - 0.5 / 4.0), 0.5 - 3.0 / 9.0 / 2])
    torch.testing.assert_close(weighting.log_variance.grad, expected)


def test_uncertainty_leaves_alone_a_task_without_labels() -> None:
    weighting = _at([1.0, 1.0])
    weighting(
        {"topic": torch.tensor(0.0), "valence": torch.tensor(3.0)}, {**COUNTS, "topic": torch.tensor(0)}
    ).backward()
    gradient = weighting.log_variance.grad
    assert isinstance(gradient, Tensor)
    assert gradient[0] == 0.0
    assert gradient[1] != 0.0


def test_equal_ignores_the_static_weights() -> None:
    weighting = EqualWeighting(TASKS)
    assert weighting(LOSSES, COUNTS).item() == 0.5 + 3.0
    assert weighting.current_weights() == {"topic": 1.0, "valence": 1.0}


@pytest.mark.parametrize("name", [name for name, kind in WEIGHTINGS.items() if kind.is_additive])
def test_micro_batches_add_up_to_the_step(name: str) -> None:
    weighting = make_weighting(name, TASKS)
    for parameter in weighting.parameters():
        torch.nn.init.constant_(parameter, 0.7)
    parts = [
        {"topic": torch.tensor(0.2), "valence": torch.tensor(3.0)},
        {"topic": torch.tensor(0.3), "valence": torch.tensor(0.0)},
    ]
    summed = sum(weighting(part, COUNTS, share=0.5) for part in parts)
    torch.testing.assert_close(summed, weighting(LOSSES, COUNTS))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"weighting 'uncertain' is unknown. Use one of \['fixed', 'equal', "):
        make_weighting("uncertain", TASKS)
