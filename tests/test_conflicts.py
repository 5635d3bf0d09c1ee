"""Norms, cosines, their summary and the advice, on gradients whose angles are known."""

import pytest
import torch

from mtl.conflicts import PairConflict, check_names, measure_conflicts, summarize_conflicts


def test_norms_and_cosines_by_hand() -> None:
    rows = torch.tensor([[3.0, 4.0], [-4.0, 3.0], [-6.0, -8.0], [0.0, 0.0]])
    found = measure_conflicts(["a", "b", "c", "d"], rows @ rows.T)
    norms = {"grad_norm_a": 5.0, "grad_norm_b": 5.0, "grad_norm_c": 10.0, "grad_norm_d": 0.0}
    assert found == {**norms, "grad_cos_a_b": 0.0, "grad_cos_a_c": -1.0, "grad_cos_b_c": 0.0}


HISTORY = [
    {"loss": 1.0, "grad_norm": 2.0, "step": 1},
    {"grad_norm_a": 1.0, "grad_norm_b": 3.0, "grad_cos_a_b": 0.5, "step": 2},
    {"grad_norm_b": 1.0, "step": 4},
    {"grad_norm_a": 2.0, "grad_norm_b": 2.0, "grad_norm_c": 40.0, "grad_cos_a_b": -0.25, "grad_cos_a_c": -0.25,
     "grad_cos_b_c": -0.7, "step": 6},
    {"grad_norm_a": 3.0, "grad_norm_c": 20.0, "grad_cos_a_c": -0.5, "step": 8},
]  # fmt: skip


def test_summary_by_hand() -> None:
    summary = summarize_conflicts(HISTORY)
    assert summary is not None
    assert summary.mean_norms == {"a": 2.0, "b": 2.0, "c": 30.0}
    assert summary.pairs == (
        PairConflict(("a", "b"), 0.125, 0.5, 2),
        PairConflict(("a", "c"), -0.375, 1.0, 2),
        PairConflict(("b", "c"), -0.7, 1.0, 1),
    )
    assert summary.table().splitlines() == [
        "| mean cosine (negative, count) | a | b | c | mean norm |",
        "|---|---|---|---|---|",
        "| a |  | +0.12 (50%, 2) | -0.38 (100%, 2) | 2 |",
        "| b | +0.12 (50%, 2) |  | -0.70 (100%, 1) | 2 |",
        "| c | -0.38 (100%, 2) | -0.70 (100%, 1) |  | 30 |",
    ]
    assert summary.to_dict()["pairs"][2] == {
        "tasks": ["b", "c"], "mean_cosine": -0.7, "negative_share": 1.0, "count": 1
    }  # fmt: skip
    assert summary.advice == (
        "Too little to tell: no pair of tasks has 20 measurements (the most are 'a' and 'b', mean cosine +0.12, "
        "negative in 50% of 2). Set a smaller `conflict_steps`, or train longer. "
        "The gradient of 'c' is 15 times that of 'a': lower its `weight`, or choose another `weighting`, such as "
        "`initial_loss`."
    )


@pytest.mark.parametrize(
    ("cosines", "advice"),
    [
        (
            [-0.5, 0.1],
            "Strong conflict ('a' and 'b', mean cosine -0.20, negative in 50% of 20 measurements): try `aggregation: "
            "pcgrad`, a `hidden_size` for the heads of these tasks, or a model of its own for one of them.",
        ),
        (
            [0.3, -0.1],
            "The mean cosines stay above zero (the lowest: 'a' and 'b', mean cosine +0.10, negative in 50% of 20 "
            "measurements): equal weights should do.",
        ),
        (
            [-0.05, 0.01],
            "No strong conflict (the lowest: 'a' and 'b', mean cosine -0.02, negative in 50% of 20 measurements): the "
            "tasks hardly touch each other, so equal weights should do unless one of them learns too little.",
        ),
        (
            [-0.05, -0.01],
            "Too little to tell: the gradients that agree least ('a' and 'b', mean cosine -0.03, negative in 100% of "
            "20 measurements) mostly differ in direction, but hardly on average. Compare with a model of its own for "
            "one of these tasks.",
        ),
        ([], "No two tasks had labels in the same step, so nothing is known of conflicts."),
    ],
)
def test_advice(cosines: list[float], advice: str) -> None:
    history = [{"grad_norm_a": 1.0}, {"grad_norm_b": 2.0}]
    history += [{"grad_norm_a": 1.0, "grad_norm_b": 2.0, "grad_cos_a_b": cosine} for cosine in cosines] * 10
    summary = summarize_conflicts(history)
    assert summary is not None
    assert summary.advice == advice


