"""The metric classes alone, combined, and in two processes at once; and the one score of several tasks."""

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np
import pytest
from worked_scores import (
    CLASS_PREDICTIONS,
    CLASS_REFERENCES,
    CLASS_SCORES,
    EMBEDDING_CLASSES,
    EMBEDDING_SCORES,
    EMBEDDINGS,
    LABEL_LOGITS,
    LABEL_REFERENCES,
    LABEL_SCORES,
    NAN,
    NUMBER_PREDICTIONS,
    NUMBER_REFERENCES,
    NUMBER_SCORES,
    PAIR_COSINES,
    PAIR_PRESENCE,
    PAIR_SCORES,
    RANK_PREDICTIONS,
    RANK_REFERENCES,
    RANK_SCORES,
)

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
)
from tasks_mtl import PROBLEM_TYPES

ROOT = Path(__file__).parents[1]

# Undefined values are announced by `nan` alone: a warning from scikit-learn, SciPy or NumPy fails the test.
pytestmark = [pytest.mark.filterwarnings("error"), pytest.mark.usefixtures("no_network")]


def probabilities() -> np.ndarray:
    return 1 / (1 + np.exp(-LABEL_LOGITS))


INPUTS: dict[str, tuple[Any, Any, dict[str, float]]] = {
    "single_label_classification": (CLASS_PREDICTIONS, CLASS_REFERENCES, CLASS_SCORES),
    "multi_label_classification": (probabilities(), LABEL_REFERENCES, LABEL_SCORES),
    "regression": (NUMBER_PREDICTIONS, NUMBER_REFERENCES, NUMBER_SCORES),
    "scored_pairs": (
        NUMBER_PREDICTIONS,
        NUMBER_REFERENCES,
        {key: value for key, value in NUMBER_SCORES.items() if key != "rmse"},
    ),
    "positive_pairs": (PAIR_COSINES, PAIR_PRESENCE, PAIR_SCORES),
    "triplets": (PAIR_COSINES, PAIR_PRESENCE, PAIR_SCORES),
    "contrastive": (EMBEDDINGS, EMBEDDING_CLASSES, EMBEDDING_SCORES),
    "ordinal_classification": (RANK_PREDICTIONS, RANK_REFERENCES, RANK_SCORES),
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
