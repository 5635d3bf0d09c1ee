"""Objectives on the embedding: against numbers worked out by hand, and the library's own losses."""

import math
from typing import Any

import pytest
import torch
from checks import NAN, assert_close, same
from sentence_transformers.sentence_transformer.losses import (
    CoSENTLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch import Tensor, nn
from torch.nn import functional as F

from configuration_mtl import TaskConfig
from similarity_mtl import ComparedTexts, similarity_loss, similarity_outputs, text_identity
from tasks_mtl import CONTRASTIVE, IGNORE_INDEX, POSITIVE_PAIRS, SCORED_PAIRS, TRIPLETS

COSENT = TaskConfig("near", SCORED_PAIRS)
COSINE = TaskConfig("near", SCORED_PAIRS, loss="cosine")
PAIRS = TaskConfig("near", POSITIVE_PAIRS)
TRIPLET = TaskConfig("near", TRIPLETS)
CLASSES = TaskConfig("near", CONTRASTIVE, num_labels=3)


def degrees(*angles: float) -> Tensor:
    """Returns unit vectors in the plane at these angles, so that cosines can be read off."""
    radians = torch.tensor(angles).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def units(count: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def texts_of(anchors: Tensor, others: Tensor, identity: list[int] | None = None) -> ComparedTexts:
    """Makes a batch of as many others as there are anchors, or twice as many: the positives, then the negatives."""
    count = len(anchors)
    second = torch.arange(count) + count if len(others) == 2 * count else torch.full((count,), -1)
    partners = torch.stack([torch.arange(count), second], dim=1)
    numbers = torch.tensor(identity) if identity else torch.arange(count + len(others))
    return ComparedTexts(anchors, others, partners, numbers)


def outputs_and_loss(task: TaskConfig, texts: ComparedTexts, labels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = similarity_outputs([task], texts, {task.name: labels})[task.name]
    return outputs, similarity_loss(task, outputs, labels)


def theirs(loss_class: Any, embeddings: list[Tensor], labels: Tensor, **settings: Any) -> Tensor:
    module = loss_class(nn.Identity(), **settings)
    loss: Tensor = module.compute_loss_from_embeddings(embeddings, labels)
    return loss


def test_cosent_by_hand() -> None:
    # Cosines 1, 0.5 and 0 for the scores 1, 3 and 2: the pairs in the wrong order are (1 over 3) and (1 over 2), that
    # in the right one (2 below 3).
    texts = texts_of(degrees(0, 0, 0), degrees(0, 60, 90))
    task = TaskConfig("near", SCORED_PAIRS, temperature=0.5)
    outputs, loss = outputs_and_loss(task, texts, torch.tensor([1.0, 3.0, 2.0]))
    assert_close(outputs, torch.tensor([1.0, 0.5, 0.0]))
    one = math.log(1 + math.exp((1 - 0.5) / 0.5) + math.exp((1 - 0.0) / 0.5) + math.exp((0.0 - 0.5) / 0.5))
    assert loss.item() == pytest.approx(3 * one, rel=1e-6)


@pytest.mark.parametrize("scores", [[0.1, 0.9, 0.5, 0.5, 0.9, 0.2], [1.0] * 6])
def test_cosent_is_that_of_sentence_transformers(scores: list[float]) -> None:
    anchors, others = units(6).requires_grad_(), units(6, 1)
    _, loss = outputs_and_loss(COSENT, texts_of(anchors, others), torch.tensor(scores))
    loss.backward()
    copy = anchors.detach().clone().requires_grad_()
    expected = 6 * theirs(CoSENTLoss, [copy, others], torch.tensor(scores))
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    # Their gradient also takes apart the normalisation, whose part along the anchor ours leaves to the model.
    own = anchors.grad
    assert own is not None
    along = (own * anchors.detach()).sum(dim=1, keepdim=True) * anchors.detach()
    torch.testing.assert_close(own - along, copy.grad, rtol=1e-4, atol=1e-4)


def test_squared_cosine_error_by_hand() -> None:
    texts = texts_of(degrees(0, 0, 0), degrees(0, 60, 90))
    outputs, loss = outputs_and_loss(COSINE, texts, torch.tensor([0.0, NAN, -1.0]))
    assert outputs.isnan().tolist() == [False, True, False]
    assert loss.item() == pytest.approx((1 - 0) ** 2 + (0 + 1) ** 2)


def test_positive_pairs_by_hand() -> None:
    # Row 0 sees its positive at 0 degrees and the other's at 90, row 1 at 60 and 30; the last row is not of the task.
    texts = texts_of(degrees(0, 60, 45), degrees(0, 90, 45))
    task = TaskConfig("near", POSITIVE_PAIRS, temperature=0.5)
    outputs, loss = outputs_and_loss(task, texts, torch.tensor([1, 1, IGNORE_INDEX]))
    first = math.log(math.exp(2 * 1) + math.exp(2 * 0)) - 2 * 1
    second = math.log(math.exp(2 * math.cos(math.radians(60))) + math.exp(2 * math.cos(math.radians(30))))
    second -= 2 * math.cos(math.radians(30))
    expected = [[1.0, 0.0, first], [math.cos(math.radians(30)), 0.5, second], [NAN] * 3]
    torch.testing.assert_close(outputs, torch.tensor(expected), rtol=0, atol=1e-6, equal_nan=True)
    assert loss.item() == pytest.approx(first + second, rel=1e-6)


@pytest.mark.parametrize("negatives", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_positive_pairs_are_ranked_as_in_sentence_transformers(negatives: bool, symmetric: bool) -> None:
    anchors, others = units(5), units(10 if negatives else 5, 1)
    task = TaskConfig("near", POSITIVE_PAIRS, symmetric=symmetric)
    _, loss = outputs_and_loss(task, texts_of(anchors, others), torch.ones(5, dtype=torch.int64))
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    settings = both if symmetric else {}
    expected = theirs(MultipleNegativesRankingLoss, [anchors, *others.split(5)], torch.ones(5), **settings)
    torch.testing.assert_close(loss / 5, expected, rtol=1e-5, atol=1e-6)


def test_equal_texts_are_no_negatives() -> None:
    # Anchors a, b, a; positives p, q, q; so row 0 sees p alone against q of row 1 (that of row 2 is its own anchor's),
    # row 1 has q twice and p, row 2 has q twice, and p is the positive of its own anchor.
    cosines = [[0.9, 0.5, 0.4], [0.1, 0.6, 0.6], [0.2, 0.3, 0.3]]
    anchors, others = torch.eye(3), torch.tensor(cosines).T.contiguous()
    others[2] = others[1]
    texts = texts_of(anchors, others, identity=[0, 1, 0, 2, 3, 3])
    task = TaskConfig("near", POSITIVE_PAIRS, temperature=1.0)
    outputs, _ = outputs_and_loss(task, texts, torch.ones(3, dtype=torch.int64))
    e = math.exp
    expected = [math.log((e(0.9) + e(0.5)) / e(0.9)), math.log((e(0.6) + e(0.1)) / e(0.6)), 0.0]
    torch.testing.assert_close(outputs[:, 2], torch.tensor(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs[:, 1], torch.tensor([0.5, 0.1, NAN]), rtol=0, atol=1e-6, equal_nan=True)


def test_a_positive_of_the_anchors_own_text_is_no_negative_of_others() -> None:
    # The second row's positive is the first row's anchor.
    texts = texts_of(units(2), units(2, 1), identity=[0, 1, 2, 0])
    outputs, _ = outputs_and_loss(PAIRS, texts, torch.ones(2, dtype=torch.int64))
    assert outputs[0, 2].item() == 0.0
    assert outputs[1, 2].item() > 0.0


def test_a_hard_negative_of_another_row_counts_and_a_missing_one_does_not() -> None:
    anchors, others = units(2), units(3, 1)
    texts = ComparedTexts(anchors, others, torch.tensor([[0, 2], [1, -1]]), torch.arange(5))
    outputs, _ = outputs_and_loss(PAIRS, texts, torch.ones(2, dtype=torch.int64))
    expected = F.cross_entropy(anchors @ others.T / 0.05, torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(outputs[:, 2], expected, rtol=1e-5, atol=1e-6)


def test_triplets_by_hand_and_as_in_sentence_transformers() -> None:
    # Distances 1 - cos: 0.5 to the positive, 1 to the negative, then the other way round.
    texts = texts_of(degrees(0, 0), degrees(60, 90, 90, 60))
    outputs, loss = outputs_and_loss(TRIPLET, texts, torch.ones(2, dtype=torch.int64))
    assert_close(outputs, torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    assert loss.item() == pytest.approx(0 + (1 - 0.5 + 0.1))
    anchors, others = units(7), units(14, 1)
    _, loss = outputs_and_loss(TRIPLET, texts_of(anchors, others), torch.ones(7, dtype=torch.int64))
    expected = theirs(
        TripletLoss,
        [anchors, *others.split(7)],
        torch.ones(7),
        distance_metric=TripletDistanceMetric.COSINE,
        triplet_margin=0.1,
    )
    torch.testing.assert_close(loss / 7, expected, rtol=1e-5, atol=1e-6)


def test_supervised_contrastive_by_hand() -> None:
    # Classes 0, 0, 1 and missing at 0, 60, 90 and 0 degrees: rows 0 and 1 have each other, row 2 has nothing.
    task = TaskConfig("near", CONTRASTIVE, num_labels=2, temperature=0.5)
    texts = texts_of(degrees(0, 60, 90, 0), units(0))
    outputs, loss = outputs_and_loss(task, texts, torch.tensor([0, 0, 1, IGNORE_INDEX]))
    assert same(outputs, texts.anchors)
    near, far = math.exp(0.5 / 0.5), math.exp(0.0 / 0.5)
    nearer = math.exp(math.cos(math.radians(30)) / 0.5)
    assert loss.item() == pytest.approx(-math.log(near / (near + far)) - math.log(near / (near + nearer)), rel=1e-6)


def test_supervised_contrastive_as_the_formula_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = units(9), torch.tensor([0, 1, 2, 0, 1, 0, 0, 2, 5])
    total = 0.0
    for i in range(9):
        positives = [p for p in range(9) if p != i and labels[p] == labels[i]]
        denominator = sum(math.exp(embeddings[i] @ embeddings[a] / 0.1) for a in range(9) if a != i)
        for p in positives:
            total -= math.log(math.exp(embeddings[i] @ embeddings[p] / 0.1) / denominator) / len(positives)
    for chunk in (1024, 4):
        monkeypatch.setattr("similarity_mtl._CHUNK_ROWS", chunk)
        assert similarity_loss(CLASSES, embeddings, labels).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("task", [COSENT, COSINE, PAIRS, TRIPLET, CLASSES], ids=lambda task: str(task.loss))
@pytest.mark.parametrize("present", [[1, 4, 5], [3], []])
def test_missing_rows_get_exactly_no_gradient(task: TaskConfig, present: list[int]) -> None:
    missing = NAN if task.problem_type == SCORED_PAIRS else IGNORE_INDEX
    labels = torch.tensor([float(missing) if math.isnan(missing) else missing] * 6)
    labels[present] = 1
    if task.problem_type == SCORED_PAIRS:
        labels[present] = torch.arange(len(present)).float() / 3
    anchors, others = units(6).requires_grad_(), units(12, 1).requires_grad_()
    _, loss = outputs_and_loss(task, texts_of(anchors, others), labels)
    loss.backward()
    grad = anchors.grad
    assert math.isfinite(loss.item())
    assert grad is not None, "the rank's encoder would be out of the graph"
    absent = [row for row in range(6) if row not in present]
    assert not grad[absent].any()
    assert torch.isfinite(grad).all()
    if others.grad is not None:
        assert not others.grad[absent].any()
        assert torch.isfinite(others.grad).all()
    if len(present) == 3 and task is not TRIPLET:
        assert grad[present].any(dim=1).all()


def test_no_further_text_in_the_batch() -> None:
    anchors = units(3).requires_grad_()
    texts = ComparedTexts(anchors, anchors.new_zeros(0, 8), torch.full((3, 2), -1), torch.arange(3))
    for task, labels in ((COSENT, torch.full((3,), NAN)), (PAIRS, torch.full((3,), -100)), (TRIPLET, None)):
        outputs = similarity_outputs([task], texts, {} if labels is None else {"near": labels})["near"]
        assert outputs.isnan().all()


def test_losses_are_float32_under_autocast() -> None:
    anchors, others = units(5), units(5, 1)
    expected = outputs_and_loss(PAIRS, texts_of(anchors, others), torch.ones(5, dtype=torch.int64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = outputs_and_loss(PAIRS, texts_of(anchors, others), torch.ones(5, dtype=torch.int64))
        contrastive = similarity_loss(CLASSES, anchors, torch.tensor([0, 0, 1, 1, 1]))
    assert all(same(*pair) for pair in zip(found, expected, strict=True))
    assert same(contrastive, similarity_loss(CLASSES, anchors, torch.tensor([0, 0, 1, 1, 1])))


def test_identity_does_not_depend_on_padding() -> None:
    right = torch.tensor([[5, 6, 0], [5, 6, 7]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    left = (
        torch.tensor([[0, 0, 5, 6], [0, 5, 6, 7], [0, 0, 0, 5]]),
        torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]]),
    )
    first, second, third, fourth, fifth = text_identity([right, left]).tolist()
    assert (first, second) == (third, fourth)
    assert len({first, second, fifth}) == 3
    # The id of the padding as a real token is another text than none.
    assert len(set(text_identity([(torch.tensor([[5, 0], [5, 0]]), torch.tensor([[1, 1], [1, 0]]))]).tolist())) == 2
