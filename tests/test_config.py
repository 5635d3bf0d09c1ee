"""TaskConfig and MTLConfig: what they refuse, what they fill in, and that a file gives back what was saved."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, DebertaV2Config, DistilBertConfig, ModernBertConfig

from configuration_mtl import SCHEMA_VERSION, MTLConfig, TaskConfig
from tasks_mtl import FURTHER_TEXTS, MULTI_LABEL, ORDINAL, PROBLEM_TYPES, REGRESSION

TOPIC = TaskConfig("topic", labels=("sport", "film", "shop"), weight=0.5, hidden_size=16)
TAGS = TaskConfig("tags", MULTI_LABEL, labels=("urgent", "thanks"))
VALENCE = TaskConfig("valence", REGRESSION)
TASKS = [TOPIC, TAGS, VALENCE]


def write_config(folder: Path, **changes: Any) -> Path:
    """Saves a config and then changes keys of its file, as another release might have written it."""
    MTLConfig(tasks=TASKS).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a.b"}, r"Task name 'a\.b' is illegal: .* Rename the task"),
        ({"name": ""}, "Task name '' is illegal"),
        ({"name": "1st"}, "Task name '1st' is illegal"),
        ({"name": "a b"}, "Task name 'a b' is illegal"),
        ({"name": "tâche"}, "is illegal"),
        ({"name": "a\n"}, "is illegal"),
        ({"name": None}, "Task name None is illegal"),
        ({"name": "train"}, "Task name 'train' is reserved: torch.nn.ModuleDict has an attribute of it"),
        ({"name": "type"}, "'type' is reserved"),
        ({"name": "keys"}, "'keys' is reserved"),
        ({"name": "training"}, "'training' is reserved"),
        ({"problem_type": "ranking"}, r"Task 'a': problem_type 'ranking' is unknown. Use one of \['single_label_"),
        ({"weight": -0.1}, "Task 'a': weight must be a finite number >= 0, found -0.1"),
        ({"weight": float("nan")}, "weight must be a finite number >= 0, found nan"),
        ({"weight": float("inf")}, "found inf"),
        ({"weight": True}, "found True"),
        ({"weight": "1"}, "found '1'"),
        ({"hidden_size": 0}, "Task 'a': hidden_size must be a positive int, found 0"),
        ({"hidden_size": 1.5}, "found 1.5"),
        ({"hidden_size": True}, "hidden_size must be a positive int, found True"),
        ({"labels": "xy"}, "Task 'a': labels must be a list of non-empty strings, found 'xy'"),
        ({"labels": ["x", ""]}, "list of non-empty strings"),
        ({"labels": ["x", 1]}, "list of non-empty strings"),
        ({"labels": {"x", "y"}}, "list of non-empty strings"),
        ({"labels": 2}, "list of non-empty strings, found 2"),
        ({"labels": ["x", "y", "x"]}, r"Task 'a': labels \['x'\] stand more than once. Give each label once"),
        ({"labels": ["x", "y"], "num_labels": 3}, "Task 'a': num_labels is 3, but 2 labels are named"),
        ({"labels": ["x"]}, "Task 'a': single_label_classification needs at least 2 labels, found 1.*problem_type"),
        ({"labels": []}, "at least 2 labels, found 0"),
        ({"num_labels": 1}, "at least 2 labels, found 1"),
        ({"num_labels": 2.0}, "found 2.0"),
        ({"num_labels": True, "problem_type": REGRESSION}, "regression needs at least 1 labels, found True"),
        ({"labels": ["x"], "problem_type": ORDINAL}, "ordinal_classification needs at least 2 labels, found 1"),
        ({"problem_type": ORDINAL, "label_smoothing": 0.1}, "label_smoothing has no effect on ordinal_classification"),
        ({"label_smoothing": 1.0}, r"Task 'a': label_smoothing must be a number in \[0, 1\), found 1.0"),
        ({"label_smoothing": "0.1"}, "found '0.1'"),
        ({"cosine_scale": 0}, "Task 'a': cosine_scale must be a number above 0, found 0"),
        ({"problem_type": REGRESSION, "cosine_scale": 20.0}, "cosine_scale has no effect on regression"),
        ({"rejection_threshold": 0.5}, "Task 'a': rejection_threshold needs `out_of_scope_label`"),
        ({"rejection_score": "energy"}, "rejection_score needs `out_of_scope_label`"),
        ({"out_of_scope_label": "oos", "problem_type": REGRESSION}, "regression has no rejection"),
        ({"out_of_scope_label": ""}, "out_of_scope_label must be a name, found ''"),
        ({"out_of_scope_label": "y", "labels": ["x", "y"]}, "'y' is its out_of_scope_label and so no class"),
        (
            {"out_of_scope_label": "oos", "rejection_score": "entropy"},
            r"rejection_score 'entropy' is unknown. Use one of \['energy', 'logit', 'probability'\]",
        ),
        ({"out_of_scope_label": "oos", "rejection_threshold": True}, "must be a finite number, found True"),
        ({"out_of_scope_label": "oos", "rejection_threshold": float("inf")}, "must be a finite number, found inf"),
        ({"calibration_temperature": 0.0}, "Task 'a': calibration_temperature must be a number above 0, found 0.0"),
        ({"calibration_temperature": float("inf")}, "found inf"),
        (
            {"problem_type": REGRESSION, "calibration_temperature": 1.0},
            "calibration_temperature has no effect on regr",
        ),
        ({"problem_type": "contrastive", "calibration_temperature": 1.0}, "has no effect on contrastive"),
        ({"abstention_threshold": 1.1}, r"Task 'a': abstention_threshold must be a number in \[0, 1\], found 1.1"),
        ({"abstention_threshold": True}, "found True"),
        (
            {"problem_type": MULTI_LABEL, "abstention_threshold": 0.5},
            "abstention_threshold has no effect on multi_label",
        ),
        ({"label_thresholds": [0.5]}, "Task 'a': label_thresholds has no effect on single_label_classification"),
        (
            {"problem_type": MULTI_LABEL, "label_thresholds": 0.5},
            "Task 'a': label_thresholds must be a list of numbers between 0 and 1, found 0.5",
        ),
        ({"problem_type": MULTI_LABEL, "label_thresholds": [0.5, 1.0]}, r"found \[0.5, 1.0\]"),
        ({"problem_type": MULTI_LABEL, "label_thresholds": [0.0]}, r"found \[0.0\]"),
        (
            {"problem_type": MULTI_LABEL, "labels": ["x", "y"], "label_thresholds": [0.5]},
            "Task 'a': label_thresholds has 1 numbers, but the task 2 labels. Give one for each label",
        ),
        (
            {"num_labels": 0, "problem_type": MULTI_LABEL},
            "multi_label_classification needs at least 1 labels, found 0",
        ),
    ],
)
def test_task_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig(**{"name": "a", **settings})


def test_task_fills_in_what_follows() -> None:
    assert TOPIC.num_labels == 3
    assert TOPIC.id2label == {0: "sport", 1: "film", 2: "shop"}
    assert TOPIC.label2id == {"sport": 0, "film": 1, "shop": 2}
    from_json: dict[str, Any] = {"name": "a", "labels": ["x", "y"]}
    assert TaskConfig(**from_json).labels == ("x", "y")
    unnamed = TaskConfig("a", num_labels=2)
    assert unnamed.labels is None
    assert unnamed.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert VALENCE.num_labels == 1
    assert TaskConfig("a", REGRESSION, num_labels=3).num_labels == 3
    assert TaskConfig("a", REGRESSION, labels=("joy", "fear")).num_labels == 2
    assert TaskConfig("a", MULTI_LABEL, num_labels=1).is_resolved


def test_task_without_labels_is_unresolved_until_they_are_known() -> None:
    for problem_type in PROBLEM_TYPES:
        assert TaskConfig("a", problem_type).is_resolved is (problem_type in (REGRESSION, *FURTHER_TEXTS))
    assert TaskConfig("a").id2label == {}


def test_task_dict_round_trip_through_json() -> None:
    intent = TaskConfig("intent", num_labels=2, out_of_scope_label="oos", rejection_threshold=0.25)
    stars = TaskConfig("stars", ORDINAL, labels=("1", "2", "3"))
    sure = TaskConfig("sure", num_labels=2, calibration_temperature=1.5, abstention_threshold=0.9)
    tags = TaskConfig("more", MULTI_LABEL, labels=("x", "y"), label_thresholds=(0.25, 0.75))
    for task in [*TASKS, TaskConfig("a"), TaskConfig("b-2_c", num_labels=2), intent, stars, sure, tags]:
        assert TaskConfig(**json.loads(json.dumps(task.to_dict()))) == task
    assert TOPIC.to_dict()["labels"] == ["sport", "film", "shop"]


def test_file_has_the_oldest_layout_that_holds_its_tasks(tmp_path: Path) -> None:
    write_config(tmp_path / "one")
    fields = json.loads((tmp_path / "one/config.json").read_text())
    # Just what the first layout had, so that code which knows no other reads it.
    assert fields["schema_version"] == 1
    assert [sorted(task) for task in fields["tasks"]] == [
        ["hidden_size", "labels", "name", "num_labels", "problem_type", "weight"]
    ] * 3
    assert MTLConfig.from_pretrained(tmp_path / "one").tasks == TASKS
    for version, task in (
        (2, TaskConfig("stars", ORDINAL, num_labels=3)),
        (2, TaskConfig("a", num_labels=3, label_smoothing=0.0)),
        (2, TaskConfig("a", num_labels=3, out_of_scope_label="oos")),
        (3, TaskConfig("stars", ORDINAL, num_labels=3, calibration_temperature=1.5)),
        (3, TaskConfig("a", num_labels=3, abstention_threshold=0.0)),
        (3, TaskConfig("a", MULTI_LABEL, num_labels=2, label_thresholds=(0.3, 0.4))),
    ):
        MTLConfig(tasks=[TOPIC, task]).save_pretrained(tmp_path / "later")
        assert json.loads((tmp_path / "later/config.json").read_text())["schema_version"] == version
        assert MTLConfig.from_pretrained(tmp_path / "later").tasks == [TOPIC, task]


def test_config_takes_tasks_and_their_dicts() -> None:
    config = MTLConfig(tasks=(TOPIC, TAGS.to_dict()))
    assert config.tasks == [TOPIC, TAGS]
    assert config.task_names == ["topic", "tags"]
    assert config.task("tags") == TAGS
    with pytest.raises(KeyError, match=r"No task 'tgas'; the model has \['topic', 'tags'\]"):
        config.task("tgas")


@pytest.mark.parametrize(
    "text_config",
    [
        {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 99},
        DistilBertConfig(dim=32, n_heads=4, dropout=0.0),
        ModernBertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=3, local_attention=8),
        DebertaV2Config(hidden_size=32, relative_attention=True, pos_att_type=["p2c", "c2p"], pad_token_id=3),
    ],
)
def test_config_saved_and_loaded_is_equal(text_config: Any, tmp_path: Path) -> None:
    config = MTLConfig(
        text_config=text_config,
        tasks=TASKS,
        pooling="cls",
        head_dropout=0.25,
        normalize=False,
        normalize_for_heads=True,
        max_seq_length=17,
    )
    config.save_pretrained(tmp_path / "one")
    loaded = MTLConfig.from_pretrained(tmp_path / "one")
    assert loaded.to_dict() == config.to_dict()
    assert loaded.tasks == TASKS
    assert type(loaded.text_config) is type(config.text_config)
    assert loaded.hidden_size == 32
    loaded.save_pretrained(tmp_path / "two")
    again = MTLConfig.from_pretrained(tmp_path / "two")
    assert again == MTLConfig.from_pretrained(tmp_path / "one")
    assert (tmp_path / "two/config.json").read_text() == (tmp_path / "one/config.json").read_text()


def test_auto_config_loads_the_file_by_its_own_code(tmp_path: Path) -> None:
    import mtl  # noqa: F401  # registers the local class, which from then on wins over the code in the folder

    write_config(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == "mtl"
    assert fields["auto_map"] == {"AutoConfig": "configuration_mtl.MTLConfig"}
    assert fields["schema_version"] == 1
    assert fields["text_config"]["model_type"] == "bert"
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is MTLConfig
    assert config.tasks == TASKS
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)) is MTLConfig


def test_misspelt_keyword_is_told_with_the_nearest_one() -> None:
    misspelt: dict[str, Any] = {"poling": "cls"}
    with pytest.raises(TypeError, match=r"MTLConfig has no setting 'poling'\. Did you mean 'pooling'\?"):
        MTLConfig(**misspelt)
    unlike_any: dict[str, Any] = {"xyzzy": 1}
    with pytest.raises(TypeError, match=r"MTLConfig has no setting 'xyzzy'\.$"):
        MTLConfig(**unlike_any)
    with pytest.raises(TypeError, match=r"Task 'topic' has no setting 'lables'\. Did you mean 'labels'\?"):
        MTLConfig(tasks=[{"name": "topic", "lables": ["x", "y"]}])
    with pytest.raises(TypeError, match=r"Task 'topic' has no setting 'xyzzy'\. Known are \['abstention_threshold'"):
        MTLConfig(tasks=[{"name": "topic", "xyzzy": 1}])
    with pytest.raises(TypeError, match="A task is a TaskConfig or a dict of its settings, found 'topic'"):
        MTLConfig(tasks=["topic"])


def test_keywords_of_the_base_class_are_taken() -> None:
    undeclared: dict[str, Any] = {"attn_implementation": "eager", "name_or_path": "a/b"}
    config = MTLConfig(tasks=TASKS, output_hidden_states=True, **undeclared)
    assert config.output_hidden_states
    assert config.text_config._attn_implementation == "eager"
    assert config.name_or_path == "a/b"


def test_unknown_key_of_a_file_is_kept_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_config(tmp_path / "one", setting_of_tomorrow=3)
    # The library's loggers do not hand on what they log.
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        config = MTLConfig.from_pretrained(tmp_path / "one")
    finally:
        logger.removeHandler(caplog.handler)
    assert config.setting_of_tomorrow == 3
    told = [record.getMessage() for record in caplog.records if "setting_of_tomorrow" in record.getMessage()]
    assert told == ["MTLConfig: key 'setting_of_tomorrow' of config.json is unknown and is kept as it is."]
    config.save_pretrained(tmp_path / "two")
    assert json.loads((tmp_path / "two/config.json").read_text())["setting_of_tomorrow"] == 3


def test_newer_layout_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, schema_version=SCHEMA_VERSION + 1, transformers_version="99.0.0")
    message = rf"schema_version {SCHEMA_VERSION + 1}, but this code reads at most {SCHEMA_VERSION}.*newer release."
    with pytest.raises(ValueError, match=message):
        MTLConfig.from_pretrained(tmp_path)


def test_file_of_this_layout_and_another_transformers_is_read(tmp_path: Path) -> None:
    write_config(tmp_path, transformers_version="4.99.0")
    assert MTLConfig.from_pretrained(tmp_path).tasks == TASKS
    assert MTLConfig(tasks=TASKS).to_dict()["transformers_version"] == transformers.__version__


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": [TOPIC, TOPIC]}, "Two tasks are named 'topic' and 'topic'"),
        ({"tasks": [TOPIC, TaskConfig("Topic", num_labels=2)]}, "'topic' and 'Topic'; names must differ by more than"),
        ({"tasks": [TaskConfig("a")]}, "Task 'a' has neither `labels` nor `num_labels`. Give one of them"),
        ({"tasks": TOPIC}, "tasks"),
        ({"head_dropout": 1.0}, r"head_dropout must be in \[0, 1\), found 1.0"),
        ({"head_dropout": -0.1}, r"head_dropout must be in \[0, 1\), found -0.1"),
        ({"head_dropout": "0.1"}, "head_dropout"),
        ({"max_seq_length": 0}, "max_seq_length must be a positive number of tokens, found 0"),
        ({"max_seq_length": 3.5}, "max_seq_length"),
        ({"pooling": "median"}, "pooling"),
        ({"normalize": "yes"}, "normalize"),
    ],
)
def test_config_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(StrictDataclassError, match=message):
        MTLConfig(**{"tasks": [TOPIC], **settings})


@pytest.mark.parametrize("key", ["tasks", "text_config"])
def test_file_that_lacks_what_has_no_default(key: str, tmp_path: Path) -> None:
    write_config(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields[key]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"has no \['{key}'\].*its model_type is 'mtl'\)"):
        MTLConfig.from_pretrained(tmp_path)


def test_illegal_task_in_a_file_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path, tasks=[{"name": "train", "num_labels": 2}])
    with pytest.raises(ValueError, match="Task name 'train' is reserved"):
        MTLConfig.from_pretrained(tmp_path)


def test_config_broken_after_construction_is_not_saved(tmp_path: Path) -> None:
    config = MTLConfig(tasks=[TOPIC])
    config.tasks = [TOPIC, TOPIC]
    with pytest.raises(StrictDataclassError, match="Two tasks are named"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()
