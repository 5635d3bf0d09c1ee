"""Intervals of a difference: the rows against scipy's bootstrap, the trainings against its t test, both by trial."""

import dataclasses
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import sklearn.metrics

from configuration_mtl import TaskConfig
from mtl.paired_intervals import Estimate, PairedModels, Said, drawn_differences, interval
from tasks_mtl import CONTRASTIVE, MULTI_LABEL, REGRESSION

TASK = TaskConfig("topic", labels=("a", "b", "c"))
RNG = np.random.default_rng(0)


def class_logits(labels: npt.NDArray, accuracy: float, rng: np.random.Generator) -> npt.NDArray:
    """Returns logits, (N, 3), that are right in a share of the rows."""
    wrong = (labels + rng.integers(1, 3, len(labels))) % 3
    says = np.where(rng.random(len(labels)) < accuracy, labels, wrong)
    return np.eye(3)[says]


def paired(
    labels: npt.NDArray,
    logits: list[tuple[npt.NDArray, npt.NDArray]],
    *,
    task: TaskConfig = TASK,
    metric: str = "accuracy",
) -> PairedModels:
    """Returns models of a task that labels every row."""
    models = [(Said(task, first), Said(task, second)) for first, second in logits]
    return PairedModels(task.name, metric, np.arange(len(labels)), labels, models)


def test_rows_agree_with_scipy() -> None:
    labels = RNG.integers(3, size=400)
    first, second = class_logits(labels, 0.8, RNG), class_logits(labels, 0.7, RNG)
    pair = paired(labels, [(first, second)])
    drawn = drawn_differences([pair], resamples=4000, seed=0)["topic"]
    found = interval(pair.scores(), drawn, level=0.95)
    right = [(some.argmax(1) == labels).astype(float) for some in (first, second)]
    options: Any = {"paired": True, "method": "percentile", "n_resamples": 4000, "rng": 1}
    drawn_by_scipy = scipy.stats.bootstrap(right, lambda x, y, axis: x.mean(axis) - y.mean(axis), **options)
    expected = drawn_by_scipy.confidence_interval
    assert found.value == pytest.approx(right[0].mean() - right[1].mean())
    # Both are draws: the standard error of an end is about 3 % of the half width.
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=0.006)


def test_a_mean_over_rows_is_what_the_metric_says_of_the_drawn_rows() -> None:
    labels = RNG.integers(3, size=50)
    logits = [(class_logits(labels, 0.8, RNG), class_logits(labels, 0.5, RNG)) for _ in range(2)]
    drawn = drawn_differences([paired(labels, logits)], resamples=30, seed=3)["topic"]
    rng = np.random.default_rng(3)
    for found, rows in zip(drawn, rng.integers(50, size=(30, 50)), strict=True):
        scores = [
            [sklearn.metrics.accuracy_score(labels[rows], some[rows].argmax(1)) for some in both] for both in logits
        ]
        assert found == pytest.approx(np.subtract(*np.mean(scores, axis=0)))


@pytest.mark.parametrize("metric", ["f1_macro", "mcc"])
def test_other_metrics_are_measured_on_the_drawn_rows(metric: str) -> None:
    labels = RNG.integers(3, size=40)
    logits = [(class_logits(labels, 0.8, RNG), class_logits(labels, 0.5, RNG))]
    drawn = drawn_differences([paired(labels, logits, metric=metric)], resamples=5, seed=3)["topic"]
    measure: Any = {
        "f1_macro": lambda true, says: sklearn.metrics.f1_score(true, says, average="macro"),
        "mcc": sklearn.metrics.matthews_corrcoef,
    }[metric]
    for found, rows in zip(drawn, np.random.default_rng(3).integers(40, size=(5, 40)), strict=True):
        first, second = (measure(labels[rows], some[rows].argmax(1)) for some in logits[0])
        assert found == pytest.approx(first - second)


def test_trainings_agree_with_welch() -> None:
    scores = np.array([[0.81, 0.84, 0.80, 0.83], [0.79, 0.70, 0.76, 0.81]])
    found = interval(scores, np.full(10, scores[0].mean() - scores[1].mean()), level=0.9)
    test: Any = scipy.stats.ttest_ind(*scores, equal_var=False)
    assert [found.low, found.high] == pytest.approx(list(test.confidence_interval(0.9)))


