"""Saving and loading: what a folder holds, and what an interrupted or damaged save leaves."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeModel
from fresh_process import offline_env, run_fresh
from huggingface_hub import ModelCard
from saved_folders import HUB_FILES, ROOT, SAVED_FILES, SENTENCES, assert_loads_as, names

from modeling_mtl import MTLModel


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Gives an empty folder."""
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved"


def test_folder_holds_what_it_takes_and_nothing_else(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "deep" / "saved")
    assert names(tmp_path / "deep" / "saved") == SAVED_FILES
    for name in HUB_FILES:
        assert (tmp_path / "deep" / "saved" / name).read_bytes() == (ROOT / name).read_bytes()
    assert_loads_as(tmp_path / "deep" / "saved", model)


def test_card_says_what_the_model_is(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved)
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "transformers"
    assert "sentence-similarity" in card.data.tags
    assert "- `topic`: single_label_classification (sport, film, shop)" in card.text
    assert "- `valence`: regression\n" in card.text
    assert "trust_remote_code=True" in card.text


def test_card_that_is_there_is_kept(model: MTLModel, saved: Path) -> None:
    (saved / "README.md").write_text("# Mine\n")
    model.save_pretrained(saved)
    model.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "# Mine\n"


def test_folders_in_the_folder_are_replaced_too(model: MTLModel, saved: Path) -> None:
    for template in ("first", "second"):  # Several templates are saved as a folder of them.
        model.tokenizer.chat_template = {"default": template, "rag": template}
        model.save_pretrained(saved)
    assert [path.read_text() for path in saved.glob("*/*.jinja")] == ["second"]
    assert_loads_as(saved, model)


