"""What saved models say of texts: in which order, how often they are asked, and what a student learns from it."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checks import training_args
from conftest import SENTIMENTS, TOPICS, MakeModel, SaveBackbone, ToyRows
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

import train_trainer
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.teachers import (
    Teacher,
    completed_tasks,
    label_order,
    load_classifier_teacher,
    load_mtl_teacher,
    taught_tasks,
    with_teachers,
)
from mtl.trainer import MTLTrainer
from tasks_mtl import MULTI_LABEL, REGRESSION, SINGLE_LABEL

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]
TEXTS = ["match team goal now", "price", "plain usual average scene and a website", "why refund order", "team"]


@pytest.fixture
def rows() -> Dataset:
    """Gives texts of unequal length."""
    return Dataset.from_dict({"text": TEXTS})


def _saved(model: MTLModel, folder: Path) -> str:
    model.eval().save_pretrained(folder)
    return str(folder)


def test_columns_are_what_the_model_predicts(make_model: MakeModel, rows: Dataset, tmp_path: Path) -> None:
    model = make_model()
    tasks = tuple(model.config.tasks)
    teacher = load_mtl_teacher(_saved(model, tmp_path / "teacher"))
    taught = with_teachers(rows, tasks, [teacher], batch_size=2)
    for text, row, prediction in zip(TEXTS, taught, model.eval().predict(TEXTS), strict=True):
        assert row["text"] == text
        for task in tasks:
            said = prediction[task.name]
            expected = list(said["probabilities"].values()) if isinstance(said, dict) else [said]
            assert row[f"teacher_{task.name}"] == pytest.approx(expected, abs=1e-6)


def test_labels_in_another_order_go_by_name(make_model: MakeModel, rows: Dataset, tmp_path: Path) -> None:
    teacher = load_mtl_teacher(_saved(make_model(), tmp_path / "teacher"))
    topic, sentiment, tags, valence = teacher.tasks
    turned = [dataclasses.replace(task, labels=(task.labels or ())[::-1]) for task in (topic, tags)]
    straight, reversed_ = with_teachers(rows, teacher.tasks, [teacher]), with_teachers(rows, turned, [teacher])
    for name in ("topic", "tags"):
        assert reversed_[f"teacher_{name}"][:] == [cell[::-1] for cell in straight[f"teacher_{name}"][:]]
        assert straight[f"teacher_{name}"][0] != straight[f"teacher_{name}"][0][::-1]
    assert label_order(dataclasses.replace(topic, labels=("shop", "sport", "film")), topic) == [2, 0, 1]
    assert label_order(topic, sentiment) is None
    assert label_order(valence, dataclasses.replace(valence, labels=("score",))) == [0]
    assert label_order(TaskConfig("topic", labels=("sport", "film")), topic) is None


def test_ensemble_is_the_mean_of_those_that_have_the_task(
    make_model: MakeModel, rows: Dataset, tmp_path: Path, tasks: tuple[TaskConfig, ...]
) -> None:
    first = load_mtl_teacher(_saved(make_model(), tmp_path / "first"))
    second = load_mtl_teacher(_saved(make_model(seed=1, tasks=tasks[:1]), tmp_path / "second"))
    alone = [np.array(with_teachers(rows, tasks, [teacher])["teacher_topic"][:]) for teacher in (first, second)]
    both = with_teachers(rows, tasks, [first, second])
    np.testing.assert_allclose(both["teacher_topic"][:], (alone[0] + alone[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(
        both["teacher_valence"][:], with_teachers(rows, tasks, [first])["teacher_valence"][:], atol=0
    )


def test_a_teacher_is_asked_once(
    make_model: MakeModel, rows: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    says = Teacher.says

    def watched(self: Teacher, texts: Sequence[str]) -> dict[str, Tensor]:
        asked.append(len(texts))
        return says(self, texts)

    monkeypatch.setattr(Teacher, "says", watched)
    model = make_model(seed=3)
    folder = _saved(model, tmp_path / "teacher")
    tasks = tuple(model.config.tasks)
    first = with_teachers(rows, tasks, [load_mtl_teacher(folder)])
    assert sum(asked) == len(TEXTS)
    again = with_teachers(rows, tasks[:2], [load_mtl_teacher(folder)])  # Loaded anew, and for fewer tasks.
    assert sum(asked) == len(TEXTS)
    assert again["teacher_topic"][:] == first["teacher_topic"][:]
    with_teachers(rows.select([0, 1]), tasks, [load_mtl_teacher(folder)])  # Other texts.
    assert sum(asked) == len(TEXTS) + 2
    with torch.no_grad():
        model.get_parameter("heads.topic.out_proj.bias")[0] += 1.0
    changed = with_teachers(rows, tasks, [load_mtl_teacher(_saved(model, tmp_path / "teacher"))])  # Other weights.
    assert sum(asked) == 2 * len(TEXTS) + 2
    assert changed["teacher_topic"][:] != first["teacher_topic"][:]
    model.config.max_seq_length = 4
    with_teachers(rows, tasks, [load_mtl_teacher(_saved(model, tmp_path / "teacher"))])  # Another limit.
    assert sum(asked) == 3 * len(TEXTS) + 2


def test_teachers_that_do_not_fit(
    make_model: MakeModel, rows: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = load_mtl_teacher(_saved(make_model(), tmp_path / "teacher"))
    other = TaskConfig("topic", labels=("a", "b"))
    with pytest.raises(ValueError, match=r"those to learn \['tone'\], and none is the same. Give another teacher"):
        with_teachers(rows, [TaskConfig("tone", num_labels=2)], [teacher])
    with pytest.raises(ValueError, match="none is the same \\('topic' has other labels there"):
        with_teachers(rows, [other], [teacher])
    taught = with_teachers(rows, [other, TaskConfig("valence", REGRESSION)], [teacher])
    assert "'topic' has other labels there, or another problem type: not learned from it" in caplog.text
    assert set(taught.column_names) == {"text", "teacher_valence"}
    with pytest.raises(ValueError, match="Task 'valence' has a teacher's column in a source and a model as a teacher"):
        # Asked for nothing: of a large teacher that takes hours.
        with_teachers(taught, [TaskConfig("valence", REGRESSION)], [dataclasses.replace(teacher, tokenizer=None)])
    with pytest.raises(ValueError, match="the rows have no column 'text'"):
        with_teachers(rows.rename_column("text", "words"), teacher.tasks, [teacher])


def test_tasks_take_the_labels_of_a_teacher(make_model: MakeModel, tmp_path: Path) -> None:
    teacher = load_mtl_teacher(_saved(make_model(), tmp_path / "teacher"))
    named = TaskConfig("sentiment", labels=("good", "bad", "ugly"))
    completed = completed_tasks([TaskConfig("topic"), named, TaskConfig("tone")], [teacher], ())
    assert [task.labels for task in completed] == [tuple(TOPICS), named.labels, None]
    assert taught_tasks(completed, [teacher]) == {"topic"}
    (labelled,) = completed_tasks([TaskConfig("topic")], [teacher], ["topic"])
    assert labelled.labels is None  # The data names them.
    others = [TaskConfig("topic", num_labels=5), TaskConfig("sentiment", REGRESSION)]
    assert completed_tasks(others, [teacher], ()) == tuple(others)  # They say what the teacher does not predict.


def _classifier(backbone: Path, folder: Path, **settings: Any) -> str:
    model = AutoModelForSequenceClassification.from_pretrained(backbone, **settings)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_labels": 1}, TaskConfig("t", REGRESSION)),
        ({"id2label": {0: "a", 1: "b"}}, TaskConfig("t", SINGLE_LABEL, labels=("a", "b"))),
        ({"num_labels": 3}, TaskConfig("t", SINGLE_LABEL, labels=("LABEL_0", "LABEL_1", "LABEL_2"))),
        (
            {"id2label": {0: "a", 1: "b"}, "problem_type": MULTI_LABEL},
            TaskConfig("t", MULTI_LABEL, labels=("a", "b")),
        ),
        ({"num_labels": 2, "problem_type": REGRESSION}, TaskConfig("t", REGRESSION, num_labels=2)),
    ],
)
def test_task_of_a_classifier(
    settings: dict[str, Any], expected: TaskConfig, backbone_dir: SaveBackbone, tmp_path: Path
) -> None:
    folder = _classifier(backbone_dir("distilbert"), tmp_path / "teacher", **settings)
    teacher = load_classifier_teacher("t", folder)
    assert teacher.tasks == (expected,)
    assert teacher.max_length == 64  # The tokenizer's; the encoder has 128 positions.
    said = teacher.says(TEXTS)["t"]
    assert said.shape == (5, expected.num_labels)
    alone = torch.cat([teacher.says([text])["t"] for text in TEXTS])
    torch.testing.assert_close(said, alone, atol=1e-6, rtol=0.0)
    if expected.problem_type == SINGLE_LABEL:
        torch.testing.assert_close(said.sum(dim=1), torch.ones(5))


def test_classifiers_that_are_none(backbone_dir: SaveBackbone, make_model: MakeModel, tmp_path: Path) -> None:
    plain = str(backbone_dir("bert"))
    with pytest.raises(ValueError, match="Teacher t=.*: its weights lack .*classifier.* has not been trained"):
        load_classifier_teacher("t", plain)
    with pytest.raises(ValueError, match="not a saved multi-task model. To learn from classifiers"):
        load_mtl_teacher(plain)
    with pytest.raises(ValueError, match="this is a multi-task model, not a classifier of one task"):
        load_classifier_teacher("t", _saved(make_model(), tmp_path / "mtl"))
    folder = _classifier(backbone_dir("bert"), tmp_path / "doubled", id2label={0: "a", 1: "a"})
    with pytest.raises(ValueError, match="Teacher t=.*: Task 't': labels \\['a'\\] stand more than once"):
        load_classifier_teacher("t", folder)


def _edit(folder: str, **fields: Any) -> str:
    file = Path(folder, "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id2label": {"1": "a", "2": "b"}}, r"names the outputs \[1, 2\], but they are numbered from 0 to 1"),
        (
            {"id2label": {"0": "a", "1": "b", "2": "c"}},
            "do not have the shapes of .* names 3 labels",
        ),
    ],
)
def test_classifiers_whose_labels_are_not_those_of_their_head(
    fields: dict[str, Any], message: str, backbone_dir: SaveBackbone, tmp_path: Path
) -> None:
    folder = _classifier(backbone_dir("bert"), tmp_path / "teacher", num_labels=2)
    with pytest.raises(ValueError, match=f"Teacher t=.*{message}.* Correct"):
        load_classifier_teacher("t", _edit(folder, **fields))


def test_teacher_whose_weights_lack_a_head(make_model: MakeModel, tmp_path: Path) -> None:
    folder = _saved(make_model(), tmp_path / "teacher")
    weights = load_file(Path(folder, "model.safetensors"))
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("heads.topic.")}
    save_file(kept, Path(folder, "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"its weights lack \['heads.topic.out_proj.bias', .*Copy or download it"):
        load_mtl_teacher(folder)


@pytest.mark.parametrize("pad_token_id", [None, 5])
def test_decoder_reads_the_last_token_that_is_no_padding(
    pad_token_id: int | None, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "num_labels": 3}
    settings: dict[str, Any] = {**sizes, "vocab_size": len(tiny_tokenizer), "pad_token_id": pad_token_id}
    model = GPT2ForSequenceClassification(GPT2Config(**settings))
    model.save_pretrained(tmp_path / "teacher")
    tiny_tokenizer.save_pretrained(tmp_path / "teacher")
    teacher = load_classifier_teacher("t", str(tmp_path / "teacher"))  # Its tokenizer pads with 0.
    alone = torch.cat([teacher.says([text])["t"] for text in TEXTS])
    torch.testing.assert_close(teacher.says(TEXTS)["t"], alone, atol=1e-6, rtol=0.0)


def test_student_of_a_good_teacher_learns_from_texts_without_labels(
    make_model: MakeModel, toy_rows: ToyRows, tmp_path: Path
) -> None:
    """A teacher learns from labels; a student of other weights learns from the teacher, by the program."""
    files = {}
    for name, count, seed in (("train", 300, 0), ("texts", 300, 5), ("test", 60, 2)):
        some = [{"text": row["text"]} if name == "texts" else row for row in toy_rows(count, seed)]
        files[name] = str(tmp_path / f"{name}.json")
        Path(files[name]).write_text(json.dumps(some))
    make_model(seed=0), make_model(seed=1)  # Writes the encoders.
    settings: dict[str, Any] = {
        "num_train_epochs": 8,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "logging_steps": 20,
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "precision": "fp32",
        "validation_fraction": 0.0,
    }
    labels = {name: name for name in ("topic", "sentiment")}
    labelled = {"name": "labelled", "files": {"train": files["train"], "test": files["test"]}, "labels": labels}
    teacher = {
        "backbone": str(tmp_path / "backbone-bert-0"),
        "tasks": [{"name": "topic"}, {"name": "sentiment", "labels": list(SENTIMENTS)}],
        "sources": [labelled],
        "output_dir": str(tmp_path / "teacher"),
    }
    texts = {"name": "texts", "files": {"train": files["texts"]}}
    tests = {"name": "tests", "files": {"test": files["test"]}, "labels": labels}
    student = {
        "backbone": str(tmp_path / "backbone-bert-1"),
        "tasks": [{"name": "sentiment", "labels": list(SENTIMENTS)[::-1]}, {"name": "topic", "labels": list(TOPICS)}],
        "sources": [texts, tests],
        "output_dir": str(tmp_path / "student"),
        "teacher": str(tmp_path / "teacher"),  # One may be given as text.
        "distillation_temperature": 2.0,
    }
    reports = []
    for name, own in (("teacher", teacher), ("student", student)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**settings, **own}))
        reports.append(train_trainer.main([str(path)]))
    for report in reports:
        for task in labels:
            assert report["results"]["test"]["tasks"][task]["accuracy"] > 0.8  # Chance is 1/3.
    logged = [entry for entry in reports[1]["history"] if "loss" in entry]
    assert "teacher_loss_topic" in logged[0] and "loss_topic" not in logged[0]
    assert reports[1]["settings"]["teacher"] == [str(tmp_path / "teacher")]


def test_trainer_takes_the_columns(make_model: MakeModel, toy_rows: ToyRows, tmp_path: Path) -> None:
    model = make_model()
    teacher = load_mtl_teacher(_saved(model, tmp_path / "teacher"))
    taught = with_teachers(Dataset.from_dict({"text": TEXTS}), teacher.tasks, [teacher])
    tokens = taught.map(lambda batch: dict(model.tokenizer(batch["text"])), batched=True, remove_columns="text")
    trainer = MTLTrainer(model, training_args(tmp_path, max_steps=1, learning_rate=0.0), train_dataset=tokens)
    trainer.train()
    # A model that is its own teacher has the least cross-entropy that there is, but for dropout: the entropy.
    probabilities = np.array(taught["teacher_topic"][:])
    entropy = -(probabilities * np.log(probabilities)).sum(axis=1).mean()
    assert trainer.state.log_history[0]["teacher_loss_topic"] == pytest.approx(entropy, rel=0.1)
