"""Passes over sentences: what is told when, what an interruption leaves, and what each head says of a batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from torch import Tensor
from torch.nn import functional as F

import passes_mtl
from classification_mtl import confidence, predictions_of
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from tasks_mtl import CLASS_TYPES, MULTI_LABEL, ORDINAL, POSITIVE_PAIRS, REGRESSION, REJECTION_SCORES

LENGTHS = (3, 1, 12, 7, 7, 0, 5, 2, 12, 1)
SENTENCES = [" ".join(["match"] * length) for length in LENGTHS]
TYPES_OF_HEADS: dict[str, dict[str, Any]] = {
    "single": {"num_labels": 3},
    "many classes": {"num_labels": 77},
    "calibrated": {"num_labels": 5, "calibration_temperature": 1.7, "abstention_threshold": 0.45},
    **{
        score: {"num_labels": 9, "out_of_scope_label": "none", "rejection_score": score, "rejection_threshold": least}
        for score, least in zip(REJECTION_SCORES, (3.1, 1.6, 0.4), strict=True)
    },
    "ordinal": {"problem_type": ORDINAL, "num_labels": 5, "abstention_threshold": 0.4},
    "ordinal, calibrated": {"problem_type": ORDINAL, "num_labels": 3, "calibration_temperature": 0.6},
    "multi-label": {"problem_type": MULTI_LABEL, "labels": ("a", "b", "c", "d")},
    "thresholds": {"problem_type": MULTI_LABEL, "labels": ("a", "b", "c"), "label_thresholds": (0.2, 0.5, 0.9)},
    "regression": {"problem_type": REGRESSION},
    "two numbers": {"problem_type": REGRESSION, "labels": ("joy", "fear")},
}


def of_classes(task: TaskConfig, logits: Tensor) -> Tensor:
    """Returns the probabilities, (C,), of one sentence, by torch's functions as they are."""
    logits = logits / (task.calibration_temperature or 1.0)
    if task.problem_type == MULTI_LABEL:
        return logits.sigmoid()
    if task.problem_type == ORDINAL:
        reaches = F.pad(logits.sigmoid().cumprod(dim=-1), (1, 0), value=1.0)  # (C,)
        return reaches * F.pad((-logits).sigmoid(), (0, 1), value=1.0)  # (C,)
    return logits.softmax(dim=-1)


def of_one_row(task: TaskConfig, logits: Tensor) -> Any:
    """Returns what a head says of one sentence, worked out for it alone from its logits, (C,)."""
    names = task.id2label.values()
    if task.problem_type == REGRESSION:
        values = dict(zip(names, logits.tolist(), strict=True))
        return logits.item() if task.num_labels == 1 else values
    by_name = dict(zip(names, of_classes(task, logits).tolist(), strict=True))
    if task.problem_type not in CLASS_TYPES:
        least = task.label_thresholds or [0.5] * len(by_name)
        return {
            "labels": [name for name, bound in zip(names, least, strict=True) if by_name[name] >= bound],
            "probabilities": by_name,
        }
    by_steps = logits.sigmoid().cumprod(dim=-1) > 0.5
    label = task.id2label[int(by_steps.sum() if task.problem_type == ORDINAL else logits.argmax())]
    said: dict[str, Any] = {"label": label, "score": by_name[label], "probabilities": by_name}
    if task.rejection_threshold is not None:
        said["in_scope"] = confidence(logits, str(task.rejection_score)).item() >= task.rejection_threshold
        said["label"] = label if said["in_scope"] else task.out_of_scope_label
    if task.abstention_threshold is not None:
        said["abstains"] = not said["score"] >= task.abstention_threshold
    return said


@pytest.mark.parametrize("kind", TYPES_OF_HEADS)
def test_a_batch_says_of_each_sentence_what_it_says_of_it_alone(kind: str) -> None:
    task = TaskConfig("task", **TYPES_OF_HEADS[kind])
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(101, task.num_logits, generator=generator)  # (B, C)
    logits[7] = 0.0  # All alike: the first of them.
    alone = [of_one_row(task, row) for row in logits]
    together = predictions_of(task, logits)
    # Bit for bit: how many rows there are changes no row.
    assert together == alone
    assert [list(said) for said in together if isinstance(said, dict)] == [
        list(said) for said in alone if isinstance(said, dict)
    ]
    for key in ("in_scope", "abstains"):
        if key in (alone[0] if isinstance(alone[0], dict) else ()):
            assert {said[key] for said in together} == {True, False}, "the thresholds decide nothing here"
    assert predictions_of(task, logits[:0]) == []


