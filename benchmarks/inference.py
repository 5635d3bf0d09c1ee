"""Measures how fast a model answers, against what a user would otherwise run, in the same run and in turns.

    python benchmarks/inference.py --write README.md   # a quarter of an hour
    python benchmarks/inference.py --table             # the table of the JSON file

    mtl export onnx outputs/vader --int8 configs/vader.yaml          # then also the exported graphs,
    mtl export openvino outputs/vader --int8 configs/vader.yaml
    mtl distill-static outputs/vader outputs/vader-static configs/vader.yaml
    python benchmarks/inference.py --exports outputs/vader outputs/vader-static --write README.md

All contenders have the same encoder, all-MiniLM-L6-v2, and the same sentences of the embedded corpus; heads are
fresh, which changes no time. sentence-transformers and the three pipelines, of one single-task model each, run in fp32
with batches of 32 sentences; so does this package where it is compared with the pipelines, and else with its own
defaults. Each contender is run once unmeasured. A speed is the median of the ratios of runs in one repeat, so that
both saw the same machine; beside it stand the least and the largest of them. The share of the peak is what the linear
layers of the encoder multiply for real tokens, against the fastest product of matrices of such sizes that was measured
in between.
"""

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from documents import add_report_options, show_report, write_json
from freezing_run import machine
from records import markdown_table
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging as transformers_logging
from turns import RUNTIMES, drawn_sentences, in_turns

from classification_mtl import predictions_of
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.settings import resolve_backbone
from predictor_mtl import MTLPredictor, read_manifest
from tasks_mtl import REGRESSION

NAME = "inference"
BATCH_SIZE = 32
NUM_HEADS = 50
PACKAGES = ("torch", "transformers", "sentence-transformers", "tokenizers")
TASKS = (
    TaskConfig("topic", num_labels=4),
    TaskConfig("sentiment", num_labels=3),
    TaskConfig("valence", REGRESSION),
)
EMBEDDINGS, THREE_TASKS = "sentence-transformers, fp32", "three pipelines, fp32"


@dataclass(frozen=True)
class Contender:
    """One way to answer all sentences.

    Args:
        name: What a table calls it.
        run: Answers them.
        against: Name of the contender that it is compared with.
        precision: What it multiplies in; of `fp32` and `bf16` the peak is measured.
        passes: How often each sentence goes through an encoder.
    """

    name: str
    run: Callable[[], Any]
    against: str
    precision: str = "fp32"
    passes: int = 1


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, or shows what was measured before; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbone", default="embedded", help="Encoder of all contenders.")
    add("--sentences", type=int, default=2000, help="Sentences, drawn at random.")
    add("--exports", type=Path, nargs="+", default=[], help="Folders of exports, whose graphs take part.")
    add("--repeats", type=int, default=9, help="Runs of each contender.")
    add_report_options(parser, NAME)
    options = parser.parse_args(argv)
    if not options.table:
        transformers_logging.set_verbosity_error()
        backbone = resolve_backbone(options.backbone)
        write_json(measure(backbone, options.sentences, options.repeats, options.exports), options.output)
    return show_report(options, NAME, table)


def measure(backbone: str, count: int, repeats: int, exports: Sequence[Path] = ()) -> dict[str, Any]:
    """Runs every contender so many times, in turns, and returns the report.

    Args:
        backbone: Folder of the encoder.
        count: Sentences.
        repeats: Runs of each contender.
        exports: Folders of exports.
    """
    sentences = drawn_sentences(count)
    model = MTLModel.from_backbone(backbone, tasks=TASKS)
    peer = SentenceTransformer(backbone, device="cpu")
    model.config.max_seq_length = peer.max_seq_length
    contenders = make_contenders(model, peer, backbone, sentences) + exported_contenders(exports, sentences)
    peaks: dict[str, list[float]] = {"fp32": [], "bf16": []}

    def note_peaks() -> None:
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            peaks[name].append(gemm_flops(model, dtype))

    seconds = in_turns({**{contender.name: contender.run for contender in contenders}, "peaks": note_peaks}, repeats)
    tokens = sum(map(len, model.tokenizer(sentences, truncation=True, max_length=model.max_tokens())["input_ids"]))
    return {
        "sentences": count,
        "tokens": tokens,
        "flops": tokens * linear_flops(model),
        "gemm_flops": {name: max(values) for name, values in peaks.items()},
        "contenders": {contender.name: _described(contender, seconds[contender.name]) for contender in contenders},
        "differences": differences(model, peer, sentences),
        "lost": {name: lost for folder in exports for name, lost in points_lost(folder).items()},
        "heads_seconds": {
            str(number): heads_seconds(backbone, sentences, number, repeats) for number in (3, NUM_HEADS)
        },
        "starts": {name: seconds for folder in exports for name, seconds in all_starts(folder, repeats).items()},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine("cpu"),
    }


