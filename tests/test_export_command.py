"""`mtl export`: graphs from the command line, int8 measured on rows that it was not calibrated on, what is refused."""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel, ToyRows, WriteRows

import mtl.cli
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.commands.export import changes_table, read_data
from mtl.export import Exported, export
from mtl.quantization import Quantized, TaskChange, are_close, mean_cosine, task_changes
from predictor_mtl import MANIFEST, MTLPredictor
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION

TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop"), calibration_temperature=0.5),
    TaskConfig("sentiment", ORDINAL, labels=("negative", "neutral", "positive")),
    TaskConfig("tags", MULTI_LABEL, labels=("urgent", "question", "thanks", "link")),
    TaskConfig("valence", REGRESSION),
)


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """Gives the folder of a saved tiny model with a head of every type."""
    make_model(tasks=TASKS).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def options(data: Path, **changes: Any) -> argparse.Namespace:
    """Returns what the command line gives for data, as it is if nothing is said."""
    names = ("split", "labels", "text", "text_pair", "split_column", "label_separator", "compare_with")
    nothing = dict.fromkeys(names)
    return argparse.Namespace(
        model="model", data=str(data), **{**nothing, "drop_empty": False, "pairs": [], "by": [], **changes}
    )


def graphs(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns what a folder says of its graphs."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return {(graph["backend"], graph["precision"]): graph for graph in manifest["graphs"]}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_int8_is_measured_as_the_model_is(
    backend: str, folder: Path, toy_rows: ToyRows, write: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(toy_rows(60, 0))
    mtl.cli.main(["export", backend, str(folder), "--int8", str(file)])
    shown = capsys.readouterr().out
    graph = graphs(folder)[backend, "int8"]
    assert graph["rows"] == 30
    assert graphs(folder)[backend, "fp32"]["difference"] <= 1e-5
    model = MTLModel.from_pretrained(folder)
    measured = read_data(options(file), [], model).rows
    predicted = model.predict(measured["text"][:])
    known = [
        (TASKS[0].id2label[true], said["topic"]["label"])
        for true, said in zip(measured["label_topic"][:], predicted, strict=True)
        if true >= 0
    ]
    right = sum(true == said for true, said in known) / len(known)
    assert graph["measured"]["topic"]["fp32"] == pytest.approx(right)
    assert f"{graph['measured']['topic']['accuracy']:.4f}" in shown
    taken = MTLPredictor(folder, backend=backend).graph["precision"]
    assert taken == ("int8" if graph["is_close"] else "fp32")
    assert ('"auto"` takes int8' in shown) == graph["is_close"]
    fp32, int8 = (MTLPredictor(folder, backend=backend, precision=name) for name in ("fp32", "int8"))
    texts = measured["text"][:]
    left, right = fp32.encode(texts), int8.encode(texts)
    assert not np.array_equal(left, right)
    assert mean_cosine(left, right) == pytest.approx(graph["mean_cosine"], abs=1e-6)
    assert graph["mean_cosine"] > 0.9


@pytest.mark.slow
def test_other_weights_replace_all_graphs(
    folder: Path, make_model: MakeModel, toy_rows: ToyRows, write: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    out = folder.parent / "out"
    mtl.cli.main(["export", "onnx", str(folder), str(out), "--int8", str(write(toy_rows(40, 0)))])
    mtl.cli.main(["export", "openvino", str(folder), str(out)])
    assert set(graphs(out)) == {("onnx", "fp32"), ("onnx", "int8"), ("openvino", "fp32")}
    model = make_model(tasks=TASKS, seed=3)
    export(model, out, "openvino")
    assert "are of other weights, and are removed" in caplog.text
    assert set(graphs(out)) == {("openvino", "fp32")}
    assert sorted(file.suffix for file in out.rglob("*model*.*") if file.is_file()) == [".bin", ".xml"]
    texts = [row["text"] for row in toy_rows(5, 1)]
    np.testing.assert_allclose(MTLPredictor(out).encode(texts), model.encode(texts), atol=1e-5)


def test_texts_of_the_calibration_are_not_measured(folder: Path, toy_rows: ToyRows, write: WriteRows) -> None:
    model = MTLModel.from_pretrained(folder)
    rows = [{**row, "text": f"{place} {row['text']}"} for place, row in enumerate(toy_rows(50, 0))]
    whole = read_data(options(write(rows)), [], model)
    assert (len(whole.calibration), len(whole.rows), whole.split) == (25, 25, "all")
    assert {*whole.calibration, *whole.rows["text"]} == {row["text"] for row in rows}
    parted = [{**row, "part": "train" if place < 20 else "test"} for place, row in enumerate(rows)]
    found = read_data(options(write(parted), split_column="part"), [], model)
    assert set(found.calibration) == {row["text"] for row in rows[:20]}
    assert found.rows["text"][:] == [row["text"] for row in rows[20:]]
    assert [task.name for task in found.tasks] == [task.name for task in TASKS]
    with pytest.raises(ValueError, match="has 1 rows, too few"):
        read_data(options(write(rows[:1])), [], model)


def test_points_lost_are_worked_out_by_hand(make_model: MakeModel, toy_rows: ToyRows, write: WriteRows) -> None:
    model = make_model(tasks=TASKS[:1])
    rows = [{"text": "match", "topic": name} for name in ("sport", "sport", "film", "shop", "sport")]
    data = read_data(options(write(rows * 2)), [], model)
    true = np.array(data.rows["label_topic"])
    before = np.eye(3, dtype=np.float32)[true]  # All right.
    after = before.copy()
    after[0] = np.roll(after[0], 1)
    (change,) = task_changes(data.tasks, data.rows, {"logits_topic": before}, {"logits_topic": after})
    assert (change.metric, change.before, change.after) == ("accuracy", 1.0, 0.8)
    assert change.points_lost == pytest.approx(20.0)
    assert are_close([TaskChange("topic", "accuracy", 0.9, 0.8951)])
    assert not are_close([TaskChange("topic", "accuracy", 0.9, 0.8949), TaskChange("other", "accuracy", 0.5, 0.6)])
    lost = Quantized(Exported(Path("onnx/model_int8.onnx"), "onnx", "int8", 0.1, 1.0), (change,), 5, 0.99)
    assert "+20.00" in changes_table(lost, "test")
    assert '"auto"` takes fp32' in changes_table(lost, "test")


@pytest.mark.slow
def test_int8_is_not_taken_where_a_task_was_not_measured(
    folder: Path, toy_rows: ToyRows, write: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"text": row["text"], "topic": row["topic"] or "film"} for row in toy_rows(40, 0)]
    mtl.cli.main(["export", "onnx", str(folder), "--int8", str(write(rows))])
    assert (
        "Of ['sentiment', 'tags', 'valence'] there is no label: `precision=\"auto\"` takes fp32"
        in capsys.readouterr().out
    )
    assert set(graphs(folder)["onnx", "int8"]["measured"]) == {"topic"}
    assert MTLPredictor(folder).graph["precision"] == "fp32"
    gained = TaskChange("topic", "accuracy", 0.5, 0.6)
    graph = Exported(Path("onnx/model_int8.onnx"), "onnx", "int8", 0.1, 1.0)
    assert Quantized(graph, (gained,), 5, 0.99).is_close
    assert not Quantized(graph, (gained,), 5, 0.99, unmeasured=("tags",)).is_close


def test_cosines_are_of_rows_of_any_length() -> None:
    left = np.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    right = np.array([[1.0, 1.0], [0.0, 5.0], [1.0, 0.0]])
    assert mean_cosine(left, right) == pytest.approx((np.sqrt(0.5) + 1.0 + 0.0) / 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["onnx", "{folder}", "--num_train_epochs", "3"], "'--num_train_epochs' is unknown"),
        (["onnx", "{folder}", "--int8", "{folder}/absent.csv"], "absent.csv"),
        (["onnx", "{folder}/absent"], "There is no model"),
        (["onnx", "{folder}", "{other}"], "holds another model, whose tokenizer would be overwritten"),
        (["openvino", "{folder}", "--int8", "{rows}", "--labels", '{{"mood": "topic"}}'], r"--labels has \['mood'\]"),
    ],
)
def test_what_is_wrong_is_told_before_any_graph(
    words: list[str], message: str, folder: Path, toy_rows: ToyRows, write: WriteRows, no_network: None
) -> None:
    file, other = write(toy_rows(8, 0)), folder.parent / "other"
    shutil.copytree(folder, other)
    with pytest.raises(SystemExit, match=message):
        mtl.cli.main(["export", *(word.format(folder=folder, rows=file, other=other) for word in words)])
    assert not (folder / MANIFEST).exists()
