"""Times the epochs, or the steps, of one training, in a process of its own; `embedding_cache.py` starts it."""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from freezing_run import limit_rows, machine
from transformers import TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging

from mtl.evaluation import evaluate_split
from mtl.report import peak_memory_mib
from mtl.settings import parse_settings
from train_setup import prepare

WARM_UP_STEPS = 5


class Clock(TrainerCallback):
    """Notes when training, epochs and steps begin, and when steps and training end."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.steps: list[float] = []
        self._step = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        """Notes the begin of an epoch."""
        self.epochs.append(time.perf_counter())

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Notes the begin of a step."""
        self._step = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes how long the step took."""
        self.steps.append(time.perf_counter() - self._step)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Notes the end of the last epoch."""
        self.epochs.append(time.perf_counter())


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one training and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--limit", type=int, help="Rows of each split, drawn at random; all of them if not given.")
    parser.add_argument("--evaluate", action="store_true", help="Measure the model on test at the end.")
    parser.add_argument("arguments", nargs="+", help="After `--`: what `train_trainer.py` takes.")
    options = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    settings, args = parse_settings(options.arguments)
    set_seed(args.seed)  # The fresh heads are drawn before the trainer sets the seed.
    run = prepare(settings, args)
    if options.limit is not None:
        limit_rows(run, options.limit)
    clock = Clock()
    run.trainer.add_callback(clock)
    started = time.perf_counter()
    run.trainer.train()
    record: dict[str, Any] = {
        "preparing_seconds": round(clock.epochs[0] - started, 3),
        # From the begin of one to that of the next, so with the evaluation after it.
        "epoch_seconds": [
            round(after - before, 3) for before, after in zip(clock.epochs, clock.epochs[1:], strict=False)
        ],
        "step_ms": round(1000 * statistics.median(clock.steps[WARM_UP_STEPS:]), 3),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "rows": len(run.splits["train"]),
        "precision": args.precision_in_use,
        "machine": machine(str(args.device)),
    }
    if options.evaluate:
        result = evaluate_split(run.trainer, run.splits["test"], "test", run.tasks)
        record["test"] = {name: result.metrics[name][metric] for name, metric in result.primary.items()}
        record["test"]["score"] = result.score
    options.record.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
