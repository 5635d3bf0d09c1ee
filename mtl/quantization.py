"""Graphs in int8: quantised after training, and measured task by task on labelled rows."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.data import row_texts
from mtl.evaluation import EvaluationMetrics
from mtl.export import Exported, add_graph
from mtl.export_folder import FILES, ONNX, OPENVINO, clear_graph, enter_graph, staged_export
from mtl.extras import require
from mtl.labels import label_column
from predictor_mtl import EMBEDDING, LOGITS, MTLPredictor, Text

CALIBRATION_ROWS = 300
"""Texts that a graph is quantised on; NNCF's own default, beyond which ranges hardly change."""
CLOSE_POINTS = 0.5
"""Points, of 100, that a task's primary metric may lose in int8 for it to be taken by default."""
_AT_ONCE = 8


@dataclass(frozen=True)
class TaskChange:
    """What int8 makes of a task's primary metric.

    Args:
        task: Name of the task.
        metric: Its primary metric.
        before: Its value in fp32.
        after: Its value in int8.
    """

    task: str
    metric: str
    before: float
    after: float

    @property
    def points_lost(self) -> float:
        """Loss in points of 100; below 0 it is a gain."""
        return 100 * (self.before - self.after)


@dataclass(frozen=True)
class Quantized:
    """A graph in int8.

    Args:
        graph: The graph.
        changes: What became of each task.
        rows: Rows that were measured.
        mean_cosine: Mean cosine of embeddings with those in fp32.
        unmeasured: Names of the model's tasks that the rows do not label, of which so nothing is known.
    """

    graph: Exported
    changes: tuple[TaskChange, ...]
    rows: int
    mean_cosine: float
    unmeasured: tuple[str, ...] = ()

    @property
    def is_close(self) -> bool:
        """Whether every task was measured, and none loses more than [`CLOSE_POINTS`]."""
        return are_close(self.changes, self.unmeasured)


def are_close(changes: Sequence[TaskChange], unmeasured: Sequence[str] = ()) -> bool:
    """Returns whether every task was measured, and none loses more than [`CLOSE_POINTS`]."""
    return not unmeasured and all(change.points_lost <= CLOSE_POINTS for change in changes)


def quantize(
    model: MTLModel,
    folder: Path,
    backend: str,
    *,
    calibration: Sequence[Text],
    rows: Dataset,
    tasks: Sequence[TaskConfig],
) -> Quantized:
    """Writes the int8 graph beside the fp32 one of an export, and measures both.

    Args:
        model: The model that was exported.
        folder: The export, with the fp32 graph of that runtime.
        backend: `onnx` or `openvino`.
        calibration: Texts that the ranges of activations are taken from.
        rows: Labelled rows, others than those, with the columns of `load_sources`.
        tasks: The tasks that they label.

    Raises:
        ImportError: If the packages of the runtime are not installed.
        ValueError: If the export has no fp32 graph of that runtime, or there are no texts.
    """
    if not calibration or not len(rows):
        raise ValueError("int8 needs texts to be calibrated on, and labelled rows to be measured on. Give more data.")
    with staged_export(model, folder) as staging:
        before = MTLPredictor(staging, backend=backend, precision="fp32")
        starts = range(0, len(calibration), _AT_ONCE)
        inputs = [before.inputs(calibration[start : start + _AT_ONCE]) for start in starts]
        target = clear_graph(staging, backend, "int8")
        _QUANTIZERS[backend](staging / FILES[backend, "fp32"], target, inputs)
        enter_graph(staging, backend, "int8")
        after = MTLPredictor(staging, backend=backend, precision="int8")
        texts = row_texts(rows[:])
        outputs = [outputs_of(predictor, texts) for predictor in (before, after)]
        changes = task_changes(tasks, rows, outputs[0], outputs[1])
        cosine = mean_cosine(outputs[0][EMBEDDING], outputs[1][EMBEDDING])
        measured = {change.task: {change.metric: change.after, "fp32": change.before} for change in changes}
        heads = [task.name for task in model.config.tasks if task.has_head]
        unmeasured = tuple(name for name in heads if name not in measured)
        facts: dict[str, Any] = {
            "is_close": are_close(changes, unmeasured),
            "measured": measured,
            "rows": len(rows),
            "mean_cosine": cosine,
        }
        graph = add_graph(model, staging, backend, "int8", **facts)
    return Quantized(graph, tuple(changes), len(rows), cosine, unmeasured)


