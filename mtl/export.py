"""From a model to graphs that ONNX Runtime and OpenVINO run, with all that a predictor needs beside them.

Exporting again adds or replaces graphs; those of other weights are removed.
"""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modeling_mtl import MTLModel
from mtl.export_folder import FILES, ONNX, OPENVINO, clear_graph, enter_graph, files_of_graph, staged_export
from mtl.export_graph import ExportGraph, GraphNames, example_tokens, in_float32
from mtl.extras import require
from predictor_mtl import MTLPredictor

logger = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""How far fp32 graphs may be from torch, in embeddings, which have length 1, and logits, relative to the largest."""
PARITY_TEXTS: tuple[str, ...] = (
    "",
    "a",
    "What a wonderful film!",
    "The senate rejected the bill after a long debate that went on into the night.",
    "word " * 2000,
)
"""What graphs are held against torch on, beside the caller's texts: the shortest, the longest, and some between."""


@dataclass(frozen=True)
class Exported:
    """A graph that was written.

    Args:
        file: The graph.
        backend: Its runtime, `onnx` or `openvino`.
        precision: `fp32` or `int8`.
        difference: Greatest difference from torch in any output, see [`TOLERANCE`].
        size_mib: Size of the graph with its weights.
    """

    file: Path
    backend: str
    precision: str
    difference: float
    size_mib: float


def export(model: MTLModel, folder: Path, backend: str, *, texts: Sequence[str] = ()) -> Exported:
    """Writes the fp32 graph of a model for a runtime, once it agrees with torch.

    Args:
        model: The model, with its tokenizer.
        folder: Where the export goes; may be the folder of the model.
        backend: `onnx` or `openvino`.
        texts: Further texts on which the graph is held against torch.

    Raises:
        ImportError: If the packages of the runtime are not installed.
        ValueError: If the model has no fast tokenizer, its encoder cannot be exported, or the graph does not agree.
    """
    writers: dict[str, Callable[[MTLModel, GraphNames, Path], None]] = {ONNX: write_onnx, OPENVINO: _write_openvino}
    if backend not in writers:
        raise ValueError(f"backend must be one of {sorted(writers)}, found {backend!r}.")
    with staged_export(model, folder) as staging:
        file = clear_graph(staging, backend, "fp32")
        writers[backend](model, GraphNames.of(model), file)
        return add_graph(model, staging, backend, "fp32", texts=texts)


def add_graph(
    model: MTLModel, staging: Path, backend: str, precision: str, *, texts: Sequence[str] = (), **facts: Any
) -> Exported:
    """Enters a graph that was written into the manifest, and holds it against torch.

    Args:
        model: The model.
        staging: The folder of [`staged_export`], with the graph.
        backend: Its runtime.
        precision: Its precision; one in fp32 has to agree.
        texts: Texts on which it is held against torch.
        **facts: What else the manifest says of it.

    Raises:
        ValueError: If a graph in fp32 does not agree.
    """
    enter_graph(staging, backend, precision)
    difference = largest_difference(model, MTLPredictor(staging, backend=backend, precision=precision), texts)
    if precision == "fp32" and not difference <= TOLERANCE:
        raise ValueError(
            f"The graph for {backend} differs from the model by {difference:.1e}, more than {TOLERANCE:.0e}, and is "
            "not kept. These releases do not export that encoder rightly."
        )
    enter_graph(staging, backend, precision, **facts, difference=difference)
    file = FILES[backend, precision]
    size = sum(part.stat().st_size for part in files_of_graph(staging / file)) / 2**20
    return Exported(Path(file), backend, precision, difference, size)


def largest_difference(model: MTLModel, predictor: MTLPredictor, texts: Sequence[str] = ()) -> float:
    """Returns how far a predictor's outputs are from the model's in fp32, relative to the largest of each output.

    Args:
        model: The model; weights in half precision are computed with in float32, as graphs do.
        predictor: The predictor.
        texts: Texts beside [`PARITY_TEXTS`].
    """
    sentences = [*PARITY_TEXTS, *texts]
    names = GraphNames.of(model)
    graph, was_training = ExportGraph(in_float32(model), names), model.training
    graph.model.eval()
    differences = []
    try:
        # Each text by itself, and all at once, with padding.
        for some in [*([text] for text in sentences), sentences]:
            found = predictor.outputs(some)
            with torch.inference_mode():
                expected = _outputs(graph, names, some)
            differences += [_distance(found[name], expected[name]) for name in names.outputs]
    finally:
        model.train(was_training)
    return max(differences)


def _outputs(graph: ExportGraph, names: GraphNames, texts: Sequence[str]) -> dict[str, np.ndarray]:
    model = graph.model
    limit = model.max_tokens()
    tokens = model.tokenizer(
        list(texts), padding=True, truncation=limit is not None, max_length=limit, return_tensors="pt"
    ).to(model.device)
    outputs = graph(*(tokens[name] for name in names.inputs))
    return {name: output.cpu().numpy() for name, output in zip(names.outputs, outputs, strict=True)}


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max())))


def write_onnx(model: MTLModel, names: GraphNames, file: Path) -> None:
    """Writes the graph of a model as an ONNX file.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ValueError: If the exporter does not know the encoder's architecture.
    """
    for module in ("onnx", "onnxscript"):
        require(module, extra="onnx", what="The export of a graph")
    file.parent.mkdir(parents=True, exist_ok=True)
    any_size = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    graph, was_training = ExportGraph(in_float32(model), names), model.training
    device = model.device
    try:
        # It tells each of its steps, and what of Python it should no longer use.
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.onnx.export(
                graph.cpu().eval(),
                example_tokens(names),
                dynamo=True,
                input_names=list(names.inputs),
                output_names=list(names.outputs),
                dynamic_shapes=(tuple(any_size for _ in names.inputs),),
                external_data=False,
            )
    except Exception as error:
        # Whatever goes wrong within is the exporter's, with classes of its own for each.
        raise ValueError(
            f"torch cannot export an encoder of type {model.config.text_config.model_type!r}: {error}"
        ) from error
    finally:
        torch.nn.Module.to(model, device)
        model.train(was_training)
    if program is None:
        raise ValueError("torch gave no graph of the model.")
    program.save(str(file))


def _write_openvino(model: MTLModel, names: GraphNames, file: Path) -> None:
    openvino: Any = require("openvino", extra="openvino", what="The export for OpenVINO")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        onnx_file = Path(folder) / "model.onnx"
        write_onnx(model, names, onnx_file)
        converted = openvino.convert_model(str(onnx_file))
        # Weights stay in float32: in half of it they would differ by more than the tolerance.
        openvino.save_model(converted, str(file), compress_to_fp16=False)
