"""What the benchmarks of answers share: which sentences are answered, and how those that answer take turns."""

import gc
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from records import ROOT

CORPUS = ROOT / "data" / "vader" / "vader.parquet"
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "static": "static student"}


def drawn_sentences(count: int) -> list[str]:
    """Returns so many sentences of the embedded corpus, drawn at random and the same each time."""
    texts = pq.read_table(CORPUS, columns=["text"])["text"].to_pylist()
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[:count]]


def in_turns(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Returns the seconds of each run, repeat by repeat.

    What is loaded before stays out of garbage collections (`gc.freeze`), as in a server that is set up well: many
    answers are many objects, at which Python would look through all those of torch, too, now and then.
    """
    gc.collect()
    gc.freeze()
    try:
        return _timed(runs, repeats)
    finally:
        gc.unfreeze()


def _timed(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):  # The first, which is not counted, takes memory and chooses kernels.
        sys.stderr.write(f"repeat {repeat + 1} of {repeats}\n")
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds
