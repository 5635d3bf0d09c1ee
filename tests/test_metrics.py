"""The metrics against numbers worked out by hand, alone, combined, and in two processes at once."""

import json
import logging
import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from configuration_mtl import PROBLEM_TYPES
from mtl.metrics import (
    LOWER_IS_BETTER,
    METRICS,
    PRIMARY_METRIC,
    Accuracy,
    MacroF1,
    MatthewsCorrelation,
    MeanAveragePrecision,
    MicroF1,
    MultiLabelMacroF1,
    Pearson,
    RootMeanSquaredError,
    Spearman,
    aggregate_score,
    compute_task_metrics,
)

ROOT = Path(__file__).parents[1]
NAN = float("nan")

# Undefined values are announced by `nan` alone: a warning from scikit-learn, SciPy or NumPy fails the test.
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"a metric opened a connection: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# Confusion of these six rows: class 0 has 1 hit, 1 false alarm, 1 miss; class 1 has 2, 1, 0; class 2 has 1, 0, 1.
CLASS_PREDICTIONS = [0, 1, 1, 1, 2, 0]
CLASS_REFERENCES = [0, 0, 1, 1, 2, 2]
CLASS_SCORES = {
    "accuracy": 4 / 6,
    "f1_macro": (2 / 4 + 4 / 5 + 2 / 3) / 3,
    # (hits x rows - sum of t x p) / sqrt((rows^2 - sum of p^2)(rows^2 - sum of t^2)), t = (2, 2, 2), p = (2, 3, 1)
    "mcc": (4 * 6 - 12) / math.sqrt((36 - 14) * (36 - 12)),
}

# Label 0 has 1 hit, 1 false alarm, 1 miss; label 1 (its last logit is exactly probability 0.5) has 2, 1, 0 in its
# three labelled rows; label 2 has no positive and is never predicted. The fourth row has no label at all.
LABEL_LOGITS = np.array([[2.0, 3, -1], [1, 2, -1], [-1, 5, -2], [9, 9, 9], [-2, 0, -3]])
LABEL_REFERENCES = np.array([[1.0, 0, 0], [0, 1, 0], [1, NAN, 0], [NAN, NAN, NAN], [0, 1, 0]])
LABEL_SCORES = {
    "f1_micro": 2 * 3 / (2 * 3 + 2 + 1),
    "f1_macro": (2 / 4 + 4 / 5) / 2,
    # Ranked by logit: label 0 is hit, miss, hit, miss; label 1 is miss, hit, hit.
    "map": ((1 / 1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2,
}

# Deviations (-1.5, -0.5, 0.5, 1.5) and (-6.5, -3.5, 1.5, 8.5): products sum to 25, squares to 5 and 129.
NUMBER_PREDICTIONS = np.array([1.0, 2, 3, 4])
NUMBER_REFERENCES = np.array([1.0, 4, 9, 16])
NUMBER_SCORES = {"pearson": 25 / math.sqrt(5 * 129), "spearman": 1.0, "rmse": math.sqrt((0 + 4 + 36 + 144) / 4)}


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

    def test_large_float32_logits_keep_their_order(self) -> None:
        logits = np.array([[18.0], [17.0], [16.9]], dtype=np.float32)  # one value in a float32 sigmoid
        result = compute_task_metrics("multi_label_classification", logits, np.array([[1.0], [1.0], [0.0]]))
        assert result["map"] == 1.0

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


def probabilities() -> np.ndarray:
    return 1 / (1 + np.exp(-LABEL_LOGITS))


INPUTS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "single_label_classification": (CLASS_PREDICTIONS, CLASS_REFERENCES, CLASS_SCORES),
    "multi_label_classification": (probabilities(), LABEL_REFERENCES, LABEL_SCORES),
    "regression": (NUMBER_PREDICTIONS, NUMBER_REFERENCES, NUMBER_SCORES),
}


class TestMetricClasses:
    @pytest.mark.parametrize("problem_type", list(METRICS))
    def test_each_alone(self, problem_type: str) -> None:
        predictions, references, expected = INPUTS[problem_type]
        for metric_class in METRICS[problem_type]:
            metric = metric_class()
            assert isinstance(metric, evaluate.Metric)
            result = metric.compute(predictions=predictions, references=references)
            assert result == pytest.approx({metric.key: expected[metric.key]})

    @pytest.mark.parametrize("problem_type", list(METRICS))
    def test_combined_and_fed_in_batches(self, problem_type: str) -> None:
        predictions, references, expected = INPUTS[problem_type]
        combined = evaluate.combine([metric() for metric in METRICS[problem_type]])
        assert combined.compute(predictions=predictions, references=references) == pytest.approx(expected)
        combined.add_batch(predictions=predictions[:3], references=references[:3])
        for prediction, reference in zip(predictions[3:], references[3:], strict=True):
            combined.add(prediction=prediction, reference=reference)
        assert combined.compute() == pytest.approx(expected)

    @pytest.mark.parametrize("metric_class", [Pearson, Spearman, RootMeanSquaredError])
    def test_numbers_may_be_lists(self, metric_class: type[Pearson]) -> None:
        predictions = [[value, value] for value in NUMBER_PREDICTIONS.tolist()]
        references = [[value, value] for value in NUMBER_REFERENCES.tolist()]
        result = metric_class().compute(predictions=predictions, references=references)
        assert result == pytest.approx({metric_class.key: NUMBER_SCORES[metric_class.key]})

    @pytest.mark.parametrize("metric_class", [Accuracy, MacroF1, MatthewsCorrelation, MicroF1, MultiLabelMacroF1])
    def test_no_rows_is_nan(self, metric_class: type[Accuracy]) -> None:
        result = metric_class().compute(predictions=[], references=[])
        assert result == pytest.approx({metric_class.key: NAN}, nan_ok=True)

    @pytest.mark.parametrize("metric_class", [MicroF1, MultiLabelMacroF1, MeanAveragePrecision])
    def test_multi_label_features_are_sequences(self, metric_class: type[MicroF1]) -> None:
        metric = metric_class()
        for column in ("predictions", "references"):
            assert isinstance(metric.features[column], datasets.Sequence)
            assert metric.features[column].feature == datasets.Value("float64")
        with pytest.raises(ValueError, match="don't match the expected format"):
            metric.compute(predictions=[0.5], references=[1.0])

    def test_every_problem_type_has_metrics(self) -> None:
        assert list(METRICS) == list(PRIMARY_METRIC) == list(PROBLEM_TYPES)

    @pytest.mark.parametrize("problem_type", list(METRICS))
    def test_keys_and_primary_metric(self, problem_type: str) -> None:
        keys = [metric.key for metric in METRICS[problem_type]]
        assert len(set(keys)) == len(keys)
        assert PRIMARY_METRIC[problem_type] in set(keys) - LOWER_IS_BETTER

    def test_global_random_state_is_left_alone(self) -> None:
        numpy_state, python_state = np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate()
        Accuracy().compute(predictions=[0, 1], references=[0, 1])
        assert np.random.get_state(legacy=False)["state"]["key"].tolist() == numpy_state
        assert random.getstate() == python_state

    def test_nothing_is_written_in_one_process(self, tmp_path: Path) -> None:
        metric = Accuracy(cache_dir=str(tmp_path))
        assert metric.compute(predictions=[0, 1], references=[0, 0]) == {"accuracy": 0.5}
        assert list(tmp_path.iterdir()) == []

    def test_several_processes_gather_in_files(self, tmp_path: Path) -> None:
        metric = Accuracy(num_process=2, process_id=1, experiment_id="run", cache_dir=str(tmp_path))
        assert not metric.keep_in_memory
        assert Path(metric.data_dir).is_dir()


TWO_AT_ONCE = """
import json, sys, time
from pathlib import Path
import evaluate
from mtl.metrics import METRICS

me, other, home = int(sys.argv[1]), 1 - int(sys.argv[1]), Path(sys.argv[2])
metrics = evaluate.combine([metric() for metric in METRICS["single_label_classification"]])
metrics.add_batch(predictions=[0, me], references=[0, 1])
(home / f"ready-{me}").touch()
deadline = time.monotonic() + 240
while not (home / f"ready-{other}").exists():
    assert time.monotonic() < deadline, "the other process did not come"
    time.sleep(0.01)
print(json.dumps(metrics.compute()))
"""


@pytest.mark.slow
def test_two_processes_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_METRICS_CACHE", None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_AT_ONCE, str(number), str(tmp_path)], env=environment, stdout=subprocess.PIPE
        )
        for number in range(2)
    ]
    results = [json.loads(process.communicate(timeout=300)[0]) for process in processes]
    assert results[0] == pytest.approx({"accuracy": 0.5, "f1_macro": (2 / 3 + 0) / 2, "mcc": 0.0})
    assert results[1] == {"accuracy": 1.0, "f1_macro": 1.0, "mcc": 1.0}
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


