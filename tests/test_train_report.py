"""What a run leaves to look at: evidence, page and pictures, their place, and what is refused or left out."""

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SaveBackbone, ToyRows
from huggingface_hub import ModelCard

import train_report
import train_trainer
from predictor_mtl import MANIFEST

TASKS = ("topic", "valence")


@pytest.fixture
def settings(tmp_path: Path, toy_rows: ToyRows, backbone_dir: SaveBackbone) -> dict[str, Any]:
    """Gives the settings of a short run on toy rows."""
    lines = [json.dumps(row) for row in toy_rows(80, 0)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "backbone": str(backbone_dir()),
        "tasks": [{"name": "topic"}, {"name": "valence", "problem_type": "regression"}],
        "sources": [{"path": str(tmp_path / "rows.jsonl"), "name": "toy", "labels": {name: name for name in TASKS}}],
        "test_fraction": 0.4,
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
    }


def run(settings: dict[str, Any], words: Sequence[str] = (), **changes: Any) -> dict[str, Any]:
    """Runs the program with settings and changes of them; returns the report."""
    path = Path(settings["output_dir"]).parent / "settings.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
    return train_trainer.main([str(path), *words])


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the page needs the extra `report`")
def test_run_leaves_evidence_page_and_pictures(settings: dict[str, Any], tmp_path: Path) -> None:
    report = run(settings, report=True)
    out = tmp_path / "out"
    evidence = json.loads((out / "_report" / "evidence.json").read_text(encoding="utf-8"))
    assert set(evidence["evidence"]) == {"validation", "test"}
    accuracy = evidence["evidence"]["test"]["tasks"]["topic"]["metrics"]["accuracy"]
    assert accuracy["value"] == report["results"]["test"]["tasks"]["topic"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    page = (out / "_report" / "report.html").read_text(encoding="utf-8")
    assert evidence["evidence"]["test"]["tasks"]["valence"]["errors"][0]["text"] in page
    # Texts are in the page alone: it is not pushed, the report, the card and the pictures are.
    saved = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert "evidence" not in saved
    assert "map" not in saved["embedding"]
    assert saved["embedding"]["before"]["uniformity"] != saved["embedding"]["after"]["uniformity"]
    assert sorted(file.name for file in (out / "figures").iterdir()) == sorted(saved["figures"])
    card = ModelCard.load(out / "README.md").text
    assert "![confusion of topic](figures/confusion-topic.png)" in card
    assert saved["embedding"]["advice"] in card
    texts = [json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    for file in (out / "report.json", out / "README.md"):
        assert not any(text in file.read_text(encoding="utf-8") for text in texts)


def test_next_run_removes_what_would_speak_of_another_model(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings)
    assert (tmp_path / "out" / "_report" / "evidence.json").is_file()
    graph = tmp_path / "out" / "onnx" / "model.onnx"
    graph.parent.mkdir()
    graph.touch()
    (tmp_path / "out" / MANIFEST).write_text('{"weights": "those of before"}')
    report = run(settings, report=False)
    assert not graph.exists() and not (tmp_path / "out" / MANIFEST).exists()
    assert not (tmp_path / "out" / "_report").exists()
    assert not (tmp_path / "out" / "figures").exists()
    assert "embedding" not in report
    assert "## Pictures" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_next_run_leaves_what_is_not_its_own(settings: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for file in (
        "figures/mine.png",
        "figures/results.png",
        "_report/figures/results.png",
        "_evaluation/evaluation.json",
    ):
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text("of before")
    run(settings, report=False)
    # The page has drawn `results`; what `mtl evaluate` said is of the model that is gone.
    assert [file.name for file in (out / "figures").iterdir()] == ["mine.png"]
    assert not (out / "_evaluation").exists()


def test_what_fails_with_the_page_costs_neither_report_nor_card(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(train_report, "build_evidence", fail)
    report = run(settings)
    saved = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert saved["results"] == report["results"]
    assert "## Results on test" in ModelCard.load(tmp_path / "out" / "README.md").text
    assert "No page could be made." in caplog.text and "No space left on device" in caplog.text


def test_diverged_training_is_reported(settings: dict[str, Any], tmp_path: Path) -> None:
    report = run(settings, learning_rate=1e30)
    saved = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert saved["embedding"]["before"]["uniformity"] < 0
    assert saved["embedding"]["after"]["uniformity"] is None
    assert report["embedding"]["advice"] in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_model_in_its_own_folder_is_not_compared_with_itself(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, report=False)
    report = run(settings, backbone=str(tmp_path / "out"), output_dir=str(tmp_path / "out" / "." / ""))
    assert report["embedding"]["before"] is None
    assert "not compared" in report["embedding"]["advice"]


def test_card_is_named_after_the_folder_however_it_is_given(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    train_report_of = run(settings, ["--output_dir", "."], report=False)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.model_name == "out"
    assert "# out\n" in card.text
    assert train_report_of["results"]


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_evidence_is_there_without_the_extra(
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    package: str,
) -> None:
    real = importlib.util.find_spec
    hidden = lambda name, *rest: None if name == package else real(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    report = run(settings, embedding_report=False)
    assert report["figures"] == []
    assert "embedding" not in report
    assert sorted(file.name for file in (tmp_path / "out" / "_report").iterdir()) == ["evidence.json"]
    assert 'pip install "mtl-sentence-transformers[report]"' in caplog.text


def test_scored_pairs_are_read_before_training(settings: dict[str, Any], tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,score\nmatch team,goal,5\nprice,scene,1\nrefund,order,4\n", encoding="utf-8")
    report = run(settings, similarity_pairs=str(pairs), report=False)
    assert "embedding" not in report
    report = run(settings, similarity_pairs=str(pairs))
    assert report["embedding"]["after"]["similarity"]["pairs"] == 3
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| Spearman on pairs (3 pairs) |" in card
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        run(settings, similarity_pairs=str(tmp_path / "absent.csv"))


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_wanted_page_without_the_extra_is_refused_before_training(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"`report` needs {package}: `pip install"):
        run(settings, report=True)