def test_advice_waits_for_enough_measurements() -> None:
    entry = {"grad_norm_a": 1.0, "grad_norm_b": 2.0, "grad_cos_a_b": -0.9}
    few, enough = (summarize_conflicts([entry] * count) for count in (19, 20))
    assert few is not None and enough is not None
    assert few.advice.startswith(
        "Too little to tell: no pair of tasks has 20 measurements (the most are 'a' and 'b', "
    )
    assert enough.advice.startswith("Strong conflict ('a' and 'b', mean cosine -0.90, negative in 100% of 20 ")


def test_a_pair_that_was_hardly_measured_is_not_judged() -> None:
    history = [{"grad_norm_a": 1.0, "grad_norm_b": 2.0, "grad_cos_a_b": 0.4}] * 20
    summary = summarize_conflicts([*history, {"grad_norm_a": 1.0, "grad_norm_c": 2.0, "grad_cos_a_c": -0.9}])
    assert summary is not None
    assert summary.advice == (
        "The mean cosines stay above zero (the lowest: 'a' and 'b', mean cosine +0.40, negative in 0% of 20 "
        "measurements): equal weights should do. Of 1 pair there are fewer than 20 measurements, too few to tell."
    )


def test_advice_on_uneven_norms_does_not_call_equal_weights_enough() -> None:
    summary = summarize_conflicts([{"grad_norm_a": 1.0, "grad_norm_b": 14.0, "grad_cos_a_b": 0.2}] * 20)
    assert summary is not None
    assert summary.advice == (
        "The mean cosines stay above zero (the lowest: 'a' and 'b', mean cosine +0.20, negative in 0% of 20 "
        "measurements): gradients need no aggregation. The gradient of 'b' is 14 times that of 'a': lower its "
        "`weight`, or choose another `weighting`, such as `initial_loss`."
    )


def test_advice_is_not_about_the_preservation_of_the_embedding() -> None:
    entry = {"grad_norm_a": 1.0, "grad_norm_preservation": 1e-3, "grad_cos_a_preservation": -0.5}
    summary = summarize_conflicts([entry])
    assert summary is not None
    assert "| preservation | -0.50 (100%, 1) |" in summary.table()
    assert summary.advice == "Only one task was measured, so there is nothing that it could be in conflict with."


def test_order_of_a_pair_does_not_matter() -> None:
    # Task a had no label in the first step, so b is known first.
    summary = summarize_conflicts(
        [{"grad_norm_b": 1.0}, {"grad_norm_a": 1.0, "grad_norm_b": 1.0, "grad_cos_a_b": 0.5}]
    )
    assert summary is not None
    assert summary.pairs == (PairConflict(("b", "a"), 0.5, 0.0, 1),)


def test_nothing_measured() -> None:
    assert summarize_conflicts([{"loss": 1.0, "grad_norm": 2.0}]) is None


def test_names() -> None:
    check_names(["topic", "sentiment", "valence"])
    with pytest.raises(ValueError, match=r"the pairs of tasks \('a', 'b_c'\) and \('a_b', 'c'\) would both"):
        check_names(["a", "b_c", "a_b", "c"])
