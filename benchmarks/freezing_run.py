"""Trains and measures one freezing strategy, in a process of its own; `benchmarks/freezing.py` starts it.

It writes one JSON record. Reading the data and loading the model are in no time, and in the peak of memory only.
"""

import argparse
import json
import logging
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from mtl.evaluation import EvaluationResult, evaluate_split
from mtl.report import peak_memory_mib
from mtl.settings import parse_settings
from train_setup import Run, prepare
from train_trainer import train

PACKAGES = ("torch", "transformers", "datasets", "accelerate")


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one strategy and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--limit", type=int, help="Rows of each split, drawn at random; all of them if not given.")
    parser.add_argument("--save", action="store_true", help="Keep the model in its output_dir.")
    parser.add_argument("arguments", nargs="+", help="After `--`: what `train_trainer.py` takes.")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("mtl.freezing").setLevel(logging.INFO)
    transformers_logging.set_verbosity_error()
    record = measure(args.arguments, limit=args.limit, save=args.save)
    args.record.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def measure(arguments: Sequence[str], *, limit: int | None = None, save: bool = False) -> dict[str, Any]:
    """Trains as the arguments say, evaluates, and returns the figures as JSON-ready values.

    Args:
        arguments: What `train_trainer.py` takes: a settings file and `--key value`.
        limit: Rows of each split; all of them if not given.
        save: Whether the trained model is written to its `output_dir`.
    """
    settings, args = parse_settings(arguments)
    args.include_num_input_tokens_seen = "non_padding"  # As an option it is read as yes or no.
    set_seed(args.seed)  # The fresh heads are drawn before the trainer sets the seed.
    run = prepare(settings, args)
    if limit is not None:
        limit_rows(run, limit)
    training = train(run)
    # Evaluation has batches of its own, so the peak is taken before it; without training there is only evaluation.
    peak = peak_memory_mib() if training else None
    results = [evaluate_split(run.trainer, run.splits[name], name, run.tasks) for name in ("validation", "test")]
    if save:
        run.trainer.save_model(_internal_call=True)
    freezing = run.trainer.freezing
    return {
        "parameters": {"trained": freezing.num_trainable, "total": freezing.num_total},
        "training": _speed(run, training),
        "peak_memory_mib": round(peak_memory_mib() if peak is None else peak, 1),
        "primary_metrics": results[0].primary,
        "results": {result.split: _primary_values(result) for result in results},
        "precision": args.precision_in_use,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(str(args.device)),
    }


def limit_rows(run: Run, limit: int) -> None:
    """Leaves of each split at most so many rows, drawn at random."""
    for name, split in run.splits.items():
        run.splits[name] = split.shuffle(seed=0).select(range(min(limit, len(split))))
    run.trainer.train_dataset, run.trainer.eval_dataset = run.splits["train"], run.splits["validation"]


def _speed(run: Run, training: dict[str, Any]) -> dict[str, Any] | None:
    if not training:
        return None
    seconds, tokens = training["train_runtime"], run.trainer.state.num_input_tokens_seen
    speed = round(tokens / seconds, 1)
    return {"steps": training["steps"], "seconds": seconds, "tokens": tokens, "tokens_per_second": speed}


def _primary_values(result: EvaluationResult) -> dict[str, Any]:
    figures = result.to_dict()
    tasks = {name: figures["tasks"][name][metric] for name, metric in result.primary.items()}
    return {"rows": result.num_rows, "score": figures["score"], "tasks": tasks}


def machine(device: str) -> dict[str, Any]:
    """Returns what is known of the machine, as JSON-ready values."""
    info = Path("/proc/cpuinfo")  # Elsewhere than on Linux there is none, and `platform` knows less.
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    return {
        "platform": platform.platform(),
        "cpu": cpu,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }


if __name__ == "__main__":
    main()
