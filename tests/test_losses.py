"""The losses: against those of torch, with labels missing, and divided by the counts of a whole step."""

from pathlib import Path

import pytest
import torch
from checks import NAN, assert_close, full_labels, gradients, same
from conftest import SENTENCES, MakeModel
from torch import Tensor
from torch.nn import functional as F
from transformers import BatchEncoding

from classification_mtl import CosineLinear
from configuration_mtl import TaskConfig
from heads_mtl import summed_loss
from modeling_mtl import MTLModel
from tasks_mtl import IGNORE_INDEX, MULTI_LABEL, ORDINAL, OUT_OF_SCOPE_INDEX, REGRESSION, SINGLE_LABEL, valid_labels


def test_losses_against_those_of_torch(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model, labels = make_model(), full_labels()
    output = model(**inputs, labels=labels)
    logits = output.logits
    tags = labels["tags"]
    expected = {
        "topic": F.cross_entropy(logits["topic"][[0, 1, 3]], torch.tensor([0, 2, 1])),
        "sentiment": F.cross_entropy(logits["sentiment"][1:], torch.tensor([1, 1, 2])),
        "tags": F.binary_cross_entropy_with_logits(logits["tags"][~tags.isnan()], tags[~tags.isnan()]),
        "valence": F.mse_loss(logits["valence"][[0, 2, 3], 0], torch.tensor([2.0, 0.0, -2.0])),
    }
    assert list(output.task_losses) == list(expected)
    for name, loss in expected.items():
        assert_close(output.task_losses[name], loss)
    assert_close(output.loss, torch.stack(list(expected.values())).sum(), atol=4e-6)  # Four losses, each so close.


def test_static_weights_count_in_the_loss_only(make_model: MakeModel, inputs: BatchEncoding) -> None:
    tasks = [TaskConfig("topic", num_labels=3, weight=0.25), TaskConfig("valence", REGRESSION, weight=3)]
    output = make_model(tasks=tasks)(**inputs, labels=full_labels())
    topic, valence = output.task_losses.values()
    assert_close(output.loss, 0.25 * topic + 3 * valence)


def test_regression_labels_of_either_shape() -> None:
    logits = torch.tensor([[0.5], [2.0], [-1.0]])
    labels = torch.tensor([1.0, NAN, 1.0])
    assert summed_loss(REGRESSION, logits, labels).item() == 4.25
    assert summed_loss(REGRESSION, logits, labels.unsqueeze(1)).item() == 4.25
    several = torch.tensor([[0.0, NAN], [1.0, 1.0]])
    assert summed_loss(REGRESSION, torch.ones(2, 2), several).item() == 1.0
    assert valid_labels(several).tolist() == [[True, False], [True, True]]
    assert valid_labels(torch.tensor([0, IGNORE_INDEX, OUT_OF_SCOPE_INDEX])).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (SINGLE_LABEL, torch.tensor([1, IGNORE_INDEX, 0])),
        (SINGLE_LABEL, torch.tensor([1, OUT_OF_SCOPE_INDEX, 0])),
        (ORDINAL, torch.tensor([1, IGNORE_INDEX, 2])),
        (MULTI_LABEL, torch.tensor([[1.0, 0.0], [NAN, NAN], [0.0, 1.0]])),
        (REGRESSION, torch.tensor([[1.0, 0.5], [NAN, NAN], [0.0, 1.0]])),
    ],
)
def test_missing_label_gives_exactly_no_gradient(problem_type: str, labels: Tensor) -> None:
    logits = torch.tensor([[0.3, -2.0], [5.0, 80.0], [1.0, 0.1]], requires_grad=True)
    summed_loss(problem_type, logits, labels).backward()
    assert logits.grad is not None
    assert logits.grad[1].tolist() == [0.0, 0.0]
    assert logits.grad[[0, 2]].all()
    kept = logits.detach()[[0, 2]].requires_grad_()
    summed_loss(problem_type, kept, labels[[0, 2]]).backward()
    assert same(kept.grad, logits.grad[[0, 2]])