def test_save_that_fails_halfway_leaves_the_earlier_one(
    make_model: MakeModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = make_model(seed=0), make_model(seed=1)
    earlier.save_pretrained(saved)

    def fail(tensors: dict[str, torch.Tensor], filename: str, **_: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", fail)
        with pytest.raises(OSError, match="No space left"):
            later.save_pretrained(saved)
    assert names(saved) == SAVED_FILES
    assert_loads_as(saved, earlier)
    later.save_pretrained(saved)
    assert_loads_as(saved, later)


def test_failure_after_the_weights_leaves_the_earlier_one(
    make_model: MakeModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = make_model(seed=0), make_model(seed=1)
    earlier.save_pretrained(saved)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(later.tokenizer), "save_pretrained", fail)
        with pytest.raises(KeyboardInterrupt):
            later.save_pretrained(saved)
    assert names(saved) == SAVED_FILES
    assert_loads_as(saved, earlier)


KILLED_WHILE_SAVING = """
import signal, transformers.modeling_utils
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
for weight in model.parameters():
    weight.data.add_(1.0)
save_file = transformers.modeling_utils.safe_save_file


def save_and_die(tensors, filename, **kwargs):
    save_file(tensors, filename, **kwargs)
    with open(filename, "r+b") as file:
        file.truncate(os.path.getsize(filename) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


transformers.modeling_utils.safe_save_file = save_and_die
model.save_pretrained(sys.argv[1])
"""


def test_killed_save_leaves_the_earlier_one_and_the_next_cleans_up(
    model: MTLModel, make_model: MakeModel, saved: Path, tmp_path: Path
) -> None:
    model.save_pretrained(saved)
    env, cwd = offline_env(tmp_path / "home"), tmp_path / "empty"
    run_fresh(KILLED_WHILE_SAVING, saved, env=env, cwd=cwd, returncode=-signal.SIGKILL)
    (leftover,) = names(saved) - SAVED_FILES
    assert leftover.startswith(".saving-")
    assert "model.safetensors" in names(saved / leftover)
    assert_loads_as(saved, model)
    other = make_model(seed=1)
    other.save_pretrained(saved)
    assert names(saved) == SAVED_FILES
    assert_loads_as(saved, other)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights_are_told(model: MTLModel, size: int, saved: Path) -> None:
    model.save_pretrained(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(OSError, match=r"The weights in '.*' are truncated or corrupt \(.*\)\. .*earlier checkpoint"):
        MTLModel.from_pretrained(saved)


def test_overwritten_weights_are_told(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved)
    (saved / "model.safetensors").write_bytes(b"<html>Not found</html>" * 100)
    with pytest.raises(OSError, match="truncated or corrupt"):
        MTLModel.from_pretrained(saved)


def test_missing_weights_or_shard_are_told(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved, max_shard_size="20KB")
    next(saved.glob("model-00002-of-*.safetensors")).unlink()
    with pytest.raises(OSError, match="model-00002-of-"):
        MTLModel.from_pretrained(saved)
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        MTLModel.from_pretrained(saved)


def test_folder_without_tokenizer_loads_and_encode_says_what_to_do(model: MTLModel, saved: Path) -> None:
    tokenizer = model.tokenizer
    expected = model.encode(SENTENCES)
    model.tokenizer = None
    model.save_pretrained(saved)
    assert names(saved) == SAVED_FILES - {"tokenizer.json", "tokenizer_config.json"}
    loaded = MTLModel.from_pretrained(saved)
    with pytest.raises(
        ValueError, match=r"no tokenizer, as none was saved with it\. Set one: `model\.tokenizer = Auto"
    ):
        loaded.encode(SENTENCES)
    loaded.tokenizer = tokenizer
    assert (loaded.encode(SENTENCES) == expected).all()


def test_saving_in_fewer_or_more_files_leaves_no_stale_ones(make_model: MakeModel, saved: Path) -> None:
    first, second, third = (make_model(seed=seed) for seed in range(3))
    (saved / "model_of_a_ship.safetensors").write_bytes(b"not ours")
    first.save_pretrained(saved, max_shard_size="10KB")
    shards = list(saved.glob("model-*-of-*.safetensors"))
    assert len(shards) > 5
    assert_loads_as(saved, first)
    second.save_pretrained(saved, max_shard_size="60KB")
    assert 1 < len(list(saved.glob("model-*-of-*.safetensors"))) < len(shards)
    assert_loads_as(saved, second)
    third.save_pretrained(saved)
    assert names(saved) == SAVED_FILES | {"model_of_a_ship.safetensors"}
    assert_loads_as(saved, third)
    # A loader prefers the one file, so it has to go when there are shards.
    first.save_pretrained(saved, max_shard_size="60KB")
    assert "model.safetensors" not in names(saved)
    assert_loads_as(saved, first)


def test_variants_stand_side_by_side(make_model: MakeModel, saved: Path) -> None:
    first, second = make_model(seed=0), make_model(seed=1)
    first.save_pretrained(saved)
    second.save_pretrained(saved, variant="b", max_shard_size="60KB")
    second.save_pretrained(saved, variant="b")
    assert names(saved) == SAVED_FILES | {"model.b.safetensors"}
    assert_loads_as(saved, first)
    assert (MTLModel.from_pretrained(saved, variant="b").encode(SENTENCES) == second.encode(SENTENCES)).all()


def test_other_ranks_write_nothing(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved, is_main_process=False)
    assert names(saved) == set()


def test_folder_moved_or_named_oddly_loads(model: MTLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "my model v1.2 (final)"
    model.save_pretrained(str(odd))
    shutil.move(odd, tmp_path / "moved")
    assert_loads_as(tmp_path / "moved", model)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("relative")
    assert_loads_as(Path("relative"), model)


def test_folder_of_the_encoder_is_not_published(
    make_model: MakeModel, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def origin() -> str | None:
        text = (saved / "config.json").read_text(encoding="utf-8")
        assert str(tmp_path) not in text
        found: str | None = json.loads(text)["text_config"].get("_name_or_path")
        return found

    model = make_model()
    assert str(tmp_path) in model.config.text_config._name_or_path
    model.save_pretrained(saved)
    assert origin() is None
    assert_loads_as(saved, model)
    monkeypatch.chdir(tmp_path)
    model.config.text_config._name_or_path = saved.name
    model.save_pretrained(saved)
    assert origin() is None
    model.config.text_config._name_or_path = "owner/encoder"
    model.save_pretrained(saved)
    assert origin() == "owner/encoder"
    assert_loads_as(saved, model)


def test_sides_that_were_set_late_are_saved(model: MTLModel, tmp_path: Path) -> None:
    model.tokenizer.truncation_side = model.tokenizer.padding_side = "left"
    long = "match " * 100 + "a plain usual average scene"
    expected = model.encode([long, "price"])
    model.save_pretrained(tmp_path / "saved")
    loaded = MTLModel.from_pretrained(tmp_path / "saved")
    assert (loaded.tokenizer.truncation_side, loaded.tokenizer.padding_side) == ("left", "left")
    np.testing.assert_array_equal(loaded.encode([long, "price"]), expected)
    model.tokenizer.truncation_side = "right"
    model.save_pretrained(tmp_path / "again")
    assert MTLModel.from_pretrained(tmp_path / "again").tokenizer.truncation_side == "right"
