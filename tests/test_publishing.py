"""`mtl publish`: what the folder holds, that every library gives the model's embeddings, and what is left alone."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TOPICS, MakeModel
from fresh_process import offline_env, run_fresh
from huggingface_hub import ModelCard
from safetensors import safe_open
from saved_folders import HUB_FILES, SENTENCES, assert_loads_as, names
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import mtl.cli
import mtl.publishing
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.content_keys import key_of_model
from mtl.published_files import MANIFEST, changed_files, read_manifest
from mtl.publishing import publish

LAYOUT = {
    *HUB_FILES, "1_Pooling", "README.md", "backbone", "config.json", "config_sentence_transformers.json",
    "heads.safetensors", "model.safetensors.index.json", "modules.json", MANIFEST, "tokenizer.json",
    "tokenizer_config.json",
}  # fmt: skip
LONG = "a plain usual average scene, actor plot and a website " * 8  # more tokens than any of the models reads
TEXTS = [*SENTENCES, LONG, "Ünïcödé 🙂 0123"]
EQUAL = 1e-6
"""Embeddings of length 1 from the same weights: float32 sums of some hundred numbers, in another order at most."""


def stored(folder: Path) -> list[tuple[str, str]]:
    """Returns file and name of every tensor in a folder."""
    found = []
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found += [(str(path.relative_to(folder)), name) for name in file.keys()]  # noqa: SIM118  # no iterator
    return found


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("bert", {}),
        ("distilbert", {"pooling": "cls", "max_seq_length": 20}),
        ("roberta", {"pooling": "max", "normalize": False}),
        ("mpnet", {"normalize_for_heads": True}),
        ("modernbert", {"max_seq_length": 12}),
        ("nomic_bert", {}),  # Its checkpoint has other names than its modules.
    ],
)
def test_every_library_gives_the_embeddings_of_the_model(
    model_type: str, settings: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(model_type, **settings)
    folder = publish(model, tmp_path / "published")
    assert names(folder) == LAYOUT
    assert_loads_as(folder, model)
    expected = model.encode(TEXTS)
    sentence_model = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(sentence_model.encode(TEXTS), expected, rtol=0, atol=EQUAL)
    assert sentence_model.max_seq_length == model.max_tokens()
    encoder = AutoModel.from_pretrained(folder, subfolder="backbone")
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in model.backbone.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="backbone")
    assert tokenizer(TEXTS)["input_ids"] == model.tokenizer(TEXTS)["input_ids"]


def test_no_weight_is_stored_twice(model: MTLModel, tmp_path: Path) -> None:
    folder = publish(model, tmp_path / "published")
    found = stored(folder)
    assert len(found) == len(model.state_dict()) == len({name for _, name in found})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for file, name in found}
    assert index["metadata"]["total_parameters"] == sum(weight.numel() for weight in model.parameters())
    assert {file for file, _ in found} == {"heads.safetensors", "backbone/model.safetensors"}


def test_tasks_as_plain_classifiers(model: MTLModel, make_model: MakeModel, tmp_path: Path) -> None:
    folder = publish(model, tmp_path / "published", classifiers=["topic"])
    assert names(folder) > LAYOUT
    assert_loads_as(folder, model)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"heads.safetensors", "backbone/model.safetensors"}
    tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tasks/topic")
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, subfolder="tasks/topic")
    logits = classifier(**tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")).logits
    expected = [[row["topic"]["probabilities"][label] for label in TOPICS] for row in model.predict(TEXTS)]
    np.testing.assert_allclose(logits.softmax(dim=-1).detach(), expected, rtol=0, atol=1e-5)
    card = (folder / "README.md").read_text()
    assert 'subfolder="tasks/topic"' in card
    assert "but for classifiers of one task, which hold their own" in card
    with pytest.raises(ValueError, match="There is no task 'mood'"):
        publish(model, tmp_path / "other", classifiers=["mood"])
    with pytest.raises(ValueError, match="cannot be written as a stock classifier"):
        publish(make_model("mpnet"), tmp_path / "other", classifiers=["topic"])
    assert not (tmp_path / "other").exists()


def test_model_without_heads_is_published_too(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(tasks=[TaskConfig("near", "positive_pairs")])
    folder = publish(model, tmp_path / "published")
    assert names(folder) == LAYOUT - {"heads.safetensors"}
    assert_loads_as(folder, model)
    assert "predict" not in (folder / "README.md").read_text().split("<!-- loading:end -->")[0].split("## Load it")[1]


def test_model_of_half_precision_keeps_it(model: MTLModel, tmp_path: Path) -> None:
    folder = publish(model.bfloat16(), tmp_path / "published")
    loaded = MTLModel.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    wide = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = MTLModel.from_pretrained(folder, dtype=torch.float32).encode(TEXTS)
    np.testing.assert_allclose(wide.encode(TEXTS), expected, rtol=0, atol=EQUAL)


def test_published_model_is_published_again_and_saved_as_others(model: MTLModel, tmp_path: Path) -> None:
    first = publish(model, tmp_path / "first")
    loaded = MTLModel.from_pretrained(first)
    second = publish(loaded, tmp_path / "second", source=first)
    assert read_manifest(second) == read_manifest(first)
    loaded.save_pretrained(tmp_path / "saved")
    assert "model.safetensors" in names(tmp_path / "saved")
    assert_loads_as(tmp_path / "saved", model)


def test_what_belongs_to_the_model_comes_along(model: MTLModel, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model.save_pretrained(source)
    carried = ("figures/score.png", "onnx/model.onnx", "predictor_mtl.py", "LICENSE")
    left = ("checkpoint-5/model.safetensors", "_report/report.html", "training_args.bin", "report.json")
    for name in (*carried, *left):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    loaded = MTLModel.from_pretrained(source)
    (source / "mtl_inference.json").write_text(json.dumps({"weights": key_of_model(loaded)}))
    folder = publish(loaded, tmp_path / "published", source=source)
    assert (folder / "mtl_inference.json").read_bytes() == (source / "mtl_inference.json").read_bytes()
    assert all((folder / name).read_text() == name for name in carried)
    assert not any((folder / name).exists() for name in left)
    card = ModelCard.load(folder / "README.md")
    assert "onnx" in card.data.tags
    assert "openvino" not in card.data.tags
    assert 'MTLPredictor(folder, backend="onnx")' in card.text
    again = publish(MTLModel.from_pretrained(folder), tmp_path / "again", source=folder)
    assert read_manifest(again) == read_manifest(folder)
    loaded.config.tasks[0] = dataclasses.replace(loaded.config.tasks[0], calibration_temperature=2.0)
    with pytest.raises(ValueError, match="are of other weights or settings than the model. Export it again"):
        publish(loaded, tmp_path / "stale", source=source)
    assert "stale" not in names(tmp_path)


CARD = """---
license: mit
library_name: transformers
base_model: owner/encoder
tags: [mine]
model-index:
- name: reviews
  results:
  - task: {type: text-classification, name: topic}
    dataset: {type: reviews, name: reviews}
    metrics: [{type: accuracy, value: 0.9, name: accuracy}]
