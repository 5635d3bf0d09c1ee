"""Intervals over resampled rows: the same figures as of the rows repeated, and ends that scipy finds too."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats
import torch

from classification_mtl import chosen_labels
from configuration_mtl import TaskConfig
from mtl.bootstrap import metric_intervals, resampled_counts
from mtl.metrics import METRICS, compute_task_metrics
from mtl.weighted_metrics import labelled_rows, weighing
from tasks_mtl import (
    CONTRASTIVE,
    MULTI_LABEL,
    ORDINAL,
    POSITIVE_PAIRS,
    REGRESSION,
    SCORED_PAIRS,
    SINGLE_LABEL,
    TRIPLETS,
)

ROWS = 40


def rounded(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Returns numbers of which many are equal."""
    return rng.normal(size=shape).round(1).astype(np.float32)


def with_gaps(values: npt.NDArray, rng: np.random.Generator) -> npt.NDArray:
    """Returns floats of which some are missing."""
    return np.where(rng.random(values.shape) < 0.2, np.nan, values).astype(np.float32)


def case(kind: str) -> tuple[TaskConfig, npt.NDArray, npt.NDArray]:
    """Returns a task of a kind with outputs and labels, some rows without a label."""
    rng = np.random.default_rng(7)
    ids = rng.integers(4, size=ROWS)
    some = np.where(rng.random(ROWS) < 0.2, -100, ids)
    if kind == SINGLE_LABEL:
        return TaskConfig("a", num_labels=4), rounded(rng, ROWS, 4) + 0.5 * np.eye(4, dtype=np.float32)[ids], some
    if kind == ORDINAL:
        return TaskConfig("a", ORDINAL, num_labels=4), rounded(rng, ROWS, 3), some
    if kind == MULTI_LABEL:
        thresholds = (0.5, 0.3, 0.7, 0.5, 0.5)
        task = TaskConfig("a", MULTI_LABEL, num_labels=5, label_thresholds=thresholds, calibration_temperature=1.5)
        labels = with_gaps(rng.integers(2, size=(ROWS, 5)).astype(np.float32), rng)
        labels[0], labels[:, 3] = np.nan, 0.0  # A row without labels, a label without a positive row.
        return task, rounded(rng, ROWS, 5), labels
    if kind == REGRESSION:
        return TaskConfig("a", REGRESSION, num_labels=2), rounded(rng, ROWS, 2), with_gaps(rounded(rng, ROWS, 2), rng)
    if kind == SCORED_PAIRS:
        return TaskConfig("a", SCORED_PAIRS), rounded(rng, ROWS), with_gaps(rounded(rng, ROWS), rng)
    cosines = rounded(rng, ROWS, 2)
    cosines[:5, 1] = np.nan
    return TaskConfig("a", TRIPLETS), cosines, np.where(some < 0, -100, 1)


KINDS = (SINGLE_LABEL, ORDINAL, MULTI_LABEL, REGRESSION, SCORED_PAIRS, TRIPLETS)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_figures_are_those_of_the_repeated_rows(kind: str) -> None:
    task, logits, labels = case(kind)
    kept = labelled_rows(labels)
    logits, labels = logits[kept], labels[kept]
    counts = resampled_counts(np.random.default_rng(0), 30, len(labels))
    counts[0], counts[1] = 1.0, 0.0
    counts[1, 3] = len(labels)  # One row alone: correlations and the like are undefined.
    weighed = weighing(task, logits, labels)
    assert weighed is not None
    found = weighed(counts)
    assert found.keys() == {metric.key for metric in METRICS[kind]}
    for place, some in enumerate(counts.astype(int)):
        rows = np.repeat(np.arange(len(labels)), some)
        chosen = chosen_labels(task, torch.from_numpy(logits[rows])).numpy() if kind == MULTI_LABEL else None
        expected = compute_task_metrics(kind, logits[rows], labels[rows], chosen=chosen)
        for key, values in found.items():
            assert values[place] == pytest.approx(expected[key], abs=1e-9, nan_ok=True), (key, place)


