"""The program with a task that rejects: fitted, measured, described, loaded again, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SaveBackbone, ToyRows
from huggingface_hub import ModelCard

import train_trainer
from modeling_mtl import MTLModel

WriteSettings = Callable[..., str]


@pytest.fixture
def write_settings(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> WriteSettings:
    """Gives a function that writes data, in which "shop" is out of scope, and a settings file; returns its path."""
    backbone = str(backbone_dir("bert"))
    for split, count, seed in (("train", 64, 0), ("dev", 40, 1), ("test", 40, 2)):
        rows = [{**row, "stars": {"negative": 1, "neutral": 2, "positive": 5}.get(row["sentiment"])}
                for row in toy_rows(count, seed)]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(intent: dict[str, Any] | None = None, **changes: Any) -> str:
        settings = {
            "backbone": backbone,
            "data_dir": str(tmp_path),
            "tasks": [
                {"name": "topic", "out_of_scope_label": "shop", **(intent or {})},
                {"name": "stars", "problem_type": "ordinal_classification"},
            ],
            "sources": [
                {
                    "name": "toy",
                    "files": {"train": "train.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"},
                    "labels": {"topic": "topic", "stars": "stars"},
                }
            ],
            "output_dir": str(tmp_path / "out"),
            "num_train_epochs": 3,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "label_smoothing_factor": 0.05,
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "max_length": 32,
            "precision": "fp32",  # In which `predict` computes; in bf16 rows near the threshold may fall otherwise.
            "use_cpu": True,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**settings, **changes}))
        return str(path)

    return write


EVALUATION_ONLY = {"freeze": "all", "eval_strategy": "no", "label_smoothing_factor": 0.0}


def test_threshold_is_fitted_measured_saved_and_kept(
    write_settings: WriteSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = train_trainer.main([write_settings()])
    tasks = {task["name"]: task for task in report["tasks"]}
    assert tasks["topic"]["labels"] == ["film", "sport"]
    assert tasks["stars"]["labels"] == ["1", "2", "5"]
    threshold = tasks["topic"]["rejection_threshold"]
    for split in ("validation", "test"):
        topic = report["results"][split]["tasks"]["topic"]
        assert {"accuracy", "oos_auroc", "oos_recall", "oos_precision", "joint_accuracy"} <= set(topic)
        assert topic["oos_support"] > 0
        assert set(report["results"][split]["tasks"]["stars"]) == {"qwk", "accuracy", "mae", "loss", "support"}
    assert "joint_accuracy" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert f"`shop` below energy {threshold:.4f}" in card.text
    topic = report["results"]["test"]["tasks"]["topic"]
    shown = f"| `topic` | oos_recall | {topic['oos_recall']:.4f} | {topic['oos_support']} |"
    assert shown in card.text
    assert "| label_smoothing_factor | 0.05 |" in card.text
    figures = {(result.task_name, result.metric_name) for result in card.data.eval_results}
    assert {("topic", "joint_accuracy"), ("topic", "oos_auroc"), ("stars", "qwk"), ("stars", "mae")} <= figures
    _check_predictions(tmp_path, threshold, topic)
    # What is loaded again is measured with the threshold that it has.
    again = [*("--backbone", str(tmp_path / "out")), *("--output_dir", str(tmp_path / "out2"))]
    repeated = train_trainer.main([write_settings(**EVALUATION_ONLY), *again])
    assert repeated["results"]["test"]["tasks"] == report["results"]["test"]["tasks"]
    assert repeated["tasks"] == report["tasks"]
    moved = train_trainer.main([write_settings({"rejection_threshold": 1e6}, **EVALUATION_ONLY), *again])
    assert moved["results"]["test"]["tasks"]["topic"]["oos_recall"] == 1.0
    # Another score makes the threshold another thing, so that it is fitted anew, also where nothing trains.
    other = train_trainer.main([write_settings({"rejection_score": "logit"}, **EVALUATION_ONLY), *again])
    assert other["tasks"][0]["rejection_threshold"] not in (None, threshold)
    accepting = [*again, "--rejection_acceptance", "1.0", "--fit_rejection", "true"]
    lenient = train_trainer.main([write_settings(**EVALUATION_ONLY), *accepting])
    assert lenient["tasks"][0]["rejection_threshold"] <= threshold  # The fitted one may accept all of them already.
    topic = lenient["results"]["validation"]["tasks"]["topic"]  # Every row in scope is accepted.
    right = topic["accuracy"] * topic["support"] + topic["oos_recall"] * topic["oos_support"]
    assert topic["joint_accuracy"] == pytest.approx(right / (topic["support"] + topic["oos_support"]))


def _check_predictions(folder: Path, threshold: float, measured: dict[str, float]) -> None:
    model = MTLModel.from_pretrained(folder / "out")
    assert model.config.task("topic").rejection_threshold == threshold
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["topic"] is not None]
    predicted = [prediction["topic"] for prediction in model.predict([row["text"] for row in rows])]
    right = [guess["label"] == row["topic"] for guess, row in zip(predicted, rows, strict=True)]
    assert sum(right) / len(rows) == pytest.approx(measured["joint_accuracy"])
    assert all(guess["in_scope"] == (guess["label"] != "shop") for guess in predicted)


def test_given_threshold_and_no_fit(write_settings: WriteSettings, tmp_path: Path) -> None:
    short = {"num_train_epochs": 1}
    given = train_trainer.main([write_settings({"rejection_threshold": 0.5}, **short)])
    assert given["tasks"][0]["rejection_threshold"] == 0.5
    assert "oos_recall" in given["results"]["test"]["tasks"]["topic"]
    unfitted = train_trainer.main([write_settings(fit_rejection=False, **short)])
    assert "rejection_threshold" not in unfitted["tasks"][0]
    assert "oos_recall" not in unfitted["results"]["test"]["tasks"]["topic"]
    assert "oos_auroc" in unfitted["results"]["test"]["tasks"]["topic"]
    assert "in_scope" not in MTLModel.from_pretrained(tmp_path / "out").predict("goal")["topic"]


def test_validation_without_such_rows_is_told_before_training(write_settings: WriteSettings, tmp_path: Path) -> None:
    settings = write_settings()
    path = tmp_path / "dev.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["topic"] != "shop"))
    with pytest.raises(ValueError, match="Task 'topic': .* validation has no such row.*`rejection_acceptance`"):
        train_trainer.set_up([settings])
    report = train_trainer.main([settings, "--rejection_acceptance", "0.9", "--num_train_epochs", "1"])
    assert report["tasks"][0]["rejection_threshold"] is not None
    validation = report["results"]["validation"]["tasks"]["topic"]
    assert (validation["oos_support"], validation["oos_recall"]) == (0, None)


def test_resumed_program_gets_the_same_threshold(write_settings: WriteSettings, tmp_path: Path) -> None:
    saving = {"save_strategy": "epoch", "num_train_epochs": 2}
    unbroken = train_trainer.main([write_settings(**saving, output_dir=str(tmp_path / "unbroken"))])
    train_trainer.main([write_settings(**saving)])
    (tmp_path / "out" / "checkpoint-16" / "optimizer.pt").unlink()  # As if stopped while it was saved.
    resumed = train_trainer.main([write_settings(**saving), "--resume_from_checkpoint", "last"])
    assert resumed["tasks"] == unbroken["tasks"]
    assert resumed["results"]["test"]["tasks"] == unbroken["results"]["test"]["tasks"]
