"""Which runtime and precision answer fastest on this machine, and whether they answer the same."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from batching_mtl import Text
from modeling_mtl import MTLModel
from mtl.content_keys import key_of_model
from mtl.export import export
from mtl.export_folder import ONNX, OPENVINO
from mtl.precision import has_fast_bf16
from mtl.quantization import mean_cosine
from passes_mtl import Precision
from predictor_mtl import MANIFEST, PACKAGES, MTLPredictor, read_manifest

TORCH = "torch"
ROUNDS = 5
_ALONE = 16
"""Texts that are answered one at a time for the time of one."""

Answers = tuple[np.ndarray, list[dict[str, Any]]]


@dataclass(frozen=True)
class Runner:
    """One way to answer texts.

    Args:
        backend: Its runtime.
        precision: Its precision.
        is_close: Whether it answers as fp32 does, by what its export measured; of other precisions than int8, always.
        answer: Gives embeddings, (N, H), and predictions of texts.
    """

    backend: str
    precision: str
    is_close: bool
    answer: Callable[[Sequence[Text]], Answers]


@dataclass(frozen=True)
class Measured:
    """What was measured of a runner.

    Args:
        backend: Its runtime.
        precision: Its precision.
        is_close: See [`Runner`].
        per_second: Texts in a second, all at once; the median of the rounds.
        milliseconds: Time of one text alone; the median of the rounds, of each of which it is the median.
        same_labels: Share of labels, over texts and tasks that have some, that are those of torch in fp32; `None` if
            no task has labels.
        mean_cosine: Mean cosine of embeddings with those of torch in fp32.
    """

    backend: str
    precision: str
    is_close: bool
    per_second: float
    milliseconds: float
    same_labels: float | None
    mean_cosine: float


def bench(
    model: MTLModel,
    folder: Path | None,
    texts: Sequence[Text],
    *,
    rounds: int = ROUNDS,
    threads: int | None = None,
    progress: Callable[[str], Any] = lambda name: None,
) -> list[Measured]:
    """Measures every runtime and precision that this machine has, in turns, with embeddings and all tasks.

    A runtime that is installed, and for which the folder has no graph of the model, is measured with one that is
    exported for that and thrown away; int8 is measured where the folder has it.

    Args:
        model: The model, with its tokenizer, whose torch threads are set.
        folder: Its export, if there is one.
        texts: What is answered.
        rounds: How often each answers all texts, after once that is not measured.
        threads: Threads of the runtimes beside torch; all cores if not given.
        progress: Called with a name before each step.

    Raises:
        ValueError: If there are no texts, or less than one round.
    """
    if not texts or rounds < 1:
        raise ValueError(f"A measurement needs texts and rounds, found {len(texts)} texts and rounds={rounds}.")
    with tempfile.TemporaryDirectory(prefix="mtl-bench-") as place:
        runners = torch_runners(model) + graph_runners(model, folder, Path(place), threads, progress)
        return measure(runners, texts, rounds, progress)


def torch_runners(model: MTLModel) -> list[Runner]:
    """Returns the model itself, in fp32, and in bf16 where the processor is fast in it; the first is the reference."""
    precisions: list[Precision] = ["fp32", "bf16"] if has_fast_bf16() else ["fp32"]
    return [
        Runner(TORCH, precision, True, partial(model.encode_and_predict, precision=precision, show_progress_bar=False))
        for precision in precisions
    ]


def graph_runners(
    model: MTLModel, folder: Path | None, place: Path, threads: int | None, progress: Callable[[str], Any]
) -> list[Runner]:
    """Returns a runner for each graph in a folder, and for one that is exported to `place` where one is missing."""
    found = []
    for backend in (backend for backend in (OPENVINO, ONNX) if find_spec(PACKAGES[backend])):
        there = _graphs(model, folder, backend)
        if not any(graph["precision"] == "fp32" for graph in there):
            progress(f"{backend}: exporting")
            export(model, place, backend)
            there += [graph for graph in _graphs(model, place, backend) if graph["precision"] == "fp32"]
        if backend == "openvino" and has_fast_bf16():
            there += [{**graph, "precision": "bf16"} for graph in there if graph["precision"] == "fp32"]
        for graph in there:
            predictor = MTLPredictor(graph["folder"], backend=backend, precision=graph["precision"], threads=threads)
            is_close = graph["precision"] != "int8" or graph["is_close"]
            found.append(Runner(backend, graph["precision"], is_close, predictor.encode_and_predict))
    return found


def _graphs(model: MTLModel, folder: Path | None, backend: str) -> list[dict[str, Any]]:
    if folder is None or not (folder / MANIFEST).is_file():
        return []
    manifest = read_manifest(folder)
    if manifest["weights"] != key_of_model(model):
        return []
    return [{**graph, "folder": folder} for graph in manifest["graphs"] if graph["backend"] == backend]


def measure(
    runners: Sequence[Runner],
    texts: Sequence[Text],
    rounds: int = ROUNDS,
    progress: Callable[[str], Any] = lambda name: None,
) -> list[Measured]:
    """Measures runners in turns, so that each sees the same machine, and holds their answers against the first's.

    Args:
        runners: The runners; the first is the reference.
        texts: What each answers.
        rounds: How often.
        progress: Called with a name before each step.
    """
    all_at_once: list[list[float]] = [[] for _ in runners]
    alone: list[list[float]] = [[] for _ in runners]
    answers = []
    for runner in runners:  # Not measured: memory is taken, and kernels are chosen.
        progress(f"{runner.backend} {runner.precision}: first answers")
        answers.append(runner.answer(texts))
    for number in range(rounds):
        for place, runner in enumerate(runners):
            progress(f"{runner.backend} {runner.precision}: round {number + 1} of {rounds}")
            runner.answer(texts[:1])
            all_at_once[place].append(_seconds(runner, texts))
            alone[place].append(statistics.median(_seconds(runner, [text]) for text in texts[:_ALONE]))
    return [
        Measured(
            runner.backend,
            runner.precision,
            runner.is_close,
            len(texts) / statistics.median(all_at_once[place]),
            1000 * statistics.median(alone[place]),
            same_labels(answers[place][1], answers[0][1]),
            mean_cosine(answers[place][0], answers[0][0]),
        )
        for place, runner in enumerate(runners)
    ]


def _seconds(runner: Runner, texts: Sequence[Text]) -> float:
    begin = time.perf_counter()
    runner.answer(texts)
    return time.perf_counter() - begin


def same_labels(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the share of predictions with labels that have the same ones; `None` if no task has labels."""
    pairs = [
        (some[name], other[name])
        for some, other in zip(found, expected, strict=True)
        for name in other
        if isinstance(other[name], Mapping) and ("label" in other[name] or "labels" in other[name])
    ]
    same = [all(some.get(key) == other.get(key) for key in ("label", "labels")) for some, other in pairs]
    return statistics.mean(map(float, same)) if same else None


def fastest(measured: Sequence[Measured], *, alone: bool = False) -> Measured:
    """Returns the one to take: the fastest of those that answer as fp32 does.

    Args:
        measured: What was measured.
        alone: Whether texts come one at a time.
    """
    close = [one for one in measured if one.is_close]
    return min(close, key=lambda one: one.milliseconds if alone else 1 / one.per_second)
