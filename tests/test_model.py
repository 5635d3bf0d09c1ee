"""MTLModel on tiny encoders of every supported kind: same states, right pooling, right losses, right gradients."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeBackbone, SaveBackbone
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import AutoModel, BatchEncoding, PreTrainedTokenizerFast, T5Config, Trainer, TrainingArguments

from configuration_mtl import IGNORE_INDEX, MULTI_LABEL, REGRESSION, SINGLE_LABEL, MTLConfig, TaskConfig
from modeling_mtl import MTLModel, MTLOutput, pool, summed_loss, valid_labels

ARCHITECTURES = ("bert", "distilbert", "modernbert", "roberta", "mpnet", "deberta-v2", "electra", "albert")
SENTENCES = [
    "match team goal now",
    "price",
    "a plain usual average scene, actor plot and a website",
    "why refund order",
]
NAN = math.nan

MakeModel = Callable[..., MTLModel]


@pytest.fixture
def make_model(backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...]) -> MakeModel:
    """Gives a function that puts heads on a tiny encoder; without dropout in the heads unless asked for."""

    def make(model_type: str = "bert", **settings: Any) -> MTLModel:
        torch.manual_seed(1)
        settings = {"tasks": tasks, "head_dropout": 0.0, **settings}
        return MTLModel.from_backbone(backbone_dir(model_type), **settings)

    return make


@pytest.fixture
def inputs(tiny_tokenizer: PreTrainedTokenizerFast) -> BatchEncoding:
    """Gives the padded sentences."""
    return tiny_tokenizer(SENTENCES, padding=True, return_tensors="pt")


def full_labels() -> dict[str, Tensor]:
    """Returns labels of every task for the four sentences, some of them missing."""
    return {
        "topic": torch.tensor([0, 2, IGNORE_INDEX, 1]),
        "sentiment": torch.tensor([IGNORE_INDEX, 1, 1, 2]),
        "tags": torch.tensor([[1, 0, 0, 0], [NAN] * 4, [0, NAN, 0, 1], [0, 1, 0, 0]], dtype=torch.float32),
        "valence": torch.tensor([2.0, NAN, 0.0, -2.0]),
    }


def assert_close(actual: Tensor | None, expected: Tensor | None, atol: float = 1e-6) -> None:
    """Asserts that numbers differ by no more than float32 sums of some numbers below 4 do in another order."""
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0.0)


def same(actual: Tensor | None, expected: Tensor | None) -> bool:
    """Returns whether two tensors are there and equal bit for bit."""
    return actual is not None and expected is not None and torch.equal(actual, expected)


def output_layer(model: MTLModel, task: str) -> nn.Linear:
    """Returns the last layer of a task's head."""
    layer = model.heads.get_submodule(f"{task}.out_proj")
    assert isinstance(layer, nn.Linear)
    return layer


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Returns copies of the gradients by the parameters' names."""
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def mean_by_hand(states: Tensor, mask: Tensor) -> Tensor:
    """Averages the states of the tokens, sentence by sentence, (B, H)."""
    return torch.stack([row[kept.bool()].mean(dim=0) for row, kept in zip(states, mask, strict=True)])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_equals_the_plain_encoder(
    model_type: str, backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...], inputs: BatchEncoding
) -> None:
    folder = backbone_dir(model_type)
    plain = AutoModel.from_pretrained(folder).eval()
    model = MTLModel.from_backbone(folder, tasks=tasks, normalize=False)
    assert not model.training
    with torch.no_grad():
        expected = plain(**inputs).last_hidden_state
        output = model(**inputs)
    assert same(output.last_hidden_state, expected)
    assert_close(output.embeddings, mean_by_hand(expected, inputs["attention_mask"]))
    assert same(torch.from_numpy(model.encode(SENTENCES)), output.embeddings)
    assert {name: logits.shape for name, logits in output.logits.items()} == {
        task.name: (len(SENTENCES), task.num_labels) for task in tasks
    }
    assert output.loss is None
    assert output.task_losses is None


