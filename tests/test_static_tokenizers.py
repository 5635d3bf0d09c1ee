"""Static students of encoders with tokenizers of every kind: they read a text as model2vec does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeBackbone
from model2vec import StaticModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from modeling_mtl import MTLModel
from mtl.static_student import write_static, write_static_encoder
from predictor_mtl import MTLPredictor
from tasks_mtl import TaskConfig

KNOWN = ["The Quick brown fox, a Lazy dog.", "match team GOAL now", "price refund order why"] * 4
TEXTS = [
    "The Quick brown fox",
    "the quick BROWN fox",
    "match 日本語 team",
    "Ünïcödé",
    "  two  spaces ",
    "a",
    "<s> hi </s>",
]
TASKS = (TaskConfig("topic", labels=("sport", "film")),)


def byte_level() -> Tokenizer:
    """Returns a tokenizer that knows every byte, as RoBERTa has it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(KNOWN, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """Returns a tokenizer whose unknown token has an id, but no name, as XLM-RoBERTa has it."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(KNOWN, trainer)
    return tokenizer


def other_name() -> Tokenizer:
    """Returns a tokenizer whose unknown token has a name of its own."""
    tokenizer = Tokenizer(models.BPE(unk_token="[OOV]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=150, special_tokens=["<s>", "<pad>", "</s>", "[OOV]"])
    tokenizer.train_from_iterator(KNOWN, trainer)
    return tokenizer


def cased() -> Tokenizer:
    """Returns a WordPiece tokenizer that keeps capitals."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(KNOWN, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, unigram, other_name, cased])
def test_unknown_tokens_are_left_out_as_model2vec_does(
    make: Callable[[], Tokenizer], tiny_backbone: MakeBackbone, tmp_path: Path
) -> None:
    tokenizer = make()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    unknown = tokenizer.id_to_token(3)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": unknown}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(tmp_path / "backbone")
    tiny_backbone(vocab_size=tokenizer.get_vocab_size(), pad_token_id=1).save_pretrained(tmp_path / "backbone")
    teacher = MTLModel.from_backbone(tmp_path / "backbone", tasks=TASKS)
    write_static_encoder(teacher, tmp_path / "encoder", dimensions=8)
    torch.manual_seed(0)
    student = MTLModel.from_backbone(tmp_path / "encoder", tasks=TASKS, normalize_for_heads=True)
    write_static(student, tmp_path / "out")
    expected = StaticModel.from_pretrained(tmp_path / "out").encode(TEXTS)
    np.testing.assert_allclose(student.encode(TEXTS), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(MTLPredictor(tmp_path / "out").encode(TEXTS), expected, rtol=0, atol=1e-6)
    assert not np.array_equal(expected[0], expected[1])
