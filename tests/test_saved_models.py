"""Tasks added to and removed from a trained model: the other heads' numbers stay, bit for bit."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import logits_of, output_layer, training_args
from conftest import MakeModel, ToyRows
from datasets import DatasetDict
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from saved_folders import SENTENCES, assert_loads_as
from torch import Tensor, nn
from transformers import BatchEncoding
from transformers.utils import logging as transformers_logging

import train_trainer
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.trainer import MTLTrainer
from tasks_mtl import MULTI_LABEL

Splits = tuple[DatasetDict, tuple[TaskConfig, ...]]


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _assert_has_weights_of(model: nn.Module, other: nn.Module) -> None:
    found = model.state_dict()
    assert [name for name, value in other.state_dict().items() if not torch.equal(value, found[name])] == []


def test_added_task_leaves_the_others_as_they_are_before_and_after_training(
    tiny_model: MakeModel, toy_splits: Splits, inputs: BatchEncoding, tmp_path: Path
) -> None:
    splits, tasks = toy_splits
    model = tiny_model(tasks=tasks[:2])
    before, embeddings = logits_of(model, inputs), model.encode(SENTENCES)
    model.add_task(tasks[2])
    assert model.config.task_names == ["topic", "sentiment", "tags"]
    after = logits_of(model, inputs)
    fresh = after.pop("tags")
    _assert_equal(after, before)
    args = training_args(tmp_path / "run", freeze="backbone+heads:topic,sentiment", weight_decay=0.1)
    data = splits.remove_columns(["label_topic", "label_sentiment"])
    trainer = MTLTrainer(model, args, train_dataset=data["train"], eval_dataset=data["validation"])
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_topic_support"] == 0 < metrics["eval_tags_support"]
    after = logits_of(model, inputs)
    assert not torch.equal(after.pop("tags"), fresh)
    _assert_equal(after, before)
    assert (model.encode(SENTENCES) == embeddings).all()
    model.save_pretrained(tmp_path / "model")
    assert_loads_as(tmp_path / "model", model)


def test_removed_task_leaves_the_others_as_they_are(
    tiny_model: MakeModel, inputs: BatchEncoding, tmp_path: Path
) -> None:
    model = tiny_model()
    model.frozen_modules = ("heads.tags", "heads.topic")
    before = logits_of(model, inputs)
    model.remove_task("tags")
    del before["tags"]
    _assert_equal(logits_of(model, inputs), before)
    assert list(model.frozen_modules) == ["heads.topic"]
    assert not [name for name in model.state_dict() if "tags" in name]
    model.train()
    model.save_pretrained(tmp_path)
    assert_loads_as(tmp_path, model.eval())


def test_fresh_head_is_drawn_as_those_of_a_new_model(tiny_model: MakeModel) -> None:
    model = tiny_model().bfloat16().train()
    model.add_task({"name": "intent", "num_labels": 400, "hidden_size": 64})
    head = model.heads["intent"]
    assert head.training and {parameter.dtype for parameter in head.parameters()} == {torch.bfloat16}
    weight, bias = output_layer(model, "intent").weight, output_layer(model, "intent").bias
    # 25,600 draws: the standard deviation is known to half a per cent.
    assert weight.float().std().item() == pytest.approx(model.config.text_config.initializer_range, rel=0.02)
    assert torch.count_nonzero(bias) == 0


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        (TaskConfig("Topic", num_labels=2), ValueError, "Two tasks are named 'topic' and 'Topic'"),
        (TaskConfig("intent"), ValueError, "Task 'intent' has neither `labels` nor `num_labels`"),
        (
            {"name": "intent", "label": ["a"]},
            TypeError,
            "Task 'intent' has no setting 'label'. Did you mean 'labels'?",
        ),
    ],
)
def test_illegal_additions_change_nothing(
    task: Any, error: type[Exception], message: str, tiny_model: MakeModel
) -> None:
    model = tiny_model()
    names = model.config.task_names
    with pytest.raises(error, match=message):
        model.add_task(task)
    assert model.config.task_names == names == list(model.heads)


def test_illegal_removals(tiny_model: MakeModel, tasks: tuple[TaskConfig, ...]) -> None:
    model = tiny_model(tasks=tasks[:1])
    with pytest.raises(KeyError, match="No task 'tags'; the model has"):
        model.remove_task("tags")
    with pytest.raises(ValueError, match="Task 'topic' is the only one. Add another first"):
        model.remove_task("topic")
    assert model.config.task_names == list(model.heads) == ["topic"]


@pytest.fixture
def old_model(make_model: MakeModel, tasks: tuple[TaskConfig, ...], tmp_path: Path) -> MTLModel:
    """Gives a saved model, in the folder `old`, with the tasks topic and sentiment."""
    model = make_model(tasks=tasks[:2])
    model.save_pretrained(tmp_path / "old")
    return model


@pytest.fixture
def argv(old_model: MTLModel, toy_rows: ToyRows, tmp_path: Path) -> Iterator[list[str]]:
    """Gives the command line of a run from that model with the new task tags alone."""
    verbosity = transformers_logging.get_verbosity()
    for split, seed in (("train", 0), ("dev", 1), ("test", 2)):
        lines = [json.dumps(row) + "\n" for row in toy_rows(40, seed)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines))
    files = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "dev", "test")}
    task = {"name": "tags", "problem_type": MULTI_LABEL}
    options = {
        "backbone": tmp_path / "old", "output_dir": tmp_path / "new", "tasks": json.dumps(task),
        "sources": json.dumps({"name": "toy", "files": files, "labels": {"tags": "tags"}}), "head_dropout": 0.0,
        "num_train_epochs": 1, "learning_rate": 5e-3, "weight_decay": 0.1, "max_length": 32, "use_cpu": True,
        "save_strategy": "no", "precision": "fp32", "disable_tqdm": True,
    }  # fmt: skip
    yield [word for key, value in options.items() for word in (f"--{key}", str(value))]
    transformers_logging.set_verbosity(verbosity)  # The program's stays, and would reach other tests.


def test_program_adds_a_task_and_keeps_the_others_to_the_bit(
    argv: list[str], old_model: MTLModel, tmp_path: Path, inputs: BatchEncoding, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        report = train_trainer.main([*argv, "--other_tasks", "keep", "--freeze", "backbone"])
    assert "has no task 'tags': it is added, with a fresh head" in caplog.text
    assert "has a task 'topic' that is not named: other_tasks=keep" in caplog.text
    assert "will change" not in caplog.text
    assert report["settings"]["freeze"] == "backbone+heads:topic,sentiment"
    assert list(report["results"]["test"]["tasks"]) == ["tags"]
    model = MTLModel.from_pretrained(tmp_path / "new")
    assert model.config.task_names == ["topic", "sentiment", "tags"]
    _assert_has_weights_of(model, old_model)
    logits = logits_of(model, inputs)
    assert logits.pop("tags").shape == (len(inputs["input_ids"]), 4)
    for name, value in logits_of(old_model, inputs).items():
        # The same weights elsewhere in memory may round the last bit in another way.
        torch.testing.assert_close(logits[name], value, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("how", [["--freeze_schedule", '{"0": "backbone", "0.5": "none"}'], []])
def test_kept_heads_stay_where_the_encoder_moves_which_is_told(
    how: list[str], argv: list[str], old_model: MTLModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_trainer.main([*argv, "--other_tasks", "keep", *how])
    assert "The heads of ['topic', 'sentiment'] stay, but the encoder below them moves" in caplog.text
    model = MTLModel.from_pretrained(tmp_path / "new")
    assert abs(model.encode(SENTENCES) - old_model.encode(SENTENCES)).max() > 1e-3
    for task in ("topic", "sentiment"):
        assert torch.equal(output_layer(model, task).weight, output_layer(old_model, task).weight)


def test_card_says_what_the_model_starts_from_and_which_tasks_it_kept(argv: list[str], tmp_path: Path) -> None:
    said = "---\nlicense: mit\nlanguage: [en]\nbase_model: some/encoder\n---\n"
    (tmp_path / "old" / "README.md").write_text(said)
    train_trainer.main([*argv, "--other_tasks", "keep", "--freeze", "backbone", "--language", "de"])
    card = ModelCard.load(tmp_path / "new" / "README.md")
    assert (card.data.base_model, card.data.license, card.data.language) == ("some/encoder", "mit", ["de"])
    assert "One `some/encoder` encoder with 3 task heads" in card.text
    assert "It starts from the multi-task model `old`." in card.text
    rows = [line for line in card.text.splitlines() if line.endswith("neither trained nor measured in this run |")]
    assert [row.split("`")[1] for row in rows] == ["topic", "sentiment"]


def test_program_removes_tasks_when_told_so(argv: list[str], old_model: MTLModel, tmp_path: Path) -> None:
    train_trainer.main([*argv, "--other_tasks", "remove", "--freeze", "backbone"])
    model = MTLModel.from_pretrained(tmp_path / "new")
    assert model.config.task_names == list(model.heads) == ["tags"]
    _assert_has_weights_of(model.backbone, old_model.backbone)


def test_tasks_that_are_not_named_are_an_error(argv: list[str], old_model: MTLModel) -> None:
    with pytest.raises(
        ValueError, match=r"also has the tasks \['topic', 'sentiment'\], which the settings do not name"
    ):
        train_trainer.main(argv)
    with pytest.raises(ValueError, match="other_tasks is 'drop'. Use 'error', 'keep' or 'remove'"):
        train_trainer.main([*argv, "--other_tasks", "drop"])


def test_weights_that_a_saved_model_lacks_are_not_drawn_anew(
    argv: list[str], old_model: MTLModel, tmp_path: Path
) -> None:
    weights = {name: tensor for name, tensor in old_model.state_dict().items() if not name.startswith("heads.topic.")}
    save_file(weights, tmp_path / "old" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"weights that it does not hold, \['heads.topic.out_proj.bias', .*again"):
        train_trainer.main([*argv, "--other_tasks", "keep"])
