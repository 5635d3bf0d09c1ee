"""Starting from a sentence-transformers model: embeddings as it gives them, and a refusal of what cannot be kept."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel, SaveBackbone
from saved_folders import ROOT, SENTENCES
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.publishing import publish
from mtl.settings import resolve_backbone

TEXTS = [*SENTENCES, "a plain usual average scene, actor plot and a website " * 8, "Ünïcödé 🙂 0123"]
EQUAL = 1e-6
"""Embeddings of length 1, or of numbers below 4, from the same weights: float32 sums in another order at most."""
TASKS = [TaskConfig("topic", num_labels=3)]
SaveSentenceModel = Callable[..., Path]


@pytest.fixture
def sentence_model(backbone_dir: SaveBackbone, tmp_path: Path) -> SaveSentenceModel:
    """Gives a function that saves a tiny model by sentence-transformers itself, and returns the folder."""

    def save(model_type: str = "bert", *, pooling: Any = "mean", last: Any = (), limit: int | None = None) -> Path:
        encoder = Transformer(str(backbone_dir(model_type)), max_seq_length=limit)
        torch.manual_seed(0)
        modules = [encoder, Pooling(encoder.get_embedding_dimension(), pooling), *(make() for make in last)]
        SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "sentences"))
        return tmp_path / "sentences"

    return save


def change(file: Path, **fields: Any) -> None:
    """Puts fields into a JSON file, which is made if it is not there."""
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**known, **fields}))


@pytest.mark.parametrize(
    ("model_type", "pooling", "last", "limit"),
    [
        ("bert", "mean", [Normalize], None),
        ("distilbert", "cls", [], 16),
        ("roberta", "max", [Normalize], 100),  # More than the tokenizer's 64.
        ("modernbert", "mean", [], None),
        ("mpnet", "cls", [Normalize], 16),
    ],
)
def test_embeddings_are_those_of_the_folder(
    model_type: str,
    pooling: str,
    last: list[Any],
    limit: int | None,
    sentence_model: SaveSentenceModel,
    tmp_path: Path,
) -> None:
    folder = sentence_model(model_type, pooling=pooling, last=last, limit=limit)
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    model = MTLModel.from_sentence_transformer(folder, tasks=TASKS, head_dropout=0.2)
    assert (model.config.pooling, model.config.normalize) == (pooling, bool(last))
    assert model.config.head_dropout == 0.2
    assert not model.training
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=EQUAL)
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(MTLModel.from_pretrained(tmp_path / "saved").encode(TEXTS), model.encode(TEXTS))


def test_real_model_starts_as_it_is(tmp_path: Path) -> None:
    folder = resolve_backbone("embedded")
    model = MTLModel.from_sentence_transformer(folder, tasks=TASKS)
    assert (model.config.pooling, model.config.normalize, model.max_tokens()) == ("mean", True, 256)
    expected = SentenceTransformer(folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=EQUAL)


def test_block_of_the_docs_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "publishing.md").read_text("utf-8"), flags=re.DOTALL
    )
    exec(compile(block, "publishing.md", "exec"), {})
    assert capsys.readouterr().out == "mean True 256\n"


def test_there_and_back(make_model: MakeModel, tmp_path: Path) -> None:
    first = make_model(pooling="cls", normalize=False, max_seq_length=12)
    folder = publish(first, tmp_path / "published")
    second = MTLModel.from_sentence_transformer(folder, tasks=TASKS)
    np.testing.assert_array_equal(second.encode(TEXTS), first.encode(TEXTS))
    assert second.config.task_names == ["topic"]


def test_files_of_earlier_releases_are_read(sentence_model: SaveSentenceModel) -> None:
    folder = sentence_model(pooling="max", limit=12)
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
    (folder / "modules.json").write_text(json.dumps(modules))
    switches = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **switches}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    (folder / "config_sentence_transformers.json").unlink()
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    model = MTLModel.from_sentence_transformer(folder, tasks=TASKS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=EQUAL)
    change(folder / "tokenizer.json", normalizer=None)
    with pytest.raises(ValueError, match="`do_lower_case` is set, but its tokenizer does not lower"):
        MTLModel.from_sentence_transformer(folder, tasks=TASKS)


@pytest.mark.parametrize(
    ("pooling", "last", "told"),
    [
        ("weightedmean", [], "it pools by weightedmean"),
        ("lasttoken", [], "it pools by lasttoken"),
        (("mean", "max"), [], "it pools by mean and max"),
        ("mean", [lambda: Dense(32, 8)], r"its modules are \['Transformer', 'Pooling', 'Dense'\]"),
        ("mean", [lambda: Normalize("token_embeddings")], "its Normalize has"),
    ],
)
def test_modules_that_cannot_be_kept_are_told(
    pooling: Any, last: list[Any], told: str, sentence_model: SaveSentenceModel
) -> None:
    folder = sentence_model(pooling=pooling, last=last)
    with pytest.raises(ValueError, match=rf"gives embeddings that an MTLModel would not: {told}.*from_backbone"):
        MTLModel.from_sentence_transformer(folder, tasks=TASKS)


@pytest.mark.parametrize(
    ("file", "fields", "told"),
    [
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
            r"every text gets the prompt 'query: ' before it \(`default_prompt_name`\)",
        ),
        ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "it is a SparseEncoder"),
        ("config_sentence_transformers.json", {"truncate_dim": 8}, r"it keeps the first 8 numbers \(`truncate_dim`\)"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "its Transformer has transformer_task='fill"),
        ("sentence_bert_config.json", {"tokenizer_args": {"padding_side": "left"}}, "its Transformer has tokenizer_a"),
        ("adapter_config.json", {"peft_type": "LORA"}, "its encoder is an adapter"),
    ],
)
def test_settings_that_change_embeddings_are_told(
    file: str, fields: dict[str, Any], told: str, sentence_model: SaveSentenceModel
) -> None:
    folder = sentence_model()
    change(folder / file, **fields)
    with pytest.raises(ValueError, match=told):
        MTLModel.from_sentence_transformer(folder, tasks=TASKS)


def test_module_of_own_code_is_not_run(sentence_model: SaveSentenceModel) -> None:
    folder = sentence_model()
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own_pooling.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "own_pooling.py").write_text("raise SystemExit('ran without trust')\n")
    with pytest.raises(ValueError, match="its module 'own_pooling.Pooling' is code of its own"):
        MTLModel.from_sentence_transformer(folder, tasks=TASKS)


def test_named_prompts_are_told_and_change_nothing(
    sentence_model: SaveSentenceModel, caplog: pytest.LogCaptureFixture
) -> None:
    folder = sentence_model()
    change(folder / "config_sentence_transformers.json", prompts={"query": "query: ", "document": ""})
    model = MTLModel.from_sentence_transformer(folder, tasks=TASKS)
    assert "has prompts, which `encode` does not add: {'query': 'query: '}" in caplog.text
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=EQUAL)


def test_what_the_folder_decides_cannot_be_given(sentence_model: SaveSentenceModel) -> None:
    with pytest.raises(TypeError, match=r"\['normalize', 'pooling'\] cannot be given: the folder decides"):
        MTLModel.from_sentence_transformer(sentence_model(), tasks=TASKS, pooling="cls", normalize=True)


def test_plain_encoder_is_told(backbone_dir: SaveBackbone) -> None:
    with pytest.raises(ValueError, match=r"has no modules.json.*`MTLModel.from_backbone`"):
        MTLModel.from_sentence_transformer(backbone_dir(), tasks=TASKS)


def test_model_that_gives_fewer_numbers_says_so_in_its_folder(
    sentence_model: SaveSentenceModel, tmp_path: Path
) -> None:
    SentenceTransformer(str(sentence_model()), device="cpu", truncate_dim=8).save_pretrained(str(tmp_path / "short"))
    assert SentenceTransformer(str(tmp_path / "short"), device="cpu").encode(TEXTS).shape[1] == 8
    with pytest.raises(ValueError, match="it keeps the first 8 numbers"):
        MTLModel.from_sentence_transformer(tmp_path / "short", tasks=TASKS)
