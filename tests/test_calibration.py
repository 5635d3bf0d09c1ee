"""Fitting temperatures and thresholds: known ones recovered, numbers by hand, and what cannot be fitted."""

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from datasets import Dataset
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from classification_mtl import chosen_labels, class_ids, ordinal_probabilities, probabilities
from configuration_mtl import TaskConfig
from mtl.abstention import abstention_metrics, abstention_threshold
from mtl.calibration import (
    LEAST_ROWS,
    CannotFitError,
    best_label_threshold,
    calibrated,
    fit_abstention,
    fit_label_thresholds,
    fit_temperature,
)
from mtl.calibration_plans import CalibrationPlan, check_calibration_data, make_plans
from mtl.evaluation import EvaluationMetrics
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, ORDINAL, REGRESSION

NAN = float("nan")
TOPIC = TaskConfig("topic", num_labels=4)
STARS = TaskConfig("stars", ORDINAL, num_labels=5)
TAGS = TaskConfig("tags", MULTI_LABEL, num_labels=3)


def drawn(task: TaskConfig, count: int = 20_000, scale: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Returns random logits, and labels drawn from just the probabilities that they stand for."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(count, task.num_logits)) * scale
    said = probabilities(task, torch.from_numpy(logits)).numpy()  # (N, C)
    if task.problem_type == MULTI_LABEL:
        return logits, (rng.random(said.shape) < said).astype(np.float64)
    return logits, (rng.random((count, 1)) > said.cumsum(axis=1)).sum(axis=1)


@pytest.mark.parametrize("task", [TOPIC, STARS, TAGS], ids=lambda task: task.name)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(task: TaskConfig, temperature: float) -> None:
    logits, labels = drawn(task)
    # Of 20,000 rows the estimate has a standard error of about 1 %.
    assert fit_temperature(task, temperature * logits, labels) == pytest.approx(temperature, rel=0.04)


def test_temperature_against_scikit_learn() -> None:
    class Logits(ClassifierMixin, BaseEstimator):
        """A classifier whose decision function is what it is given."""

        def fit(self, rows: Any, labels: Any) -> "Logits":
            self.classes_ = np.unique(labels)
            return self

        def decision_function(self, rows: Any) -> Any:
            return rows

        def predict(self, rows: Any) -> Any:
            return rows.argmax(axis=1)

    logits, labels = drawn(TOPIC, 500)
    scaled = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, labels)), method="temperature").fit(
        2.5 * logits, labels
    )
    beta = scaled.calibrated_classifiers_[0].calibrators[0].beta_
    assert fit_temperature(TOPIC, 2.5 * logits, labels) == pytest.approx(1 / beta, rel=1e-3)


def test_rows_without_label_take_no_part() -> None:
    for task, missing in ((TOPIC, [IGNORE_INDEX, -1]), (TAGS, [[NAN] * 3, [NAN] * 3])):
        logits, labels = drawn(task, 100)
        more = np.concatenate([logits, np.full((2, task.num_logits), 7.0)])
        both = np.concatenate([labels, missing])
        assert fit_temperature(task, more, both) == fit_temperature(task, logits, labels)
    logits, labels = drawn(TAGS, 100)
    labels[::2, 1] = NAN
    changed = np.where(np.isnan(labels), -9.0, logits)
    assert fit_temperature(TAGS, changed, labels) == pytest.approx(fit_temperature(TAGS, logits, labels))


@pytest.mark.parametrize("task", [TOPIC, STARS, TAGS], ids=lambda task: task.name)
def test_a_temperature_changes_no_label(task: TaskConfig) -> None:
    logits = torch.from_numpy(drawn(task, 300)[0])
    for temperature in (0.3, 4.0):
        scaled = replace(task, calibration_temperature=temperature)
        said, before = probabilities(scaled, logits), probabilities(task, logits)
        assert not torch.allclose(said, before)
        if task is TAGS:
            assert torch.equal(chosen_labels(scaled, logits), chosen_labels(task, logits))
            torch.testing.assert_close(said, (logits / temperature).sigmoid())
        else:
            assert torch.equal(class_ids(scaled, logits), class_ids(task, logits))
            torch.testing.assert_close(said.sum(dim=-1), torch.ones(300, dtype=torch.float64))
    halved = probabilities(replace(STARS, calibration_temperature=2.0), torch.ones(4))
    torch.testing.assert_close(halved, ordinal_probabilities(torch.full((4,), 0.5)))


RIGHT = np.eye(4)[np.arange(40) % 4] * 3.0


