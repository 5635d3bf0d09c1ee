"""One task as a stock classifier: the same logits on every encoder, the same scores in a pipeline, clear refusals."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checks import output_layer
from conftest import SENTENCES, MakeBackbone, SaveBackbone
from fresh_process import offline_env, run_fresh
from huggingface_hub import ModelCard
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline

import mtl.cli
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.card_origin import Origin
from mtl.sequence_classification import PROBES, largest_difference, to_sequence_classification
from mtl.sequence_folder import save_sequence_classification
from mtl.settings import resolve_backbone
from tasks_mtl import MULTI_LABEL, ORDINAL, REGRESSION

TASKS = (
    TaskConfig("topic", labels=("sport", "film", "shop"), calibration_temperature=1.7),
    TaskConfig("tags", MULTI_LABEL, labels=("now", "why", "thanks", "link"), calibration_temperature=0.6),
    TaskConfig("valence", REGRESSION),
    TaskConfig("hidden", labels=("yes", "no"), hidden_size=10),
)
TEXTS: list[Any] = [*SENTENCES, "", ("match team", "price of the order")]

Rough = Callable[..., MTLModel]


@pytest.fixture
def rough(backbone_dir: SaveBackbone) -> Rough:
    """Gives a function that makes a model none of whose weights is as it was drawn; `spread` is how far they are."""

    def make(
        model_type: str = "bert", *, spread: float = 1.0, backbone: dict[str, Any] | None = None, **settings: Any
    ) -> MTLModel:
        settings = {"tasks": TASKS, **settings}
        model = MTLModel.from_backbone(backbone_dir(model_type, **(backbone or {})), **settings).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in model.backbone.parameters():
                weight.add_(torch.randn_like(weight) * spread * (0.5 if weight.ndim == 1 else 0.1))
            for weight in model.heads.parameters():
                weight.copy_(torch.randn_like(weight) * spread * 0.3)
        return model

    return make


def expected_logits(model: MTLModel, task: str, texts: list[Any]) -> torch.Tensor:
    """Returns what a model says of texts one by one, divided by the temperature. Shape (N, C)."""
    rows = []
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        with torch.inference_mode():
            output = model(**model.tokenizer(*pair, return_tensors="pt"))
        rows.append(output.logits[task] / (model.config.task(task).calibration_temperature or 1.0))
    return torch.cat(rows)


def batch_of(tokenizer: Any, texts: list[Any]) -> Any:
    """Returns texts and pairs as one padded batch."""
    singles = [tokenizer(*(text if isinstance(text, tuple) else (text,))) for text in texts]
    columns = {key: [encoded[key] for encoded in singles] for key in singles[0]}
    return tokenizer.pad(columns, return_tensors="pt")


def assert_same_logits(model: MTLModel, task: str, folder: Path) -> None:
    """Asserts that a folder loads as a stock classifier that gives a model's logits for padded texts and pairs."""
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(loaded).__module__.startswith("transformers.models.")
    expected = expected_logits(model, task, TEXTS)
    with torch.inference_mode():
        found = loaded(**batch_of(AutoTokenizer.from_pretrained(folder), TEXTS)).logits
    assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    "model_type", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert"]
)
def test_saved_classifier_gives_the_logits(model_type: str, pooling: str, rough: Rough, tmp_path: Path) -> None:
    model = rough(model_type, pooling=pooling)
    for task in model.config.task_names:
        if (model_type, task) == ("modernbert", "hidden"):
            continue
        saved = save_sequence_classification(model, task, tmp_path / task)
        assert_same_logits(model, task, tmp_path / task)
        is_stock = model_type == "modernbert" or (pooling == "cls" and (task != "hidden" or model_type == "electra"))
        assert saved.added_layers == (0 if is_stock else 1)
        assert saved.differences["float32"] <= 1e-5