def test_asked_attention_is_used_and_kept(make_model: MakeModel, inputs: BatchEncoding) -> None:
    # A config that does not name the attention in use would reset that of the live encoder.
    model = make_model(attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.backbone.config._attn_implementation == "eager"
    assert model(**inputs, output_attentions=True).attentions is not None
    assert make_model().backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_saved_and_loaded_is_bit_equal(
    model_type: str, make_model: MakeModel, inputs: BatchEncoding, tmp_path: Path
) -> None:
    model = make_model(model_type, max_seq_length=32, pooling="max")
    model.save_pretrained(tmp_path / "saved")
    loaded, report = MTLModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report.values()), report
    assert not loaded.training
    before, after = model.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(same(tensor, after[name]) for name, tensor in before.items())
    first, second = model(**inputs), loaded(**inputs)
    assert same(first.embeddings, second.embeddings)
    assert all(same(logits, second.logits[name]) for name, logits in first.logits.items())
    assert (model.encode(SENTENCES) == loaded.encode(SENTENCES)).all()
    assert loaded.config.tasks == model.config.tasks
    assert loaded.config.max_seq_length == 32


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(model_type: str, make_model: MakeModel, inputs: BatchEncoding) -> None:
    # None of these has a parameter without gradient: the poolers that would have are not built.
    tasks = [TaskConfig("topic", num_labels=3, hidden_size=8), TaskConfig("valence", REGRESSION)]
    model = make_model(model_type, tasks=tasks).train()
    model(**inputs, labels=full_labels()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []
    assert not any("pooler" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_embedding_depends_on_neither_padding_nor_order(
    model_type: str, make_model: MakeModel, tiny_tokenizer: PreTrainedTokenizerFast, inputs: BatchEncoding
) -> None:
    model = make_model(model_type)
    together = model(**inputs).embeddings
    for row, sentence in enumerate(SENTENCES):
        alone = model(**tiny_tokenizer(sentence, return_tensors="pt")).embeddings
        assert alone.shape == (1, 32)
        assert_close(alone[0], together[row])
    order = [2, 0, 3, 1]
    shuffled = model(**{name: tensor[order] for name, tensor in inputs.items()}).embeddings
    assert_close(shuffled, together[order])
    wider = tiny_tokenizer(SENTENCES, padding="max_length", max_length=40, return_tensors="pt")
    assert_close(model(**wider).embeddings, together)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_left_padding_changes_nothing(
    model_type: str,
    pooling: str,
    make_model: MakeModel,
    tiny_tokenizer: PreTrainedTokenizerFast,
    inputs: BatchEncoding,
) -> None:
    model = make_model(model_type, pooling=pooling)
    flipped = tiny_tokenizer(SENTENCES, padding=True, padding_side="left", return_tensors="pt")
    assert not flipped["attention_mask"][1, 0]
    # RoBERTa counts positions from the first token by itself, BERT from the first column unless told.
    positions = (flipped["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    extra = {"position_ids": positions} if model_type == "bert" else {}
    assert_close(model(**flipped, **extra).embeddings, model(**inputs).embeddings)


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]], [[7.0, 7.0], [-5.0, 6.0], [-1.0, 2.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(states, mask, "mean").tolist() == [[2.0, -3.0], [-3.0, 4.0]]
    assert pool(states, mask, "cls").tolist() == [[1.0, -2.0], [-5.0, 6.0]]
    assert pool(states, mask, "max").tolist() == [[3.0, -2.0], [-1.0, 6.0]]
    assert pool(states.half(), mask, "mean").dtype == torch.float32
    assert pool(states, torch.zeros_like(mask), "mean").tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_config_chooses_the_pooling(pooling: str, make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model(pooling=pooling, normalize=False)
    output = model(**inputs)
    states, mask = output.last_hidden_state, inputs["attention_mask"].bool()
    by_hand = {
        "mean": [row[kept].mean(dim=0) for row, kept in zip(states, mask, strict=True)],
        "cls": [row[0] for row in states],
        "max": [row[kept].amax(dim=0) for row, kept in zip(states, mask, strict=True)],
    }
    assert_close(output.embeddings, torch.stack(by_hand[pooling]))


def test_normalised_embeddings_have_norm_one(make_model: MakeModel, inputs: BatchEncoding) -> None:
    unit, raw = make_model(), make_model(normalize=False)
    embeddings, pooled = unit(**inputs).embeddings, raw(**inputs).embeddings
    assert_close(embeddings.norm(dim=-1), torch.ones(len(SENTENCES)))
    assert (pooled.norm(dim=-1) - 1).abs().min() > 0.1
    assert_close(embeddings, pooled / pooled.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("normalize_for_heads", [True, False])
def test_what_the_heads_see(
    normalize: bool, normalize_for_heads: bool, make_model: MakeModel, inputs: BatchEncoding
) -> None:
    model = make_model(normalize=normalize, normalize_for_heads=normalize_for_heads)
    output = model(**inputs)
    pooled = mean_by_hand(output.last_hidden_state, inputs["attention_mask"])
    features = F.normalize(pooled, dim=-1) if normalize_for_heads else pooled
    head = output_layer(model, "topic")
    assert_close(output.logits["topic"], features @ head.weight.T + head.bias)


def test_hidden_layer_of_a_head(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model(tasks=[TaskConfig("topic", num_labels=3, hidden_size=8)], normalize=False)
    hidden, last, output = model.heads.get_submodule("topic.hidden.0"), output_layer(model, "topic"), model(**inputs)
    assert isinstance(hidden, nn.Linear)
    assert hidden.weight.shape == (8, 32)
    features = F.gelu(output.embeddings @ hidden.weight.T + hidden.bias)
    assert_close(output.logits["topic"], features @ last.weight.T + last.bias)


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
    assert valid_labels(torch.tensor([0, IGNORE_INDEX])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        (SINGLE_LABEL, torch.tensor([1, IGNORE_INDEX, 0])),
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


def test_encoder_decoder_is_refused_before_its_weights_are_read(
    backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...]
) -> None:
    folder = backbone_dir("t5")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"'t5' is an encoder-decoder, .* Use an encoder, such as 'distilbert/"):
        MTLModel.from_backbone(folder, tasks=tasks)
    with pytest.raises(ValueError, match="'t5' is an encoder-decoder"):
        MTLModel(MTLConfig(text_config=T5Config(), tasks=list(tasks)))


def test_multi_task_model_is_refused_as_a_backbone(make_model: MakeModel, tmp_path: Path) -> None:
    import mtl  # noqa: F401  # registers the class; without it the library asks for trust in the folder's code

    model = make_model()
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"is itself a multi-task model.*`MTLModel\.from_pretrained`"):
        MTLModel.from_backbone(tmp_path / "saved", tasks=model.config.tasks)
    model.backbone.save_pretrained(tmp_path / "encoder")
    model.tokenizer.save_pretrained(tmp_path / "encoder")
    again = MTLModel.from_backbone(tmp_path / "encoder", tasks=[TaskConfig("new", num_labels=2)])
    assert (again.encode(SENTENCES) == model.encode(SENTENCES)).all()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"poling": "cls"}, "Did you mean 'pooling'"),
        ({"pooling": "median"}, "pooling"),
        ({"head_dropout": 2.0}, "head_dropout must be in"),
        ({"tasks": [TaskConfig("a")]}, "Task 'a' has neither"),
        ({"tasks": [{"name": "train", "num_labels": 2}]}, "'train' is reserved"),
    ],
)
def test_bad_settings_are_told_before_weights_are_read(
    settings: dict[str, Any], error: str, backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...]
) -> None:
    folder = backbone_dir()
    (folder / "model.safetensors").unlink()
    with pytest.raises(Exception, match=error):
        MTLModel.from_backbone(folder, **{"tasks": tasks, **settings})
    with pytest.raises(OSError, match=r"model\.safetensors"):
        MTLModel.from_backbone(folder, tasks=tasks)