@pytest.mark.parametrize(
    ("task", "logits", "labels", "message"),
    [
        (TOPIC, RIGHT, np.full(40, -1), "none of the rows is labelled"),
        (TOPIC, RIGHT[: LEAST_ROWS - 1], np.arange(LEAST_ROWS - 1) % 4, "19 of the rows are labelled, and 20 are"),
        (TOPIC, RIGHT, np.ones(40, int), "all labels of the rows are the same"),
        (TOPIC, np.where(RIGHT > 0, NAN, RIGHT), np.arange(40) % 4, "logits of the rows are not finite"),
        (TOPIC, np.where(RIGHT > 0, math.inf, RIGHT), np.arange(40) % 4, "logits of the rows are not finite"),
        (TOPIC, RIGHT, np.arange(40) % 4, "the head is right on all rows"),
        (TOPIC, 100 * RIGHT, np.arange(40) % 4, "the head is right on all rows"),  # Without temperature, exactly.
        (TOPIC, RIGHT, np.arange(1, 41) % 4, "the logits say nothing of the labels"),
        (STARS, RIGHT, np.zeros(40, int), "all labels of the rows are the same"),
        (TAGS, RIGHT[:, :3], np.zeros((40, 3)), "all labels of the rows are the same"),
        (TAGS, RIGHT[:, :3] - 1.0, (RIGHT[:, :3] > 0) * 1.0, "the head is right on all rows"),
        (TAGS, RIGHT[:, :3], np.full((40, 3), NAN), "none of the rows is labelled"),
    ],
)
def test_no_temperature_is_fitted(
    task: TaskConfig, logits: np.ndarray, labels: np.ndarray, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CannotFitError, match=message):
        fit_temperature(task, logits, labels)
    # In a training it is told and left out, the one of an earlier training too, which no longer holds.
    stale = replace(task, calibration_temperature=3.0)
    assert calibrated(stale, logits, labels, CalibrationPlan(temperature=True)) == task
    assert f"Task {task.name!r}: no calibration_temperature is fitted: {message}" in caplog.text


def test_label_threshold_by_hand() -> None:
    said = np.array([0.1, 0.2, 0.3, 0.4])
    # With the lowest 4, 3, 2, 1 predicted F1 is 4/6, 4/5, 2/4 and 2/3: the second, between 0.1 and 0.2.
    assert best_label_threshold(said, np.array([False, True, False, True])) == pytest.approx(0.15)
    # All: between 0 and the lowest.
    assert best_label_threshold(said, np.array([True, False, True, True])) == pytest.approx(0.05)
    # 2/3 with all four and with the uppermost two: the threshold that is nearer to 0.5.
    assert best_label_threshold(said, np.array([True, False, False, True])) == pytest.approx(0.35)
    assert best_label_threshold(said, np.zeros(4, bool)) == 0.5
    assert best_label_threshold(said, np.ones(4, bool)) == 0.5
    assert best_label_threshold(np.zeros(2), np.array([True, False])) == 0.5  # Nothing is above 0.
    ties = np.array([0.0, 0.0, 1.0, 1.0])
    assert best_label_threshold(ties, np.array([False, True, True, True])) == pytest.approx(0.5)


def test_label_threshold_against_trying_all() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        said, positive = rng.random(25).round(1), rng.random(25) < 0.4
        found = best_label_threshold(said, positive)
        tried = [sklearn.metrics.f1_score(positive, said >= least) for least in np.arange(0.05, 1.0, 0.1)]
        assert sklearn.metrics.f1_score(positive, said >= found) == pytest.approx(max(tried))


def test_label_thresholds_go_by_the_temperature_and_decide_the_metrics() -> None:
    logits, labels = drawn(TAGS, 400)
    logits -= 1.5  # So that 0.5 is a bad threshold.
    labels[::3, 0] = NAN
    task = replace(TAGS, calibration_temperature=2.0)
    task = calibrated(task, logits.astype(np.float32), labels, CalibrationPlan(label_thresholds=True))
    assert task.calibration_temperature == 2.0
    thresholds = task.label_thresholds
    assert thresholds is not None and max(thresholds) < 0.4
    metrics = EvaluationMetrics([task]).by_task({"tags": logits.astype(np.float32)}, {"tags": labels})["tags"]
    plain = EvaluationMetrics([TAGS]).by_task({"tags": logits.astype(np.float32)}, {"tags": labels})["tags"]
    said = 1 / (1 + np.exp(-logits / 2))
    scores = []
    for column, threshold in enumerate(thresholds):
        known = ~np.isnan(labels[:, column])
        positive = labels[known, column] == 1
        scores.append(sklearn.metrics.f1_score(positive, said[known, column] >= threshold))
        assert threshold == pytest.approx(best_label_threshold(said[known, column], positive), abs=1e-6)
    assert metrics["f1_macro"] == pytest.approx(np.mean(scores))
    assert metrics["f1_macro"] > plain["f1_macro"] + 0.05
    assert (metrics["map"], metrics["loss"]) == (plain["map"], plain["loss"])
    known = ~np.isnan(labels)
    expected = sklearn.metrics.f1_score((labels == 1)[known], (said >= thresholds)[known])
    assert metrics["f1_micro"] == pytest.approx(expected)


