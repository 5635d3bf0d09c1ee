"""The model card, where a whole run does not show it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel, SaveBackbone
from hub_metadata import metadata_errors
from huggingface_hub import ModelCard

from configuration_mtl import MTLConfig, TaskConfig
from mtl.card import build_card
from mtl.card_origin import Origin, find_origin
from mtl.evaluation import EvaluationResult
from mtl.sources import SourceConfig
from tasks_mtl import POSITIVE_PAIRS, SCORED_PAIRS

REPORT: dict[str, Any] = {
    "training": {}, "precision": "fp32", "parameters": {}, "versions": {"torch": "2"}, "history": [],
    "data": {"rows": {"test": 3}, "truncated": {"test": 0}, "max_length": 128},
}  # fmt: skip
"""Of a model that was only measured, without figures."""


def card_of(config: MTLConfig, *, report: Mapping[str, Any] = REPORT, **changes: Any) -> str:
    """Returns a card, metadata and text."""
    given = {"name": "m", "origin": Origin(), "sources": [SourceConfig("d.csv")], "results": [], "command": "c"}
    tasks = [task.to_dict() for task in config.tasks]
    return build_card(config, report={**report, "tasks": tasks}, **{**given, **changes}).content


def test_labels_do_not_break_the_table_of_tasks(tiny_model: MakeModel) -> None:
    config = tiny_model(tasks=[TaskConfig("answer", labels=("yes|no", "both\nof them", "é"))]).config
    card = card_of(config)
    assert "| `answer` | single_label_classification | yes\\|no, both of them, é | 1.0 |\n" in card


def test_all_labels_are_told_where_the_table_has_no_room(tiny_model: MakeModel) -> None:
    many, long = tuple(f"intent_{number}" for number in range(30)), ("<!-- " + "x" * 80, "plain")
    tasks = [TaskConfig("few", labels=("a", "b")), TaskConfig("many", labels=many), TaskConfig("long", labels=long)]
    card = card_of(tiny_model(tasks=tasks).config)
    assert f"| `many` | single_label_classification | {', '.join(many[:12])} … (30) | 1.0 |\n" in card
    assert f"| `long` | single_label_classification | `<!-- {'x' * 54}…`, plain | 1.0 |\n" in card
    lists = [f"labels of {name}</summary>\n\n{shown}\n\n</details>\n" for name, shown in (
        ("many", ", ".join(many)), ("long", f"`{long[0]}`, plain")
    )]  # fmt: skip
    assert all(part in card for part in lists)
    assert card.count("<details>") == 2


HOSTILE = "```\n</details> | <b>*x*"


def test_arbitrary_texts_do_not_break_the_card(tiny_model: MakeModel) -> None:
    config = tiny_model(tasks=[TaskConfig("topic", labels=(HOSTILE, "b"))]).config
    settings = dict.fromkeys(("max_steps", "teacher", "teacher_annealing", "early_stopping_patience"))
    settings |= {"max_steps": 3, "load_best_model_at_end": False, "freeze": HOSTILE}
    training = {"train_runtime": 1.0, "num_processes": 1, "steps": 3, "effective_batch_size": 8, "epochs": 1.0}
    report = {**REPORT, "settings": settings, "training": training, "parameters": {"trained": 1, "total": 2}}
    source = SourceConfig("d.csv", name=HOSTILE)
    card = card_of(config, name=HOSTILE, sources=[source], report=report, command=f"python a.py '{HOSTILE}'")
    shown = "```` ``` </details> | <b>*x* ````"
    assert f"\n# {shown}\n" in card
    assert f"Data: {shown}; rows: test 3." in card
    assert f"| freeze | {shown.replace('|', chr(92) + '|')} |\n" in card
    assert f"````bash\npython a.py '{HOSTILE}'\n````\n" in card
    assert f"- the data {shown}: not given" in card
    assert ModelCard(card).data.to_dict()["tags"][0] == "multi-task"


def test_resumed_training_says_what_its_time_is_of(tiny_model: MakeModel) -> None:
    settings = {"max_steps": 30, "teacher": None, "load_best_model_at_end": False, "early_stopping_patience": None}
    training = {"train_runtime": 9.0, "num_processes": 1, "steps": 30, "effective_batch_size": 8, "epochs": 1.0}
    report = {**REPORT, "settings": settings, "training": training, "parameters": {"trained": 1, "total": 2}}
    assert "Training took 9 s: 30 steps of 8 rows" in card_of(tiny_model().config, report=report)
    training["resumed_at_step"] = 20
    card = card_of(tiny_model().config, report=report)
    assert "Training took 9 s from step 20 on, where it was resumed: 30 steps of 8 rows" in card


def test_metadata_is_what_the_hub_takes(tiny_model: MakeModel) -> None:
    measured = {"topic": {"accuracy": 0.5, "mcc": math.nan, "loss": 1.0, "support": 3}}
    results = [EvaluationResult("test", 3, 0.5, measured, {"topic": "accuracy"}, 1.0)]
    known: dict[str, Any] = {"license": "apache-2.0", "language": ["en"], "results": results, "name": "you/m"}
    card = card_of(tiny_model().config, **known, origin=Origin("some/encoder"))
    assert metadata_errors(card) == []
    data: Any = ModelCard(card).data
    assert [some.metric_type for some in data.eval_results] == ["accuracy"]
    wrong = card_of(tiny_model().config, **{**known, "license": "CC BY 4.0", "language": ["English"], "name": " "})
    found = " ".join(metadata_errors(wrong))
    assert "'CC BY 4.0'" in found and "'English'" in found and '"model-index[].name" is required' in found
    assert metadata_errors(card.replace("value: 0.5", "value: .nan")) != []


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


def result(split: str, *names: str) -> EvaluationResult:
    """Returns a result with one metric a task."""
    metrics = {name: {"accuracy": 0.5, "support": 3} for name in names}
    return EvaluationResult(split, 3, 0.5, metrics, dict.fromkeys(names, "accuracy"), 1.0)


def test_validation_says_what_was_chosen_on_it(tiny_model: MakeModel) -> None:
    config = tiny_model().config
    results = [result("validation", "topic"), result("test", "topic")]
    settings = {"load_best_model_at_end": True, "early_stopping_patience": None}
    assert "Chosen on" not in card_of(config, results=results)
    fitted = {"rejection_threshold": ["topic"], "calibration_temperature": ["topic", "tags"]}
    measured = {**REPORT, "settings": settings, "chosen_on_validation": fitted}
    card = card_of(config, results=results, report=measured)
    expected = (
        "## Results on validation (3 rows)\n\nChosen on these rows: `rejection_threshold` of `topic`; "
        "`calibration_temperature` of `topic`, `tags`. So these figures may flatter the model; those of test are the "
        "estimate.\n\n| task |"
    )
    assert expected in card
    assert card.count("Chosen on") == 1
    alone = card_of(config, results=results[:1], report=measured)
    assert "may flatter the model; an estimate needs other rows, and there is no test.\n" in alone


def test_figures_are_of_the_sources_of_their_task(tiny_model: MakeModel) -> None:
    sources = [
        SourceConfig("a.csv", labels={"topic": "y"}),
        SourceConfig("b.csv", labels={"tags": "y"}),
        SourceConfig("c.csv", labels={"tags": "y"}),
    ]
    results = [result("test", "topic", "tags", "valence")]
    card = card_of(tiny_model().config, sources=sources, results=results)
    data: Any = ModelCard(card).data
    found = {some.task_name: (some.dataset_type, some.dataset_name) for some in data.eval_results}
    assert found == {"topic": ("a", "a"), "tags": ("b", "b, c"), "valence": ("a", "a, b, c")}


def test_use_shows_pairs_to_heads_that_read_pairs(tiny_model: MakeModel) -> None:
    config = tiny_model().config
    pairs = SourceConfig("p.csv", text_pair="second", labels={"topic": "y"})
    single = SourceConfig("s.csv", labels={"sentiment": "y", "tags": "y", "valence": "y"})
    assert 'model.predict(["A sentence."])  # every task at once\n' in card_of(config, sources=[single])
    card = card_of(config, sources=[pairs, single])
    assert 'model.predict(["A sentence."])  # of use: sentiment, tags, valence\n' in card
    assert 'model.predict([("One sentence.", "And another.")])  # pairs, for topic\n' in card
    card = card_of(tiny_model(tasks=[config.tasks[0]]).config, sources=[pairs])
    assert "model.predict([(" in card and 'predict(["A' not in card


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
    assert find_origin("embedded") == Origin("sentence-transformers/all-MiniLM-L6-v2", encoder_license="apache-2.0")
    folder = backbone_dir("bert")
    assert find_origin(str(folder)) == Origin()  # A folder of this machine is no name for anyone else.
    (folder / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    assert find_origin(str(folder)) == Origin(encoder_license="mit")


def test_licences_of_model_encoder_and_data_are_told(tiny_model: MakeModel) -> None:
    config = tiny_model().config
    sources = [SourceConfig("d.csv", license="cc-by-4.0"), SourceConfig("e.csv")]
    card = card_of(config, sources=sources, license="mit", origin=Origin(encoder_license="apache-2.0"))
    told = card[card.index("## Licences") :]
    assert told.split("\n\n")[1].strip().splitlines() == [
        "- this model: mit", "- the encoder: apache-2.0", "- the data `d`: cc-by-4.0", "- the data `e`: not given"
    ]  # fmt: skip
    card = card_of(config, origin=Origin("you/m", "you/m", license="gpl-3.0"))
    assert "- this model: gpl-3.0\n- the model it starts from: gpl-3.0\n" in card
