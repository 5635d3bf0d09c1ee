"""Single-task classifiers merged into one model, on tiny models that learned toy rows."""

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import SENTIMENTS, TOPICS, SaveBackbone, ToyRows, WriteRows
from datasets import Dataset, DatasetDict
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import merge_models
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import JsonObject, MTLTrainingArguments
from mtl.merging import latency_ms, metrics_of_probabilities, sizes, with_decisions
from mtl.teacher_columns import as_teacher_column
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION

ROOT = Path(__file__).parent.parent
BENCHMARK = runpy.run_path(str(ROOT / "benchmarks" / "merging.py"))
TrainTeacher = Callable[..., str]
NAN = float("nan")


@pytest.fixture
def train_teacher(tmp_path: Path, backbone_dir: SaveBackbone, toy_rows: ToyRows) -> TrainTeacher:
    """Gives a function that trains a tiny BERT classifier of one toy task, and returns its folder."""

    def train(task: str, labels: list[str] | None, *, seed: int, steps: int = 60) -> str:
        folder = backbone_dir("bert", seed=seed)
        named: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
        if labels is not None:
            named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(folder, **named)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = [row for row in toy_rows(200, seed + 10) if row[task] is not None]
        batch = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
        values = [row[task] if labels is None else labels.index(row[task]) for row in rows]
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            model(**batch, labels=torch.tensor(values)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.eval().save_pretrained(tmp_path / task)
        tokenizer.save_pretrained(tmp_path / task)
        return str(tmp_path / task)

    return train


def _argv(tmp_path: Path, texts: Path, teachers: list[str], *others: str) -> list[str]:
    settings = {
        "texts": texts,
        "backbone": tmp_path / "backbone-bert-0",
        "output_dir": tmp_path / "out",
        "per_device_train_batch_size": 16,
        "learning_rate": "5e-3",
        "num_train_epochs": 12,
        "logging_steps": 20,
        "save_strategy": "no",
        "use_cpu": "true",
    }
    flat = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return ["--teachers", *teachers, *flat, *others]


def test_two_classifiers_and_a_regression_become_one_model(
    tmp_path: Path, train_teacher: TrainTeacher, backbone_dir: SaveBackbone, toy_rows: ToyRows, write: WriteRows
) -> None:
    backbone_dir("bert")
    # The order of a teacher's labels is its own.
    teachers = {
        "topic": train_teacher("topic", list(TOPICS)[::-1], seed=1),
        "sentiment": train_teacher("sentiment", list(SENTIMENTS), seed=2),
        "valence": train_teacher("valence", None, seed=3),
    }
    texts = write([{"text": row["text"], "truth": row["topic"]} for row in toy_rows(400, 4)], "texts.json")
    pairs = [f"{task}={folder}" for task, folder in teachers.items()]
    report = merge_models.main(_argv(tmp_path, texts, pairs, "--labels", '{"topic": "truth"}'))

    merging = report["merging"]
    assert report["data"]["rows"] == {"train": 320, "validation": 40, "test": 40}
    assert report["results"] == {}
    for split in ("validation", "test"):  # Chance is 1/3.
        assert merging["agreement"][split]["topic"]["accuracy"] > 0.8
        assert merging["agreement"][split]["sentiment"]["accuracy"] > 0.8
        assert merging["agreement"][split]["valence"]["pearson"] > 0.8
        assert set(merging["gold"][split]) == {"topic"}
        assert merging["gold"][split]["topic"]["student"]["accuracy"] > 0.7
    _check_agreement(tmp_path, teachers["topic"], texts, merging)
    _check_cost(tmp_path, teachers, merging["cost"])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.eval_results is None  # Agreement is no result on a data set.
    assert "## Merged from single-task classifiers" in card.text and "Results on" not in card.text
    assert (
        f"| `topic` | topic | test | accuracy | {merging['agreement']['test']['topic']['accuracy']:.4f} |" in card.text
    )
    assert str(tmp_path / "topic") not in card.text.replace(_command(card.text), "")
    saved = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert saved["merging"] == merging
    logged = [entry for entry in saved["history"] if "teacher_loss_topic" in entry]
    assert logged and not [entry for entry in logged if "loss_topic" in entry]  # The truth is for measuring alone.


def _command(card: str) -> str:
    return card.partition("```bash\n")[2].partition("```")[0]


def _check_agreement(tmp_path: Path, folder: str, texts: Path, merging: dict[str, Any]) -> None:
    """The saved model agrees with the teacher as often as the report says, also with the truth."""
    student = MTLModel.from_pretrained(tmp_path / "out")
    assert student.config.task("topic").labels == tuple(TOPICS)[::-1]
    argv = _argv(tmp_path, texts, [f"topic={folder}"], "--labels", '{"topic": "truth"}')
    run, (teacher,) = merge_models.set_up(argv)
    rows, labels = run.splits["test"], list(TOPICS)[::-1]
    decided = [labels[int(place)] for place in teacher.says(rows["text"])["topic"].argmax(dim=1)]
    guesses = [prediction["topic"]["label"] for prediction in student.predict(rows["text"])]
    agreement = np.mean([guess == label for guess, label in zip(guesses, decided, strict=True)])
    assert merging["agreement"]["test"]["topic"]["accuracy"] == pytest.approx(agreement)
    assert [labels[place] for place in rows["label_topic"]] == decided
    truths = {row["text"]: row["truth"] for row in json.loads(texts.read_text())}
    pairs = [(guess, truths[text]) for guess, text in zip(guesses, rows["text"], strict=True) if truths[text]]
    accuracy = np.mean([guess == truth for guess, truth in pairs])
    assert merging["gold"]["test"]["topic"]["student"]["accuracy"] == pytest.approx(accuracy)
    assert merging["gold"]["test"]["topic"]["student"]["support"] == len(pairs)


def _check_cost(tmp_path: Path, teachers: dict[str, str], cost: dict[str, Any]) -> None:
    models = [AutoModelForSequenceClassification.from_pretrained(folder) for folder in teachers.values()]
    parameters = sum(parameter.numel() for model in models for parameter in model.parameters())
    student = MTLModel.from_pretrained(tmp_path / "out")
    own = sum(parameter.numel() for parameter in student.parameters())
    assert (cost["teachers"]["parameters"], cost["student"]["parameters"]) == (parameters, own)
    assert cost["ratio"]["parameters"] == pytest.approx(parameters / own, abs=1e-3)
    assert 2 < cost["ratio"]["size_mib"] < 4
    assert cost["ratio"]["latency_ms"] > 0


def test_texts_alone_are_enough(
    tmp_path: Path, train_teacher: TrainTeacher, backbone_dir: SaveBackbone, toy_rows: ToyRows
) -> None:
    backbone_dir("bert")
    folder = train_teacher("topic", list(TOPICS), seed=1, steps=2)
    (tmp_path / "texts.txt").write_text("".join(f"{row['text']}\n" for row in toy_rows(40, 4)))
    argv = _argv(tmp_path, tmp_path / "texts.txt", [f"topic={folder}"], "--max_steps", "2", "--test_fraction", "0")
    report = merge_models.main(argv)
    assert report["data"]["rows"] == {"train": 36, "validation": 4}
    assert report["merging"]["gold"] == {"validation": {}}
    again, _ = merge_models.set_up(argv)
    first, _ = merge_models.set_up(argv)
    assert again.splits["validation"]["text"] == first.splits["validation"]["text"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--texts", "a.txt"], "`teachers` are given as `<task>=<folder or Hub name>` each, found []"),
        (["--teachers", "topic", "--texts", "a.txt"], "found ['topic']"),
        (["--teachers", "a=x", "a=y", "--texts", "a.txt"], "`teachers` names a task twice: ['a', 'a']"),
        (["--teachers", "a=x"], "No texts are given. Name a file or data set: `--texts texts.txt`."),
        (["--teachers", "a=x", "--texts", "a.txt", "--teacher", "b"], "`teacher` is not for merge_models.py"),
        (["--teachers", "a=x", "--texts", "t", "--labels", '{"b": "c"}'], "`labels` has ['b'], but the tasks"),
        (["--teachers", "a=x", "--texts", "t", "--lerning_rate", "1"], "Did you mean 'learning_rate'?"),
    ],
)
def test_settings_that_are_refused(argv: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        merge_models.set_up([*argv, "--output_dir", "out"])
    assert message in str(caught.value)


def test_on_the_command_line_an_error_is_a_message(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "merge_models.py", "--teachers", "a"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "merge_models.py: error:" in ended.stderr and "Traceback" not in ended.stderr


def test_nothing_held_out_is_refused(
    tmp_path: Path, train_teacher: TrainTeacher, backbone_dir: SaveBackbone, toy_rows: ToyRows, write: WriteRows
) -> None:
    backbone_dir("bert")
    folder = train_teacher("topic", list(TOPICS), seed=1, steps=1)
    texts = write([{"text": row["text"]} for row in toy_rows(20, 4)])
    none = ["--validation_fraction", "0", "--test_fraction", "0"]
    with pytest.raises(ValueError, match=r"The texts have the splits \['train'\], but some are to train on"):
        merge_models.set_up(_argv(tmp_path, texts, [f"topic={folder}"], *none))


@pytest.mark.parametrize(
    ("kind", "cells", "fact"),
    [
        ("topic", ["sport", "opera"], "row 1 .* has the unknown label 'opera'; known are"),
        ("topic", [0, 7], "row 1 .* has the class id '7', but ids go from 0 to 2"),
        ("tags", ["a|b", "b"], "is string, but the cells of this task are lists"),
    ],
)
def test_true_label_that_the_teacher_lacks_gets_an_advice_that_can_be_followed(
    kind: str, cells: list[Any], fact: str, tmp_path: Path, write: WriteRows
) -> None:
    known = {
        "topic": TaskConfig("topic", labels=tuple(TOPICS)),
        "tags": TaskConfig("tags", MULTI_LABEL, labels=("a", "b")),
    }
    path = write([{"text": f"text {row}", kind: cell} for row, cell in enumerate(cells)])
    settings = merge_models.MergeSettings(teachers=[f"{kind}=x"], texts=str(path), labels=JsonObject({kind: kind}))
    settings.validation_fraction = settings.test_fraction = 0.0
    args = MTLTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    with pytest.raises(ValueError, match=f"{fact}.* The labels are those of the teacher: write true ones") as caught:
        merge_models.load_texts(settings, args, [known[kind]])
    assert "label_separator" not in str(caught.value) and "add the label" not in str(caught.value)


def test_decisions_of_teachers_are_labels_of_held_out_rows() -> None:
    tasks = (
        TaskConfig("topic", labels=("a", "b", "c")),
        TaskConfig("tags", MULTI_LABEL, labels=("x", "y")),
        TaskConfig("valence", REGRESSION),
    )
    rows = Dataset.from_dict(
        {"label_topic": [1, -100], "label_tags": [[NAN, NAN], [NAN, NAN]], "label_valence": [NAN, NAN]}
    )
    says = {"topic": [[0.2, 0.1, 0.7], [NAN] * 3], "tags": [[0.5, 0.4], [0.9, NAN]], "valence": [[1.5], [NAN]]}
    for name, cells in says.items():
        rows = rows.add_column(f"teacher_{name}", as_teacher_column(np.array(cells)))
    rows = rows.cast_column("label_tags", rows.features["teacher_tags"])
    splits = with_decisions(DatasetDict({"train": rows, "test": rows}), tasks)
    test, train = splits["test"], splits["train"]
    assert test["label_topic"][:] == [2, IGNORE_INDEX] and test["gold_topic"][:] == [1, IGNORE_INDEX]
    assert test["label_tags"][:][0] == [1.0, 0.0] and test["label_tags"][:][1][0] == 1.0
    assert test["label_valence"][:][0] == 1.5 and np.isnan(test["label_valence"][:][1])
    assert train["label_topic"][:] == [IGNORE_INDEX] * 2
    assert np.isnan(train["label_tags"][:]).all() and np.isnan(train["label_valence"][:]).all()
    assert "gold_tags" not in test.column_names


def test_metrics_of_probabilities_are_those_of_their_logits() -> None:
    tags = TaskConfig("tags", MULTI_LABEL, labels=("x", "y"))
    labels = np.array([[1.0, 0.0], [1.0, 0.0]])
    # Predicted from 1/2 up: x, and x and y. One of three is wrong: precision 2/3, recall 1, F1 = 4/5.
    found = metrics_of_probabilities(tags, np.array([[0.6, 0.4], [1.0, 0.5]], np.float32), labels)
    assert found["f1_micro"] == pytest.approx(0.8)


def test_sizes_and_latency() -> None:
    layer = nn.Linear(1024, 256, bias=False)
    assert sizes(layer) == {"parameters": 2**18, "size_mib": 1.0}  # 2^18 numbers of 4 bytes.
    calls: list[str] = []
    durations = latency_ms({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert set(durations) == {"a", "b"} and min(durations.values()) >= 0


def test_benchmark_takes_rows_of_every_split_and_shows_the_figures() -> None:
    splits = ["train"] * 5 + ["test"] * 3
    table = pa.table({"row": list(range(8)), "split": splits})
    assert sorted(BENCHMARK["limited"](table, 2)["row"].to_pylist()) == [0, 4, 5, 7]
    assert BENCHMARK["limited"](table, None).num_rows == 8
    tasks = ("topic", "sentiment", "valence")
    agreement = {"accuracy": 0.75, "pearson": 0.125}
    gold = {"teacher": {"accuracy": 0.5, "pearson": 0.5}, "student": {"accuracy": 0.25, "pearson": None}}
    cost = {"parameters": 3000, "size_mib": 3.0, "latency_ms": 30.0}
    figures = {
        "gold": {"test": {task: gold for task in tasks}},
        "agreement": {"test": {task: agreement for task in tasks}},
        "cost": {"teachers": cost, "student": cost, "ratio": dict.fromkeys(cost, 1.0)},
        "precision": "fp32",
        "machine": {"threads": 2, "platform": "here", "torch": "2", "transformers": "5"},
    }
    text = BENCHMARK["tables"]({"0": figures})
    assert "| 0 | topic | accuracy | 0.5000 | 0.2500 | 0.7500 |" in text
    assert "| 0 | valence | pearson | 0.5000 | undefined | 0.1250 |" in text
    assert "| 0 | parameters | 3,000 | 3,000 | 1.00 |" in text
