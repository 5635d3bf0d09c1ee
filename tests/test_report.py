"""The file of a report: numbers that JSON does not have, and what a write that fails leaves."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mtl.report import write_report


def test_numbers_that_json_does_not_have_are_none(tmp_path: Path) -> None:
    report = {"training": {"train_loss": float("nan"), "steps": 3}, "clip": [float("inf"), 1.5, (float("-inf"), "a")]}
    write_report(report, tmp_path / "report.json")
    saved = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert saved == {"training": {"train_loss": None, "steps": 3}, "clip": [None, 1.5, [None, "a"]]}


def test_write_that_fails_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError("No space left on device")

    write_report({"of": "before"}, tmp_path / "report.json")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report({"of": "now"}, tmp_path / "report.json")
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == {"of": "before"}