PRIMARY = {"topic": "accuracy", "tags": "f1_micro", "valence": "pearson"}


class TestAggregateScore:
    def test_mean_of_primary_metrics(self) -> None:
        metrics = {
            "topic": {"accuracy": 0.9, "mcc": 0.1, "support": 5},
            "tags": {"f1_micro": 0.6, "support": 5},
            "valence": {"pearson": -0.3, "rmse": 7.0, "support": 5},
        }
        assert aggregate_score(metrics, PRIMARY) == pytest.approx((0.9 + 0.6 - 0.3) / 3)

    def test_task_without_support_does_not_count(self) -> None:
        metrics: dict[str, dict[str, float]] = {"topic": {"accuracy": 0.9, "support": 5}, "tags": {"support": 0}}
        assert aggregate_score(metrics, PRIMARY) == 0.9

    def test_collapsed_task_counts_as_zero(self) -> None:
        metrics = {"topic": {"accuracy": 0.9, "support": 5}, "valence": {"pearson": NAN, "support": 5}}
        assert aggregate_score(metrics, PRIMARY) == 0.45

    def test_no_support_anywhere_is_nan(self) -> None:
        assert math.isnan(aggregate_score({"topic": {"support": 0}}, PRIMARY))
        assert math.isnan(aggregate_score({}, PRIMARY))

    @pytest.mark.parametrize(
        ("primary", "message"),
        [
            ({}, r"'valence': None is no metric to select by. Use one of \['pearson'\]"),
            ({"valence": "accuracy"}, "'accuracy' is no metric"),
            ({"valence": "rmse"}, "'rmse' is no metric"),
            ({"valence": "loss"}, "'loss' is no metric"),
            ({"valence": "support"}, "'support' is no metric"),
        ],
    )
    def test_unfit_primary_metric_is_named(self, primary: dict[str, str], message: str) -> None:
        metrics = {"valence": {"pearson": 0.5, "rmse": 1.0, "loss": 1.0, "support": 2}}
        with pytest.raises(ValueError, match=message):
            aggregate_score(metrics, primary)
