"""The benchmark of weightings: what it runs, measures, keeps and shows."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SaveBackbone, ToyRows

ROOT = Path(__file__).resolve().parents[1]
# By path: another installed package may bring a module `benchmarks`.
WEIGHTING = runpy.run_path(str(ROOT / "benchmarks" / "weighting.py"))


def test_method_as_arguments() -> None:
    assert WEIGHTING["arguments_of"]("dwa") == ["--weighting", "dwa"]
    assert WEIGHTING["arguments_of"]("aggregation/mgda") == ["--aggregation", "mgda"]


@pytest.mark.slow
def test_measures_goes_on_and_shows(
    tmp_path: Path, backbone_dir: SaveBackbone, toy_rows: ToyRows, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {split: tmp_path / f"{split}.jsonl" for split in ("train", "validation", "test")}
    for seed, file in enumerate(files.values()):
        file.write_text("".join(json.dumps(row) + "\n" for row in toy_rows(40, seed)), encoding="utf-8")
    config = {
        "backbone": str(backbone_dir("bert")),
        "tasks": [{"name": "topic"}, {"name": "valence", "problem_type": "regression"}],
        "sources": [
            {
                "files": {name: str(file) for name, file in files.items()},
                "labels": {n: n for n in ("topic", "valence")},
            }
        ],
        "use_cpu": True,
    }
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump(config), encoding="utf-8")

    def run(*options: str, max_steps: int = 2) -> dict[str, Any]:
        places = ["--output", str(tmp_path / "weighting.json"), "--work_dir", str(tmp_path / "work")]
        common = ["--settings", str(settings), "--max_steps", str(max_steps), "--limit", "16", *places]
        return WEIGHTING["main"]([*common, *options])

    methods = ("--methods", "equal", "aggregation/mgda")
    report = run(*methods)
    assert [run["method"] for run in report["runs"]] == ["equal", "aggregation/mgda"]
    assert all(run["training"]["steps"] == 2 for run in report["runs"])
    capsys.readouterr()
    assert run(*methods) == report
    assert "2 trainings, 0 of them to do." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="measured with other settings"):
        run(*methods, max_steps=3)
    run("--table")
    printed = capsys.readouterr().out
    assert "| `aggregation/mgda` |" in printed
    assert "A trial run" in printed
    document = tmp_path / "weighting.md"
    document.write_text("<!-- weighting:begin -->\n<!-- weighting:end -->\n", encoding="utf-8")
    run("--write", str(document))
    assert printed.strip() in document.read_text(encoding="utf-8")
