"""The model card, where a whole run does not show it."""

from conftest import MakeModel

from configuration_mtl import TaskConfig
from mtl.card import build_card


def test_labels_do_not_break_the_table_of_tasks(tiny_model: MakeModel) -> None:
    config = tiny_model(tasks=[TaskConfig("answer", labels=("yes|no", "both\nof them", "é"))]).config
    report = {
        "training": {},
        "precision": "fp32",
        "parameters": {},
        "versions": {"torch": "2"},
        "history": [],
        "data": {"rows": {"test": 3}, "truncated": {"test": 0}},
    }
    card = build_card(config, name="m", base_model=None, datasets=["d"], results=[], report=report, command="c")
    assert "| `answer` | single_label_classification | yes\\|no, both of them, é | 1.0 |\n" in card.text