@pytest.mark.parametrize(
    "task", [TaskConfig("a", REGRESSION), TaskConfig("a", SCORED_PAIRS)], ids=[REGRESSION, SCORED_PAIRS]
)
def test_rounding_of_a_constant_has_no_ranks(task: TaskConfig) -> None:
    rng = np.random.default_rng(3)
    # All outputs are 1 but for the last digit, as the cosines of an encoder that has collapsed to a point.
    logits = np.where(rng.random(ROWS) < 0.5, np.nextafter(np.float32(1), np.float32(0)), np.float32(1))
    labels = rng.normal(size=ROWS).astype(np.float32)
    figures = compute_task_metrics(task.problem_type, logits, labels)
    ends = metric_intervals(task, logits, labels, resamples=20)
    for key in ("pearson", "spearman"):
        assert np.isnan(figures[key])
        assert ends[key] == {"low": None, "high": None}


@pytest.mark.parametrize("kind", KINDS)
def test_interval_holds_the_figure_and_a_wider_one_more(kind: str) -> None:
    task, logits, labels = case(kind)
    chosen = chosen_labels(task, torch.from_numpy(logits)).numpy() if kind == MULTI_LABEL else None
    figures = compute_task_metrics(kind, logits, labels, chosen=chosen)
    narrow, wide = (metric_intervals(task, logits, labels, level=level, resamples=300) for level in (0.5, 0.95))
    for key, ends in wide.items():
        low, high = ends["low"], ends["high"]
        assert low is not None
        assert high is not None
        assert low < figures[key] < high
        inner = narrow[key]
        assert low < (inner["low"] or 0.0) < (inner["high"] or 0.0) < high


def test_ends_agree_with_scipy() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=400)
    logits = np.eye(2, dtype=np.float32)[np.where(rng.random(400) < 0.8, labels, 1 - labels)]
    ends = metric_intervals(TaskConfig("a", num_labels=2), logits, labels, resamples=4000)["accuracy"]
    right = logits.argmax(axis=1) == labels
    other = scipy.stats.bootstrap((right,), np.mean, n_resamples=4000, method="percentile", rng=rng)
    # Of 4,000 resamples an end is known to about a tenth of the standard error, which is 0.02.
    assert ends["low"] == pytest.approx(other.confidence_interval.low, abs=0.005)
    assert ends["high"] == pytest.approx(other.confidence_interval.high, abs=0.005)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for seed in range(200):
        labels = np.zeros(150, dtype=np.int64)
        logits = np.eye(2, dtype=np.float32)[(rng.random(150) > 0.7).astype(int)]
        ends = metric_intervals(TaskConfig("a", num_labels=2), logits, labels, resamples=200, level=0.9, seed=seed)
        inside += (ends["accuracy"]["low"] or 0) <= 0.7 <= (ends["accuracy"]["high"] or 0)
    # 180 are expected, with a standard deviation of 4.2.
    assert 165 <= inside <= 195


def test_same_seed_gives_the_same_ends_and_progress_is_told() -> None:
    task, logits, labels = case(SINGLE_LABEL)
    told: list[int] = []
    first = metric_intervals(task, logits, labels, resamples=50, seed=3, progress=told.append)
    assert sum(told) == 50
    assert first == metric_intervals(task, logits, labels, resamples=50, seed=3)
    assert first != metric_intervals(task, logits, labels, resamples=50, seed=4)


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        (TaskConfig("a", num_labels=2), np.zeros((3, 2), np.float32), np.full(3, -100)),
        (TaskConfig("a", num_labels=2), np.full((3, 2), np.nan, np.float32), np.zeros(3, np.int64)),
        (TaskConfig("a", POSITIVE_PAIRS), np.zeros((3, 2), np.float32), np.ones(3, np.int64)),
        (TaskConfig("a", CONTRASTIVE, num_labels=2), np.ones((3, 4), np.float32), np.array([0, 1, 0])),
    ],
    ids=["no labels", "nan", "in-batch", "neighbours"],
)
def test_no_interval_where_none_is_defined(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> None:
    for ends in metric_intervals(task, logits, labels, resamples=5).values():
        assert ends == {"low": None, "high": None}


@pytest.mark.parametrize("setting", [{"resamples": 0}, {"level": 1.0}])
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    task, logits, labels = case(SINGLE_LABEL)
    with pytest.raises(ValueError, match="resamples must be 1 or more, and level between 0 and 1"):
        metric_intervals(task, logits, labels, **setting)  # type: ignore[arg-type]
