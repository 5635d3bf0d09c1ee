"""What `mtl verify` says of files: kinds, imports of code, pickles, damage, and what differs from its record."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_mtl import MTLModel
from mtl.publishing import publish
from mtl.verification_files import take_inventory


@pytest.fixture
def folder(model: MTLModel, tmp_path: Path) -> Path:
    """Gives a published tiny model."""
    return publish(model, tmp_path / "published")


def problems(folder: Path) -> list[str]:
    return list(take_inventory(folder).problems)


def overwrite(file: Path, position: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(position, 0 if position >= 0 else 2)
        stream.write(data)


def test_inventory_lists_files_and_code(folder: Path) -> None:
    inventory = take_inventory(folder)
    kinds = {file.path: file.kind for file in inventory.files}
    assert inventory.problems == ()
    assert kinds["backbone/model.safetensors"] == kinds["heads.safetensors"] == "weights"
    assert kinds["modeling_mtl.py"] == "code"
    assert kinds["tokenizer.json"] == "other"
    assert inventory.total_size == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    code = {file.path: file.packages for file in inventory.code}
    assert code["modeling_mtl.py"] == ("torch", "transformers")
    assert not any(file.unexpected for file in inventory.code)


def test_imports_of_code_are_told(folder: Path) -> None:
    (folder / "extra_mtl.py").write_text("def f():\n    import einops.layers, os\n    from requests import get\n")
    (extra,) = [file for file in take_inventory(folder).code if file.path == "extra_mtl.py"]
    assert extra.unexpected == ("einops", "requests")


@pytest.mark.parametrize("name", ["helper.py", "backbone/helper.py", "native.so", "modeling_mtl.PYC"])
def test_code_that_was_added_is_told(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"")
    assert problems(folder) == [f"{name} is code that `mtl publish` did not write."]


def test_what_an_import_left_is_told_with_what_to_do(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "modeling_mtl.cpython-311.pyc").write_bytes(b"")
    (told,) = problems(folder)
    assert told.endswith("Python leaves it where code is imported from: delete the folder.")


def test_links_that_hide_files_are_told(folder: Path, tmp_path: Path) -> None:
    (folder / "heads.safetensors").rename(tmp_path / "blob")
    (folder / "heads.safetensors").symlink_to(tmp_path / "blob")  # As in the cache of the Hub.
    assert problems(folder) == []
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.pkl").write_bytes(pickle.dumps([1]))
    (folder / "onnx").symlink_to(tmp_path / "elsewhere")
    (folder / "lost.txt").symlink_to(tmp_path / "nowhere")
    assert problems(folder) == [
        "lost.txt is a link to nothing.",
        "onnx is a link to a folder, which is not looked into.",
    ]


@pytest.mark.parametrize("name", ["training_args.bin", "notes.txt", "old.safetensors", "OLD.PKL"])
def test_pickles_are_told_by_content_or_name(name: str, folder: Path) -> None:
    (folder / name).write_bytes(pickle.dumps({"weights": [1, 2]}))
    assert f"{name} is a pickle: loading it can run any code." in problems(folder)


def test_files_of_torch_are_pickles_and_weights_of_a_graph_are_not(folder: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, folder / "optimizer.dat")
    (folder / "openvino").mkdir()
    (folder / "openvino" / "openvino_model.xml").write_text("<net/>")
    (folder / "openvino" / "openvino_model.bin").write_bytes(b"\1\2\3\4")
    (folder / "pytorch_model.bin").write_bytes(b"")
    found = problems(folder)
    assert [problem.split()[0] for problem in found] == ["optimizer.dat", "pytorch_model.bin"]
    kinds = {file.path: file.kind for file in take_inventory(folder).files}
    assert kinds["openvino/openvino_model.bin"] == "weights"


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_weights_that_begin_like_a_pickle_are_none(length: int, folder: Path) -> None:
    # They begin with the length of their header, in two bytes here that are those of a pickle's protocol.
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(length)
    data = length.to_bytes(8, "little") + header.encode() + bytes(4)
    assert data[0] == pickle.dumps(None)[0]
    (folder / "more.safetensors").write_bytes(data)
    assert problems(folder) == []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: overwrite(folder / "heads.safetensors", -4, b"\0\0\0\1"), "heads.safetensors is not as"),
        (lambda folder: overwrite(folder / "heads.safetensors", 0, b"\xff" * 8), "heads.safetensors is damaged: "),
        (
            lambda folder: (folder / "backbone/model.safetensors").unlink(),
            "backbone/model.safetensors is missing, whi",
        ),
        (
            lambda folder: (folder / "1_Pooling/config.json").unlink(),
            "1_Pooling/config.json is missing, which `mtl pu",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged: "),
        (lambda folder: (folder / "tasks_mtl.py").write_text("def"), "tasks_mtl.py is damaged: "),
        (lambda folder: (folder / "mtl_published.json").write_text("{}"), "is damaged"),
    ],
)
def test_damage_is_told(spoil: Callable[[Path], Any], told: str, folder: Path) -> None:
    spoil(folder)
    assert any(told in problem for problem in problems(folder)), problems(folder)


def test_lost_tensor_and_damaged_index_of_a_saved_folder_are_told(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert problems(tmp_path / "saved") == []
    shard = sorted((tmp_path / "saved").glob("model-*.safetensors"))[0]
    weights = load_file(shard)
    lost = sorted(weights)[0]
    save_file({name: weight for name, weight in weights.items() if name != lost}, shard, metadata={"format": "pt"})
    index = "model.safetensors.index.json"
    assert problems(tmp_path / "saved") == [f"{shard.name} lacks '{lost}' (1 tensors in all), which {index} names."]
    (tmp_path / "saved" / index).write_text("[]")
    assert problems(tmp_path / "saved") == [f"{index} is no index of weights."]