def test_thresholds_that_part_neighbours() -> None:
    # Two neighbouring float32 probabilities.
    logits = np.array([[0.1], [np.nextafter(np.float32(0.1), np.float32(1.0))]], np.float32)
    said = torch.from_numpy(logits).sigmoid()
    while said[0] == said[1]:
        logits[1] = np.nextafter(logits[1], np.float32(1.0))
        said = torch.from_numpy(logits).sigmoid()
    task = TaskConfig("a", MULTI_LABEL, num_labels=1)
    thresholds = fit_label_thresholds(task, logits, np.array([[0.0], [1.0]]))
    chosen = chosen_labels(replace(task, label_thresholds=thresholds), torch.from_numpy(logits))
    assert chosen.tolist() == [[False], [True]]


# Five rows by their score: wrong, right, wrong, right, right.
SCORES = np.array([0.4, 0.5, 0.6, 0.8, 0.9])
IS_RIGHT = np.array([False, True, False, True, True])


def test_abstention_threshold_by_hand() -> None:
    # Of the uppermost 5, 4, 3, 2, 1 are wrong 2/5, 1/4, 1/3, 0, 0.
    for rate, expected in ((0.4, 0.0), (0.39, 0.45), (0.25, 0.45), (0.24, 0.7), (0.0, 0.7)):
        assert abstention_threshold(SCORES, IS_RIGHT, rate) == pytest.approx(expected)


def test_abstention_threshold_that_there_is_none_of() -> None:
    assert abstention_threshold(np.array([0.5, 0.9]), np.array([True, False]), 0.4) is None
    # Rows of one score are kept together.
    assert abstention_threshold(np.array([0.5, 0.9, 0.9]), np.array([True, True, False]), 0.4) == 0.0
    assert abstention_threshold(np.array([0.5, 0.9, 0.9]), np.array([False, True, False]), 0.4) is None
    # 29 of 100, though 0.29 x 100 is less than 29 in floating point.
    assert abstention_threshold(np.linspace(0.3, 0.9, 100), np.arange(100) >= 29, 0.29) == 0.0


def test_abstention_is_measured_at_its_threshold() -> None:
    logits = np.log(np.stack([SCORES, 1 - SCORES], axis=1))
    labels = np.where(IS_RIGHT, 0, 1)
    logits = np.where(SCORES[:, None] < 0.5, logits[:, ::-1], logits)  # The likeliest class is at least at 0.5.
    task = TaskConfig("a", num_labels=2, abstention_threshold=0.7)
    more = np.concatenate([logits, [[9.0, 0.0], [9.0, 0.0]]])
    both = np.array([*labels, IGNORE_INDEX, -1])
    assert abstention_metrics(task, more, both) == pytest.approx({"coverage": 2 / 5, "kept_error": 0.0})
    warm = replace(task, calibration_temperature=2.0)  # sqrt(9) to 1 is 0.75, sqrt(4) to 1 two thirds.
    assert abstention_metrics(warm, more, both) == pytest.approx({"coverage": 1 / 5, "kept_error": 0.0})
    everything = abstention_metrics(replace(task, abstention_threshold=0.0), more, both)
    assert everything["coverage"] == 1.0
    nothing = abstention_metrics(replace(task, abstention_threshold=1.0), more, both)
    assert nothing["coverage"] == 0.0 and math.isnan(nothing["kept_error"])
    by_task = EvaluationMetrics([task]).by_task({"a": more[:-1]}, {"a": both[:-1]})["a"]
    assert (by_task["coverage"], by_task["kept_error"]) == (2 / 5, 0.0)
    plain = replace(task, abstention_threshold=None)
    assert "coverage" not in EvaluationMetrics([plain]).by_task({"a": more[:-1]}, {"a": both[:-1]})["a"]


