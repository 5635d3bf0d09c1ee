"""Objectives on the embedding in a model, beside heads; their settings."""

from typing import Any

import pytest
import torch
from checks import assert_close, gradients, same
from conftest import MakeModel
from transformers import PreTrainedTokenizerFast

from configuration_mtl import MTLConfig, TaskConfig
from mtl.collation import MTLCollator
from tasks_mtl import CONTRASTIVE, POSITIVE_PAIRS, SCORED_PAIRS, TRIPLETS

COSENT = TaskConfig("near", SCORED_PAIRS)
COSINE = TaskConfig("near", SCORED_PAIRS, loss="cosine")
PAIRS = TaskConfig("near", POSITIVE_PAIRS)
TRIPLET = TaskConfig("near", TRIPLETS)
CLASSES = TaskConfig("near", CONTRASTIVE, num_labels=3)


@pytest.fixture
def batch(tiny_tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Gives four examples: a scored pair, a positive pair, a triplet, and one of the head's alone."""
    texts = [
        ("price", "refund order", None),
        ("match", "goal", None),
        ("scene", "plot", "price now"),
        ("why", None, None),
    ]
    labels: list[dict[str, float]] = [
        {"scored": 0.5},
        {"found": 1},
        {"found": 1, "third": 1, "topic": 2},
        {"topic": 0},
    ]
    examples = []
    for row, label in zip(texts, labels, strict=True):
        example: dict[str, Any] = {"input_ids": tiny_tokenizer(row[0])["input_ids"]}
        for column, text in zip(("further_1", "further_2"), row[1:], strict=True):
            example[f"{column}_input_ids"] = [] if text is None else tiny_tokenizer(text)["input_ids"]
        examples.append(example | {f"label_{name}": value for name, value in label.items()})
    return MTLCollator(tiny_tokenizer, TASKS)(examples)


TASKS = (
    TaskConfig("topic", num_labels=3),
    TaskConfig("scored", SCORED_PAIRS, loss="cosine"),
    TaskConfig("found", POSITIVE_PAIRS),
    TaskConfig("third", TRIPLETS, margin=2.0),
    TaskConfig("classes", CONTRASTIVE, num_labels=3),
)


def test_a_model_of_heads_and_objectives(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(tasks=TASKS)
    assert list(model.heads) == ["topic"]
    output = model(**batch)
    embed = {text: model.encode(text, convert_to_tensor=True) for text in ("price", "refund order", "scene", "plot")}
    cosine = embed["price"] @ embed["refund order"]
    assert_close(output.logits["scored"][0], cosine)
    assert_close(output.task_losses["scored"], (cosine - 0.5) ** 2)
    assert_close(output.logits["third"][2, 0], embed["scene"] @ embed["plot"])
    assert {name: tuple(logits.shape) for name, logits in output.logits.items()} == {
        "topic": (4, 3),
        "scored": (4,),
        "found": (4, 3),
        "third": (4, 2),
        "classes": (4, 32),
    }
    assert output.task_losses["classes"].item() == 0.0
    assert_close(output.loss, torch.stack(list(output.task_losses.values())).sum())
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_without_labels_the_model_is_one_of_heads(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(tasks=TASKS)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert list(model(**inputs).logits) == ["topic"]
    assert list(model.predict("price")) == ["topic"]
    alone = make_model(tasks=TASKS[1:])
    assert alone(**inputs).logits == {}
    assert alone.predict(["price"]) == [{}]


def test_objectives_left_out_of_the_labels_keep_the_graph(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(tasks=TASKS)
    output = model(**{**batch, "labels": {"topic": batch["labels"]["topic"]}})
    assert [loss.item() for loss in output.task_losses.values()][1:] == [0.0] * 4
    assert same(output.loss, output.task_losses["topic"])
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_batch_without_any_row_of_the_objectives(
    make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = make_model(tasks=TASKS[1:4])
    batch = MTLCollator(tiny_tokenizer, TASKS[1:4])([{"input_ids": [2, 7, 3]}, {"input_ids": [2, 3]}])
    assert batch["others"]["input_ids"].shape == (0, 1)
    assert batch["partners"].tolist() == [[-1, -1], [-1, -1]]
    output = model(**batch)
    assert output.loss.item() == 0.0
    output.loss.backward()
    # Exactly zero, and there: DistributedDataParallel waits for the gradient of every parameter.
    assert set(gradients(model)) == {name for name, _ in model.named_parameters()}
    assert not any(gradient.any() for gradient in gradients(model).values())


def test_losses_are_divided_by_the_count_of_the_whole_step(make_model: MakeModel, batch: dict[str, Any]) -> None:
    model = make_model(tasks=TASKS)
    own = model(**batch).task_losses
    counts = {name: torch.tensor(6) for name in own}
    given = model(**batch, num_items_in_batch=counts).task_losses
    for name, count in {"topic": 2, "scored": 1, "found": 2, "third": 1}.items():
        assert_close(given[name] * 6, own[name] * count)


def test_embeddings_of_further_texts_are_those_of_encode(
    tiny_tokenizer: PreTrainedTokenizerFast, make_model: MakeModel
) -> None:
    model = make_model(tasks=[COSENT], pooling="cls")
    examples = [
        {"input_ids": tiny_tokenizer(a)["input_ids"], "further_1_input_ids": tiny_tokenizer(b)["input_ids"]}
        for a, b in (("price now", "why"), ("match", "a plain usual average scene"))
    ]
    batch = MTLCollator(tiny_tokenizer, [COSENT])([example | {"label_near": 1.0} for example in examples])
    cosines = model(**batch).logits["near"]
    left, right = (
        model.encode(texts, convert_to_tensor=True)
        for texts in (["price now", "match"], ["why", "a plain usual average scene"])
    )
    assert_close(cosines, (left * right).sum(dim=1))


def test_settings_of_a_loss_go_by_the_problem_type() -> None:
    assert (COSENT.loss, COSENT.temperature, COSENT.margin, COSENT.symmetric) == ("cosent", 0.05, None, None)
    assert (COSINE.loss, COSINE.temperature) == ("cosine", None)
    assert (PAIRS.temperature, PAIRS.symmetric) == (0.05, False)
    assert (TRIPLET.margin, CLASSES.temperature) == (0.1, 0.1)
    assert not any(task.has_head for task in (COSENT, PAIRS, TRIPLET, CLASSES))
    assert TaskConfig("a", num_labels=2).loss is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"problem_type": SCORED_PAIRS, "loss": "triplet"},
            r"has no loss 'triplet'. Use one of \['cosent', 'cosine'\]",
        ),
        ({"num_labels": 2, "loss": "cosent"}, "single_label_classification has no loss 'cosent'. Leave it out"),
        ({"num_labels": 2, "temperature": 0.1}, "temperature has no effect on single_label_classification. Leave"),
        (
            {"problem_type": SCORED_PAIRS, "loss": "cosine", "temperature": 0.1},
            "no effect on scored_pairs with loss 'c",
        ),
        ({"problem_type": POSITIVE_PAIRS, "margin": 0.1}, "margin has no effect on positive_pairs"),
        ({"problem_type": POSITIVE_PAIRS, "temperature": 0}, "temperature must be above 0, found 0"),
        ({"problem_type": POSITIVE_PAIRS, "temperature": "warm"}, "temperature must be a number, found 'warm'"),
        ({"problem_type": TRIPLETS, "margin": 3.0}, "margin must be above 0 and at most 2, found 3.0"),
        ({"problem_type": TRIPLETS, "symmetric": True}, "symmetric has no effect on triplets"),
        ({"problem_type": POSITIVE_PAIRS, "symmetric": "yes"}, "symmetric must be true or false, found 'yes'"),
        ({"problem_type": TRIPLETS, "labels": ("a", "b")}, "triplets has no classes"),
        ({"problem_type": CONTRASTIVE, "num_labels": 1}, "contrastive needs at least 2 labels, found 1"),
        (
            {"problem_type": CONTRASTIVE, "num_labels": 3, "hidden_size": 8},
            "contrastive has no head, so no hidden_size",
        ),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig("near", **settings)


def test_settings_travel_in_the_config(tmp_path: Any) -> None:
    config = MTLConfig(tasks=list(TASKS))
    config.save_pretrained(tmp_path)
    assert MTLConfig.from_pretrained(tmp_path).tasks == list(TASKS)
    assert config.needs_further_texts
    assert not MTLConfig(tasks=[TASKS[0], TASKS[4]]).needs_further_texts