def test_unknown_backbone_is_told_by_name(tasks: tuple[TaskConfig, ...], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        MTLModel.from_backbone(tmp_path / "nowhere", tasks=tasks)


def test_frozen_modules_stay_in_evaluation_mode(make_model: MakeModel) -> None:
    model = make_model()
    model.frozen_modules = ("backbone.embeddings", "backbone.encoder.layer.0", "heads.topic")
    model.train()
    frozen = {name for name, module in model.named_modules() if not module.training}
    for name, module in model.named_modules():
        inside = any(name == kept or name.startswith(f"{kept}.") for kept in model.frozen_modules)
        assert module.training is not inside, name
    assert "backbone.encoder.layer.0.output.dropout" in frozen
    model.encode("why")
    assert {name for name, module in model.named_modules() if not module.training} == frozen
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_backbone_dropout_reaches_every_layer(model_type: str, make_model: MakeModel, inputs: BatchEncoding) -> None:
    still = make_model(model_type, backbone_dropout=0.0)
    expected = still(**inputs).embeddings
    # The attention takes another path when it trains, so not bit for bit.
    assert_close(still.train()(**inputs).embeddings, expected)
    strong = make_model(model_type, backbone_dropout=0.25)
    rates = [module.p for module in strong.backbone.modules() if isinstance(module, nn.Dropout)]
    assert rates
    assert set(rates) == {0.25}
    assert same(strong(**inputs).embeddings, expected)
    torch.manual_seed(0)
    assert not torch.allclose(strong.train()(**inputs).embeddings, expected, atol=1e-3)


def test_backbone_dropout_is_kept_in_the_checkpoint(backbone_dir: SaveBackbone, tmp_path: Path) -> None:
    folder = backbone_dir(hidden_dropout_prob=0.0)
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "hidden_dropout_prob": 0}))  # As JavaScript writes 0.0.
    tasks = [TaskConfig("a", num_labels=2)]
    assert MTLModel.from_backbone(folder, tasks=tasks).config.text_config.attention_probs_dropout_prob == 0.1
    model = MTLModel.from_backbone(folder, tasks=tasks, backbone_dropout=0.3)
    model.save_pretrained(tmp_path / "saved")
    loaded = MTLModel.from_pretrained(tmp_path / "saved")
    assert loaded.config.text_config.hidden_dropout_prob == 0.3
    assert loaded.config.text_config.attention_probs_dropout_prob == 0.3
    assert loaded.config.text_config.classifier_dropout is None


