"""MTLModel: the forward pass, pooling, normalisation, heads, settings, and a step of the plain Trainer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from checks import assert_close, full_labels, mean_by_hand, output_layer, same
from conftest import SENTENCES, MakeModel, SaveBackbone
from torch import nn
from torch.nn import functional as F
from torch.utils.data import default_collate
from transformers import BatchEncoding, Trainer, TrainingArguments

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel, MTLOutput, pool


def test_pooling_by_hand() -> None:
    states = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]], [[7.0, 7.0], [-5.0, 6.0], [-1.0, 2.0]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert pool(states, mask, "mean").tolist() == [[2.0, -3.0], [-3.0, 4.0]]
    assert pool(states, mask, "cls").tolist() == [[1.0, -2.0], [-5.0, 6.0]]
    assert pool(states, mask, "max").tolist() == [[3.0, -2.0], [-1.0, 6.0]]
    assert pool(states.half(), mask, "mean").dtype == torch.float32
    for pooling in ("mean", "max"):
        assert pool(states, torch.zeros_like(mask), pooling).tolist() == [[0.0, 0.0], [0.0, 0.0]]


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


def test_head_dropout_is_only_in_training(make_model: MakeModel, inputs: BatchEncoding) -> None:
    model = make_model(head_dropout=0.5, backbone_dropout=0.0)
    assert same(model(**inputs).logits["topic"], model(**inputs).logits["topic"])
    model.train()
    torch.manual_seed(0)
    first, second = model(**inputs), model(**inputs)
    assert not same(first.logits["topic"], second.logits["topic"])
    assert same(first.embeddings, second.embeddings)


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