@pytest.mark.parametrize("task", [TOPIC, STARS], ids=lambda task: task.name)
def test_fitted_abstention_reaches_its_rate_and_no_lower_threshold_does(task: TaskConfig) -> None:
    logits, labels = drawn(task, 2000)
    logits = (2 * logits).astype(np.float32)
    overall = 1 - (class_ids(task, torch.from_numpy(logits)).numpy() == labels).mean()
    rate = overall / 2
    fitted = calibrated(task, logits, labels, CalibrationPlan(temperature=True, abstention_error_rate=rate))
    assert fitted.calibration_temperature == pytest.approx(2.0, rel=0.15)
    metrics = abstention_metrics(fitted, logits, labels)
    assert 0.0 < metrics["coverage"] < 1.0
    assert rate - 0.02 < metrics["kept_error"] <= rate
    assert fitted.abstention_threshold is not None
    scores = probabilities(fitted, torch.from_numpy(logits))
    scores = scores.gather(1, class_ids(task, torch.from_numpy(logits))[:, None])[:, 0]
    for lower in np.unique(scores.numpy()[scores.numpy() < fitted.abstention_threshold]):
        assert (
            abstention_metrics(replace(fitted, abstention_threshold=float(lower)), logits, labels)["kept_error"] > rate
        )


def test_rate_that_no_threshold_reaches_is_told(caplog: pytest.LogCaptureFixture) -> None:
    wrong = np.arange(1, 41) % 4
    with pytest.raises(CannotFitError, match=r"more than 5.00% of the rows that are kept are wrong.*Raise the rate"):
        fit_abstention(TOPIC, RIGHT, wrong, 0.05)
    stale = replace(TOPIC, abstention_threshold=0.9)
    assert calibrated(stale, RIGHT, wrong, CalibrationPlan(abstention_error_rate=0.05)) == TOPIC
    assert "Task 'topic': no abstention_threshold is fitted: at every threshold" in caplog.text


def test_thresholds_that_are_not_fitted_again_stay_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    logits, labels = drawn(TAGS, 200)
    task = replace(TAGS, label_thresholds=(0.2, 0.3, 0.4))
    found = calibrated(task, logits, labels, CalibrationPlan(temperature=True))
    assert found.label_thresholds == (0.2, 0.3, 0.4)
    assert "Task 'tags': its label_thresholds stays, and is now compared with probabilities at temp" in caplog.text
    caplog.clear()
    caplog.set_level(logging.WARNING)
    calibrated(task, logits, labels, CalibrationPlan(temperature=True, label_thresholds=True))
    assert not caplog.text


TASKS = (TOPIC, STARS, TAGS, TaskConfig("valence", REGRESSION), TaskConfig("near", "contrastive", num_labels=2))


def test_plans() -> None:
    temperature = CalibrationPlan(temperature=True)
    assert make_plans(TASKS) == {"topic": temperature, "stars": temperature, "tags": temperature}
    assert make_plans(TASKS, temperature=False) == {}
    assert make_plans(TASKS[3:]) == {}
    assert make_plans(TASKS, temperature=["tags"], label_thresholds=True, abstention_error_rate=0.1) == {
        "topic": CalibrationPlan(abstention_error_rate=0.1),
        "stars": CalibrationPlan(abstention_error_rate=0.1),
        "tags": CalibrationPlan(temperature=True, label_thresholds=True),
    }
    assert make_plans(TASKS, temperature=False, abstention_error_rate={"stars": 0}) == {
        "stars": CalibrationPlan(abstention_error_rate=0)
    }


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"temperature": ["topik"]}, r"temperature: \['topik'\] are no tasks of the types .*those are \['topic', 'st"),
        ({"temperature": ["valence"]}, r"temperature: \['valence'\] are no tasks"),
        ({"label_thresholds": ["topic"]}, r"\['topic'\] are no tasks of the types \['multi_label_classification'\]"),
        ({"abstention_error_rate": {"tags": 0.1}}, r"abstention_error_rate: \['tags'\] are no tasks of the types"),
        ({"abstention_error_rate": 1.0}, "abstention_error_rate must be at least 0 and below 1, found 1.0"),
        ({"abstention_error_rate": -0.1}, "found -0.1"),
        ({"abstention_error_rate": NAN}, "found nan"),
        ({"abstention_error_rate": {"topic": "0.1"}}, "found '0.1'"),
    ],
)
def test_plans_that_are_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plans(TASKS, **wanted)


def test_thresholds_that_no_task_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match="label_thresholds has no effect: no task is of the types"):
        make_plans([TOPIC], label_thresholds=True)
    with pytest.raises(ValueError, match="abstention_error_rate has no effect: no task is of the types"):
        make_plans([TAGS], abstention_error_rate=0.1)


def test_data_that_nothing_can_be_fitted_on() -> None:
    plans = make_plans(TASKS)
    with pytest.raises(
        ValueError, match=r"here of \['topic', 'stars', 'tags'\]\) are fitted on validation, and there"
    ):
        check_calibration_data(plans, None)
    sets = {"own": Dataset.from_dict({"label_topic": [0]})}
    with pytest.raises(ValueError, match=r"are fitted on one data set, found several: \['own'\]. Give one of them"):
        check_calibration_data(plans, sets)
    check_calibration_data({}, None)