def test_what_is_no_number_is_said_as_such() -> None:
    task = TaskConfig("task", num_labels=2, abstention_threshold=0.1)
    (said,) = predictions_of(task, torch.full((1, 2), float("nan")))
    assert np.isnan(said["score"])
    assert said["abstains"] is True


def test_neighbours_in_a_batch_change_no_answer(model: MTLModel) -> None:
    alone = [model.encode_and_predict([sentence]) for sentence in SENTENCES]
    rng = np.random.default_rng(0)
    cuts: tuple[dict[str, Any], ...] = ({"max_batch_tokens": 20}, {"batch_size": 3}, {"max_batch_tokens": 10**6})
    for settings in cuts:
        order = rng.permutation(len(SENTENCES))
        embeddings, predictions = model.encode_and_predict([SENTENCES[place] for place in order], **settings)
        for place, embedding, said in zip(order, embeddings, predictions, strict=True):
            (expected,), (other,) = alone[place]
            # Float32 sums of numbers below 4 in another order.
            np.testing.assert_allclose(embedding, expected, atol=1e-6, rtol=0)
            assert said["topic"]["probabilities"] == pytest.approx(other["topic"]["probabilities"], abs=1e-6)
            assert said["valence"] == pytest.approx(other["valence"], abs=1e-6)


def test_a_fault_in_a_list_is_told_before_any_work(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = model.backbone.forward

    def watch(**batch: Tensor) -> Any:
        calls.append(1)
        return forward(**batch)

    monkeypatch.setattr(model.backbone, "forward", watch)
    monkeypatch.setattr(passes_mtl, "_WINDOW_SIZE", 2)
    faulty: list[Any] = [*["price"] * 5, None]
    for sentences in (faulty, tuple(faulty), np.array(faulty, dtype=object)):
        with pytest.raises(TypeError, match=r"sentences\[5\] is None of type NoneType"):
            model.encode(sentences)
        assert calls == []
    with pytest.raises(TypeError, match=r"sentences\[5\] is None of type NoneType"):
        model.predict(iter(faulty))
    assert len(calls) == 2  # The windows before the one of the fault, which nobody could see.


def test_a_stream_tells_what_is_wrong_when_it_is_called(model: MTLModel) -> None:
    for wrong, message in (
        ({"precision": "fp16"}, "precision must be"),
        ({"window_size": 0}, "window_size must be an int of at least 1, found 0"),
        ({"batch_size": 0}, "batch_size must be an int of at least 1, found 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.stream(SENTENCES, **wrong)
    with pytest.raises(TypeError, match="takes several sentences"):
        model.stream("price")
    with pytest.raises(TypeError, match="sentences is of type dict"):
        model.stream({"text": "price"})
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        model.stream(SENTENCES)


def test_an_interruption_leaves_the_model_as_it_was(model: MTLModel) -> None:
    def sentences() -> Iterator[str]:
        yield from SENTENCES
        raise KeyboardInterrupt

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    model.train()
    answers = []
    with pytest.raises(KeyboardInterrupt):
        answers += list(model.stream(sentences(), window_size=4))
    stream = model.stream(sentences(), window_size=4)
    for _ in range(6):
        next(stream)
        # Between two answers the model is the caller's: a training may go on.
        assert model.training and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    stream.close()  # type: ignore[attr-defined]  # Of a generator.
    handle = model.backbone.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.encode(SENTENCES, precision="bf16")
    handle.remove()
    assert model.training and model.backbone.training
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_bf16_without_instructions_is_told_once(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    monkeypatch.setattr(passes_mtl, "has_fast_bf16", lambda device: False)
    monkeypatch.setattr(passes_mtl.logger, "warning", lambda message, *_: told.append(message))
    type(passes_mtl.logger).warning_once.cache_clear()  # type: ignore[attr-defined]  # Of transformers.
    for _ in range(3):
        model.encode(SENTENCES, precision="bf16")
        model.encode(SENTENCES, precision="auto")
    assert told == ["precision='bf16' is slow on this cpu, which has no instructions for it."]


def test_encode_runs_no_head(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for head in model.heads.values():
        head.register_forward_hook(lambda *_: calls.append(1))
    model.encode(SENTENCES)
    assert calls == []
    model.predict(SENTENCES)
    assert len(calls) == len(model.heads)


def test_tasks_without_heads_say_nothing(make_model: MakeModel) -> None:
    model = make_model(tasks=(TaskConfig("near", POSITIVE_PAIRS),))
    embeddings, predictions = model.encode_and_predict(SENTENCES)
    assert embeddings.shape == (len(SENTENCES), 32)
    assert predictions == [{}] * len(SENTENCES)
