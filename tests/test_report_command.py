"""`mtl report`: from the files of a folder to the page, and what a folder without them is told."""

import json
from pathlib import Path

import pytest
from conftest import MakeModel, ToyRows, WriteRows
from report_stand_in import make_comparison

import mtl.cli
from mtl.commands.report import read_folder


def put(path: Path, content: object) -> None:
    """Writes a JSON file."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_saved_model_is_measured_and_reported(
    make_model: MakeModel, toy_rows: ToyRows, write: WriteRows, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save_pretrained(tmp_path / "model")
    mtl.cli.main(["evaluate", str(tmp_path / "model"), str(write(toy_rows(40, 0))), "--quiet", "--resamples", "20"])
    mtl.cli.main(["report", str(tmp_path / "model"), "--title", "Toys", "--output_dir", str(tmp_path / "page")])
    assert "report.html, its 12 figures are in" in capsys.readouterr().out
    page = (tmp_path / "page" / "report.html").read_text(encoding="utf-8")
    assert '<h1 dir="auto">Toys</h1>' in page
    found = json.loads((tmp_path / "model" / "_evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    for task in found["tasks"].values():
        metric = task["metrics"][task["primary_metric"]]
        assert f"{metric['value']:.4f}" in page
        assert f"{metric['low']:.4f} to {metric['high']:.4f}" in page
    assert found["tasks"]["topic"]["errors"][0]["text"] in page
    assert (tmp_path / "page" / "figures" / "confusion-topic.png").is_file()
    assert not (tmp_path / "model" / "report.html").exists()


def test_later_evidence_takes_the_place_of_the_run_s_own(tmp_path: Path) -> None:
    evidence = {split: {"split": split, "num_rows": 1} for split in ("validation", "test")}
    put(tmp_path / "report.json", {"precision": "fp32", "evidence": evidence})
    put(tmp_path / "_evaluation" / "evaluation.json", {"split": "test", "num_rows": 2})
    put(tmp_path / "comparison.json", make_comparison())
    report, comparison = read_folder(tmp_path)
    assert report["precision"] == "fp32"
    assert {split: part["num_rows"] for split, part in report["evidence"].items()} == {"validation": 1, "test": 2}
    assert comparison == make_comparison()
    put(tmp_path / "evaluation.json", {"split": "test", "num_rows": 3})
    assert read_folder(tmp_path)[0]["evidence"]["test"]["num_rows"] == 3


def test_evidence_of_a_training_is_beside_its_page(tmp_path: Path) -> None:
    put(tmp_path / "report.json", {"precision": "fp32", "embedding": {"advice": "short"}})
    kept = {"evidence": {"test": {"split": "test", "num_rows": 1}}, "embedding": {"advice": "short", "map": {}}}
    put(tmp_path / "_report" / "evidence.json", kept)
    report, _ = read_folder(tmp_path)
    assert report == {"precision": "fp32", **kept}
    put(tmp_path / "_evaluation" / "evaluation.json", {"split": "test", "num_rows": 2})
    assert read_folder(tmp_path)[0]["evidence"]["test"]["num_rows"] == 2


def test_comparison_alone_is_reported(tmp_path: Path) -> None:
    put(tmp_path / "comparison.json", make_comparison())
    mtl.cli.main(["report", str(tmp_path)])
    page = (tmp_path / "_report" / "report.html").read_text(encoding="utf-8")
    assert "Split off valence: it loses 1.29 %." in page
    assert f'<h1 dir="auto">{tmp_path.name}</h1>' in page
    assert (tmp_path / "_report" / "figures" / "gains.png").is_file()


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"mtl report: error: .* has none of report.json, evaluation.json and"):
        mtl.cli.main(["report", str(tmp_path)])
    put(tmp_path / "report.json", {"results": {}})
    with pytest.raises(SystemExit, match=r"mtl report: error: There is no evidence of a split 'test', but of \[\]"):
        mtl.cli.main(["report", str(tmp_path), "--split", "test"])
    put(tmp_path / "report.json", ["no", "report"])
    with pytest.raises(SystemExit, match="report.json holds a list, where an object is expected"):
        mtl.cli.main(["report", str(tmp_path)])
    put(tmp_path / "report.json", {"results": {}})
    put(tmp_path / "evaluation.json", {"accuracy": 0.9})
    with pytest.raises(
        SystemExit, match=r"evaluation.json has no \['split', 'num_rows'\], so it is not of this package"
    ):
        mtl.cli.main(["report", str(tmp_path)])
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    with pytest.raises(SystemExit, match="report.json is no JSON"):
        mtl.cli.main(["report", str(tmp_path)])
