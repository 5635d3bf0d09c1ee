"""What is said of a split beside its metrics: against scikit-learn, and on rows worked out by hand."""

import dataclasses
import json

import numpy as np
import pytest
import sklearn.metrics
from datasets import Dataset

from configuration_mtl import TaskConfig
from mtl.evaluation import EvaluationMetrics, EvaluationResult
from mtl.evidence import build_evidence, count_resamples
from mtl.evidence_tables import evidence_tables
from mtl.hard_rows import surest_errors
from mtl.label_tables import confusion_table, label_table, residuals
from mtl.predictions import Predictions
from mtl.slices import coverage, slices_of
from tasks_mtl import MULTI_LABEL, ORDINAL, OUT_OF_SCOPE_INDEX, REGRESSION, SINGLE_LABEL, TRIPLETS

NAN = float("nan")
TOPIC = TaskConfig("topic", labels=("sport", "film", "shop"))
TAGS = TaskConfig("tags", MULTI_LABEL, labels=("urgent", "question"))


def logits_of(classes: list[int], count: int = 3, sureness: float = 2.0) -> np.ndarray:
    """Returns logits that name these classes."""
    return (sureness * np.eye(count))[classes].astype(np.float32)


def test_label_table_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(5, size=(2, 200))
    labels[labels == 3] = 2  # A class without a row.
    labels[::7] = -100
    labels[1] = -1
    task = TaskConfig("a", labels=("v", "w", "x", "y", "z"))
    table = label_table(task, logits_of(predicted.tolist(), 5), labels)
    kept = labels >= 0
    report = sklearn.metrics.classification_report(
        labels[kept],
        predicted[kept],
        labels=range(5),
        target_names=task.labels,
        output_dict=True,
        zero_division=np.nan,
    )
    for row in table:
        expected = report[row["label"]]
        assert row["support"] == expected["support"]
        assert row["predicted"] == (predicted[kept] == task.label2id[row["label"]]).sum()
        for key, other in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            if row[key] is None:
                assert np.isnan(expected[other])
            else:
                assert row[key] == pytest.approx(expected[other])
    assert [row["recall"] for row in table][3] is None


def test_label_table_of_several_labels_by_hand() -> None:
    logits = np.array([[2.0, -2.0], [2.0, 2.0], [-2.0, 2.0], [2.0, 2.0]], dtype=np.float32)
    labels = np.array([[1, 0], [0, 1], [1, NAN], [NAN, NAN]], dtype=np.float32)
    urgent, question = label_table(TAGS, logits, labels)
    assert urgent == {
        "label": "urgent", "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2, "predicted": 2, "threshold": None
    }  # fmt: skip
    assert (question["precision"], question["recall"], question["support"]) == (1.0, 1.0, 1)
    # Probability of a logit of 2 is 0.88.
    strict = TaskConfig("tags", MULTI_LABEL, labels=("urgent", "question"), label_thresholds=(0.9, 0.5))
    urgent, question = label_table(strict, logits, labels)
    assert (urgent["predicted"], urgent["precision"], urgent["recall"], urgent["threshold"]) == (0, None, 0.0, 0.9)
    assert question["predicted"] == 1


def test_table_of_one_label() -> None:
    task = TaskConfig("spam", MULTI_LABEL, labels=("spam",))
    (row,) = label_table(task, np.array([[2.0], [2.0], [-2.0]], np.float32), np.array([[1], [0], [0]], np.float32))
    assert (row["precision"], row["recall"], row["support"], row["predicted"]) == (0.5, 1.0, 1, 2)


