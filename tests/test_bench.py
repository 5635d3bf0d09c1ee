"""`mtl bench`: what is measured of each runtime, and what follows from it."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeModel, ToyRows, WriteRows

import mtl.cli
from mtl.bench import Measured, Runner, fastest, graph_runners, measure, same_labels
from mtl.commands.bench import bench_table, made_up_texts, read_texts
from mtl.export import export


def measured(
    backend: str, precision: str, per_second: float, milliseconds: float, *, is_close: bool = True
) -> Measured:
    """Returns what a made-up runner was measured to do."""
    return Measured(backend, precision, is_close, per_second, milliseconds, 1.0, 1.0)


def test_the_fastest_that_answers_alike_is_taken() -> None:
    found = [
        measured("torch", "fp32", 100.0, 9.0),
        measured("torch", "bf16", 200.0, 12.0),
        measured("onnx", "fp32", 150.0, 5.0),
        measured("openvino", "int8", 900.0, 1.0, is_close=False),
    ]
    assert fastest(found) == found[1]
    assert fastest(found, alone=True) == found[2]
    shown = bench_table(found)
    assert 'For many sentences: torch in bf16, `model.encode_and_predict(texts, precision="bf16")`.' in shown
    assert "For one at a time: onnx in fp32" in shown
    assert "9.00x" in shown and "may lose accuracy" in shown


def test_speed_and_answers_are_those_of_each_runner() -> None:
    calls: list[tuple[str, int]] = []

    def runner(name: str, seconds: float, label: str, embedding: Sequence[float]) -> Runner:
        def answer(texts: Sequence[Any]) -> Any:
            calls.append((name, len(texts)))
            time.sleep(seconds * len(texts))
            return np.array([embedding] * len(texts)), [{"topic": {"label": label}, "valence": 0.1} for _ in texts]

        return Runner(name, "fp32", True, answer)

    found = measure([runner("a", 0.01, "film", [1, 0]), runner("b", 0.001, "sport", [1, 1])], ["x"] * 20, rounds=3)
    assert [one.backend for one in found] == ["a", "b"]
    assert found[0].per_second < 100 < found[1].per_second
    assert found[0].milliseconds > 10 > found[1].milliseconds
    assert [one.same_labels for one in found] == [1.0, 0.0]
    assert found[1].mean_cosine == pytest.approx(np.sqrt(0.5))
    # In turns, and after a first time that is not measured.
    assert [name for name, count in calls if count == 20] == ["a", "b"] * 4


def test_same_labels_are_counted_over_tasks_that_have_some() -> None:
    expected = [{"topic": {"label": "a"}, "tags": {"labels": ["x"]}, "stars": 1.0, "mood": {"joy": 0.5}}] * 2
    found = [expected[0], {**expected[1], "tags": {"labels": []}, "stars": 3.0}]
    assert same_labels(found, expected) == 0.75
    assert same_labels([{"stars": 1.0}], [{"stars": 2.0}]) is None


def test_texts_are_read_or_made_up(tmp_path: Path, write: WriteRows) -> None:
    texts = made_up_texts(500)
    lengths = [len(text.split()) for text in texts]
    assert (len(texts), min(lengths) >= 4, max(lengths) <= 60) == (500, True, True)
    assert 13 <= np.median(lengths) <= 17
    assert made_up_texts(500) == texts
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"said": text}) for text in ["a", None, "b", "c"]))
    assert read_texts(file, "said", 2) == ["a", "b"]
    with pytest.raises(ValueError, match="there is no column 'text'"):
        read_texts(file, "text", 2)


@pytest.mark.slow
def test_every_runtime_is_measured(
    make_model: MakeModel, toy_rows: ToyRows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in toy_rows(6, 0)))
    before = sorted((tmp_path / "model").rglob("*"))
    words = ["--rounds", "1", "--json", str(tmp_path / "found.json"), "--quiet"]
    mtl.cli.main(["bench", str(tmp_path / "model"), str(file), *words])
    found = json.loads((tmp_path / "found.json").read_text())
    precisions = {(one["backend"], one["precision"]) for one in found}
    assert precisions >= {("torch", "fp32"), ("onnx", "fp32"), ("openvino", "fp32")}
    for one in found:
        assert one["per_second"] > 0
        if one["precision"] == "fp32":
            assert one["same_labels"] == 1.0
            assert one["mean_cosine"] == pytest.approx(1.0, abs=1e-5)
    shown = capsys.readouterr().out
    assert shown.startswith("6 texts, medians of 1 rounds, ")
    assert "For many sentences: " in shown
    assert sorted((tmp_path / "model").rglob("*")) == before
    with pytest.raises(SystemExit, match="--rounds must be at least 1, found 0"):
        mtl.cli.main(["bench", str(tmp_path / "model"), "--rounds", "0"])
    with pytest.raises(SystemExit, match="--json .*there is no such folder"):
        mtl.cli.main(["bench", str(tmp_path / "model"), "--json", str(tmp_path / "absent" / "found.json")])


@pytest.mark.slow
def test_graphs_of_other_weights_are_not_measured(make_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export(make_model(seed=1), folder, "onnx")
    model = make_model()
    steps: list[str] = []
    runners = graph_runners(model, folder, tmp_path / "place", None, steps.append)
    assert "onnx: exporting" in steps
    (onnx,) = [runner for runner in runners if runner.backend == "onnx"]
    np.testing.assert_allclose(onnx.answer(["match"])[0], model.encode(["match"]), atol=1e-5)