def outputs_of(predictor: MTLPredictor, texts: Sequence[Text]) -> dict[str, np.ndarray]:
    """Returns the outputs of a graph for texts, in their order: embeddings, (N, H), and logits, (N, C) each."""
    found: dict[str, np.ndarray] = {}
    for rows, outputs in predictor.passes(texts):
        for name, values in outputs.items():
            array = found.setdefault(name, np.empty((len(texts), values.shape[1]), np.float32))
            array[rows] = values
    return found


def task_changes(
    tasks: Sequence[TaskConfig], rows: Dataset, before: dict[str, np.ndarray], after: dict[str, np.ndarray]
) -> list[TaskChange]:
    """Returns what becomes of each task's primary metric.

    Args:
        tasks: Tasks with a head.
        rows: The labelled rows.
        before: Outputs of the graph in fp32.
        after: Those of the other one.
    """
    figures = [primary_figures(tasks, rows, outputs) for outputs in (before, after)]
    return [TaskChange(name, metric, value, figures[1][name][1]) for name, (metric, value) in figures[0].items()]


def primary_figures(
    tasks: Sequence[TaskConfig], rows: Dataset, outputs: dict[str, np.ndarray]
) -> dict[str, tuple[str, float]]:
    """Returns each task's primary metric, by its name, and the value.

    Args:
        tasks: Tasks with a head.
        rows: The labelled rows.
        outputs: What [`outputs_of`] returns for them.
    """
    measure = EvaluationMetrics(tasks)
    labels = {task.name: _labels(rows, task) for task in tasks}
    found = measure.by_task({task.name: _raw_logits(task, outputs) for task in tasks}, labels)
    return {name: (metric, found[name][metric]) for name, metric in measure.primary.items()}


def _labels(rows: Dataset, task: TaskConfig) -> np.ndarray:
    labels = np.array(rows[label_column(task.name)])
    return labels.astype(np.float32) if labels.dtype.kind == "f" else labels


def _raw_logits(task: TaskConfig, outputs: dict[str, np.ndarray]) -> np.ndarray:
    # Metrics go by the logits as the head gives them; the graph has divided them by the temperature.
    return outputs[LOGITS + task.name] * (task.calibration_temperature or 1.0)


def mean_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Returns the mean cosine of the rows of two matrices, (N, H) each, with those of the same number."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)  # (N,)
    return float(((left * right).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


def _quantize_openvino(source: Path, target: Path, inputs: Sequence[dict[str, np.ndarray]]) -> None:
    openvino: Any = require("openvino", extra="openvino", what="int8 in OpenVINO")
    nncf: Any = require("nncf", extra="openvino", what="int8 in OpenVINO")
    quantized = nncf.quantize(
        openvino.Core().read_model(str(source)),
        nncf.Dataset(list(inputs)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
    )
    openvino.save_model(quantized, str(target), compress_to_fp16=False)


def _quantize_onnx(source: Path, target: Path, inputs: Sequence[dict[str, np.ndarray]]) -> None:
    """Quantises weights by channel; the ranges of activations are taken anew from each batch.

    Ranges that are fixed by calibration cost 0.9 to 1.7 points on the embedded corpus, these 0.3 at most, and they are
    no slower (onnxruntime 1.32). So the texts of the calibration take no part.
    """
    require("onnx", extra="onnx", what="int8 in ONNX Runtime")
    quantization: Any = require("onnxruntime.quantization", extra="onnx", what="int8 in ONNX Runtime")
    shapes: Any = require("onnxruntime.quantization.shape_inference", extra="onnx", what="int8 in ONNX Runtime")
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder) / "prepared.onnx")
        shapes.quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
        quantization.quantize_dynamic(
            prepared,
            str(target),
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )


_QUANTIZERS: Any = {ONNX: _quantize_onnx, OPENVINO: _quantize_openvino}
