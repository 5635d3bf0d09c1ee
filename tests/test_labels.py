"""What a label cell means, and what is said of one that means nothing."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import WriteRows
from datasets import ClassLabel, Dataset, Features, List, Value

from configuration_mtl import TaskConfig
from mtl.data import load_sources
from mtl.labels import label_column
from mtl.sources import SourceConfig
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION

TOPIC = TaskConfig("topic")
TAGS = TaskConfig("tags", MULTI_LABEL)
VALENCE = TaskConfig("valence", REGRESSION)
UNCUT: dict[str, Any] = {"validation_fraction": 0.0, "test_fraction": 0.0}


def load_column(path: Path, task: TaskConfig, **settings: Any) -> tuple[list[Any], TaskConfig]:
    """Returns the labels and the task of a file of one task, whose column bears the task's name, without cuts."""
    source = SourceConfig(str(path), labels={task.name: task.name}, **settings)
    splits, (resolved,) = load_sources([source], [task], **UNCUT)
    return splits["train"][:][label_column(task.name)], resolved


def texts_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows, each with a text of its own."""
    return [{"text": f"text {number}", **row} for number, row in enumerate(rows)]


def same(first: Any, second: Any) -> bool:
    """Returns whether two nested lists of numbers are equal, where nan equals nan."""
    return np.array_equal(np.asarray(first, float), np.asarray(second, float), equal_nan=True)


@pytest.mark.parametrize(
    ("values", "labels", "ids"),
    [
        (["b", None, "a", "", "  ", "b"], ("a", "b"), [1, -100, 0, -100, -100, 1]),
        ([10, 9, 2, None], ("2", "9", "10"), [2, 1, 0, -100]),
        (["10", "9", "2", ""], ("2", "9", "10"), [2, 1, 0, -100]),
        ([1, -1, 0], ("-1", "0", "1"), [2, 0, 1]),
        ([True, False, None], ("False", "True"), [1, 0, -100]),
        ([1.0, float("nan"), 0.0, None], ("0", "1"), [1, -100, 0, -100]),
        (["1", "x"], ("1", "x"), [0, 1]),
        (["1" * 30, "2" * 30], ("1" * 30, "2" * 30), [0, 1]),
    ],
)
def test_labels_of_a_task_that_names_none(
    write: WriteRows, values: list[Any], labels: tuple[str, ...], ids: list[int]
) -> None:
    found, task = load_column(write(texts_of([{"topic": value} for value in values])), TOPIC)
    assert task.labels == labels
    assert task.num_labels == len(labels)
    assert found == ids


@pytest.mark.parametrize(
    ("values", "labels", "ids"),
    [
        (["b", "a"], ("b", "a", "never"), [0, 1]),
        ([1, 0, None], ("neg", "pos"), [1, 0, -100]),
        (["1", "0"], ("neg", "pos"), [1, 0]),
        ([2, 1], ("1", "2"), [1, 0]),
        (["0", "neg"], ("0", "neg"), [0, 1]),
    ],
)
def test_labels_of_a_task_that_names_them(
    write: WriteRows, values: list[Any], labels: tuple[str, ...], ids: list[int]
) -> None:
    task = TaskConfig("topic", labels=labels)
    assert load_column(write(texts_of([{"topic": value} for value in values])), task) == (ids, task)


def test_num_labels_over_integers_means_ids(write: WriteRows) -> None:
    task = TaskConfig("topic", num_labels=4)
    assert load_column(write(texts_of([{"topic": 3}, {"topic": 0}])), task) == ([3, 0], task)
    named = write(texts_of([{"topic": name} for name in "dbca"]))
    assert load_column(named, task)[1].labels == tuple("abcd")


def test_class_label_features_give_names_in_their_order(tmp_path: Path) -> None:
    names = ClassLabel(names=["zebra", "ant", "bee"])
    features = Features({"text": Value("string"), "topic": names, "tags": List(names)})
    columns = {"text": ["a", "b", "c"], "topic": [2, None, -1], "tags": [[0, 1], None, []]}
    Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "a.parquet"))
    assert load_column(tmp_path / "a.parquet", TOPIC)[0] == [2, IGNORE_INDEX, IGNORE_INDEX]
    tags, task = load_column(tmp_path / "a.parquet", TAGS)
    assert task.labels == ("zebra", "ant", "bee")
    assert same(tags, [[1, 1, 0], [float("nan")] * 3, [0, 0, 0]])
    other_order = TaskConfig("topic", labels=("ant", "bee", "zebra"))
    assert load_column(tmp_path / "a.parquet", other_order)[0] == [1, IGNORE_INDEX, IGNORE_INDEX]


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        ([["b", "a", "b"], None, [], ["c"]], None),
        (["b|a|b", "", "|", "c"], "|"),
        (["b ; a;", " ", " ; ", "c;"], ";"),
        ([["b", "a", "b"], None, [], ["c"]], "|"),
    ],
)
def test_multi_label_cells(write: WriteRows, values: list[Any], separator: str | None) -> None:
    path = write(texts_of([{"tags": value} for value in values]))
    tags, task = load_column(path, TAGS, label_separator=separator)
    assert task.labels == ("a", "b", "c")
    assert same(tags, [[1, 1, 0], [float("nan")] * 3, [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("vectors", [[[0, 2], [0, 1, 1]], [[True, False, True]], [[0.0, 1.0, 0.0]], [["1", "0", "1"]]])
def test_vector_of_zeros_and_ones_is_not_taken_for_labels(write: WriteRows, vectors: list[Any]) -> None:
    row = len(vectors) - 1
    with pytest.raises(ValueError, match=rf"row {row} .* looks like a vector of zeros and ones"):
        load_column(write(texts_of([{"tags": vector} for vector in vectors])), TAGS)


def test_vectors_of_width_two_and_lists_written_out_as_text(write: WriteRows) -> None:
    with pytest.raises(ValueError, match="row 0 .* looks like a vector of zeros and ones"):
        load_column(write(texts_of([{"tags": [1, 0]}, {"tags": [0, 1]}])), TAGS)
    with pytest.raises(ValueError, match="a list written out as text"):
        load_column(write(texts_of([{"tags": "['a', 'b']"}])), TAGS, label_separator=",")


def test_multi_label_ids_and_fixed_length_lists(write: WriteRows, tmp_path: Path) -> None:
    ids = TaskConfig("tags", MULTI_LABEL, num_labels=3)
    assert same(load_column(write(texts_of([{"tags": [2, 0]}, {"tags": []}])), ids)[0], [[1, 0, 1], [0, 0, 0]])
    pairs = pa.array([["a", "b"], None, ["b", "b"]], pa.list_(pa.string(), 2))
    pyarrow.parquet.write_table(pa.table({"text": ["x", "y", "z"], "tags": pairs}), tmp_path / "a.parquet")
    assert same(load_column(tmp_path / "a.parquet", TAGS)[0], [[1, 1], [float("nan")] * 2, [0, 1]])


@pytest.mark.parametrize(
    "values",
    [[1.5, None, float("nan"), -2], ["1.5", "", "nan", " -2e0 "]],
)
def test_regression_cells(write: WriteRows, values: list[Any]) -> None:
    found, task = load_column(write(texts_of([{"valence": value} for value in values])), VALENCE)
    assert same(found, [1.5, float("nan"), float("nan"), -2])
    assert task == VALENCE


@pytest.mark.parametrize(
    ("values", "separator"),
    [([[1, 2.5], None, [None, 3]], None), (["1;2.5", "", ";3"], ";")],
)
def test_regression_with_several_outputs(write: WriteRows, values: list[Any], separator: str | None) -> None:
    task = TaskConfig("valence", REGRESSION, labels=("calm", "loud"))
    path = write(texts_of([{"valence": value} for value in values]))
    nan = float("nan")
    assert same(load_column(path, task, label_separator=separator)[0], [[1, 2.5], [nan, nan], [nan, 3]])


def test_a_task_may_be_unlabelled_in_validation_and_test(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    rows = texts_of([{"topic": "x", "valence": 1}, {"topic": "y", "valence": 2}])
    files = {
        "train": str(write(rows, "train.json")),
        "dev": str(write([{"text": "d", "topic": "x", "valence": None}], "dev.json")),
        "test": str(write([{"text": "t", "topic": None, "valence": 1}], "test.json")),
    }
    load_sources([SourceConfig(files=files, labels={"topic": "topic", "valence": "valence"})], [TOPIC, VALENCE])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "Task 'valence' has no labelled row in split 'validation': nothing is measured there.",
        "Task 'topic' has no labelled row in split 'test': nothing is measured there.",
    ]


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # One word in two forms of Unicode, NFC and NFD.


def test_labels_that_only_look_alike_are_told_with_both_spellings(
    write: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    files = {"a": ["sport", "sport ", COMPOSED, "film"], "b": [DECOMPOSED, "sport ", " film", "films"]}
    sources = [
        SourceConfig(str(write(texts_of([{"topic": value} for value in values]), f"{name}.json")),
                     name=name, labels={"topic": "topic"})
        for name, values in files.items()
    ]  # fmt: skip
    _, (task,) = load_sources(sources, [TOPIC], **UNCUT)
    assert task.labels == (" film", DECOMPOSED, COMPOSED, "film", "films", "sport", "sport ")  # As in the data.
    (warning,) = [record.getMessage() for record in caplog.records if "classes of their own" in record.getMessage()]
    assert "Task 'topic': labels that differ only in white space" in warning
    assert (
        "'sport' (source 'a') and 'sport ' (source 'a'); 'caf\u00e9' (source 'a') and 'cafe\\u0301' (source 'b')"
        in warning
    )
    assert "'film' (source 'a') and ' film' (source 'b') (3 such pairs in all)" in warning


def test_labels_that_differ_are_no_cause_for_a_warning(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    load_column(write(texts_of([{"topic": value} for value in ("sport", "Sport", "sports", COMPOSED)])), TOPIC)
    assert "classes of their own" not in caplog.text


def test_unknown_label_in_another_form_of_unicode_is_told_apart(write: WriteRows) -> None:
    task = TaskConfig("topic", labels=(COMPOSED, "bar"))
    with pytest.raises(ValueError, match=r"unknown label 'cafe\\u0301'; nearest are \['caf\u00e9'\]"):
        load_column(write(texts_of([{"topic": "bar"}, {"topic": DECOMPOSED}])), task)


@pytest.mark.parametrize(
    ("task", "values", "message"),
    [
        (
            TaskConfig("topic", labels=("sport", "film")),
            ["film", "sporty", "zzz"],
            r"Task 'topic': column 'topic' of source 'rows', split 'train', row 1 \(the first row is 0\), has the "
            r"unknown label 'sporty'; nearest are \['sport'\] \(2 such cells in all\)\. Correct the cell, or add",
        ),
        (TaskConfig("topic", labels=("sport", "film")), ["9 x"], r"label '9 x'; known are \['sport', 'film'\]"),
        (TaskConfig("topic", labels=("neg", "pos")), [0, 2], "row 1 .* class id '2', but ids go from 0 to 1"),
        (TaskConfig("topic", labels=("neg", "pos")), [0, -1], "row 1 .* class id '-1', but ids go from 0 to 1"),
        (TaskConfig("topic", num_labels=3), [0, 3], "row 1 .* class id '3', but ids go from 0 to 2"),
        (
            TaskConfig("topic", num_labels=3),
            ["a", "b"],
            r"num_labels is 3, but the data has 2 labels: \['a', 'b'\]",
        ),
        (TOPIC, [0.5, 1.0], "Task 'topic': column 'topic' of source 'rows', split 'train' holds fractions"),
        (TOPIC, [["a"], ["b"]], r"is list<.*: string>, but a label is a string, an integer or a boolean"),
        (TOPIC, [{"a": 1}, {"a": 2}], r"is struct<.*>, but a label is"),
        (TOPIC, [0, 1, -100], "Task 'topic': -100 in its column would be a class, but often stands for a missing"),
        (TOPIC, ["same", "same"], "Task 'topic': single_label_classification needs at least 2 labels, found 1"),
        (TOPIC, [None, ""], "Task 'topic' has no label in split 'train'. Fill its column, or name its `labels`"),
        (TaskConfig("topic", num_labels=2), [None, ""], "Task 'topic' has no label in split 'train'"),
        (
            TaskConfig("topic", labels=("a", "b")),
            [None, ""],
            "Task 'topic' has no labelled row in split 'train'. Fill its column, or drop the task",
        ),
        (TAGS, ["a|b", "b"], r"is string, but the cells of this task are lists\. .* `label_separator` set"),
        (TAGS, [1, 2], "is int64, but the cells of this task are lists"),
        (TAGS, [["a"], ["b", None]], "row 1 .* has an empty label in its list. Leave it out"),
        (TAGS, [["a"], ["b", ""]], "row 1 .* has an empty label in its list"),
        (TAGS, [[["a"]], [["b"]]], "is list<.*>, but a label is a string"),
        (TaskConfig("tags", MULTI_LABEL, labels=("a", "b")), [["a"], ["a", "bb"]], "row 1 .* unknown label 'bb'"),
        (TaskConfig("tags", MULTI_LABEL, num_labels=2), [[0], [0, 2]], "row 1 .* class id '2'"),
        (VALENCE, ["1.5", "", "high"], "row 2 .* has 'high', which is not a number. Correct the cell"),
        (VALENCE, [1.5, float("inf")], "row 1 .* has inf, which is not finite"),
        (VALENCE, ["1", "-inf"], "row 1 .* has -inf, which is not finite"),
        (VALENCE, [1, 1e300], r"row 1 .* has 1e\+300, which is not finite in float32"),
        (VALENCE, [True, False], "is bool, but this task needs numbers"),
        (VALENCE, [[1.0], [2.0]], "is list<.*>, but this task needs numbers"),
        (VALENCE, [None, None], "Task 'valence' has no labelled row in split 'train'"),
        (TaskConfig("valence", REGRESSION, num_labels=2), [[1, 2], [1]], "row 1 .* has 1 numbers, but the task 2"),
        (TaskConfig("valence", REGRESSION, num_labels=2), [[1, 2], []], "row 1 .* has 0 numbers, but the task 2"),
        (
            TaskConfig("valence", REGRESSION, num_labels=2),
            [1, 2],
            "is int64, but the cells of this task are lists",
        ),
    ],
)
def test_cell_that_is_no_label(write: WriteRows, task: TaskConfig, values: list[Any], message: str) -> None:
    path = write(texts_of([{task.name: value} for value in values]))
    with pytest.raises(ValueError, match=message):
        load_column(path, task)


def test_row_is_that_of_the_file_whatever_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("part,text,topic\ntrain,a,x\ntrain,,x\ntest,b,y\ntrain,c,y\ntest,d,z\n")
    source = SourceConfig(str(tmp_path / "a.csv"), labels={"topic": "topic"}, split_column="part")
    with pytest.raises(ValueError, match=r"split 'test', row 4 .* unknown label 'z'; known are"):
        load_sources([source], [TOPIC], drop_empty=True, validation_fraction=0)


def test_split_whose_cells_are_no_ids_where_train_has_ids(write: WriteRows) -> None:
    files = {name: str(write(rows, f"{name}.json")) for name, rows in {
        "train": texts_of([{"topic": 0}, {"topic": 1}]), "test": [{"text": "t", "topic": "one"}]
    }.items()}  # fmt: skip
    source = SourceConfig(files=files, labels={"topic": "topic"})
    with pytest.raises(ValueError, match=r"split 'test', row 0 .* has the class id 'one', but ids go from 0 to 1"):
        load_sources([source], [TaskConfig("topic", num_labels=2)], validation_fraction=0)


def test_class_label_column_whose_ids_have_no_name(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "topic": ClassLabel(names=["x", "y"])})
    table = pa.table({"text": ["a", "b"], "topic": [0, 2]})
    pyarrow.parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="is a ClassLabel with 2 names, but its ids go from 0 to 2"):
        load_column(tmp_path / "a.parquet", TOPIC)


def test_list_of_class_labels_where_one_is_meant(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "topic": List(ClassLabel(names=["x", "y"]))})
    Dataset.from_dict({"text": ["a"], "topic": [[0, 1]]}, features=features).to_parquet(str(tmp_path / "a.parquet"))
    with pytest.raises(ValueError, match=r"column 'topic' .* is list<.*>, but a label is a string, an integer"):
        load_column(tmp_path / "a.parquet", TOPIC)


def test_what_teachers_alone_know_is_told_once(write: WriteRows, caplog: pytest.LogCaptureFixture) -> None:
    source = SourceConfig(str(write([{"text": f"text {number}"} for number in range(20)])))
    tasks = [TaskConfig("topic", labels=("x", "y")), TaskConfig("tone", labels=("x", "y"))]
    with caplog.at_level(logging.INFO, logger="mtl"):
        load_sources([source], tasks, taught=["topic", "tone"])
    told = [record.getMessage() for record in caplog.records if "teacher" in record.getMessage()]
    where = "in train, validation, test"
    assert told == [f"Without any label, known to a teacher alone: topic {where}; tone {where}."]
