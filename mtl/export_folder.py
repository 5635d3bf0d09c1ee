"""The folder of an export: what lies in it, and how new graphs come into it without harm to those that are in use.

It has `mtl_inference.json`, `tokenizer.json`, `predictor_mtl.py`, and the graphs, each in the folder of its runtime.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import predictor_mtl
from modeling_mtl import MTLModel
from mtl.content_keys import key_of_model
from mtl.export_graph import GraphNames
from predictor_mtl import FORMAT_VERSION, MANIFEST

logger = logging.getLogger(__name__)

ONNX, OPENVINO = "onnx", "openvino"
FILES = {
    (ONNX, "fp32"): "onnx/model.onnx",
    (ONNX, "int8"): "onnx/model_int8.onnx",
    (OPENVINO, "fp32"): "openvino/openvino_model.xml",
    (OPENVINO, "int8"): "openvino/openvino_model_int8.xml",
}
"""Runtime and precision -> file of the graph."""
_STAGING = ".exporting-"


@contextlib.contextmanager
def staged_export(model: MTLModel, folder: Path) -> Iterator[Path]:
    """Gives a folder with what an export has beside its graphs; it is put in place if the block ends without an error.

    Graphs of the same weights that `folder` has are there too.

    Raises:
        ValueError: If the model has no tokenizer that runs without transformers.
    """
    if getattr(model.tokenizer, "backend_tokenizer", None) is None:
        raise ValueError(
            "The model has no fast tokenizer, which an export needs (`tokenizer.json`). Save the model with one."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_STAGING}*"):  # Of an export that was killed.
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=_STAGING, dir=folder) as place:
        staging = Path(place)
        manifest = describe(model)
        manifest["graphs"] = _graphs_to_keep(folder, manifest)
        for graph in manifest["graphs"]:
            _link_graph(folder / graph["file"], staging / graph["file"])
        write_manifest(staging, manifest)
        model.tokenizer.backend_tokenizer.save(str(staging / "tokenizer.json"))
        shutil.copyfile(predictor_mtl.__file__, staging / "predictor_mtl.py")
        yield staging
        _put_in_place(staging, folder)


def describe(model: MTLModel) -> dict[str, Any]:
    """Returns what a predictor has to know of a model, JSON-ready, with no graph yet."""
    tokenizer, config = model.tokenizer, model.config
    return {
        "format_version": FORMAT_VERSION,
        "model_type": config.text_config.model_type,
        "weights": key_of_model(model),
        "inputs": list(GraphNames.of(model).inputs),
        "hidden_size": config.hidden_size,
        "is_normalized": config.normalize,
        "max_tokens": model.max_tokens(),
        "pad_token_id": tokenizer.pad_token_id,
        "pad_token_type_id": tokenizer.pad_token_type_id,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "tasks": [_task_fields(task) for task in config.tasks if task.has_head],
        "graphs": [],
    }


def _task_fields(task: Any) -> dict[str, Any]:
    fields = {name: getattr(task, name) for name in _TASK_FIELDS}
    return {**fields, "labels": list(task.id2label.values())}


_TASK_FIELDS = (
    "name", "problem_type", "calibration_temperature", "label_thresholds", "rejection_score", "rejection_threshold",
    "out_of_scope_label", "abstention_threshold",
)  # fmt: skip


def clear_graph(staging: Path, backend: str, precision: str) -> Path:
    """Removes a graph from the folder of [`staged_export`], and returns the file that a new one is to be written to.

    An earlier graph in there is the very file that is in use: to write to it would change that one at once.
    """
    file = staging / FILES[backend, precision]
    for part in files_of_graph(file):
        part.unlink()
    return file


def enter_graph(staging: Path, backend: str, precision: str, **facts: Any) -> None:
    """Enters a graph into the manifest, from which on a predictor finds it; what was said of it before goes."""
    file = FILES[backend, precision]
    manifest = json.loads((staging / MANIFEST).read_text(encoding="utf-8"))
    others = [graph for graph in manifest["graphs"] if graph["file"] != file]
    entry = {"backend": backend, "precision": precision, "file": file, **facts}
    write_manifest(staging, {**manifest, "graphs": [*others, entry]})


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes what a predictor has to know into a folder."""
    content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(content, encoding="utf-8")


def files_of_graph(file: Path) -> list[Path]:
    """Returns the files of a graph that are there: itself, and its weights where they are apart."""
    return [part for part in (file, file.with_suffix(".bin")) if part.is_file()]


def remove_export(folder: Path) -> None:
    """Removes the manifest of a folder and the graphs of which it tells, before the folder gets other weights."""
    if _weights_of(folder) is None:
        return
    logger.warning("The graphs in %s are of other weights, and are removed. Export again: `mtl export`.", folder)
    (folder / MANIFEST).unlink()  # First: without it no predictor takes what is still there.
    for file in FILES.values():
        for part in files_of_graph(folder / file):
            part.unlink()


def _graphs_to_keep(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    found = _weights_of(folder)
    if found is None:
        return []
    if found != manifest["weights"]:
        logger.warning("The graphs in %s are of other weights, and are removed.", folder)
        return []
    before = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return [graph for graph in before["graphs"] if (folder / graph["file"]).is_file()]


def _weights_of(folder: Path) -> str | None:
    """Returns of which weights the export in a folder is; None if there is none."""
    file = folder / MANIFEST
    return json.loads(file.read_text(encoding="utf-8"))["weights"] if file.is_file() else None


def _link_graph(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    for part in files_of_graph(file):
        try:
            os.link(part, place.parent / part.name)
        except OSError:  # Not every file system has links.
            shutil.copyfile(part, place.parent / part.name)


def _put_in_place(staging: Path, folder: Path) -> None:
    """Moves graphs first and the manifest last; in between no manifest of other weights tells of them."""
    manifest = json.loads((staging / MANIFEST).read_text(encoding="utf-8"))
    wanted = {graph["file"] for graph in manifest["graphs"]}
    if _weights_of(folder) != manifest["weights"]:
        (folder / MANIFEST).unlink(missing_ok=True)
    for file in FILES.values():
        if file in wanted:
            (folder / file).parent.mkdir(exist_ok=True)
            for part in files_of_graph(staging / file):
                os.replace(part, folder / part.relative_to(staging))
        else:
            for part in files_of_graph(folder / file):
                part.unlink()
    for name in ("tokenizer.json", "predictor_mtl.py", MANIFEST):
        os.replace(staging / name, folder / name)
