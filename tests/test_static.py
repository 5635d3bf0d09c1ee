"""Static students: vectors of model2vec, heads on them, the same answers without torch, and what they lose."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import MakeModel
from model2vec import StaticModel
from torch.nn import functional as F

import predictor_mtl
from modeling_mtl import MTLModel
from mtl import static_student
from mtl.static_encoder import StaticEncoder, StaticEncoderConfig
from mtl.static_student import write_static, write_static_encoder
from mtl.verification import verify
from predictor_mtl import MTLPredictor
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION, TaskConfig

TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop"), calibration_temperature=0.5),
    TaskConfig("intent", labels=("buy", "sell"), cosine_scale=8.0, hidden_size=6),
    TaskConfig("sentiment", ORDINAL, labels=("negative", "neutral", "positive")),
    TaskConfig("tags", MULTI_LABEL, labels=("urgent", "thanks"), hidden_size=8),
    TaskConfig("valence", REGRESSION),
    TaskConfig("near", "positive_pairs"),
)
SENTENCES = ["match team goal now", "price", "", "Ünïcödé 🙂", "why " * 60, "match 🙂 price", "a plain usual scene"]
WITHOUT_TORCH = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "mtl", "modeling_mtl", "model2vec"):
            raise ImportError(f"{name} is not there")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
from predictor_mtl import MTLPredictor

embeddings, predictions = MTLPredictor(sys.argv[1]).encode_and_predict(json.loads(sys.argv[2]))
print(json.dumps([embeddings.tolist(), predictions]))
"""


@pytest.fixture
def student(make_model: MakeModel, tmp_path: Path) -> MTLModel:
    """Gives heads of every kind on the vectors that are distilled of a tiny encoder."""
    write_static_encoder(make_model(), tmp_path / "encoder", dimensions=8)
    torch.manual_seed(0)
    return MTLModel.from_backbone(
        tmp_path / "encoder", tasks=TASKS, normalize_for_heads=True, head_dropout=0.0, max_seq_length=512
    )


def test_vectors_are_those_of_model2vec(student: MTLModel, make_model: MakeModel, tmp_path: Path) -> None:
    write_static(student, tmp_path / "out")
    static = StaticModel.from_pretrained(tmp_path / "out")
    known = [text for text in SENTENCES if text]
    np.testing.assert_allclose(static.encode(known), student.encode(known), rtol=0, atol=1e-6)
    np.testing.assert_allclose(MTLPredictor(tmp_path / "out").encode(known), static.encode(known), rtol=0, atol=1e-6)
    assert student.backbone.config.hidden_size == 8
    vectors: Any = student.backbone.get_input_embeddings().weight
    assert not vectors[student.tokenizer.unk_token_id].any()
    assert (
        student.tokenizer("match price").input_ids
        == student.tokenizer("match price", add_special_tokens=False).input_ids
    )
    whole = write_static_encoder(make_model(), tmp_path / "whole", dimensions=None)
    assert whole.config.vocab_size == student.backbone.config.vocab_size
    assert whole.config.hidden_size > 8


def test_answers_are_those_of_the_model_without_torch(student: MTLModel, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_static(student, folder)
    embeddings, predictions = student.encode_and_predict(SENTENCES)
    command = [sys.executable, "-c", WITHOUT_TORCH, str(folder), json.dumps(SENTENCES)]
    alone = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)
    predictor = MTLPredictor(folder)
    streamed = list(predictor.stream(SENTENCES, window_size=2))
    assert predictor.graph["backend"] == "static"
    for found, said in (
        predictor.encode_and_predict(SENTENCES),
        (np.array([embedding for embedding, _ in streamed]), [said for _, said in streamed]),
        alone,
    ):
        np.testing.assert_allclose(found, embeddings, rtol=0, atol=1e-6)
        for left, right in zip(said, predictions, strict=True):
            assert_same(left, right)
    assert set(predictions[0]) == {task.name for task in TASKS if task.has_head}


def assert_same(left: Any, right: Any) -> None:
    """Asserts that predictions are the same but for rounding."""
    if isinstance(right, dict):
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(right, float):
        assert left == pytest.approx(right, abs=1e-5)
    else:
        assert left == right


