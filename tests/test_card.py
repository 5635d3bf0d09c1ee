"""The model card, where a whole run does not show it."""

from pathlib import Path

import pytest
from conftest import MakeModel, SaveBackbone

from configuration_mtl import TaskConfig
from mtl.card import build_card
from mtl.card_origin import Origin, find_origin


def test_labels_do_not_break_the_table_of_tasks(tiny_model: MakeModel) -> None:
    config = tiny_model(tasks=[TaskConfig("answer", labels=("yes|no", "both\nof them", "é"))]).config
    report = {
        "training": {},
        "precision": "fp32",
        "parameters": {},
        "versions": {"torch": "2"},
        "history": [],
        "tasks": [{"name": "answer"}],
        "data": {"rows": {"test": 3}, "truncated": {"test": 0}},
    }
    card = build_card(config, name="m", origin=Origin(), datasets=["d"], results=[], report=report, command="c")
    assert "| `answer` | single_label_classification | yes\\|no, both of them, é | 1.0 |\n" in card.text


def test_a_run_that_starts_from_a_saved_model_keeps_what_its_card_says(
    tiny_model: MakeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_model().save_pretrained(tmp_path / "old")
    assert find_origin(str(tmp_path / "old")) == Origin(starts_from="old")  # Its short card names none of these.
    card = tmp_path / "old" / "README.md"
    card.write_text("---\nlicense: mit\nlanguage: en\nbase_model: some/encoder\n---\n# old\n")
    assert find_origin(str(tmp_path / "old")) == Origin("some/encoder", "old", "mit", ("en",))
    card.write_text("---\nlanguage: [en, de]\nbase_model: [a/b, c/d]\n---\n")
    assert find_origin(str(tmp_path / "old")) == Origin("a/b", "old", None, ("en", "de"))
    card.write_text("---\nlicense: [mit\n---\n")
    assert find_origin(str(tmp_path / "old")) == Origin(starts_from="old")
    assert "The card of" in caplog.text and "cannot be read" in caplog.text
    card.unlink()
    assert find_origin(str(tmp_path / "old")) == Origin(starts_from="old")


def test_origin_of_an_encoder(backbone_dir: SaveBackbone) -> None:
    assert find_origin("embedded") == Origin("sentence-transformers/all-MiniLM-L6-v2")
    assert find_origin(str(backbone_dir("bert"))) == Origin()  # A folder of this machine is no name for anyone else.
