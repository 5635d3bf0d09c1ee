"""The model card, where a whole run does not show it."""

from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel, SaveBackbone

from configuration_mtl import MTLConfig, TaskConfig
from mtl.card import build_card
from mtl.card_origin import Origin, find_origin
from tasks_mtl import POSITIVE_PAIRS, SCORED_PAIRS


def card_of(config: MTLConfig, **changes: Any) -> str:
    """Returns the text of a card of a model that was only measured, of a report without figures."""
    report = {
        "training": {}, "precision": "fp32", "parameters": {}, "versions": {"torch": "2"}, "history": [],
        "tasks": [task.to_dict() for task in config.tasks],
        "data": {"rows": {"test": 3}, "truncated": {"test": 0}, "max_length": 128},
    }  # fmt: skip
    given = {"name": "m", "origin": Origin(), "datasets": ["d"], "results": [], "report": report, "command": "c"}
    return build_card(config, **{**given, **changes}).text


def test_labels_do_not_break_the_table_of_tasks(tiny_model: MakeModel) -> None:
    config = tiny_model(tasks=[TaskConfig("answer", labels=("yes|no", "both\nof them", "é"))]).config
    card = card_of(config)
    assert "| `answer` | single_label_classification | yes\\|no, both of them, é | 1.0 |\n" in card


def test_settings_of_tasks_are_shown_where_they_are_not_the_default(tiny_model: MakeModel) -> None:
    tasks = [
        TaskConfig("plain", labels=("a", "b"), label_smoothing=0.1, hidden_size=8),
        TaskConfig("scaled", labels=("a", "b"), cosine_scale=20.0, out_of_scope_label="oos"),
        TaskConfig("near", SCORED_PAIRS, loss="cosine"),
        TaskConfig("found", POSITIVE_PAIRS, temperature=0.1, symmetric=True),
    ]
    card = card_of(tiny_model(tasks=tasks).config)
    for row in (
        "| `plain` | single_label_classification | a, b; hidden_size 8; label_smoothing 0.1 | 1.0 |",
        "| `scaled` | single_label_classification | a, b; cosine_scale 20.0; out_of_scope_label oos | 1.0 |",
        "| `near` | scored_pairs, loss cosine | the embedding | 1.0 |",
        "| `found` | positive_pairs, loss info_nce | the embedding; temperature 0.1; symmetric True | 1.0 |",
    ):
        assert f"{row}\n" in card, card


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