@pytest.mark.parametrize("method", ["encode", "predict", "encode_and_predict", "stream"])
@pytest.mark.parametrize(
    "sentences",
    ["one string", pd.DataFrame({"text": ["a"]}), np.array([["a", "b"]]), ["a", 3], {"a": "b"}],
    ids=["string", "table", "matrix", "number", "mapping"],
)
def test_what_the_model_refuses_is_refused(sentences: Any, method: str, student: MTLModel, tmp_path: Path) -> None:
    write_static(student, tmp_path / "out")
    predictor = MTLPredictor(tmp_path / "out")
    if isinstance(sentences, str) and method in ("encode", "predict"):
        assert len(getattr(predictor, method)(sentences)) == len(getattr(student, method)(sentences))
        return
    told = []
    for answers in (student, predictor):
        with pytest.raises(TypeError) as caught:  # At once, of a stream too.
            getattr(answers, method)(sentences)
        told.append(str(caught.value).partition(";")[0])
    assert told[0] == told[1]


@pytest.mark.parametrize("threads", [0, -1, True, 1.5])
def test_threads_are_a_count(threads: Any, student: MTLModel, tmp_path: Path) -> None:
    write_static(student, tmp_path / "out")
    with pytest.raises(ValueError, match="threads must be an int of at least 1, found"):
        MTLPredictor(tmp_path / "out", threads=threads)


@pytest.mark.parametrize("pooling", ["max", "cls"])
def test_only_means_are_written(pooling: Any, student: MTLModel, tmp_path: Path) -> None:
    student.config.pooling = pooling
    with pytest.raises(ValueError, match=f"pooling is '{pooling}', and a static student has the mean"):
        write_static(student, tmp_path / "out")


def test_texts_are_cut_where_the_model_cuts_them(student: MTLModel, tmp_path: Path) -> None:
    student.config.max_seq_length = 3
    write_static(student, tmp_path / "out")
    long = ["a b c d e", "a b c"]
    expected = student.encode(long)
    np.testing.assert_array_equal(expected[0], expected[1])
    np.testing.assert_allclose(MTLPredictor(tmp_path / "out").encode(long), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(StaticModel.from_pretrained(tmp_path / "out").encode(long), expected, rtol=0, atol=1e-6)


def test_half_precision_is_written_as_float32(student: MTLModel, tmp_path: Path) -> None:
    student.bfloat16()
    write_static(student, tmp_path / "out")
    found = MTLPredictor(tmp_path / "out").encode(SENTENCES)
    np.testing.assert_allclose(found, student.float().encode(SENTENCES), rtol=0, atol=1e-6)


def test_a_write_that_is_cut_off_leaves_no_student(
    student: MTLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_static(student, tmp_path / "out")

    def fail(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(static_student, "_head_tensors", fail)
    with pytest.raises(KeyboardInterrupt):
        write_static(student, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="There is no export"):
        MTLPredictor(tmp_path / "out")


def test_long_texts_are_read_in_pieces(student: MTLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_static(student, tmp_path / "out")
    texts = ["match team goal", "price order", "actor"] * 7
    expected = MTLPredictor(tmp_path / "out").encode(texts)
    monkeypatch.setattr(predictor_mtl._Static, "batch_tokens", 4)
    np.testing.assert_array_equal(MTLPredictor(tmp_path / "out").encode(texts), expected)


def test_gelu_is_that_of_torch() -> None:
    values = torch.linspace(-8, 8, 2001)
    np.testing.assert_allclose(predictor_mtl._gelu(values.numpy()), F.gelu(values), rtol=0, atol=1e-6)


def test_the_unknown_token_stays_zero_in_training() -> None:
    encoder = StaticEncoder(StaticEncoderConfig(vocab_size=5, hidden_size=3, unk_token_id=1))
    assert not encoder.embeddings.weight[1].any()
    encoder(torch.tensor([[0, 1, 4]])).last_hidden_state.sum().backward()
    gradient: Any = encoder.embeddings.weight.grad
    assert gradient.any(dim=1).tolist() == [True, False, False, False, True]


@pytest.mark.slow
def test_verify_knows_a_static_student(student: MTLModel, tmp_path: Path) -> None:
    write_static(student, tmp_path / "out")
    found = verify(tmp_path / "out", trust_remote_code=True)
    assert [(check.name, check.state) for check in found.checks] == [("predictor_mtl.py", "ok"), ("model2vec", "ok")]
    assert found.checks[0].is_reference
    assert found.checks[1].difference is not None
    untrusted = verify(tmp_path / "out")
    assert [check.state for check in untrusted.checks] == ["not run", "ok"]
    assert untrusted.is_ok and not untrusted.is_complete


def test_other_encoders_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="The encoder is a BertModel"):
        write_static(make_model(), tmp_path / "out")