def _described(contender: Contender, seconds: list[float]) -> dict[str, Any]:
    facts = {"against": contender.against, "precision": contender.precision, "passes": contender.passes}
    return {**facts, "seconds": seconds}


def speeds(report: Mapping[str, Any], name: str) -> list[float]:
    """Returns how many times as fast as its opponent a contender was, repeat by repeat."""
    contender = report["contenders"][name]
    opponent = report["contenders"][contender["against"]]
    return [theirs / ours for theirs, ours in zip(opponent["seconds"], contender["seconds"], strict=True)]


def make_contenders(
    model: MTLModel, peer: SentenceTransformer, backbone: str, sentences: Sequence[str]
) -> list[Contender]:
    """Returns the contenders; a further one is a further entry."""
    texts = list(sentences)
    pipelines = [_pipeline(backbone, task) for task in TASKS]
    few, many = (_with_heads(backbone, number) for number in (3, NUM_HEADS))
    many.config.max_seq_length = few.config.max_seq_length = model.config.max_seq_length

    def run_pipelines() -> None:
        for one in pipelines:
            one(texts, batch_size=BATCH_SIZE, truncation=True, max_length=model.max_tokens())

    encode = partial(peer.encode, texts, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)
    both = partial(model.encode_and_predict, texts, batch_size=BATCH_SIZE)
    heads = "3 heads, fp32"
    return [
        Contender(EMBEDDINGS, encode, EMBEDDINGS),
        Contender("`encode`, fp32", partial(model.encode, texts), EMBEDDINGS),
        Contender("`encode`, bf16", partial(model.encode, texts, precision="bf16"), EMBEDDINGS, "bf16"),
        Contender(THREE_TASKS, run_pipelines, THREE_TASKS, passes=3),
        Contender("embedding and 3 tasks, fp32", both, THREE_TASKS),
        Contender("embedding and 3 tasks, bf16", partial(both, precision="bf16"), THREE_TASKS, "bf16"),
        Contender(heads, partial(few.predict, texts), heads),
        Contender(f"{NUM_HEADS} heads, fp32", partial(many.predict, texts), heads),
    ]


def exported_contenders(exports: Sequence[Path], sentences: Sequence[str]) -> list[Contender]:
    """Returns a contender for each graph of some exports: the embedding and all tasks, with its own defaults."""
    found = []
    for folder in exports:
        for graph in read_manifest(folder)["graphs"]:
            settings = {"backend": graph["backend"], "precision": graph["precision"]}
            predictor = MTLPredictor(folder, **settings)
            what = f"embedding and {len(predictor.tasks)} tasks"
            name = f"{RUNTIMES[graph['backend']]}: {what}, {graph['precision']}"
            run = partial(predictor.encode_and_predict, list(sentences))
            found.append(Contender(name, run, EMBEDDINGS, f"{graph['backend']} {graph['precision']}"))
    return found


def points_lost(folder: Path) -> dict[str, dict[str, float]]:
    """Returns what each int8 graph of an export loses of each task's primary metric, in points, as it was measured."""
    found = {}
    for graph in read_manifest(folder)["graphs"]:
        if graph["precision"] == "int8":
            found[f"{RUNTIMES[graph['backend']]}, int8"] = {
                name: 100 * (figures["fp32"] - next(value for key, value in figures.items() if key != "fp32"))
                for name, figures in graph["measured"].items()
            }
    return found


