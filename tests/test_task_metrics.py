"""The metrics of a task, against numbers worked out by hand and against scikit-learn and SciPy."""

import logging
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from worked_scores import (
    CLASS_PREDICTIONS,
    CLASS_REFERENCES,
    CLASS_SCORES,
    LABEL_LOGITS,
    LABEL_REFERENCES,
    LABEL_SCORES,
    NAN,
    NUMBER_PREDICTIONS,
    NUMBER_REFERENCES,
    NUMBER_SCORES,
)

from classification_mtl import chosen_labels
from configuration_mtl import TaskConfig
from mtl.evaluation import EvaluationMetrics
from mtl.label_tables import label_table
from mtl.metrics import METRICS, compute_task_metrics
from tasks_mtl import MULTI_LABEL

# Undefined values are announced by `nan` alone: a warning from scikit-learn, SciPy or NumPy fails the test.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("no_network")]


def one_hot(classes: list[int], num_classes: int = 3) -> np.ndarray:
    return np.eye(num_classes)[classes]


class TestComputeTaskMetrics:
    def test_single_label_by_hand(self) -> None:
        result = compute_task_metrics(
            "single_label_classification", one_hot(CLASS_PREDICTIONS), np.array(CLASS_REFERENCES)
        )
        assert result == pytest.approx({**CLASS_SCORES, "support": 6})

    def test_multi_label_by_hand(self) -> None:
        result = compute_task_metrics("multi_label_classification", LABEL_LOGITS, LABEL_REFERENCES)
        assert result == pytest.approx({**LABEL_SCORES, "support": 4})

    def test_regression_by_hand(self) -> None:
        result = compute_task_metrics("regression", NUMBER_PREDICTIONS[:, None], NUMBER_REFERENCES)
        assert result == pytest.approx({**NUMBER_SCORES, "support": 4})
        assert result == compute_task_metrics("regression", NUMBER_PREDICTIONS, NUMBER_REFERENCES[:, None])

    def test_missing_classes_are_left_out(self) -> None:
        logits = one_hot([*CLASS_PREDICTIONS, 1, 2])
        result = compute_task_metrics("single_label_classification", logits, np.array([*CLASS_REFERENCES, -100, -100]))
        assert result == pytest.approx({**CLASS_SCORES, "support": 6})

    def test_missing_numbers_are_left_out(self) -> None:
        labels = np.append(NUMBER_REFERENCES, NAN)
        result = compute_task_metrics("regression", np.append(NUMBER_PREDICTIONS, 99.0), labels)
        assert result == pytest.approx({**NUMBER_SCORES, "support": 4})

    def test_several_outputs_are_averaged(self) -> None:
        predictions = np.stack([NUMBER_PREDICTIONS, -NUMBER_PREDICTIONS, NUMBER_PREDICTIONS], axis=1)  # (4, 3)
        references = np.stack([NUMBER_REFERENCES, NUMBER_PREDICTIONS, np.full(4, NAN)], axis=1)  # (4, 3)
        references[0, 1] = NAN  # leaves -2, -3, -4 against 2, 3, 4: errors 4, 6, 8
        result = compute_task_metrics("regression", predictions, references)
        expected = {
            "pearson": (NUMBER_SCORES["pearson"] - 1) / 2,
            "spearman": (1 - 1) / 2,
            "rmse": (NUMBER_SCORES["rmse"] + math.sqrt((16 + 36 + 64) / 3)) / 2,
        }
        assert result == pytest.approx({**expected, "support": 4})

    @pytest.mark.parametrize(
        ("problem_type", "logits", "labels"),
        [
            ("single_label_classification", np.zeros((2, 3)), np.array([-100, -100])),
            ("single_label_classification", np.zeros((0, 3)), np.zeros(0, dtype=np.int64)),
            ("multi_label_classification", np.zeros((2, 3)), np.full((2, 3), NAN)),
            ("multi_label_classification", np.zeros((0, 3)), np.zeros((0, 3))),
            ("regression", np.zeros((2, 1)), np.full(2, NAN)),
            ("regression", np.zeros((0, 1)), np.zeros(0)),
        ],
    )
    def test_no_labelled_row_gives_support_only(
        self, problem_type: str, logits: np.ndarray, labels: np.ndarray
    ) -> None:
        assert compute_task_metrics(problem_type, logits, labels) == {"support": 0}

    def test_perfect_predictions_score_one(self) -> None:
        logits = np.array([[9.0, -9, -9], [-9, 9, -9]])
        assert compute_task_metrics("multi_label_classification", logits, (logits > 0).astype(float)) == {
            "f1_micro": 1.0,
            "f1_macro": 1.0,
            "map": 1.0,
            "support": 2,
        }

    def test_constant_class_predictions(self) -> None:
        result = compute_task_metrics("single_label_classification", one_hot([1, 1, 1, 1]), np.array([0, 1, 1, 2]))
        assert result == pytest.approx({"accuracy": 0.5, "f1_macro": (2 * 2 / 6) / 3, "mcc": 0.0, "support": 4})
        result = compute_task_metrics("single_label_classification", one_hot([1, 1]), np.array([1, 1]))
        assert result == {"accuracy": 1.0, "f1_macro": 1.0, "mcc": 0.0, "support": 2}

    @pytest.mark.parametrize(
        ("predictions", "references"),
        [
            ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
            ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]),
            ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]),
            ([0.1, 0.1 + 1e-8, 0.1 - 1e-8], [1.0, 2.0, 0.0]),  # apart by float32 rounding only
            ([float("inf"), 1.0, 2.0], [1.0, 2.0, 3.0]),
            ([1.0], [1.0]),
        ],
    )
    def test_undefined_correlation_is_nan(self, predictions: list[float], references: list[float]) -> None:
        result = compute_task_metrics("regression", np.array(predictions), np.array(references))
        assert np.isnan([result["pearson"], result["spearman"]]).all()
        assert result["rmse"] >= 0.0

    def test_undefined_in_one_output_is_undefined(self) -> None:
        predictions = np.stack([NUMBER_PREDICTIONS, np.ones(4)], axis=1)  # (4, 2)
        result = compute_task_metrics("regression", predictions, np.stack([NUMBER_REFERENCES] * 2, axis=1))
        assert np.isnan(result["pearson"])

    def test_label_without_positive_row(self) -> None:
        logits = LABEL_LOGITS.copy()
        logits[0, 2] = 1.0  # predicted once, never right: F1 is 0, average precision stays undefined
        result = compute_task_metrics("multi_label_classification", logits, LABEL_REFERENCES)
        assert result["f1_macro"] == pytest.approx((2 / 4 + 4 / 5 + 0) / 3)
        assert result["map"] == pytest.approx(LABEL_SCORES["map"])

    def test_nothing_positive_at_all_is_nan(self) -> None:
        result = compute_task_metrics("multi_label_classification", np.full((3, 2), -1.0), np.zeros((3, 2)))
        assert np.isnan([result["f1_micro"], result["f1_macro"], result["map"]]).all()
        assert result["support"] == 3

    @pytest.mark.parametrize(
        "logits",
        [
            [18.0, 17.0, 16.9],  # one value in a float32 sigmoid
            [60.0, 50.0, 40.0],  # one in a float64 sigmoid
            [float("inf"), 50.0, 40.0],
            [-750.0, -760.0, -770.0],
        ],
    )
    def test_large_logits_keep_their_order(self, logits: list[float]) -> None:
        column = np.array(logits, dtype=np.float32)[:, None]  # (3, 1)
        result = compute_task_metrics("multi_label_classification", column, np.array([[1.0], [1.0], [0.0]]))
        assert result["map"] == 1.0
        result = compute_task_metrics("multi_label_classification", column, np.array([[0.0], [1.0], [1.0]]))
        assert result["map"] == pytest.approx((1 / 2 + 2 / 3) / 2)  # precision at each of the two positive rows

    def test_equal_logits_stay_tied(self) -> None:
        result = compute_task_metrics("multi_label_classification", np.full((4, 1), 50.0), np.eye(4)[:, :1])
        assert result["map"] == pytest.approx(1 / 4)  # one threshold, at which all rows are found

    @pytest.mark.parametrize(
        ("problem_type", "labels"),
        [
            ("single_label_classification", np.array([0, 1])),
            ("multi_label_classification", np.eye(2)),
            ("regression", np.eye(2)),
        ],
    )
    def test_nan_logits_of_a_labelled_row_are_nan_scores(
        self, problem_type: str, labels: np.ndarray, caplog: pytest.LogCaptureFixture
    ) -> None:
        logits = np.array([[0.0, 1.0], [NAN, 1.0]])
        with caplog.at_level(logging.WARNING, "mtl.metrics"):
            result = compute_task_metrics(problem_type, logits, labels)
        assert result.pop("support") == 2
        assert result.keys() == {metric.key for metric in METRICS[problem_type]}
        assert np.isnan(list(result.values())).all()
        assert "1 of 2 labelled rows" in caplog.text

    def test_values_are_plain_numbers(self) -> None:
        result = compute_task_metrics("regression", NUMBER_PREDICTIONS.astype(np.float32), NUMBER_REFERENCES)
        assert {type(value) for value in result.values()} == {float, int}

    def test_inputs_stay_as_they_were(self) -> None:
        logits, labels = LABEL_LOGITS.copy(), LABEL_REFERENCES.copy()
        compute_task_metrics("multi_label_classification", logits, labels)
        np.testing.assert_array_equal(logits, LABEL_LOGITS)
        np.testing.assert_array_equal(labels, LABEL_REFERENCES)

    @pytest.mark.parametrize(
        ("problem_type", "logits", "labels", "message"),
        [
            ("ranking", np.eye(2), np.array([0, 1]), "'ranking' has no metrics"),
            ("single_label_classification", np.eye(2), np.array([0, 2]), r"found labels \[2\]. Give class ids 0 to 1"),
            ("single_label_classification", np.eye(2), np.array([0, -1]), r"found labels \[-1\]"),
            ("single_label_classification", np.eye(2), np.array([0, NAN]), r"found labels \[nan\]"),
            ("single_label_classification", np.eye(2), np.eye(2), r"logits \(2, 2\), labels \(2, 2\)"),
            ("multi_label_classification", np.eye(2), np.eye(2) - 100, r"found labels \[-100.0, -99.0\]"),
            ("multi_label_classification", np.eye(2), np.zeros(2), r"labels \(2, 1\)"),
            ("regression", np.eye(2), np.zeros(2), r"labels \(2, 1\)"),
        ],
    )
    def test_wrong_input_is_named(
        self, problem_type: str, logits: np.ndarray, labels: np.ndarray, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            compute_task_metrics(problem_type, logits, labels)


class TestAgainstReference:
    """With every label there, the scores are those of scikit-learn and SciPy."""

    def test_classes(self) -> None:
        rng = np.random.default_rng(0)
        logits, labels = rng.normal(size=(200, 5)), rng.integers(0, 5, 200)
        predicted = logits.argmax(axis=1)
        assert compute_task_metrics("single_label_classification", logits, labels) == pytest.approx(
            {
                "accuracy": (predicted == labels).mean(),
                "f1_macro": sklearn.metrics.f1_score(labels, predicted, average="macro"),
                "mcc": sklearn.metrics.matthews_corrcoef(labels, predicted),
                "support": 200,
            }
        )

    def test_labels(self) -> None:
        rng = np.random.default_rng(1)
        logits, labels = rng.normal(size=(200, 5)), (rng.random((200, 5)) < 0.3).astype(float)
        assert compute_task_metrics("multi_label_classification", logits, labels) == pytest.approx(
            {
                "f1_micro": sklearn.metrics.f1_score(labels, logits >= 0, average="micro"),
                "f1_macro": sklearn.metrics.f1_score(labels, logits >= 0, average="macro"),
                "map": sklearn.metrics.average_precision_score(labels, logits, average="macro"),
                "support": 200,
            }
        )

    def test_numbers(self) -> None:
        rng = np.random.default_rng(2)
        predicted, labels = rng.normal(size=200), rng.normal(size=200).round(1)  # rounded: ranks have ties
        assert compute_task_metrics("regression", predicted, labels) == pytest.approx(
            {
                "pearson": np.corrcoef(predicted, labels)[0, 1],
                "spearman": scipy.stats.spearmanr(predicted, labels).statistic,
                "rmse": sklearn.metrics.root_mean_squared_error(labels, predicted),
                "support": 200,
            }
        )


def test_two_metrics_of_one_name_are_refused() -> None:
    intent = TaskConfig("intent", labels=("a", "b"), out_of_scope_label="oos")
    with pytest.raises(ValueError, match="Tasks 'intent' and 'intent_oos' both have a metric 'intent_oos_support'"):
        EvaluationMetrics([intent, TaskConfig("intent_oos", num_labels=2)])
    EvaluationMetrics([TaskConfig("intent", num_labels=2), TaskConfig("intent_oos", num_labels=2)])


def test_labels_are_decided_as_predict_decides_them() -> None:
    # Its sigmoid is one half in float32, in which `predict` compares it, and a little less in float64.
    logits = np.array([[-1e-8], [-2.0]], dtype=np.float32)
    labels = np.array([[1.0], [0.0]], dtype=np.float32)
    task = TaskConfig("tags", MULTI_LABEL, labels=("x",))
    metrics = EvaluationMetrics([task]).by_task({"tags": logits}, {"tags": labels})["tags"]
    assert chosen_labels(task, torch.from_numpy(logits)).tolist() == [[True], [False]]
    assert (metrics["f1_micro"], metrics["f1_macro"]) == (1.0, 1.0)
    assert label_table(task, logits, labels)[0]["f1"] == 1.0
