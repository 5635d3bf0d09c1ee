"""`mtl evaluate`: a saved model on labelled files, from the command line to `evaluation.json`."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import MakeModel, SaveBackbone, ToyRows, WriteRows

import mtl.cli
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.labels import label_column
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION

NAMES = ("topic", "sentiment", "tags", "valence")


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    """Gives the folder of a saved tiny model with a head of every type."""
    tasks = (
        TaskConfig("topic", labels=("sport", "film", "shop")),
        TaskConfig("sentiment", ORDINAL, labels=("negative", "neutral", "positive")),
        TaskConfig("tags", MULTI_LABEL, labels=("urgent", "question", "thanks", "link")),
        TaskConfig("valence", REGRESSION),
    )
    make_model(tasks=tasks).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def evaluate(folder: Path, data: Path | str, *words: str) -> dict[str, Any]:
    """Runs the command; returns what it wrote."""
    mtl.cli.main(["evaluate", str(folder), str(data), "--quiet", "--resamples", "20", *words])
    return json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))


def test_measures_every_task_as_predict_answers(
    folder: Path, toy_rows: ToyRows, write: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "channel": "mail" if place % 2 else "chat"} for place, row in enumerate(toy_rows(40, 0))]
    found = evaluate(folder, write(rows), "--by", "channel")
    assert list(found["tasks"]) == list(NAMES)
    assert found["num_rows"] == 40
    assert "channel = mail (20 rows)" in capsys.readouterr().out
    predicted = MTLModel.from_pretrained(folder).predict([row["text"] for row in rows])
    for name in ("topic", "sentiment"):
        known = [(row[name], said[name]["label"]) for row, said in zip(rows, predicted, strict=True) if row[name]]
        right = sum(true == said for true, said in known) / len(known)
        assert found["tasks"][name]["metrics"]["accuracy"]["value"] == pytest.approx(right)
        assert found["tasks"][name]["support"] == len(known)
    wrong = {error["row"] for error in found["tasks"]["topic"]["errors"]}
    assert wrong == {
        place
        for place, (row, said) in enumerate(zip(rows, predicted, strict=True))
        if row["topic"] and row["topic"] != said["topic"]["label"]
    }
    assert all(rows[error["row"]]["text"] == error["text"] for error in found["tasks"]["topic"]["errors"])


def test_columns_by_other_names_and_tasks_without_one(
    folder: Path, toy_rows: ToyRows, write: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"body": row["text"], "kind": row["topic"], "part": "dev"} for row in toy_rows(20, 0)]
    words = ["--labels", '{"topic": "kind"}', "--text", "body", "--split_column", "part"]
    found = evaluate(folder, write(rows), *words)
    assert list(found["tasks"]) == ["topic"]
    assert found["split"] == "validation"
    assert "no labels of ['sentiment', 'tags', 'valence']" in caplog.text


def test_settings_file_gives_the_split_of_a_training(
    folder: Path, toy_rows: ToyRows, write: WriteRows, backbone_dir: SaveBackbone, tmp_path: Path
) -> None:
    rows = toy_rows(60, 0)
    settings = {
        "backbone": str(backbone_dir()),
        "tasks": [{"name": "topic"}, {"name": "other", "labels": ["a", "b"]}],
        "sources": [{"path": str(write(rows)), "name": "toy", "labels": {"topic": "topic"}}],
        "test_fraction": 0.2,
        "split_seed": 3,
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    found = evaluate(folder, path)
    assert (found["split"], found["num_rows"]) == ("test", 12)
    assert evaluate(folder, path, "--test_fraction", "0.4")["num_rows"] == 24
    assert evaluate(folder, path, "--split", "train")["num_rows"] == 42
    assert label_column("topic") not in found["tasks"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], r"no split 'test', but \['train'\]"),
        (["--labels", '{"colour": "topic"}'], r"--labels has \['colour'\]"),
        (["--by", "colour"], "Column 'colour' of `slices` is not in split 'train'"),
        (["--by", "tags"], "Column 'tags' of `slices` holds lists"),
        (["--text", "body"], "Text column 'body' is not in split 'train'"),
        (["--learning_rate", "1"], "'--learning_rate' is unknown"),
        (["--level", "2"], "level between 0 and 1"),
    ],
)
def test_wrong_settings_are_told(
    folder: Path, toy_rows: ToyRows, write: WriteRows, words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match=f"mtl evaluate: error: .*{message}"):
        evaluate(folder, write(toy_rows(8, 0)), *words)


def test_data_without_any_label_and_unknown_labels_are_refused(folder: Path, write: WriteRows) -> None:
    with pytest.raises(SystemExit, match=r"no labels of any task of .*Name their columns: `--labels"):
        evaluate(folder, write([{"text": "match"}]))
    with pytest.raises(SystemExit, match="'war'"):
        evaluate(folder, write([{"text": "match", "topic": "war"}], "other.json"))


def test_other_models_are_refused(backbone_dir: SaveBackbone, write: WriteRows) -> None:
    data = write([{"text": "match", "topic": "sport"}])
    with pytest.raises(SystemExit, match="is a 'bert' model. Give a multi-task model"):
        evaluate(backbone_dir(), data)
    with pytest.raises(SystemExit, match="mtl evaluate: error: "):
        evaluate(Path("absent/folder"), data)
