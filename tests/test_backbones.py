"""MTLModel on tiny encoders of every supported kind: same states and gradients, dropout, precision, refusals."""

import json
from pathlib import Path

import pytest
import torch
from checks import assert_close, full_labels, gradients, mean_by_hand, same
from conftest import SENTENCES, MakeBackbone, MakeModel, SaveBackbone
from torch import nn
from transformers import AutoModel, BatchEncoding, PreTrainedTokenizerFast, T5Config

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel
from tasks_mtl import REGRESSION

ARCHITECTURES = ("bert", "distilbert", "modernbert", "roberta", "mpnet", "deberta-v2", "electra", "albert")


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
    model = make_model(attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.backbone.config._attn_implementation == "eager"
    assert model(**inputs, output_attentions=True).attentions is not None
    assert make_model().backbone.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_live_encoder_keeps_its_attention(
    attention: str, tiny_backbone: MakeBackbone, tasks: tuple[TaskConfig, ...], inputs: BatchEncoding
) -> None:
    # Without any the mask is not made, and padding changes the states of the tokens.
    encoder = tiny_backbone(attn_implementation=attention)
    expected = encoder(**inputs).last_hidden_state
    model = MTLModel(MTLConfig(text_config=encoder.config, tasks=list(tasks)), backbone=encoder).eval()
    assert encoder.config._attn_implementation == attention
    assert same(model(**inputs).last_hidden_state, expected)


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


def test_dtype_of_the_fresh_model_is_not_chosen(backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...]) -> None:
    with pytest.raises(TypeError, match=r"call `.to\(dtype\)` on the result"):
        MTLModel.from_backbone(backbone_dir("bert"), tasks=tasks, dtype=torch.bfloat16)


def test_unknown_backbone_is_told_by_name(tasks: tuple[TaskConfig, ...], tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        MTLModel.from_backbone(tmp_path / "nowhere", tasks=tasks)


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