@pytest.mark.parametrize("spread", [1e-3, 30.0])
@pytest.mark.parametrize("model_type", ["bert", "electra", "distilbert", "modernbert"])
def test_weights_of_any_size_are_converted(model_type: str, spread: float, rough: Rough) -> None:
    model = rough(model_type, spread=spread, tasks=TASKS[:3])
    for task in model.config.tasks:
        assert largest_difference(model, task, to_sequence_classification(model, task.name), TEXTS) <= 1e-5


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_on_either_side_changes_nothing(attention: str, rough: Rough) -> None:
    model = rough("bert", attn_implementation=attention)
    classifier = to_sequence_classification(model, "topic")
    assert classifier.config._attn_implementation == attention
    expected = expected_logits(model, "topic", SENTENCES)
    inputs = batch_of(model.tokenizer, SENTENCES)
    padded = {name: torch.nn.functional.pad(values, (0, 9)) for name, values in inputs.items()}
    with torch.inference_mode():
        torch.testing.assert_close(classifier(**padded).logits, expected, atol=1e-5, rtol=0)
        positions = inputs["attention_mask"].cumsum(dim=1) + 4  # As if nine places stood before.
        left = {name: torch.nn.functional.pad(values, (9, 0)) for name, values in inputs.items()}
        left["position_ids"] = torch.nn.functional.pad(positions - 5, (9, 0))
        torch.testing.assert_close(classifier(**left).logits, expected, atol=1e-5, rtol=0)


def test_outliers_among_the_states_do_no_harm(rough: Rough) -> None:
    # As in BERT: a few dimensions of the last states are hundreds of times as large as the others.
    model = rough("bert", tasks=TASKS[:1])
    last: Any = model.backbone.get_submodule("encoder.layer.1.output")
    norm = last.LayerNorm
    with torch.no_grad():
        norm.weight[:3] *= 300.0
        norm.bias[1] = -500.0
        # And the state of the first token stands in the dimensions of one logit alone, as far as it can.
        last.dense.bias[:2] = torch.tensor([1e4, -1e4])
    classifier = to_sequence_classification(model, "topic")
    assert largest_difference(model, TASKS[0], classifier, TEXTS) <= 1e-5


@pytest.mark.parametrize("labels", [2, 150, 191])
def test_many_labels_fit(labels: int, rough: Rough) -> None:
    sizes = {"hidden_size": 384, "num_attention_heads": 12, "num_hidden_layers": 1}
    model = rough("bert", backbone=sizes, tasks=[TaskConfig("intent", num_labels=labels)])
    classifier = to_sequence_classification(model, "intent")
    assert largest_difference(model, model.config.tasks[0], classifier, TEXTS) <= 1e-5
    assert classifier.config.num_labels == labels


def test_half_precision_serves(rough: Rough) -> None:
    model = rough("bert")
    for task in model.config.tasks:
        classifier = to_sequence_classification(model, task.name)
        # Of the precision itself: an eighth or an eleventh binary place, some times over.
        for dtype, most in ((torch.bfloat16, 2e-2), (torch.float16, 5e-3)):
            half: Any = copy.deepcopy(classifier)
            half.to(dtype)
            assert largest_difference(model, task, half, TEXTS) < most


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pipeline_gives_the_scores_of_predict(pooling: str, rough: Rough, tmp_path: Path) -> None:
    model = rough("bert", pooling=pooling)
    texts = [text for text in TEXTS if isinstance(text, str)]
    for task in ("topic", "tags", "valence"):
        save_sequence_classification(model, task, tmp_path / task)
        classify = pipeline("text-classification", model=str(tmp_path / task))
        answers: Any = classify(texts, top_k=None, batch_size=2)
        for found, said in zip(answers, model.predict(texts), strict=True):
            scores = {row["label"]: row["score"] for row in found}
            expected = {"LABEL_0": said[task]} if task == "valence" else said[task]["probabilities"]
            assert scores == pytest.approx(expected, abs=1e-5)


def test_pipeline_cuts_where_predict_does(rough: Rough, tmp_path: Path) -> None:
    model = rough("bert", max_seq_length=12)
    save_sequence_classification(model, "topic", tmp_path / "topic")
    classify = pipeline("text-classification", model=str(tmp_path / "topic"))
    text = "match team goal " * 40
    (found,) = classify(text, truncation=True)
    assert found["score"] == pytest.approx(model.predict(text)["topic"]["score"], abs=1e-5)


RUN_WITHOUT_PACKAGE = """
from transformers import pipeline

classify = pipeline("text-classification", model=sys.argv[1])
report(found=classify(sys.argv[2:], top_k=None), kind=type(classify.model).__module__)
"""


@pytest.mark.slow
def test_runs_in_a_process_without_the_package(rough: Rough, tmp_path: Path) -> None:
    model = rough("distilbert")
    save_sequence_classification(model, "topic", tmp_path / "topic")
    env = offline_env(tmp_path / "home")
    got = run_fresh(RUN_WITHOUT_PACKAGE, tmp_path / "topic", *SENTENCES, env=env, cwd=tmp_path / "empty")
    assert got["kind"] == "transformers.models.distilbert.modeling_distilbert"
    for found, said in zip(got["found"], model.predict(SENTENCES), strict=True):
        scores = {row["label"]: row["score"] for row in found}
        assert scores == pytest.approx(said["topic"]["probabilities"], abs=1e-5)


