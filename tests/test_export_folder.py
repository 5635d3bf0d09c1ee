"""The folder of an export: graphs in use are replaced whole or not at all, and none outlives its model."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeModel

import mtl.export
import mtl.quantization
from modeling_mtl import MTLModel
from mtl.export import export
from mtl.export_folder import FILES, ONNX, OPENVINO, clear_graph, enter_graph, remove_export, staged_export
from predictor_mtl import MANIFEST, read_manifest


def put_graph(model: MTLModel, folder: Path, content: bytes, backend: str = ONNX) -> Path:
    """Puts a file in the place of a fp32 graph into an export, and returns it."""
    with staged_export(model, folder) as staging:
        file = clear_graph(staging, backend, "fp32")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
        enter_graph(staging, backend, "fp32")
    return folder / FILES[backend, "fp32"]


def test_a_graph_in_use_stays_whole_if_the_next_export_fails(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    file = put_graph(model, tmp_path / "out", b"in use")
    before = sorted((tmp_path / "out").rglob("*"))

    def write_half(model: MTLModel, names: Any, file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"half")
        raise MemoryError

    monkeypatch.setattr(mtl.export, "write_onnx", write_half)
    with pytest.raises(MemoryError):
        export(model, tmp_path / "out", ONNX)
    assert file.read_bytes() == b"in use"
    assert sorted((tmp_path / "out").rglob("*")) == before


@pytest.mark.slow
def test_int8_in_use_stays_whole_if_the_next_one_fails(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    export(model, tmp_path, ONNX)
    file = tmp_path / FILES[ONNX, "int8"]
    with staged_export(model, tmp_path) as staging:
        clear_graph(staging, ONNX, "int8").write_bytes(b"in use")
        enter_graph(staging, ONNX, "int8", is_close=False)

    def write_half(source: Path, target: Path, inputs: Any) -> None:
        target.write_bytes(b"half")
        raise MemoryError

    monkeypatch.setitem(mtl.quantization._QUANTIZERS, ONNX, write_half)
    rows: Any = [{"text": "match"}]
    with pytest.raises(MemoryError):
        mtl.quantization.quantize(model, tmp_path, ONNX, calibration=["match"], rows=rows, tasks=())
    assert file.read_bytes() == b"in use"


def test_no_manifest_tells_of_graphs_of_other_weights_in_between(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_graph(make_model(), tmp_path, b"old")
    replace = os.replace

    def replace_until_killed(source: Any, target: Any) -> None:
        if Path(target).name == "tokenizer.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_until_killed)
    with pytest.raises(KeyboardInterrupt):
        put_graph(make_model(seed=1), tmp_path, b"new")
    assert (tmp_path / FILES[ONNX, "fp32"]).read_bytes() == b"new"
    with pytest.raises(FileNotFoundError, match="There is no export"):
        read_manifest(tmp_path)


def test_what_a_killed_export_left_goes(make_model: MakeModel, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".exporting-killed" / "onnx").mkdir(parents=True)
    put_graph(make_model(), out, b"graph")
    assert sorted(file.name for file in out.iterdir()) == [MANIFEST, "onnx", "predictor_mtl.py", "tokenizer.json"]


def test_graphs_are_kept_where_there_are_no_links(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(source: Any, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    first = put_graph(make_model(), tmp_path, b"first")
    second = put_graph(make_model(), tmp_path, b"second", OPENVINO)
    assert (first.read_bytes(), second.read_bytes()) == (b"first", b"second")
    graphs = json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))["graphs"]
    assert [graph["backend"] for graph in graphs] == [ONNX, OPENVINO]


def test_an_export_is_removed_and_nothing_else(make_model: MakeModel, tmp_path: Path) -> None:
    remove_export(tmp_path)
    file = put_graph(make_model(), tmp_path, b"graph")
    (file.parent / "notes.txt").write_text("mine")
    remove_export(tmp_path)
    assert not file.exists() and not (tmp_path / MANIFEST).exists()
    assert (file.parent / "notes.txt").read_text() == "mine"
    put_graph(make_model(), tmp_path, b"graph")
