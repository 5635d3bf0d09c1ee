"""Calibration figures: by hand, against scikit-learn, before and after a temperature, and where there are none."""

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sklearn.calibration
import sklearn.metrics

from configuration_mtl import TaskConfig
from mtl.calibration_metrics import BINS, calibration_figures, calibration_of, reliability_bins
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, ORDINAL

NAN = float("nan")
COIN = TaskConfig("coin", num_labels=2)
STARS = TaskConfig("stars", ORDINAL, num_labels=3)
TAGS = TaskConfig("tags", MULTI_LABEL, num_labels=2)

# Two classes with probabilities 3/4 and 1/4, three times, and 9/10 and 1/10; right, right, wrong, right.
COIN_LOGITS = np.log(np.array([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0], [9.0, 1.0]]))
COIN_LABELS = np.array([0, 1, 1, 0])


def filled(bins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [some for some in bins if some["count"]]


def test_figures_of_classes_by_hand() -> None:
    figures = calibration_figures(COIN, COIN_LOGITS, COIN_LABELS)
    # Distances |2/3 - 0.75| of three rows and |1 - 0.9| of one.
    assert figures["ece"] == pytest.approx((3 * abs(2 / 3 - 0.75) + 1 * 0.1) / 4)
    # Twice the square, as each class has it: 2 (1/4)^2 twice, 2 (3/4)^2, 2 (1/10)^2.
    assert figures["brier"] == pytest.approx((2 * 2 / 16 + 2 * 9 / 16 + 2 / 100) / 4)
    assert figures["nll"] == pytest.approx(-(2 * math.log(0.75) + math.log(0.25) + math.log(0.9)) / 4)
    assert len(figures["bins"]) == BINS
    # 0.75 is in the bin from 11/15 to 12/15, 0.9 in that from 13/15 to 14/15.
    expected = [
        {"low": 11 / 15, "high": 12 / 15, "count": 3, "confidence": 0.75, "accuracy": 2 / 3},
        {"low": 13 / 15, "high": 14 / 15, "count": 1, "confidence": 0.9, "accuracy": 1.0},
    ]
    for found, some in zip(filled(figures["bins"]), expected, strict=True):
        assert found == pytest.approx(some)


def test_rows_without_a_class_do_not_count() -> None:
    more = np.concatenate([COIN_LOGITS, [[NAN, 0.0], [5.0, 0.0]]])
    labels = np.array([*COIN_LABELS, IGNORE_INDEX, -1])
    assert calibration_figures(COIN, more, labels) == calibration_figures(COIN, COIN_LOGITS, COIN_LABELS)


def test_figures_of_ordered_classes_by_hand() -> None:
    # P(y > 0) = 3/5, P(y > 1 | y > 0) = 1/2: probabilities 0.4, 0.3, 0.3, whose median is 1.
    logits = np.log(np.array([[1.5, 1.0]]))
    figures = calibration_figures(STARS, logits, np.array([0]))
    assert figures["nll"] == pytest.approx(-math.log(0.4))
    assert figures["brier"] == pytest.approx(0.6**2 + 0.3**2 + 0.3**2)
    assert filled(figures["bins"]) == [
        {"low": 4 / 15, "high": 5 / 15, "count": 1, "confidence": pytest.approx(0.3), "accuracy": 0.0}
    ]
    assert figures["ece"] == pytest.approx(0.3)


def test_figures_of_labels_are_of_the_labelled_cells() -> None:
    logits = np.array([[0.0, math.log(3.0)], [math.log(1 / 3), NAN], [1.0, 2.0]])
    labels = np.array([[1.0, 1.0], [0.0, NAN], [NAN, NAN]])
    figures = calibration_figures(TAGS, logits, labels)
    assert figures["nll"] == pytest.approx(-(math.log(0.5) + 2 * math.log(0.75)) / 3)
    assert figures["brier"] == pytest.approx((0.25 + 2 / 16) / 3)
    assert [some["count"] for some in filled(figures["bins"])] == [1, 1, 1]
    assert figures["ece"] == pytest.approx((0.5 + 0.25 + 0.25) / 3)


def test_bins_hold_their_upper_edge() -> None:
    bins = reliability_bins(np.array([0.0, 0.25, 0.5, 0.51, 1.0]), np.array([True, False, True, True, False]), 4)
    assert [some["count"] for some in bins] == [2, 1, 1, 1]
    assert bins[0] == {"low": 0.0, "high": 0.25, "count": 2, "confidence": 0.125, "accuracy": 0.5}
    empty = reliability_bins(np.array([0.9]), np.array([True]), 2)[0]
    assert empty == {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None}


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 4)) * 2, rng.integers(0, 4, 500)
    task = TaskConfig("a", num_labels=4)
    said = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    figures = calibration_figures(task, logits, labels)
    assert figures["nll"] == pytest.approx(sklearn.metrics.log_loss(labels, said))
    assert figures["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(labels, said, scale_by_half=False))
    right = said.argmax(axis=1) == labels
    _check_bins(figures, said.max(axis=1), right)
    cells = (rng.random((500, 4)) < 0.3).astype(float)
    tags = TaskConfig("tags", MULTI_LABEL, num_labels=4)
    said = 1 / (1 + np.exp(-logits))
    figures = calibration_figures(tags, logits, cells)
    assert figures["brier"] == pytest.approx(sklearn.metrics.brier_score_loss(cells.ravel(), said.ravel()))
    assert figures["nll"] == pytest.approx(sklearn.metrics.log_loss(cells.ravel(), said.ravel()))
    _check_bins(figures, said.ravel(), cells.ravel() == 1)


def _check_bins(figures: dict[str, Any], confidences: np.ndarray, is_right: np.ndarray) -> None:
    accuracy, confidence = sklearn.calibration.calibration_curve(is_right, confidences, n_bins=BINS)
    bins = filled(figures["bins"])
    assert [some["accuracy"] for some in bins] == pytest.approx(accuracy.tolist())
    assert [some["confidence"] for some in bins] == pytest.approx(confidence.tolist())
    shares = np.array([some["count"] for some in bins]) / len(confidences)
    assert figures["ece"] == pytest.approx(float((shares * abs(accuracy - confidence)).sum()))


def test_before_is_without_the_temperature() -> None:
    assert calibration_of(COIN, COIN_LOGITS, COIN_LABELS) == {
        **calibration_figures(COIN, COIN_LOGITS, COIN_LABELS), "temperature": None, "before": None
    }  # fmt: skip
    halved = replace(COIN, calibration_temperature=2.0)
    found = calibration_of(halved, COIN_LOGITS, COIN_LABELS)
    assert found["before"] == calibration_figures(COIN, COIN_LOGITS, COIN_LABELS)
    now = calibration_figures(COIN, COIN_LOGITS / 2, COIN_LABELS)
    assert {key: found[key] for key in now} == now
    assert found["temperature"] == 2.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        (COIN, np.zeros((2, 2)), np.array([-1, IGNORE_INDEX])),
        (COIN, np.zeros((0, 2)), np.zeros(0, int)),
        (COIN, np.array([[NAN, 0.0]]), np.array([1])),
        (STARS, np.array([[math.inf, 0.0]]), np.array([1])),
        (TAGS, np.zeros((1, 2)), np.array([[NAN, NAN]])),
        (TAGS, np.array([[NAN, 0.0]]), np.array([[1.0, NAN]])),
    ],
)
def test_what_is_undefined_is_none(task: TaskConfig, logits: np.ndarray, labels: np.ndarray) -> None:
    nothing: dict[str, Any] = {"ece": None, "brier": None, "nll": None, "bins": []}
    assert calibration_of(task, logits, labels) == {**nothing, "temperature": None, "before": None}
