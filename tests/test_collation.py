"""Examples to batches: padding as the tokenizer has it, and a label tensor for every task in every batch."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from conftest import MakeBackbone
from transformers import PreTrainedTokenizerFast

from configuration_mtl import TaskConfig
from mtl.collation import MTLCollator
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION

NAN = float("nan")


@pytest.fixture
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Gives a copy that a test may change."""
    return copy.deepcopy(tiny_tokenizer)


def test_labels_of_every_task_and_type(tokenizer: PreTrainedTokenizerFast, tasks: tuple[TaskConfig, ...]) -> None:
    wide = TaskConfig("wide", REGRESSION, num_labels=2)
    examples: list[dict[str, Any]] = [
        {"input_ids": [2, 7, 3], "label_topic": 2, "label_tags": [0.0, 1.0, 0.0, 1.0], "label_valence": -0.5},
        {"input_ids": [2, 3], "label_sentiment": 1, "label_wide": [1.0, NAN], "label_topic": None},
    ]
    batch = MTLCollator(tokenizer, [*tasks, wide])(examples)
    expected = {
        "topic": torch.tensor([2, IGNORE_INDEX]),
        "sentiment": torch.tensor([IGNORE_INDEX, 1]),
        "tags": torch.tensor([[0.0, 1.0, 0.0, 1.0], [NAN] * 4]),
        "valence": torch.tensor([-0.5, NAN]),
        "wide": torch.tensor([[NAN, NAN], [1.0, NAN]]),
    }
    assert batch["labels"].keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(batch["labels"][name], tensor, rtol=0, atol=0, equal_nan=True)


def test_examples_without_any_label(tokenizer: PreTrainedTokenizerFast, tasks: tuple[TaskConfig, ...]) -> None:
    labels = MTLCollator(tokenizer, tasks)([{"input_ids": [2, 3]}])["labels"]
    assert {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in labels.items()} == {
        "topic": ((1,), torch.int64),
        "sentiment": ((1,), torch.int64),
        "tags": ((1, 4), torch.float32),
        "valence": ((1,), torch.float32),
    }
    assert labels["topic"].item() == IGNORE_INDEX
    assert labels["tags"].isnan().all()


def test_multi_label_of_one_class_keeps_its_axis(tokenizer: PreTrainedTokenizerFast) -> None:
    collator = MTLCollator(tokenizer, [TaskConfig("tags", MULTI_LABEL, labels=("a",))])
    assert collator([{"input_ids": [2, 3], "label_tags": [1.0]}])["labels"]["tags"].shape == (1, 1)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_the_tokenizers(tokenizer: PreTrainedTokenizerFast, side: str) -> None:
    tokenizer.padding_side = side
    tokenizer.pad_token = "[MASK]"
    pad = tokenizer.convert_tokens_to_ids("[MASK]")
    assert pad != 0
    batch = MTLCollator(tokenizer, ())([{"input_ids": [2, 7, 8, 3]}, {"input_ids": [2, 3]}])
    rows = [[2, 7, 8, 3], [2, 3, pad, pad] if side == "right" else [pad, pad, 2, 3]]
    masks = [[1, 1, 1, 1], [1, 1, 0, 0] if side == "right" else [0, 0, 1, 1]]
    assert batch["input_ids"].tolist() == rows
    assert batch["attention_mask"].tolist() == masks
    assert batch["labels"] == {}


@pytest.mark.parametrize(("multiple", "width"), [(None, 5), (4, 8), (5, 5)])
def test_width_is_a_multiple(tokenizer: PreTrainedTokenizerFast, multiple: int | None, width: int) -> None:
    batch = MTLCollator(tokenizer, (), pad_to_multiple_of=multiple)([{"input_ids": [2, 7, 7, 7, 3]}])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (1, width)


def test_other_columns_are_left_out_and_examples_stay_as_they_are(
    tokenizer: PreTrainedTokenizerFast, tasks: tuple[TaskConfig, ...]
) -> None:
    example = {
        "input_ids": [2, 7, 3],
        "text": "x",
        "source": "a",
        "length": 3,
        "row": 0,
        "label_other": 1,
        "labels": 5,
    }
    before = copy.deepcopy(example)
    batch = MTLCollator(tokenizer, tasks)([example])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert example == before


def test_a_mask_and_token_types_that_are_given_are_padded(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    examples = [
        {"input_ids": [2, 7, 3], "token_type_ids": [0, 1, 1], "attention_mask": [1, 0, 1]},
        {"input_ids": [2, 3], "token_type_ids": [1, 1], "attention_mask": [1, 1]},
    ]
    batch = MTLCollator(tokenizer, ())(examples)
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 1, tokenizer.pad_token_type_id]]
    assert batch["attention_mask"].tolist() == [[1, 0, 1], [1, 1, 0]]


def test_a_backbone_reads_the_batch_and_does_not_see_the_padding(
    tokenizer: PreTrainedTokenizerFast, tiny_backbone: MakeBackbone
) -> None:
    collator, backbone = MTLCollator(tokenizer, (), pad_to_multiple_of=8), tiny_backbone()
    batch = collator([{"input_ids": [2, 7, 8, 9, 3]}, {"input_ids": [2, 7, 3]}])
    batch.pop("labels")
    alone = backbone(torch.tensor([[2, 7, 3]])).last_hidden_state[0]
    # Sums of 8 instead of 3 terms round differently in the last bits of float32.
    torch.testing.assert_close(backbone(**batch).last_hidden_state[1, :3], alone, rtol=1e-5, atol=1e-6)


def test_is_frozen(tokenizer: PreTrainedTokenizerFast, tasks: tuple[TaskConfig, ...]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MTLCollator(tokenizer, tasks).pad_to_multiple_of = 8  # type: ignore[misc]


def test_a_tokenizer_without_pad_token_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"no pad token. Set one: `tokenizer.pad_token = tokenizer.eos_token`"):
        MTLCollator(tokenizer, ())


def test_a_task_of_unknown_width_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="Task 'topic' has neither `labels` nor `num_labels`"):
        MTLCollator(tokenizer, [TaskConfig("topic")])