def all_starts(folder: Path, repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of [`start_seconds`] of each runtime of an export, of OpenVINO also with its cache."""
    found = {}
    for backend in sorted({graph["backend"] for graph in read_manifest(folder)["graphs"]}):
        found[RUNTIMES[backend]] = start_seconds(folder, repeats, backend)
        if backend == "openvino":
            with tempfile.TemporaryDirectory() as cache:
                start_seconds(folder, 1, backend, cache)
                found[f"{RUNTIMES[backend]} with `cache_dir`"] = start_seconds(folder, repeats, backend, cache)
    return found


def start_seconds(folder: Path, repeats: int, backend: str, cache: str = "") -> list[float]:
    """Returns how long a new process takes from its start to the answer to one sentence."""
    code = (
        "import sys; folder, backend, cache = sys.argv[1:]; sys.path.insert(0, folder); import predictor_mtl; "
        "predictor_mtl.MTLPredictor(folder, backend=backend, cache_dir=cache or None).predict('One sentence.')"
    )
    command = [sys.executable, "-c", code, str(folder.resolve()), backend, cache]
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run(command, check=True, cwd=folder)
        seconds.append(time.perf_counter() - begin)
    return seconds


def heads_seconds(backbone: str, sentences: Sequence[str], number: int, repeats: int) -> list[float]:
    """Returns how long so many heads and their predictions take for sentences, without the encoder."""
    model = _with_heads(backbone, number).eval()
    batches = torch.from_numpy(model.encode(sentences)).split(BATCH_SIZE)  # (B, H) each

    def answer() -> None:
        for pooled in batches:
            logits = model(pooled=pooled).logits  # (B, C) each
            for task in model.config.tasks:
                predictions_of(task, logits[task.name])

    with torch.inference_mode():
        return in_turns({"": answer}, repeats)[""]


def _with_heads(backbone: str, number: int) -> MTLModel:
    return MTLModel.from_backbone(backbone, tasks=[TaskConfig(f"task{n}", num_labels=3) for n in range(number)])


def _pipeline(backbone: str, task: TaskConfig) -> Any:
    single = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=task.num_labels)
    return pipeline("text-classification", model=single, tokenizer=AutoTokenizer.from_pretrained(backbone))


def linear_flops(model: MTLModel) -> int:
    """Returns the operations that the encoder's linear layers need for a token."""
    return 2 * sum(layer.weight.numel() for layer in model.backbone.modules() if isinstance(layer, nn.Linear))


def gemm_flops(model: MTLModel, dtype: torch.dtype) -> float:
    """Returns the operations per second of the product of a long batch with the encoder's largest linear layer."""
    layers = [layer for layer in model.backbone.modules() if isinstance(layer, nn.Linear)]
    weight = max((layer.weight for layer in layers), key=torch.Tensor.numel).detach().to(dtype)  # (O, I)
    states = torch.ones(2048, weight.shape[1], dtype=dtype)  # (T, I)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(10):
            begin = time.perf_counter()
            nn.functional.linear(states, weight)
            best = min(best, time.perf_counter() - begin)
    return 2 * states.shape[0] * weight.numel() / best


def differences(model: MTLModel, peer: SentenceTransformer, sentences: Sequence[str]) -> dict[str, float]:
    """Returns how far embeddings are from those of sentence-transformers, and bf16 from fp32."""
    theirs = peer.encode(list(sentences), normalize_embeddings=True)  # (N, H)
    ours = model.encode(sentences)  # (N, H)
    half = model.encode(sentences, precision="bf16")  # (N, H)
    return {
        "fp32_max": float(np.abs(ours - theirs).max()),
        "bf16_max": float(np.abs(half - ours).max()),
        "bf16_least_cosine": float((half * ours).sum(axis=1).min()),
    }


def table(report: Mapping[str, Any]) -> str:
    """Returns medians, ratios and what they are to be read with, as Markdown."""
    rows = [
        [
            name,
            f"{report['sentences'] / statistics.median(contender['seconds']):,.0f}",
            _speed(report, name),
            contender["against"] if contender["against"] != name else "",
            _share(report, contender),
        ]
        for name, contender in report["contenders"].items()
    ]
    heading = ["", "Sentences/s", "Speed", "Against", "Share of the peak"]
    first = next(iter(report["contenders"].values()))
    gap, where, versions = report["differences"], report["machine"], report["versions"]
    peaks = {name: f"{value / 1e9:,.0f} GFLOP/s in {name}" for name, value in report["gemm_flops"].items()}
    note = (
        f"{report['sentences']:,} sentences, {report['tokens']:,} tokens; medians of {len(first['seconds'])}. "
        f"Embeddings differ from those of sentence-transformers by {gap['fp32_max']:.0e} at most, in bf16 from those "
        f"in fp32 by {gap['bf16_max']:.0e} (cosine {gap['bf16_least_cosine']:.4f} at least). Peak: {peaks['fp32']}, "
        f"{peaks['bf16']}.{_heads(report)}{_lost(report)}{_starts(report)} {where['cpu']}, {where['threads']} "
        f"threads, torch {versions['torch']}, transformers {versions['transformers']}, "
        f"sentence-transformers {versions['sentence-transformers']}."
    )
    return f"{markdown_table(heading, rows)}\n\n{note}"


def _speed(report: Mapping[str, Any], name: str) -> str:
    if report["contenders"][name]["against"] == name:
        return ""
    ratios = speeds(report, name)
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def _heads(report: Mapping[str, Any]) -> str:
    told = [f"{statistics.median(some):.2f} s with {number}" for number, some in report["heads_seconds"].items()]
    return f" Heads and predictions alone: {', '.join(told)}."


def _lost(report: Mapping[str, Any]) -> str:
    told = [
        f"{name} {', '.join(f'{task} {points:+.2f}' for task, points in lost.items())}"
        for name, lost in report["lost"].items()
    ]
    return f" Points lost on the split for testing: {'; '.join(told)}." if told else ""


def _starts(report: Mapping[str, Any]) -> str:
    starts = [f"{statistics.median(seconds):.2f} s ({name})" for name, seconds in report["starts"].items()]
    return f" From the start of a process to its first answer: {', '.join(starts)}." if starts else ""


def _share(report: Mapping[str, Any], contender: Mapping[str, Any]) -> str:
    peak = report["gemm_flops"].get(contender["precision"])
    flops = contender["passes"] * report["flops"] / statistics.median(contender["seconds"])
    return "" if peak is None else f"{flops / peak:.0%}"


if __name__ == "__main__":
    main()