def test_confusions_are_those_of_scikit_learn() -> None:
    labels = np.array([0, 0, 1, 2, 2, -100, -1])
    predicted = [0, 1, 1, 0, 2, 2, 2]
    table = confusion_table(TOPIC, logits_of(predicted), labels)
    assert table["labels"] == ["sport", "film", "shop"]
    assert table["matrix"] == sklearn.metrics.confusion_matrix(labels[:5], predicted[:5], labels=range(3)).tolist()
    # Of ordinal logits class 0 stops at once, class 2 goes on twice.
    grades = TaskConfig("grade", ORDINAL, labels=("a", "b", "c"))
    logits = np.array([[-3.0, 0.0], [3.0, 3.0]], dtype=np.float32)
    assert confusion_table(grades, logits, np.array([0, 1]))["matrix"] == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_residuals_by_hand() -> None:
    task = TaskConfig("two", REGRESSION, labels=("x", "y"))
    said = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]], dtype=np.float32)
    true = np.array([[2.0, NAN], [1.0, NAN], [NAN, NAN]], dtype=np.float32)
    (described,) = residuals(task, said, true)
    assert described["output"] == "x"
    assert described["mean"] == pytest.approx(0.5)  # -1 and 2
    assert described["std"] == pytest.approx(1.5)
    assert described["quantiles"]["0.5"] == pytest.approx(0.5)
    assert sum(described["histogram"]["counts"]) == 2
    assert len(described["histogram"]["edges"]) == len(described["histogram"]["counts"]) + 1
    assert described["points"] == [[1.0, 3.0], [2.0, 1.0]]
    (one,) = residuals(TaskConfig("one", REGRESSION), said[:, :1], true[:, 0])
    assert one["points"] == described["points"]


@pytest.mark.parametrize("said", [[1e-7, 2e-7, 3e-7], [2e-7, 2e-7, 2e-7]], ids=["neighbours", "constant"])
def test_residuals_that_hardly_differ_have_a_histogram(said: list[float]) -> None:
    logits = np.array(said, dtype=np.float32)
    (found,) = residuals(TaskConfig("valence", REGRESSION), logits, np.full(3, 1e9, dtype=np.float32))
    assert sum(found["histogram"]["counts"]) == 3
    assert (np.diff(found["histogram"]["edges"]) > 0).all()


def test_label_table_of_rows_that_are_all_out_of_scope() -> None:
    task = TaskConfig("topic", labels=("a", "b"), out_of_scope_label="other", rejection_threshold=0.0)
    table = label_table(task, np.zeros((3, 2), dtype=np.float32), np.full(3, OUT_OF_SCOPE_INDEX))
    nothing = {"precision": None, "recall": None, "f1": None, "support": 0, "predicted": 0, "threshold": None}
    assert table == [{"label": label, **nothing} for label in ("a", "b")]


def test_surest_errors_come_first() -> None:
    logits = np.concatenate([logits_of([1, 1], sureness=1.0), logits_of([0, 2, 0], sureness=5.0)])
    found = surest_errors(TOPIC, logits, np.array([0, 1, 1, -100, 0]))
    assert [(error["place"], error["label"], error["predicted"]) for error in found] == [
        (2, "film", "sport"),
        (0, "sport", "film"),
    ]
    assert found[0]["score"] == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    assert surest_errors(TOPIC, logits, np.array([0, 1, 1, -100, 0]), limit=1) == found[:1]


def test_errors_of_a_task_that_rejects() -> None:
    task = dataclasses.replace(TOPIC, out_of_scope_label="oos", rejection_score="logit", rejection_threshold=2.0)
    logits = np.concatenate([logits_of([0, 1], sureness=3.0), logits_of([0, 1], sureness=1.0)])
    # Accepted out of scope is wrong, a rejected row of a class too; rejected out of scope is right.
    found = surest_errors(task, logits, np.array([-1, 1, 0, -1]))
    assert [(error["place"], error["label"], error["predicted"]) for error in found] == [
        (0, "oos", "sport"),
        (2, "sport", "oos"),
    ]