def test_head_whose_labels_are_all_missing_gets_exactly_no_gradient(
    make_model: MakeModel, inputs: BatchEncoding
) -> None:
    labels = full_labels()
    missing = {
        name: torch.full_like(tensor, IGNORE_INDEX if name != "valence" else NAN) for name, tensor in labels.items()
    }
    model = make_model()
    model(
        **inputs, labels={**labels, "sentiment": missing["sentiment"], "valence": missing["valence"]}
    ).loss.backward()
    for name, head in model.heads.items():
        has_gradient = [bool(gradient.any()) for gradient in gradients(head).values()]
        assert has_gradient == [name in ("topic", "tags")] * 2, name


def test_task_left_out_of_the_labels_keeps_its_head_in_the_graph(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model()
    output = model(**inputs, labels={"topic": full_labels()["topic"]})
    assert list(output.task_losses) == ["topic", "sentiment", "tags", "valence"]
    assert [loss.item() for loss in output.task_losses.values()][1:] == [0.0, 0.0, 0.0]
    assert same(output.loss, output.task_losses["topic"])
    output.loss.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert not gradients(model)["heads.tags.out_proj.weight"].any()


def test_losses_are_divided_by_the_count_of_the_whole_step(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model, labels = make_model(), full_labels()
    own = model(**inputs, labels=labels).task_losses
    counts = {"topic": torch.tensor(12), "sentiment": torch.tensor(6), "tags": torch.tensor(22)}
    given = model(**inputs, labels=labels, num_items_in_batch=counts).task_losses
    # In the batch alone there are 3, 3 and 11 valid labels; a task without a given count takes its own.
    for name, factor in {"topic": 4, "sentiment": 2, "tags": 2, "valence": 1}.items():
        assert_close(given[name] * factor, own[name])
    nothing = {name: torch.tensor(0) for name in labels}
    empty = model(**inputs, labels={"topic": torch.full((4,), IGNORE_INDEX)}, num_items_in_batch=nothing)
    assert empty.loss.item() == 0.0


def test_micro_batches_add_up_to_the_whole_batch(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model, labels = make_model(), full_labels()
    counts = {name: valid_labels(tensor).sum() for name, tensor in labels.items()}
    model(**inputs, labels=labels).loss.backward()
    whole = gradients(model)
    model.zero_grad()
    for row in range(len(SENTENCES)):
        part = {name: tensor[row : row + 1] for name, tensor in inputs.items()}
        part_labels = {name: tensor[row : row + 1] for name, tensor in labels.items()}
        model(**part, labels=part_labels, num_items_in_batch=counts).loss.backward()
    for name, weight in model.named_parameters():
        # Float32 sums over four sentences in another order, of gradients below 10.
        torch.testing.assert_close(weight.grad, whole[name], atol=1e-5, rtol=1e-5, msg=name)


def test_cosine_head_by_hand_and_saved(make_model: MakeModel, inputs: BatchEncoding, tmp_path: Path) -> None:
    layer = CosineLinear(2, 3, scale=10.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.5], [-3.0, -3.0]]))
    # The features are at 45 degrees to the first two vectors, and opposite to the third, whatever the lengths.
    assert_close(layer(torch.tensor([7.0, 7.0])), 10.0 * torch.tensor([0.5**0.5, 0.5**0.5, -1.0]), atol=2e-6)
    model = make_model(tasks=[TaskConfig("topic", num_labels=3, cosine_scale=20.0)])
    output = model(**inputs, labels={"topic": torch.tensor([0, 1, IGNORE_INDEX, 2])})
    assert output.logits["topic"].abs().max() <= 20.0
    output.loss.backward()
    assert list(gradients(model.heads)) == ["topic.out_proj.weight"]
    model.save_pretrained(tmp_path)
    assert same(MTLModel.from_pretrained(tmp_path)(**inputs).logits["topic"], output.logits["topic"])