def test_both_parts_add_up_in_quadrature() -> None:
    scores, rows = np.array([[0.5, 0.7], [0.4, 0.4]]), np.linspace(0.1, 0.3, 1001)
    half = float(scipy.stats.t.ppf(0.95, 1)) * 0.1  # Standard error of 0.5 and 0.7; the other model has none.
    found = interval(scores, rows, level=0.9)
    assert found.value == pytest.approx(0.2)
    assert found.high == pytest.approx(0.2 + math.hypot(0.09, half))
    assert found.low == pytest.approx(0.2 - math.hypot(0.09, half))


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (2, 2.0), (3, 0.5), (3, 2.0), (3, 20.0), (5, 2.0)])
def test_no_difference_is_rarely_taken_for_one(seeds: int, spread: float) -> None:
    """Trials: without a difference no more than the promised share of the intervals leaves 0 out."""
    rng, trials, missed = np.random.default_rng(1), 2000, 0
    resamples = scipy.stats.norm.ppf((np.arange(400) + 0.5) / 400)  # Of the rows, whose standard error is 1.
    for _ in range(trials):
        scores = rng.normal(scale=spread, size=(2, seeds))
        scores[0] += rng.normal()  # By how much the rows favour the first model.
        found = interval(scores, resamples + np.subtract(*scores.mean(axis=1)), level=0.95)
        assert found.low is not None
        assert found.high is not None
        missed += found.low > 0 or found.high < 0
    # Three standard errors above 5 %: 100 + 3 * sqrt(2000 * 0.05 * 0.95).
    assert missed <= 130


def test_equal_models_have_no_difference_at_all() -> None:
    labels = RNG.integers(3, size=60)
    logits = [(some, some.copy()) for some in (class_logits(labels, 0.7, RNG), class_logits(labels, 0.6, RNG))]
    pair = paired(labels, logits)
    scores = pair.scores()
    drawn = drawn_differences([pair], resamples=50, seed=0)["topic"]
    assert not drawn.any()
    assert interval(scores[:, :1], drawn, level=0.95) == Estimate(0.0, 0.0, 0.0)


def test_tasks_share_the_rows_that_are_drawn() -> None:
    """Where one task is right just where the other is wrong, what they gain together is the same in every resample."""
    labels = np.zeros(80, dtype=np.int64)
    first = np.eye(3)[RNG.integers(2, size=80)]
    mirrored = first[:, [1, 0, 2]]
    nothing = np.eye(3)[np.full(80, 2)]
    other = TaskConfig("other", labels=("a", "b", "c"))
    pairs = [paired(labels, [(first, nothing)]), paired(labels, [(mirrored, nothing)], task=other)]
    drawn = drawn_differences(pairs, resamples=40, seed=0)
    assert drawn["topic"].std() > 0.01
    assert drawn["topic"] + drawn["other"] == pytest.approx(np.ones(40))


def test_labels_that_are_missing_leave_rows_out() -> None:
    tags = TaskConfig("tags", MULTI_LABEL, labels=("x", "y"))
    labels = np.array([[1, 0], [np.nan, 1], [0, np.nan]] * 10)
    logits = np.where(np.nan_to_num(labels, nan=0.0) == 1, 3.0, -3.0)
    scores = paired(labels, [(logits, -logits)], task=tags, metric="f1_micro").scores()
    assert scores.ravel().tolist() == [1.0, 0.0]


def test_each_model_decides_by_its_own_thresholds() -> None:
    labels, logits = np.array([[1.0], [0.0]] * 20), np.array([[-1.0], [-2.0]] * 20, dtype=np.float32)
    plain = TaskConfig("tags", MULTI_LABEL, labels=("x",))
    low = dataclasses.replace(plain, label_thresholds=(0.2,))  # Between the sigmoids of -1 and -2.
    pair = PairedModels("tags", "f1_micro", np.arange(40), labels, [(Said(low, logits), Said(plain, logits))])
    assert pair.scores().ravel().tolist() == [1.0, 0.0]
    assert drawn_differences([pair], resamples=10, seed=0)["tags"].tolist() == [1.0] * 10


def test_what_cannot_be_drawn_again_has_no_interval() -> None:
    valence, classes = TaskConfig("valence", REGRESSION), TaskConfig("near", CONTRASTIVE, labels=("a", "b"))
    two = paired(
        np.array([0.0, 1.0]), [(np.array([[0.0], [1.0]]), np.array([[1.0], [0.0]]))], task=valence, metric="pearson"
    )
    drawn = drawn_differences([two], resamples=50, seed=0)["valence"]  # Twice the same row has no correlation.
    assert np.isnan(drawn).any()
    assert interval(two.scores(), drawn, level=0.95) == Estimate(2.0)
    embeddings = np.eye(2)[[0, 0, 1, 1]]
    near = paired(np.array([0, 0, 1, 1]), [(embeddings, embeddings)], task=classes)
    assert drawn_differences([near], resamples=5, seed=0) == {}
    assert near.scores().ravel().tolist() == [1.0, 1.0]


def test_another_unit_turns_the_interval_round() -> None:
    assert Estimate(1.0, 0.5, 2.0).times(-10.0) == Estimate(-10.0, -20.0, -5.0)
    assert Estimate(None).times(2.0) == Estimate(None)