def test_errors_of_several_labels_and_of_numbers() -> None:
    logits = np.array([[2.0, -4.0], [2.0, 1.0], [2.0, 2.0]], dtype=np.float32)
    labels = np.array([[0, 1], [NAN, 0], [1, 1]], dtype=np.float32)
    first, second = surest_errors(TAGS, logits, labels)
    assert (first["place"], first["label"], first["predicted"]) == (0, "question", "urgent")
    assert first["score"] == pytest.approx(1 - 1 / (1 + np.exp(4)))  # That `question` is not so, at a logit of -4.
    assert (second["place"], second["label"], second["predicted"]) == (1, "none", "question")
    numbers = np.array([[1.0], [4.0], [2.0]], dtype=np.float32)
    far, near = surest_errors(TaskConfig("v", REGRESSION), numbers, np.array([1.5, 1.0, NAN], np.float32))
    assert (far["place"], far["label"], far["predicted"], far["score"]) == (1, "1", "4", pytest.approx(3.0))
    assert near["place"] == 0


def test_coverage_by_hand() -> None:
    labels = {"topic": np.array([0, -1, -100, -100]), "valence": np.array([1.0, NAN, NAN, 2.0])}
    found = coverage(labels, ["x", "x", "y", "y"])
    assert found["labelled"] == {"topic": 2, "valence": 2}
    assert {tuple(some["tasks"]): some["rows"] for some in found["patterns"]} == {
        ("topic", "valence"): 1, ("topic",): 1, (): 1, ("valence",): 1
    }  # fmt: skip
    assert found["by_source"]["y"] == {"rows": 2, "labelled": {"topic": 0, "valence": 1}}


def test_sets_of_many_tasks_are_bounded() -> None:
    rows = np.arange(512)
    labels = {f"t{bit}": np.where(rows >> bit & 1, 0, -100) for bit in range(9)}
    found = coverage(labels, ["x"] * len(rows))
    assert (len(found["patterns"]), found["num_patterns"]) == (100, 512)
    assert found["labelled"] == dict.fromkeys(labels, 256)


def test_slices_part_the_rows() -> None:
    rows = Dataset.from_dict(
        {
            "source": ["x", "y", "x", "y", "x", "x", "x", "x"],
            "length": [3, 3, 4, 5, 6, 7, 8, 90],
            "slice_channel": ["mail", "chat", None, "mail", "mail", "mail", "mail", "mail"],
        }
    )
    found = {(by, value): inside.tolist() for by, value, inside in slices_of(rows)}
    assert found["source", "y"] == [False, True, False, True, False, False, False, False]
    assert found["channel", "chat"] == [False, True, False, False, False, False, False, False]
    assert sum(found["channel", "mail"]) == 6
    lengths = {value: inside for (by, value), inside in found.items() if by == "length"}
    assert list(lengths) == ["3 tokens", "4 to 5 tokens", "6 to 7 tokens", "8 to 90 tokens"]
    assert np.sum(list(lengths.values()), axis=0).tolist() == [1] * 8


def test_column_of_many_numbers_goes_by_quarters() -> None:
    count = 100
    columns = {"slice_price": [str(place / 2) for place in range(count)], "slice_id": [f"r{n}" for n in range(count)]}
    rows = Dataset.from_dict({"source": ["x"] * count, "length": [5] * count, **columns})
    found = [(by, value, int(inside.sum())) for by, value, inside in slices_of(rows)]
    quarters = ("0 to 12", "12.5 to 24.5", "25 to 37", "37.5 to 49.5")
    assert [some for some in found if some[0] == "price"] == [("price", name, 25) for name in quarters]
    assert len([some for some in found if some[0] == "id"]) == 30
    assert [some for some in found if some[0] in ("source", "length")] == [("length", "5 tokens", count)]


def test_cells_without_a_value_are_in_no_slice() -> None:
    count = 80
    columns = {
        "slice_price": [None, "", "nan", *(str(place) for place in range(77))],
        "slice_channel": ["", " ", *["mail"] * 78],
        "slice_name": ["Nan", *["Ann"] * 79],
    }
    rows = Dataset.from_dict({"source": ["x"] * count, "length": [5] * count, **columns})
    found = [(by, value, int(inside.sum())) for by, value, inside in slices_of(rows) if by != "length"]
    quarters = [some for some in found if some[0] == "price"]
    assert [some[1] for some in quarters] == ["0 to 19", "20 to 38", "39 to 57", "58 to 76"]
    assert sum(some[2] for some in quarters) == 77
    assert [some for some in found if some[0] == "channel"] == [("channel", "mail", 78)]
    assert [some for some in found if some[0] == "name"] == [("name", "Ann", 79), ("name", "Nan", 1)]