def test_head_dropout_is_only_in_training(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model(head_dropout=0.5, backbone_dropout=0.0)
    assert same(model(**inputs).logits["topic"], model(**inputs).logits["topic"])
    model.train()
    torch.manual_seed(0)
    first, second = model(**inputs), model(**inputs)
    assert not same(first.logits["topic"], second.logits["topic"])
    assert same(first.embeddings, second.embeddings)


def test_gradient_checkpointing_gives_the_same_gradients(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model(backbone_dropout=0.0).train()
    model(**inputs, labels=full_labels()).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.activation_checkpointing_enable()
    assert model.backbone.is_activation_checkpointing
    model(**inputs, labels=full_labels()).loss.backward()
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients(model).items())


@pytest.mark.parametrize("model_type", ["mpnet", "albert"])
def test_gradient_checkpointing_is_refused_where_the_encoder_has_none(model_type: str, make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        make_model(model_type).activation_checkpointing_enable()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_half_precision_model_gives_float32_outputs(
    model_type: str, dtype: torch.dtype, make_model: MakeModel, inputs: BatchEncoding, tmp_path: Path
) -> None:
    model = make_model(model_type)
    model.save_pretrained(tmp_path / "saved")
    half = MTLModel.from_pretrained(tmp_path / "saved", dtype=dtype)
    assert {weight.dtype for weight in half.parameters()} == {dtype}
    output, expected = half(**inputs, labels=full_labels()), model(**inputs)
    assert {logits.dtype for logits in output.logits.values()} == {torch.float32}
    assert output.embeddings.dtype == torch.float32
    assert output.loss.dtype == torch.float32
    # Bfloat16 keeps 8 bits, so numbers near 1 are off by 4e-3 in each of some ten operations.
    assert_close(output.embeddings, expected.embeddings, atol=0.05)
    assert half.encode(SENTENCES).dtype == "float32"
    assert half.predict("why")["topic"]["score"] == pytest.approx(model.predict("why")["topic"]["score"], abs=0.05)
    half.save_pretrained(tmp_path / "half")
    assert MTLModel.from_pretrained(tmp_path / "half").dtype == dtype


def test_half_precision_checkpoint_of_a_backbone_is_trained_in_float32(
    tiny_backbone: MakeBackbone, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tiny_backbone().bfloat16().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model = MTLModel.from_backbone(tmp_path, tasks=[TaskConfig("a", num_labels=2)])
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_outputs_as_a_tuple_and_optional_ones(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model()
    output = model(**inputs, output_hidden_states=True)
    assert isinstance(output, MTLOutput)
    assert len(output.hidden_states or ()) == 3
    # The feature-extraction pipeline reads output 0.
    assert same(model(**inputs, return_dict=False)[0], output.last_hidden_state)
    assert same(model(**inputs, labels=full_labels(), return_dict=False)[1], output.last_hidden_state)


def test_embeddings_or_no_mask_instead_of_ids(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model()
    vectors = model.get_input_embeddings()(inputs["input_ids"])
    by_vectors = model(inputs_embeds=vectors, attention_mask=inputs["attention_mask"])
    assert same(by_vectors.embeddings, model(**inputs).embeddings)
    ids = inputs["input_ids"][2:3]
    assert same(model(ids).embeddings, model(ids, attention_mask=torch.ones_like(ids)).embeddings)
    assert same(model(inputs_embeds=vectors[2:3]).embeddings, model(ids).embeddings)


def test_new_tokens_survive_the_checkpoint(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    assert model.tokenizer.add_tokens(["quokka"]) == 1
    model.resize_token_embeddings(len(model.tokenizer))
    model.save_pretrained(tmp_path / "saved")
    loaded = MTLModel.from_pretrained(tmp_path / "saved")
    assert loaded.config.text_config.vocab_size == len(model.tokenizer)
    assert (loaded.encode("a quokka") == model.encode("a quokka")).all()


def test_bare_encoder_loads_under_a_given_config(
    backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...], make_model: MakeModel
) -> None:
    model = make_model()
    loaded, report = MTLModel.from_pretrained(backbone_dir(), config=model.config, output_loading_info=True)
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"heads"}
    assert (loaded.encode(SENTENCES) == model.encode(SENTENCES)).all()
    assert all(
        logits.isfinite().all() for logits in loaded(**loaded.tokenizer("why", return_tensors="pt")).logits.values()
    )


def test_forward_changes_no_argument(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model, labels = make_model(), full_labels()
    counts = {name: torch.tensor(7) for name in labels}
    before = {name: tensor.clone() for name, tensor in {**inputs, **labels}.items()}
    model(**inputs, labels=labels, num_items_in_batch=counts)
    after = {**inputs, **labels}
    assert list(after) == list(before)
    assert all(same(after[name].nan_to_num(7.0), tensor.nan_to_num(7.0)) for name, tensor in before.items())
    assert all(count.item() == 7 for count in counts.values())


def test_plain_trainer_takes_a_step(make_model: MakeModel, inputs: BatchEncoding, tmp_path: Path) -> None:
    model, labels = make_model(backbone_dropout=0.0), full_labels()
    rows = [
        {"labels": {name: tensor[row] for name, tensor in labels.items()}, **{key: inputs[key][row] for key in inputs}}
        for row in range(len(SENTENCES))
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    expected = model(**inputs, labels=labels).loss.item()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = Trainer(
        model=model, args=arguments, data_collator=default_collate, train_dataset=rows, eval_dataset=rows
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
    # Float32 over another order of the rows.
    assert trainer.train().training_loss == pytest.approx(expected, abs=1e-5)
    assert all(not same(weight, before[name]) for name, weight in model.named_parameters())
    assert model.eval()(**inputs, labels=labels).loss.item() < expected
    predictions = trainer.predict(rows).predictions  # type: ignore[arg-type]  # A list serves as well.
    assert isinstance(predictions, dict)
    assert {name: logits.shape for name, logits in predictions.items()} == {
        "topic": (4, 3), "sentiment": (4, 3), "tags": (4, 4), "valence": (4, 1)
    }  # fmt: skip
