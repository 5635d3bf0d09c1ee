"""The program calibrates: by default, as it is asked to, what it reports, keeps and fits anew, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SaveBackbone, ToyRows
from huggingface_hub import ModelCard

import merge_models
import train_trainer
from modeling_mtl import MTLModel

WriteSettings = Callable[..., str]
FITTED = ("calibration_temperature", "label_thresholds", "abstention_threshold")
EVALUATION_ONLY = {"freeze": "all", "eval_strategy": "no"}


@pytest.fixture
def write_settings(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> WriteSettings:
    """Gives a function that writes data and a settings file; keywords `topic` and `tags` are settings of the tasks."""
    backbone = str(backbone_dir("bert"))
    for split, count, seed in (("train", 64, 0), ("dev", 60, 1), ("test", 40, 2)):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in toy_rows(count, seed)))

    def write(
        topic: Any = None, tags: Any = None, *, splits: tuple[str, ...] = ("dev", "test"), **changes: Any
    ) -> str:
        settings = {
            "backbone": backbone,
            "data_dir": str(tmp_path),
            "tasks": [
                {"name": "topic", **(topic or {})},
                {"name": "tags", "problem_type": "multi_label_classification", **(tags or {})},
                {"name": "valence", "problem_type": "regression"},
            ],
            "sources": [
                {
                    "name": "toy",
                    "files": {split: f"{split}.jsonl" for split in ("train", *splits)},
                    "labels": {name: name for name in ("topic", "tags", "valence")},
                }
            ],
            "output_dir": str(tmp_path / "out"),
            "validation_fraction": 0.0,
            "test_fraction": 0.0,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "eval_strategy": "epoch",
            "save_strategy": "no",
            "max_length": 32,
            "precision": "fp32",  # In which `predict` computes.
            "use_cpu": True,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**settings, **changes}))
        return str(path)

    return write


def fitted_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {task["name"]: {key: task[key] for key in FITTED if key in task} for task in report["tasks"]}


def test_temperatures_are_fitted_after_training_kept_and_fitted_anew(
    write_settings: WriteSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    report = train_trainer.main([write_settings()])
    fitted = fitted_of(report)
    assert fitted["topic"].keys() == fitted["tags"].keys() == {"calibration_temperature"}
    assert fitted["valence"] == {}
    assert report["calibration"].keys() == {"topic", "tags"}
    for name, entry in report["calibration"].items():
        assert entry["temperature"] == fitted[name]["calibration_temperature"]
        assert entry["before"].keys() == entry["after"].keys() == {"validation", "test"}
        before, after = entry["before"]["validation"], entry["after"]["validation"]
        assert after["nll"] < before["nll"]
        assert len(after["bins"]) == 15
    # The loss is that of the logits as they are.
    topic = report["results"]["test"]["tasks"]["topic"]
    assert report["calibration"]["topic"]["before"]["test"]["nll"] == pytest.approx(topic["loss"], rel=1e-5)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["calibration"] == report["calibration"]
    model = MTLModel.from_pretrained(tmp_path / "out")
    assert model.config.task("topic").calibration_temperature == fitted["topic"]["calibration_temperature"]
    # What is loaded again is measured with the temperature that it has; where it is trained on, it gets another.
    again = [*("--backbone", str(tmp_path / "out")), *("--output_dir", str(tmp_path / "out2"))]
    repeated = train_trainer.main([write_settings(**EVALUATION_ONLY), *again])
    assert (repeated["tasks"], repeated["calibration"]) == (report["tasks"], report["calibration"])
    further = fitted_of(train_trainer.main([write_settings(), *again]))
    assert further["topic"]["calibration_temperature"] != fitted["topic"]["calibration_temperature"]
    stale = fitted_of(train_trainer.main([write_settings(calibrate=False), *again]))
    assert stale["topic"] == fitted["topic"]
    assert "stays: there are no validation rows" not in caplog.text
    train_trainer.set_up([write_settings(splits=("test",), eval_strategy="no"), *again])
    assert "probabilities of ['topic', 'tags'] were calibrated by stays: there are no validation rows" in caplog.text
    anew = train_trainer.main([write_settings(calibrate=True, **EVALUATION_ONLY), *again])
    assert anew["tasks"] == report["tasks"]


def test_thresholds_are_fitted_measured_described_and_used(write_settings: WriteSettings, tmp_path: Path) -> None:
    report = train_trainer.main([write_settings(fit_label_thresholds=True), "--abstention_error_rate", "0.2"])
    fitted = fitted_of(report)
    assert fitted["topic"].keys() == {"calibration_temperature", "abstention_threshold"}
    assert fitted["tags"].keys() == {"calibration_temperature", "label_thresholds"}
    least, thresholds = fitted["topic"]["abstention_threshold"], fitted["tags"]["label_thresholds"]
    topic, tags = (report["calibration"][name] for name in ("topic", "tags"))
    assert (topic["abstention_threshold"], tags["label_thresholds"]) == (least, thresholds)
    assert topic["after"]["validation"]["kept_error"] <= 0.2
    assert "coverage" not in topic["before"]["test"]
    results = report["results"]["test"]["tasks"]
    for key in ("coverage", "kept_error"):
        assert topic["after"]["test"][key] == results["topic"][key]
    assert tags["after"]["test"]["f1_micro"] == results["tags"]["f1_micro"]
    assert tags["after"]["validation"]["f1_macro"] > tags["before"]["validation"]["f1_macro"]
    _check_predictions(tmp_path, results["topic"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    temperature = fitted["topic"]["calibration_temperature"]
    assert f"; temperature {temperature:.4f}; abstains below score {least:.4f} |" in card.text
    assert f"thresholds of the labels from {min(thresholds):.4f} to {max(thresholds):.4f} |" in card.text
    before, after = (topic[when]["test"] for when in ("before", "after"))
    shown = " | ".join(f"{before[key]:.4f} to {after[key]:.4f}" for key in ("ece", "nll", "brier"))
    assert f"| `topic` | test | {temperature:.4f} | {shown} |\n" in card.text
    assert f"- `topic`, test: abstains below a score of {least:.4f}; kept are {after['coverage']:.4f}" in card.text
    assert "calibrated by one temperature a task" in card.text and "have not been calibrated" not in card.text
    # A saved model that is trained on gets thresholds of labels anew, too.
    again = [*("--backbone", str(tmp_path / "out")), *("--output_dir", str(tmp_path / "out2"))]
    kept = train_trainer.main([write_settings(**EVALUATION_ONLY), *again])
    assert (kept["tasks"], kept["results"]["test"]["tasks"]) == (report["tasks"], results)
    with pytest.raises(ValueError, match=r"has an abstention_threshold of \['topic'\], which no longer holds"):
        train_trainer.set_up([write_settings(), *again])
    further = fitted_of(train_trainer.main([write_settings({"abstention_threshold": 0.5}), *again]))
    assert further["topic"]["abstention_threshold"] == 0.5
    assert further["tags"]["label_thresholds"] not in (None, thresholds)


def _check_predictions(folder: Path, measured: dict[str, float]) -> None:
    model = MTLModel.from_pretrained(folder / "out")
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["topic"] is not None]
    predicted = [prediction["topic"] for prediction in model.predict([row["text"] for row in rows])]
    kept = [(guess, row) for guess, row in zip(predicted, rows, strict=True) if not guess["abstains"]]
    assert len(kept) / len(rows) == pytest.approx(measured["coverage"])
    wrong = sum(guess["label"] != row["topic"] for guess, row in kept)
    assert wrong / len(kept) == pytest.approx(measured["kept_error"])


def test_what_the_settings_of_a_task_give_stays(write_settings: WriteSettings) -> None:
    given = {"calibration_temperature": 3.0}
    report = train_trainer.main([write_settings(given, {"label_thresholds": [0.1, 0.2, 0.3, 0.4]})])
    fitted = fitted_of(report)
    assert fitted["topic"] == given
    assert fitted["tags"]["label_thresholds"] == [0.1, 0.2, 0.3, 0.4]
    assert "calibration_temperature" in fitted["tags"]


def test_nothing_is_calibrated(write_settings: WriteSettings, tmp_path: Path) -> None:
    for settings in (write_settings(calibrate=False), write_settings(splits=("test",), eval_strategy="no")):
        report = train_trainer.main([settings])
        assert report["calibration"] == {}
        assert not any(fitted_of(report).values())
        card = ModelCard.load(tmp_path / "out" / "README.md").text
        assert "Scores of `topic`, `tags` are softmax or sigmoid outputs and have not been calibrated." in card
        assert "## Calibration" not in card


def test_resumed_program_gets_the_same(write_settings: WriteSettings, tmp_path: Path) -> None:
    saving = {"save_strategy": "epoch", "fit_label_thresholds": True}
    unbroken = train_trainer.main([write_settings(**saving, output_dir=str(tmp_path / "unbroken"))])
    train_trainer.main([write_settings(**saving)])
    (tmp_path / "out" / "checkpoint-16" / "optimizer.pt").unlink()  # As if stopped while it was saved.
    resumed = train_trainer.main([write_settings(**saving), "--resume_from_checkpoint", "last"])
    assert resumed["tasks"] == unbroken["tasks"]
    assert resumed["calibration"] == unbroken["calibration"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"splits": ("test",), "eval_strategy": "no", "calibrate": True},
            "are fitted on validation, and there is none",
        ),
        (
            {"splits": ("test",), "eval_strategy": "no", "fit_label_thresholds": True},
            r"\(here of \['tags'\]\) are fitted on validation",
        ),
        ({"abstention_error_rate": 1.5}, "abstention_error_rate must be at least 0 and below 1, found 1.5"),
        (
            {"tags": {"label_thresholds": [0.5] * 4}, "fit_label_thresholds": True},
            "fit_label_thresholds has no effect: no task gives such probabilities, or the settings",
        ),
        (
            {"topic": {"abstention_threshold": 0.5}, "abstention_error_rate": 0.1},
            "abstention_error_rate has no effect",
        ),
        (
            {
                "topic": {"calibration_temperature": 2.0},
                "tags": {"calibration_temperature": 2.0},
                "calibrate": True,
            },
            "calibrate has no effect",
        ),
        ({"tags": {"label_thresholds": [0.5]}}, "label_thresholds has 1 numbers, but the task 4 labels"),
    ],
)
def test_what_is_told_before_training(write_settings: WriteSettings, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_trainer.set_up([write_settings(**arguments)])


@pytest.mark.parametrize("setting", [["--calibrate", "true"], ["--abstention_error_rate", "0"]])
def test_a_merge_is_not_calibrated_to_what_teachers_decide(setting: list[str]) -> None:
    with pytest.raises(ValueError, match="is not for merge_models.py: it would be fitted to what teachers decide"):
        merge_models.main(["--teachers", "a=b", "--texts", "t.txt", *setting, "--use_cpu", "true"])
