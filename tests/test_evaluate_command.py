"""`mtl evaluate`: a saved model on labelled files, from the command line to `evaluation.json`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import MakeModel, SaveBackbone, ToyRows, WriteRows
from transformers.utils import logging as transformers_logging

import mtl.cli
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.labels import label_column
from mtl.settings import parse_settings
from tasks_mtl import CONTRASTIVE, MULTI_LABEL, ORDINAL, POSITIVE_PAIRS, REGRESSION, SCORED_PAIRS, TRIPLETS
from train_setup import read_data

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
    """Runs the command in the precision of `predict`; returns what it wrote."""
    mtl.cli.main(["evaluate", str(folder), str(data), "--precision", "fp32", "--resamples", "20", *words])
    return json.loads((folder / "_evaluation" / "evaluation.json").read_text(encoding="utf-8"))


def test_measures_every_task_as_predict_answers(
    folder: Path, toy_rows: ToyRows, write: WriteRows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "channel": "mail" if place % 2 else "chat"} for place, row in enumerate(toy_rows(40, 0))]
    found = evaluate(folder, write(rows), "--by", "channel")
    assert list(found["tasks"]) == list(NAMES)
    assert (found["split"], found["num_rows"]) == ("all", 40)
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


def test_folder_that_cannot_be_written_is_told_before_the_work(
    folder: Path, toy_rows: ToyRows, write: WriteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtl.commands.evaluate.predict", pytest.fail)
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SystemExit, match="mtl evaluate: error: .*taken"):
        evaluate(folder, write(toy_rows(4, 0)), "--output_dir", str(tmp_path / "taken"))


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


def test_settings_file_cuts_as_in_the_training_that_had_more_tasks(
    folder: Path, toy_rows: ToyRows, write: WriteRows, backbone_dir: SaveBackbone, tmp_path: Path
) -> None:
    rows = toy_rows(60, 0)
    # Of its own train nothing is cut off, and what is in it stays in that of the other source too.
    kept = [{"text": row["text"], "near": row["text"], "score": 1.0} for row in rows[:40]]
    files = {split: str(write(kept, f"{split}.json")) for split in ("train", "dev", "test")}
    sources: list[dict[str, Any]] = [{"path": str(write(rows)), "name": "toy", "labels": {"topic": "topic"}}]
    sources.append({"files": files, "name": "pairs", "compare_with": ["near"], "labels": {"alike": "score"}})
    tasks = [{"name": "topic"}, {"name": "alike", "problem_type": SCORED_PAIRS}]
    settings = {"backbone": str(backbone_dir()), "tasks": tasks, "sources": sources, "test_fraction": 0.2}
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    splits, _ = read_data(*parse_settings([str(path), "--output_dir", str(tmp_path / "out")]))
    of_toy = {row["text"] for row in splits["test"] if row["source"] == "toy"}
    assert of_toy <= {row["text"] for row in rows[40:]}
    found = evaluate(folder, path)  # A model without the task `alike`.
    assert (list(found["tasks"]), found["num_rows"]) == (["topic"], 12)
    assert {error["text"] for error in found["tasks"]["topic"]["errors"]} <= of_toy
    assert found["tasks"]["topic"]["errors"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], r"no split 'test', but \['all'\]"),
        (["--labels", '{"colour": "topic"}'], r"--labels has \['colour'\]"),
        (["--by", "colour"], "Column 'colour' of `slices` is not in split 'train'"),
        (["--by", "tags"], "Column 'tags' of `slices` holds lists"),
        (["--text", "body"], "Text column 'body' is not in split 'train'"),
        (["--learning_rate", "1"], "'--learning_rate' is unknown"),
        (["--level", "2"], "level between 0 and 1"),
        (["--pairs", "colour"], r"--pairs has \['colour'\]"),
        (["--label", "{}"], "'--label' is unknown"),
        (["--precision", "fp8"], "precision 'fp8' is unknown"),
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


@pytest.mark.parametrize("given", ["{topic: topic}", '["topic"]', '{"topic": 3}'])
def test_columns_that_are_no_mapping_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mtl.cli.main(["evaluate", "model", "data.csv", "--labels", given])
    assert f"""such as '{{"topic": "category"}}'; found {given!r}""" in capsys.readouterr().err


def test_wrong_settings_are_told_before_anything_is_read() -> None:
    with pytest.raises(SystemExit, match="resamples must be 1 or more"):
        mtl.cli.main(["evaluate", "absent", "absent.csv", "--resamples", "0"])


def test_settings_file_and_what_it_says_itself_do_not_go_together(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="--labels, --text: the sources in .* say this themselves"):
        evaluate(folder, tmp_path / "settings.yaml", "--labels", '{"topic": "kind"}', "--text", "body")


def test_tasks_without_a_labelled_row_are_left_out(
    folder: Path, toy_rows: ToyRows, write: WriteRows, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{**row, "topic": None} for row in toy_rows(30, 0)]
    assert list(evaluate(folder, write(rows))["tasks"]) == ["sentiment", "tags", "valence"]
    assert "No row of split 'all' has a label of ['topic']: these tasks are not measured." in caplog.text
    words = ["--labels", '{"sentiment": null, "valence": null}']
    assert list(evaluate(folder, write(rows), *words)["tasks"]) == ["tags"]
    with pytest.raises(SystemExit, match=r"No row of split 'all' has a label of \['topic', 'sentiment'\]"):
        evaluate(folder, write([{"text": "match", "topic": None, "sentiment": ""}], "empty.json"))


def test_rows_without_text_are_left_out_where_it_is_said(folder: Path, toy_rows: ToyRows, write: WriteRows) -> None:
    data = write([{"text": " ", "topic": "sport"}, *toy_rows(20, 0)])
    with pytest.raises(SystemExit, match="1 of 21 texts are missing"):
        evaluate(folder, data)
    assert evaluate(folder, data, "--drop_empty")["num_rows"] == 20


def test_quiet_shows_no_progress(
    folder: Path, toy_rows: ToyRows, write: WriteRows, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write(toy_rows(20, 0))
    capfd.readouterr()
    evaluate(folder, data)
    assert "Intervals" in capfd.readouterr().err
    try:
        evaluate(folder, data, "--quiet")
    finally:  # They are off for the whole process.
        transformers_logging.enable_progress_bar()
        datasets.enable_progress_bars()
    assert "it/s" not in (shown := capfd.readouterr()).err
    assert "accuracy" in shown.out


def test_folder_of_splits(folder: Path, toy_rows: ToyRows, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for split, count in (("train", 30), ("test", 20)):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(count, count)))
    for words, expected in (([], ("test", 20)), (["--split", "train"], ("train", 30))):
        found = evaluate(folder, data, *words)
        assert (found["split"], found["num_rows"]) == expected


def test_tasks_on_the_embedding_are_measured(make_model: MakeModel, toy_rows: ToyRows, write: WriteRows) -> None:
    tasks = (
        TaskConfig("near", SCORED_PAIRS),
        TaskConfig("found", POSITIVE_PAIRS),
        TaskConfig("third", TRIPLETS),
        TaskConfig("space", CONTRASTIVE, labels=("sport", "film", "shop")),
        TaskConfig("same", labels=("no", "yes")),
    )
    texts = [row["text"] for row in toy_rows(30, 0)]
    rows = [
        {
            "text": text,
            "second": texts[place - 1],
            "third": texts[place - 2],
            "near": place % 5 / 5,
            "space": ("sport", "film")[place % 2],
            "same": ("no", "yes")[place % 2],
        }
        for place, text in enumerate(texts)
    ]
    data = write(rows)
    make_model(tasks=tasks).save_pretrained(data.parent / "embedding")
    folder = data.parent / "embedding"
    further = ["--compare_with", "second", "third", "--pairs", "found", "third"]
    found = evaluate(folder, data, *further, "--labels", '{"same": null}')["tasks"]
    assert {name: task["support"] for name, task in found.items()} == dict.fromkeys(list(found), 30)
    assert list(found) == ["near", "found", "third", "space"]
    model = MTLModel.from_pretrained(folder)
    first, second, third = (model.encode([row[key] for row in rows]) for key in ("text", "second", "third"))
    cosines = (first * second).sum(-1)
    assert found["near"]["metrics"]["pearson"]["value"] == pytest.approx(
        np.corrcoef(cosines, [row["near"] for row in rows])[0, 1], abs=1e-5
    )
    assert found["near"]["metrics"]["pearson"]["low"] < found["near"]["metrics"]["pearson"]["high"]
    nearer = (cosines > (first * third).sum(-1)).tolist()
    assert found["third"]["metrics"]["accuracy"]["value"] == pytest.approx(sum(nearer) / 30)
    assert found["found"]["metrics"]["accuracy"]["low"] is None
    read_together = ["--text_pair", "second", "--labels", '{"near": null, "space": null}']
    found = evaluate(folder, data, *read_together)["tasks"]["same"]
    said = [some["same"]["label"] for some in model.predict([(row["text"], row["second"]) for row in rows])]
    right = [row["same"] == label for row, label in zip(rows, said, strict=True)]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(sum(right) / 30)


def test_errors_are_those_of_what_predict_decides(make_model: MakeModel, toy_rows: ToyRows, write: WriteRows) -> None:
    rows = [{**row, "topic": row["topic"] or "none"} for row in toy_rows(60, 0)]
    texts = [row["text"] for row in rows]
    topic = TaskConfig("topic", labels=("sport", "film", "shop"))
    tags = TaskConfig("tags", MULTI_LABEL, labels=("urgent", "question", "thanks", "link"))
    said = make_model(tasks=(topic, tags)).predict(texts)
    # Thresholds in the middle of what the model says, so that either side of them has rows.
    middle = float(np.median([some["topic"]["score"] for some in said]))
    least = np.median([list(some["tags"]["probabilities"].values()) for some in said], axis=0)
    topic = dataclasses.replace(
        topic, out_of_scope_label="none", rejection_score="probability", rejection_threshold=middle
    )
    tags = dataclasses.replace(tags, label_thresholds=tuple(least.tolist()))
    data = write(rows)
    folder = data.parent / "deciding"
    make_model(tasks=(topic, tags)).save_pretrained(folder)
    tasks, said = evaluate(folder, data)["tasks"], MTLModel.from_pretrained(folder).predict(texts)
    wrong = {
        place: some["topic"]["label"]
        for place, some in enumerate(said)
        if some["topic"]["label"] != rows[place]["topic"]
    }
    assert {error["row"]: error["predicted"] for error in tasks["topic"]["errors"]} == wrong
    assert {"none"} < set(wrong.values())
    wrong = {
        place: set(some["tags"]["labels"])
        for place, some in enumerate(said)
        if rows[place]["tags"] is not None and set(some["tags"]["labels"]) != set(rows[place]["tags"])
    }
    listed = {error["row"]: set(error["predicted"].split(", ")) - {"none"} for error in tasks["tags"]["errors"]}
    assert listed == wrong
    predicted = {
        label: sum(
            label in some["tags"]["labels"] for some, row in zip(said, rows, strict=True) if row["tags"] is not None
        )
        for label in tags.labels or ()
    }
    assert {row["label"]: row["predicted"] for row in tasks["tags"]["labels"]} == predicted
    assert [row["threshold"] for row in tasks["tags"]["labels"]] == pytest.approx(least.tolist())


def test_other_models_are_refused(backbone_dir: SaveBackbone, write: WriteRows) -> None:
    data = write([{"text": "match", "topic": "sport"}])
    with pytest.raises(SystemExit, match="is a 'bert' model. Give a multi-task model"):
        evaluate(backbone_dir(), data)
    with pytest.raises(SystemExit, match="There is no model 'absent/folder'"):
        evaluate(Path("absent/folder"), data)


def test_checkpoint_is_named_where_a_training_did_not_end(
    make_model: MakeModel, toy_rows: ToyRows, write: WriteRows, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-2"
    make_model().save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text("{}", encoding="utf-8")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.save({}, checkpoint / name)
    data = write(toy_rows(8, 0))
    with pytest.raises(SystemExit, match="checkpoints of a training that did not end.*checkpoint-2'"):
        evaluate(tmp_path / "run", data)
    assert evaluate(checkpoint, data)["tasks"]