---

# Reviews

Figures.

## Use

```python
model = AutoModel.from_pretrained("<this folder>", trust_remote_code=True)
```

## Limits

Some.
"""


def test_card_keeps_what_it_said_and_tells_how_to_load(model: MTLModel, tmp_path: Path) -> None:
    source = tmp_path / "source"
    model.save_pretrained(source)
    (source / "README.md").write_text(CARD)
    folder = publish(model, tmp_path / "published", source=source, repo_id="you/reviews")
    card = ModelCard.load(folder / "README.md")
    assert (card.data.license, card.data.base_model) == ("mit", "owner/encoder")
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert {"mine", "sentence-transformers", "feature-extraction", "text-classification"} <= set(card.data.tags)
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == 0.9
    assert re.findall(r"^#+ .*", card.text, flags=re.MULTILINE) == ["# Reviews", "## Load it", "## Use", "## Limits"]
    assert 'SentenceTransformer("you/reviews")' in card.text
    assert 'AutoModel.from_pretrained("you/reviews", trust_remote_code=True)' in card.text
    assert "<this folder>" not in card.text
    again = publish(model, tmp_path / "again", source=folder, repo_id="you/reviews")
    assert (again / "README.md").read_text() == (folder / "README.md").read_text()


def test_folder_that_is_not_ours_is_left_alone(model: MTLModel, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="`mtl publish` did not write it. Give another folder"):
        publish(model, mine)
    with pytest.raises(FileExistsError, match="did not write"):
        publish(model, mine / "thesis.txt")
    assert names(mine) == {"thesis.txt"}
    folder = publish(model, tmp_path / "published")
    (folder / "1_Pooling" / "notes.txt").write_text("mine too")
    with pytest.raises(FileExistsError, match=r"did not write: \['1_Pooling/notes.txt'\]"):
        publish(model, folder)
    assert (folder / "1_Pooling" / "notes.txt").read_text() == "mine too"
    (tmp_path / "empty").mkdir()
    assert publish(model, tmp_path / "empty") == tmp_path / "empty"


def test_earlier_folder_is_replaced_as_a_whole_and_its_edited_card_kept(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = make_model(pooling="cls"), make_model(seed=1, normalize=False)
    folder = publish(earlier, tmp_path / "published")
    (folder / "README.md").write_text("# Written by hand\n")
    (tmp_path / ".published.publishing-killed").mkdir()

    def fail(*_: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(mtl.publishing, "_write_modules", fail)
        with pytest.raises(OSError, match="No space left"):
            publish(later, folder)
    assert_loads_as(folder, earlier)
    assert names(tmp_path) >= {"published"}
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    publish(later, folder)
    assert_loads_as(folder, later)
    assert [module["path"] for module in json.loads((folder / "modules.json").read_text())] == [
        "backbone",
        "1_Pooling",
    ]
    assert (folder / "README.md").read_text() == "# Written by hand\n"
    publish(later, folder)
    assert (folder / "README.md").read_text() == "# Written by hand\n"


def test_record_tells_what_has_changed(model: MTLModel, tmp_path: Path) -> None:
    folder = publish(model, tmp_path / "published")
    assert changed_files(folder) == ([], [])
    (folder / "README.md").write_text("# Mine\n")
    assert changed_files(folder) == ([], [])
    (folder / "1_Pooling" / "config.json").unlink()
    with (folder / "heads.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\0\0\0\1")
    assert changed_files(folder) == (["1_Pooling/config.json"], ["heads.safetensors"])
    (folder / MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        read_manifest(folder)


def test_folder_of_the_encoder_is_not_published(make_model: MakeModel, tmp_path: Path) -> None:
    folder = publish(make_model(), tmp_path / "published")
    for path in folder.rglob("*.json"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8"), path


def test_model_without_a_tokenizer_is_told(model: MTLModel, tmp_path: Path) -> None:
    model.tokenizer = None
    with pytest.raises(ValueError, match="has no tokenizer"):
        publish(model, tmp_path / "published")
    assert "published" not in names(tmp_path)


def test_command_writes_the_folder(model: MTLModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.save_pretrained(tmp_path / "saved")
    mtl.cli.main(["publish", str(tmp_path / "saved"), str(tmp_path / "published")])
    assert f"are in {tmp_path / 'published'}" in capsys.readouterr().out
    assert_loads_as(tmp_path / "published", model)
    with pytest.raises(SystemExit, match="mtl publish: error: .*saved is there, and `mtl publish` did not write it"):
        mtl.cli.main(["publish", str(tmp_path / "saved"), str(tmp_path / "saved")])
    with pytest.raises(SystemExit, match="'bert' model. Give a multi-task model"):
        mtl.cli.main(["publish", str(tmp_path / "published" / "backbone"), str(tmp_path / "other")])
    with pytest.raises(SystemExit, match="There is no model 'absent'"):
        mtl.cli.main(["publish", "absent", str(tmp_path / "other")])
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "config.json").write_text('{"model_type": "model2vec"}')
    with pytest.raises(
        SystemExit, match="'model2vec' model.*A static student is run by the predictor_mtl.py beside it"
    ):
        mtl.cli.main(["publish", str(tmp_path / "static"), str(tmp_path / "other")])


RUN_BLOCKS = """
results = []
for code in json.loads(sys.argv[1]):
    space = {}
    exec(compile(code, "README.md", "exec"), space)
    values = space["embeddings"]
    results.append(values.tolist())
report(results=results)
"""


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"pooling": "cls"}, {"pooling": "max", "normalize": False}])
def test_code_of_the_card_runs_where_the_package_is_not(
    settings: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(**settings)
    folder = publish(model, tmp_path / "published")
    text = (folder / "README.md").read_text()
    blocks = [code.replace("<this folder>", str(folder)) for code in re.findall(r"```python\n(.*?)```", text, re.S)]
    assert len(blocks) == 3
    loading = json.dumps([block for block in blocks if "embeddings = " in block])
    got = run_fresh(RUN_BLOCKS, loading, env=offline_env(tmp_path / "home"), cwd=tmp_path / "empty")
    assert len(got["results"]) == 2
    for embeddings in got["results"]:
        np.testing.assert_allclose(embeddings, model.encode(["A sentence.", "Another one."]), rtol=0, atol=EQUAL)
