"""The weightings that change in training, against numbers worked out by hand and against torchjd's."""

import math

import pytest
import torch
from torch import Tensor
from torchjd.scalarization import DWA, GeometricMean, Random

from configuration_mtl import TaskConfig
from mtl.adaptive_weighting import DWAWeighting, GeometricMeanWeighting, InitialLossWeighting, RandomWeighting
from mtl.loss_weighting import LossWeighting, step_seed
from tasks_mtl import REGRESSION

EVEN = (TaskConfig("a", num_labels=2), TaskConfig("b", num_labels=2), TaskConfig("c", num_labels=2))
TASKS = (TaskConfig("topic", num_labels=3, weight=2.0), TaskConfig("valence", REGRESSION))


def vectors(tasks: tuple[TaskConfig, ...], *values: float) -> dict[str, Tensor]:
    return {task.name: torch.tensor(value) for task, value in zip(tasks, values, strict=True)}


def one_epoch(weighting: LossWeighting, losses: list[tuple[float, ...]], counts: list[tuple[float, ...]]) -> None:
    weighting.start_epoch()
    for loss, count in zip(losses, counts, strict=True):
        weighting.observe(vectors(weighting.tasks, *loss), vectors(weighting.tasks, *count))
        weighting.end_step()


def test_dwa_follows_the_paper() -> None:
    weighting = DWAWeighting(TASKS)
    assert weighting.current_weights() == {"topic": 2.0, "valence": 1.0}
    # Means over labels: topic (1.5 * 2 + 0.5 * 2) / 4 = 1, valence (1 * 1 + 7 / 3 * 3) / 4 = 2.
    one_epoch(weighting, [(1.5, 1.0), (0.5, 7 / 3)], [(2, 1), (2, 3)])
    weighting.start_epoch()
    assert weighting.current_weights() == {"topic": 2.0, "valence": 1.0}, "One epoch gives no rate yet."
    one_epoch(weighting, [(0.5, 1.8)], [(4, 4)])
    weighting.start_epoch()
    # w = 0.5 / 1 and 1.8 / 2; 2 exp(w / 2) / sum is 2 / (1 + exp(0.2)) for topic, and the rest of 2 for valence.
    by_hand = 2 / (1 + math.exp((0.9 - 0.5) / 2))
    expected = {"topic": 2.0 * by_hand, "valence": 2 - by_hand}
    assert weighting.current_weights() == pytest.approx(expected, rel=1e-6)  # float32
    loss = weighting(vectors(TASKS, 0.5, 3.0), vectors(TASKS, 4, 4))
    assert loss.item() == pytest.approx(2.0 * by_hand * 0.5 + (2 - by_hand) * 3.0, rel=1e-6)


def test_dwa_is_that_of_torchjd_where_every_step_has_as_many_labels() -> None:
    weighting, reference = DWAWeighting(EVEN), DWA()
    losses = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    for epoch in losses:
        weighting.start_epoch()
        for step in epoch:
            found = weighting(vectors(EVEN, *step.tolist()), vectors(EVEN, 8, 8, 8))
            torch.testing.assert_close(found, reference(step))
            weighting.observe(vectors(EVEN, *step.tolist()), vectors(EVEN, 8, 8, 8))
            weighting.end_step()
        reference.step()


def test_dwa_sums_micro_batches_and_takes_a_missing_task_as_unchanged() -> None:
    weighting = DWAWeighting(TASKS)
    weighting.start_epoch()
    for part in ((0.25, 0.0), (0.75, 0.0)):
        weighting.observe(vectors(TASKS, *part), vectors(TASKS, 8, 0))
    weighting.end_step()
    weighting.start_epoch()
    assert weighting.epoch_means[1, 0] == 1.0
    assert weighting.epoch_means[1, 1].isnan()
    one_epoch(weighting, [(0.5, 2.0)], [(8, 8)])
    weighting.start_epoch()
    weighting.start_epoch()  # Nothing was trained in between.
    by_hand = 2 / (1 + math.exp((1.0 - 0.5) / 2))
    assert weighting.current_weights() == pytest.approx({"topic": 2 * by_hand, "valence": 2 - by_hand}, rel=1e-6)


def test_random_is_that_of_torchjd_and_follows_from_seed_and_step() -> None:
    weighting, losses, counts = RandomWeighting(EVEN, seed=5), (0.5, 3.0, 1.0), vectors(EVEN, 8, 8, 8)
    before = torch.get_rng_state()
    found = []
    for step in (0, 1, 7, 1):
        weighting.start_step(step)
        found.append(weighting(vectors(EVEN, *losses), counts).item())
        assert sum(weighting.current_weights().values()) == pytest.approx(1.0)
    assert torch.equal(torch.get_rng_state(), before)
    assert found[1] == found[3]
    assert len(set(found)) == 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(step_seed(5, 7))
        assert found[2] == pytest.approx(Random()(torch.tensor(losses)).item())
    other = RandomWeighting(EVEN, seed=6)
    other.start_step(7)
    assert other.current_weights() != weighting.current_weights()
    weighting.eval()
    assert weighting(vectors(EVEN, *losses), counts).item() == sum(losses)


