"""Shares, counts, order and padding of the plan of rows."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler

from mtl.sampling import Mixture, SamplingPlan, Steps, drawn, share_out

SIZES = {"large": 64, "middle": 16, "small": 4}  # 84 rows.
MIXED = ["proportional", "temperature:2", "balanced", "annealed"]


def make_plan(sizes: dict[str, int] | None = None, mixture: str = "none", **settings: Any) -> SamplingPlan:
    """Returns a plan on sources whose rows are numbered on, one source after the other."""
    sizes = SIZES if sizes is None else sizes
    ends = np.cumsum(list(sizes.values()))
    sources = {
        name: np.arange(end - count, end) for (name, count), end in zip(sizes.items(), ends.tolist(), strict=True)
    }
    return SamplingPlan(
        sources=sources, mixture=Mixture.parse(mixture), **{"batch_rows": 8, "num_epochs": 5, **settings}
    )


def rows_of(steps: Steps) -> list[int]:
    """Returns the rows of an epoch in their order."""
    return [row for step in steps for part in step for row in part]


def counts_by_source(plan: SamplingPlan, rows: Sequence[int]) -> dict[str, list[int]]:
    """Returns how often each row of each source was seen."""
    seen = Counter(rows)
    return {name: [seen[row] for row in members.tolist()] for name, members in plan.sources.items()}


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        # 84 rows, shared as 64 : 16 : 4.
        ("proportional", [64, 16, 4]),
        # As 8 : 4 : 2, of 14: 48, 24, 12.
        ("temperature:2", [48, 24, 12]),
        ("temperature:1", [64, 16, 4]),
        ("temperature:0.001", [84, 0, 0]),
        ("balanced", [28, 28, 28]),
    ],
)
def test_shares(mixture: str, expected: list[int]) -> None:
    plan = make_plan(mixture=mixture)
    assert list(plan.quotas(0).values()) == list(plan.quotas(4).values()) == expected


def test_annealed_shares() -> None:
    # alpha = 1 - 0.8 (e - 1) / (E - 1), of 5 epochs: 1, 0.8, 0.6, 0.4, 0.2.
    assert [Mixture("annealed").alpha(epoch, 5) for epoch in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert Mixture("annealed").alpha(0, 1) == 1
    plan = make_plan(mixture="annealed")
    assert list(plan.quotas(0).values()) == [64, 16, 4]
    # 64^0.2 = 2.2974, 16^0.2 = 1.7411, 4^0.2 = 1.3195, sum 5.3580; times 84: 36.018, 27.296, 20.686. The floors leave
    # one row, which goes to the largest remainder, the third.
    assert list(plan.quotas(4).values()) == [36, 27, 21]


def test_largest_remainder() -> None:
    assert share_out([1, 1, 1], 1.0, 8) == [3, 3, 2]  # 2.67 each: two rows left, which go to the first.
    assert share_out([5, 3, 2], 1.0, 9) == [4, 3, 2]  # 4.5, 2.7, 1.8: the remainders 0.8 and 0.7 win.


@pytest.mark.parametrize(
    "mixture", ["frequent", "temperature", "temperature:0", "temperature:nan", "balanced:2", "None"]
)
def test_unknown_mixture(mixture: str) -> None:
    with pytest.raises(ValueError, match=f"mixture '{re.escape(mixture)}'"):
        Mixture.parse(mixture)


def test_draws_go_on_through_the_cycles() -> None:
    rows = np.array([3, 5, 7])
    stream = drawn(rows, 0, 9, (0, 1)).tolist()
    assert all(sorted(stream[start : start + 3]) == [3, 5, 7] for start in (0, 3, 6))
    parts = [drawn(rows, start, count, (0, 1)).tolist() for start, count in ((0, 2), (2, 0), (2, 5), (7, 2))]
    assert list(chain(*parts)) == stream
    assert len({tuple(drawn(np.arange(9), 9 * cycle, 9, (0, 1)).tolist()) for cycle in range(4)}) == 4


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("mixture", ["none", *MIXED])
def test_counts(mixture: str, world_size: int, homogeneous: bool, grouped: bool) -> None:
    if homogeneous and mixture == "none":
        mixture = "proportional"  # What `make_plan` of mtl.loading makes of it.
    lengths = np.random.default_rng(0).integers(3, 40, 84) if grouped else None
    plan = make_plan(
        mixture=mixture, world_size=world_size, batch_rows=6, lengths=lengths, homogeneous=homogeneous, accumulation=2
    )
    seen: list[int] = []
    for epoch in range(5):
        steps = plan.steps(epoch)
        assert len(steps) == len(plan)
        assert all(len(step) == world_size for step in steps)
        sizes = [[len(part) for part in step] for step in steps]
        assert min(map(min, sizes)) > 0, "a rank has no row"
        assert all(max(some) - min(some) <= 1 for some in sizes)
        rows = rows_of(steps)
        assert len(rows) == 84
        counts = counts_by_source(plan, rows)
        if mixture != "none":
            assert {name: sum(some) for name, some in counts.items()} == plan.quotas(epoch)
        seen += rows
        for name, some in counts_by_source(plan, seen).items():
            assert max(some) - min(some) <= 1, name
        if homogeneous:
            members = {name: set(rows.tolist()) for name, rows in plan.sources.items()}
            assert all(any(set(chain(*step)) <= some for some in members.values()) for step in steps)
    if mixture in ("none", "proportional"):
        assert sorted(seen) == sorted(list(range(84)) * 5)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("mixture", MIXED)
def test_order_does_not_depend_on_the_number_of_ranks(mixture: str, homogeneous: bool, grouped: bool) -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 84) if grouped else None
    settings: dict[str, Any] = {"mixture": mixture, "homogeneous": homogeneous, "lengths": lengths}
    one, two, four = (make_plan(world_size=count, **settings) for count in (1, 2, 4))
    for epoch in (0, 3):
        batches = [list(chain(*step)) for step in one.steps(epoch)]
        assert [list(chain(*step)) for step in two.steps(epoch)] == batches
        assert [list(chain(*step)) for step in four.steps(epoch)] == batches
        assert [step[0] for step in one.steps(epoch)] == batches


@pytest.mark.parametrize("mixture", ["none", *MIXED])
def test_step_holds_the_same_rows_however_it_is_accumulated(mixture: str) -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 84)
    whole = make_plan(mixture=mixture, lengths=lengths, batch_rows=12).steps(1)
    parts = make_plan(mixture=mixture, lengths=lengths, batch_rows=4, accumulation=3).steps(1)
    grouped = [rows_of(parts[start : start + 3]) for start in range(0, len(parts), 3)]
    assert grouped == [step[0] for step in whole]


def test_plan_is_a_function_of_seed_and_epoch() -> None:
    settings: dict[str, Any] = {"mixture": "temperature:2", "lengths": np.arange(84)}
    one = make_plan(**settings)
    torch.manual_seed(5)
    again = make_plan(**settings)
    assert [again.steps(epoch) for epoch in (2, 0)] == [one.steps(epoch) for epoch in (2, 0)]
    assert one.steps(0) != one.steps(1)
    assert make_plan(seed=1, **settings).steps(0) != one.steps(0)


def test_last_batch_is_shared_and_what_is_left_over_joins_the_batch_before() -> None:
    nineteen = make_plan({"all": 19}, world_size=4)  # 8 + 8 + 3: three rows are too few for four ranks.
    assert [[len(part) for part in step] for step in nineteen.steps(0)] == [[2, 2, 2, 2], [3, 3, 3, 2]]
    twenty = make_plan({"all": 20}, world_size=3, batch_rows=6)  # 6 + 6 + 6 + 2.
    assert [[len(part) for part in step] for step in twenty.steps(0)] == [[2, 2, 2], [2, 2, 2], [3, 3, 2]]
    sixteen = make_plan({"all": 13}, world_size=4)  # 8 + 5.
    assert [[len(part) for part in step] for step in sixteen.steps(0)] == [[2, 2, 2, 2], [2, 1, 1, 1]]
    few = make_plan({"all": 5}, world_size=4)
    assert [[len(part) for part in step] for step in few.steps(0)] == [[2, 1, 1, 1]]


def test_too_few_rows() -> None:
    with pytest.raises(ValueError, match="has 3 rows, fewer than the 4 processes"):
        make_plan({"all": 3}, world_size=4)
    with pytest.raises(ValueError, match="source 'small' has 1 rows in epoch 1, fewer than the 2 processes"):
        make_plan({"large": 20, "small": 1}, "proportional", world_size=2, homogeneous=True)
    make_plan({"large": 20, "small": 1}, "balanced", world_size=2, homogeneous=True)


def test_homogeneous_batches_are_cut_alike() -> None:
    plan = make_plan({"a": 17, "b": 4}, "proportional", homogeneous=True)
    # 17 rows in batches of at most 8 make three of 6, 6 and 5; 4 rows make one.
    assert sorted(len(step[0]) for step in plan.steps(0)) == [4, 5, 6, 6]


def test_annealed_homogeneous_epochs_have_equally_many_steps() -> None:
    plan = make_plan(mixture="annealed", homogeneous=True, batch_rows=8, world_size=2)
    # Quotas and fewest batches of 8: (64, 16, 4) 8 + 2 + 1; (56, 19, 9) with alpha 0.8: 7 + 3 + 2; ... at most 12.
    fewest = [sum(-(-quota // 8) for quota in plan.quotas(epoch).values()) for epoch in range(5)]
    assert len(plan) == max(fewest) > min(fewest)
    assert {len(plan.steps(epoch)) for epoch in range(5)} == {len(plan)}


def test_none_keeps_the_order_that_one_process_has() -> None:
    plan = make_plan(seed=7, world_size=2)
    for epoch in (0, 2):
        sampler = SeedableRandomSampler(range(84), data_seed=7)
        sampler.set_epoch(epoch)
        assert rows_of(plan.steps(epoch)) == list(sampler)
    assert rows_of(make_plan(shuffle=False).steps(3)) == list(range(84))


def padded_tokens(steps: Steps, lengths: np.ndarray) -> int:
    """Returns the count of pad tokens of an epoch."""
    parts = [lengths[part] for step in steps for part in step]
    return sum(int(len(part) * part.max() - part.sum()) for part in parts)


@pytest.mark.parametrize("homogeneous", [False, True])
@pytest.mark.parametrize("mixture", MIXED)
def test_length_grouping_saves_padding(mixture: str, homogeneous: bool) -> None:
    sizes = {"large": 640, "middle": 160, "small": 40}
    lengths = np.random.default_rng(1).integers(3, 64, 840)
    settings: dict[str, Any] = {"mixture": mixture, "homogeneous": homogeneous, "world_size": 2}
    plain, grouped = make_plan(sizes, **settings), make_plan(sizes, lengths=lengths, **settings)
    for epoch in (0, 4):
        before, after = padded_tokens(plain.steps(epoch), lengths), padded_tokens(grouped.steps(epoch), lengths)
        assert after < before / 4
        longest = max(rows_of(grouped.steps(epoch)), key=lambda row: lengths[row])
        assert lengths[longest] == lengths[list(chain(*grouped.steps(epoch)[0]))].max()
    assert grouped.steps(0) != grouped.steps(1)