@pytest.mark.slow
def test_the_real_encoder_is_converted() -> None:
    tasks = [TASKS[0], TaskConfig("intent", num_labels=150)]
    torch.manual_seed(0)
    model = MTLModel.from_backbone(resolve_backbone("embedded"), tasks=tasks)
    for task in model.config.tasks:
        nn.init.normal_(output_layer(model, task.name).weight, std=1.0)
        # Of 150 labels most logits are far below the longest that there can be.
        assert largest_difference(model, task, to_sequence_classification(model, task.name)) < 5e-6


@pytest.mark.parametrize(
    ("model_type", "task", "settings", "reason"),
    [
        ("bert", TaskConfig("a", "scored_pairs"), {}, "it has no head"),
        ("bert", TaskConfig("a", ORDINAL, num_labels=3), {}, "ordered labels have products of sigmoids"),
        ("bert", TaskConfig("a", num_labels=3, cosine_scale=20.0), {}, "its cosines need features of length 1"),
        ("bert", TaskConfig("a", num_labels=3), {"normalize_for_heads": True}, "embeddings of length 1"),
        ("bert", TaskConfig("a", num_labels=3), {"pooling": "max"}, "the maximum over tokens"),
        ("bert", TaskConfig("a", num_labels=16), {}, "of width 32 carries at most 15 logits, and it has 16"),
        ("bert", TaskConfig("a", num_labels=3, hidden_size=13), {}, "at most 15 numbers, and its head has 13 hidden"),
        (
            "bert",
            TaskConfig("a", num_labels=3, hidden_size=65),
            {"pooling": "cls"},
            "65 wide, and the encoder's feed-f",
        ),
        (
            "electra",
            TaskConfig("a", num_labels=3, hidden_size=33),
            {"pooling": "cls"},
            "33 wide, and the stock one 32",
        ),
        ("modernbert", TaskConfig("a", num_labels=3, hidden_size=4), {}, "for which modernbert has no place"),
        ("mpnet", TaskConfig("a", num_labels=3), {}, "mpnet adds terms of relative positions to attention"),
        ("deberta-v2", TaskConfig("a", num_labels=3), {}, "deberta-v2 adds terms of relative positions"),
        ("albert", TaskConfig("a", num_labels=3), {}, "the encoder is of type 'albert', and known are .*'bert'"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(
    model_type: str, task: TaskConfig, settings: dict[str, Any], reason: str, rough: Rough
) -> None:
    model = rough(model_type, tasks=[task, TASKS[0]], **settings)
    with pytest.raises(ValueError, match=rf"Task 'a' cannot be written as a stock .*{reason}.*mtl export onnx"):
        to_sequence_classification(model, "a")


@pytest.mark.parametrize(
    ("backbone", "reason"),
    [({"hidden_act": "relu"}, "the encoder has 'relu'"), ({"is_decoder": True}, "is a decoder")],
)
def test_encoders_that_differ_are_refused(backbone: dict[str, Any], reason: str, rough: Rough) -> None:
    model = rough("bert", backbone=backbone)
    with pytest.raises(ValueError, match=reason):
        to_sequence_classification(model, "hidden")


def test_other_faults_are_told(rough: Rough) -> None:
    model = rough("bert")
    with pytest.raises(KeyError, match=r"No task 'sport'; the model has \['topic', 'tags', 'valence', 'hidden'\]"):
        to_sequence_classification(model, "sport")
    half: Any = copy.deepcopy(model)
    half.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"weights are torch.bfloat16; load the model with `dtype=torch.float32`"):
        to_sequence_classification(half, "topic")
    model.backbone.register_parameter("more", nn.Parameter(torch.zeros(1)))
    with pytest.raises(
        ValueError, match=r"no plain BertModel: it lacks the weights \[\], and has \['more'\].*merge_ad"
    ):
        to_sequence_classification(model, "topic")
    del model.backbone.more
    model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        to_sequence_classification(model, "topic")


def test_conversion_that_is_not_exact_is_refused(rough: Rough, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mtl.mean_layer._SMALL", 2.0**-4)  # The state of the first token shows through.
    with pytest.raises(ValueError, match=r"Task 'topic': logits of the stock classifier differ by \d.\de-\d\d, more"):
        to_sequence_classification(rough("bert"), "topic")


def test_model_stays_as_it_is(rough: Rough) -> None:
    model = rough("bert").train()
    before, config = copy.deepcopy(model.state_dict()), model.config.to_dict()
    to_sequence_classification(model, "topic")
    assert model.training
    assert model.config.to_dict() == config
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_sentences_that_are_compared_are_the_callers(rough: Rough) -> None:
    with pytest.raises(TypeError, match=r"sentences\[1\] is 3"):
        to_sequence_classification(rough("bert"), "topic", sentences=["price", 3])  # type: ignore[list-item]
    assert len(PROBES[-1].split()) > 150  # Longer than what most models read.


def test_card_says_what_it_is_and_what_is_lost(rough: Rough, tmp_path: Path) -> None:
    tasks = [
        TaskConfig("intent", labels=("a b", "c"), out_of_scope_label="none", rejection_threshold=1.0,
                   abstention_threshold=0.25, calibration_temperature=1.5),
        TaskConfig("tags", MULTI_LABEL, labels=("now", "why"), label_thresholds=(0.25, 0.75)),
    ]  # fmt: skip
    model = rough("bert", tasks=tasks)
    origin = Origin("me/encoder", "vader", license="mit", language=("en",))
    save_sequence_classification(model, "intent", tmp_path / "intent", origin=origin)
    card = ModelCard.load(tmp_path / "intent" / "README.md")
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", ["en"], "me/encoder")
    assert card.data.pipeline_tag == "text-classification"
    for part in (
        "multi-task model `vader`, as a plain `BertForSequenceClassification`", "Labels: `a b`, `c`",
        "3 layers instead of 2, so about 50% more time", "the temperature, 1.5000, is in the weights",
        "the rejection of sentences that are `none`; the abstention below a score of 0.25.",
    ):  # fmt: skip
        assert part in card.text
    save_sequence_classification(model, "tags", tmp_path / "tags")
    text = ModelCard.load(tmp_path / "tags" / "README.md").text
    assert "the thresholds of the labels, in their order [0.25, 0.75]" in text
    assert "calibrated" not in text


def test_command_writes_the_folder(rough: Rough, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = rough("bert")
    model.save_pretrained(tmp_path / "model")
    argv = ["export-task", str(tmp_path / "model")]
    mtl.cli.main([*argv, "topic", str(tmp_path / "topic")])
    assert "is a BertForSequenceClassification with 1 layer more than the encoder" in capsys.readouterr().out
    assert_same_logits(model, "topic", tmp_path / "topic")
    assert "the multi-task model `model`" in (tmp_path / "topic" / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"mtl export-task: error: There is no task 'sport' in .*It has \['topic'"):
        mtl.cli.main([*argv, "sport", str(tmp_path / "sport")])
    with pytest.raises(SystemExit, match="holds a multi-task model, which would be overwritten"):
        mtl.cli.main([*argv, "topic", str(tmp_path / "model")])
    encoder = tmp_path / "encoder"
    model.backbone.save_pretrained(encoder)
    weights = (encoder / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match=r"holds another model \(.*config\.json\), which would be overwritten"):
        mtl.cli.main([*argv, "topic", str(encoder)])
    assert (encoder / "model.safetensors").read_bytes() == weights
    with pytest.raises(SystemExit, match="is a file, and the classifier is a folder"):
        mtl.cli.main([*argv, "topic", str(encoder / "config.json")])
    mtl.cli.main([*argv, "tags", str(tmp_path / "topic")])  # A classifier may give way to another.


def test_tiny_tokenizer_of_the_model_is_not_changed(
    rough: Rough, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast, tiny_backbone: MakeBackbone
) -> None:
    model = rough("bert", pooling="cls", max_seq_length=20)
    model.tokenizer.padding_side = "left"
    save_sequence_classification(model, "topic", tmp_path / "topic")
    saved = AutoTokenizer.from_pretrained(tmp_path / "topic")
    # The stock class reads the first place, where padding must not stand.
    assert (saved.padding_side, saved.model_max_length) == ("right", 20)
    assert (model.tokenizer.padding_side, model.tokenizer.model_max_length) == ("left", 64)
    model.tokenizer.truncation_side = "left"
    save_sequence_classification(model, "topic", tmp_path / "topic")
    assert AutoTokenizer.from_pretrained(tmp_path / "topic").truncation_side == "left"