def test_geometric_mean_by_hand() -> None:
    weighting = GeometricMeanWeighting(TASKS)
    losses = {name: value.requires_grad_() for name, value in vectors(TASKS, 0.5, 3.0).items()}
    found = weighting(losses, vectors(TASKS, 8, 8))
    by_hand = (0.5**2 * 3.0) ** (1 / 3)  # Weights 2 and 1.
    assert found.item() == pytest.approx(by_hand, rel=1e-6)
    found.backward()
    gradients = {name: value.grad.item() for name, value in losses.items() if value.grad is not None}
    expected = {"topic": 2 / 3 * by_hand / 0.5, "valence": 1 / 3 * by_hand / 3.0}  # d/dx of x^(2/3) y^(1/3).
    assert gradients == pytest.approx(expected, rel=1e-6)
    assert weighting.current_weights() == pytest.approx(expected, rel=1e-6)


def test_geometric_mean_is_that_of_torchjd_and_leaves_out_what_has_no_label() -> None:
    weighting = GeometricMeanWeighting(EVEN)
    values = torch.tensor([0.5, 3.0, 0.2], requires_grad=True)
    GeometricMean()(values).backward()
    own = values.detach().clone().requires_grad_()
    weighting(dict(zip("abc", own.unbind(), strict=True)), vectors(EVEN, 8, 8, 8)).backward()
    torch.testing.assert_close(own.grad, values.grad)
    two = weighting(vectors(EVEN, 0.5, 0.0, 0.2), vectors(EVEN, 8, 0, 8))
    assert two.item() == pytest.approx((0.5 * 0.2) ** 0.5, rel=1e-6)
    assert weighting.current_weights()["b"] == 0.0
    assert weighting(vectors(EVEN, 0.0, 0.0, 0.0), vectors(EVEN, 0, 0, 0)).item() == 0.0
    # The margin of a triplet that is kept is a loss of 0, which takes nothing away from the other tasks.
    others = weighting(vectors(EVEN, 0.0, 0.8, 0.2), vectors(EVEN, 8, 8, 8))
    assert others.item() == pytest.approx(0.4, rel=1e-6)
    assert weighting.current_weights() == pytest.approx({"a": 0.0, "b": 0.25, "c": 1.0}, rel=1e-6)  # 0.4 / (2 L).


def test_geometric_mean_is_of_the_losses_of_all_processes() -> None:
    others = torch.tensor([1.5, 1.0])  # Of the other of two processes; each loss is already times 2.
    weighting = GeometricMeanWeighting(TASKS, reduce_mean=lambda tensor: (tensor + others) / 2)
    weighting(vectors(TASKS, 0.5, 3.0), vectors(TASKS, 8, 8))
    # The losses of the step are 1 and 2.
    by_hand = (1.0**2 * 2.0) ** (1 / 3)
    expected = {"topic": 2 / 3 * by_hand / 1.0, "valence": 1 / 3 * by_hand / 2.0}
    assert weighting.current_weights() == pytest.approx(expected, rel=1e-6)


def test_initial_loss_by_hand() -> None:
    weighting = InitialLossWeighting(TASKS)
    assert weighting.needs_initial_losses
    weighting.set_initial_losses({"topic": 0.5, "valence": 4.0})
    assert not weighting.needs_initial_losses
    assert weighting(vectors(TASKS, 0.5, 3.0), vectors(TASKS, 8, 8)).item() == 2.0 * 1.0 + 3.0 / 4.0
    assert weighting.current_weights() == {"topic": 4.0, "valence": 0.25}
    resumed = InitialLossWeighting(TASKS)
    resumed.load_state_dict(weighting.state_dict())
    assert not resumed.needs_initial_losses


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"topic": 1.0}, "task 'valence' has no label or teacher in the training rows"),
        ({"topic": 0.0, "valence": 1.0}, "task 'topic' has an initial loss of 0.0"),
        ({"topic": math.nan, "valence": 1.0}, "task 'topic' has an initial loss of nan"),
        ({"topic": math.inf, "valence": 1.0}, "task 'topic' has an initial loss of inf"),
    ],
)
def test_initial_loss_that_nothing_can_be_divided_by(losses: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InitialLossWeighting(TASKS).set_initial_losses(losses)