def predictions() -> Predictions:
    """Returns what a model might say of eight rows."""
    tasks = (TOPIC, TAGS, TaskConfig("valence", REGRESSION), TaskConfig("near", TRIPLETS), TaskConfig("none"))
    tasks = (*tasks[:4], TaskConfig("absent", num_labels=2))
    rng = np.random.default_rng(3)
    logits = {task.name: rng.normal(size=(8, task.num_labels or 1)).astype(np.float32) for task in tasks}
    logits["near"] = rng.normal(size=(8, 2)).astype(np.float32)
    labels = {
        "topic": np.array([0, 1, 2, 0, 1, 2, -100, -100]),
        "tags": np.array([[0, 1]] * 4 + [[1, 0]] * 3 + [[NAN, NAN]], dtype=np.float32),
        "valence": np.arange(8, dtype=np.float32),
        "near": np.array([1, 1, 1, 1, -100, -100, -100, -100]),
        "absent": np.full(8, -100),
    }
    rows = Dataset.from_dict(
        {
            "text": [f"text {place}" for place in range(8)],
            "text_pair": [None, "second", *[None] * 6],
            "source": ["x"] * 4 + ["y"] * 4,
            "length": list(range(3, 11)),
            "row": list(range(8))[::-1],
        }
    )
    metrics = EvaluationMetrics(tasks)
    found = metrics.by_task(logits, labels)
    result = EvaluationResult("test", 8, 0.5, found, metrics.primary, seconds=2.0)
    return Predictions(tasks, logits, labels, rows, result)


def test_evidence_is_json_and_agrees_with_the_metrics() -> None:
    some = predictions()
    told: list[int] = []
    evidence = json.loads(json.dumps(build_evidence(some, resamples=20, progress=told.append), allow_nan=False))
    assert sum(told) <= count_resamples(some, 20)
    assert evidence["rows_per_second"] == 4.0
    assert evidence["tasks"].keys() == {"topic", "tags", "valence", "near", "absent"}
    for name, task in evidence["tasks"].items():
        expected = some.result.to_dict()["tasks"][name]
        assert {key: figure["value"] for key, figure in task["metrics"].items()} == {
            key: value for key, value in expected.items() if key != "support"
        }
        assert task["support"] == expected["support"]
    topic = evidence["tasks"]["topic"]
    assert topic.keys() >= {"labels", "confusion", "calibration", "errors"}
    assert sum(row["support"] for row in topic["labels"]) == np.sum(topic["confusion"]["matrix"]) == 6
    assert {error["row"] for error in topic["errors"]} <= set(range(2, 8))
    wrong = {error["text"] for error in topic["errors"]}
    assert all(text == ("text 1 / second" if text.startswith("text 1") else text) for text in wrong)
    assert "residuals" in evidence["tasks"]["valence"]
    assert evidence["tasks"]["near"].keys() == {"problem_type", "primary_metric", "support", "metrics"}
    assert evidence["tasks"]["absent"] == {
        "problem_type": SINGLE_LABEL, "primary_metric": "accuracy", "support": 0, "metrics": {}
    }  # fmt: skip
    by_source = {some["value"]: some["tasks"] for some in evidence["slices"] if some["by"] == "source"}
    assert by_source["x"]["topic"]["support"] + by_source["y"]["topic"]["support"] == 6
    assert "near" not in by_source["y"]
    x, y = (by_source[name]["topic"] for name in ("x", "y"))
    mean = (x["value"] * x["support"] + y["value"] * y["support"]) / 6
    assert mean == pytest.approx(topic["metrics"]["accuracy"]["value"])


def test_tables_show_every_task_and_slice() -> None:
    shown = evidence_tables(build_evidence(predictions(), resamples=20))
    for expected in (
        "topic (single_label",
        "valence (regression",
        "source = x",
        "weakest labels by F1",
        "calibration",
    ):
        assert expected in shown
