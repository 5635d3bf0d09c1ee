"""The command `mtl compare`: did it help to train the tasks in one model?

    mtl compare configs/vader.yaml --seeds 0 1 2

It trains the multi-task model, a model a task, and a probe, with the same steps, batches and seeds, and answers with a
verdict; see docs/comparison.md.
"""

import json
import logging
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from statistics import mean
from typing import Any

from transformers.utils import logging as transformers_logging

from mtl.commands.compare_probe import probe_part
from mtl.commands.compare_run import Comparison, train_part
from mtl.commands.compare_setup import set_up
from mtl.comparison import LEVEL, compare_parts
from mtl.comparison_cost import measure_latency
from mtl.comparison_parts import FinishedPart
from mtl.comparison_plan import MULTI, PROBE, SINGLE, PlannedPart
from mtl.comparison_settings import PROGRAM
from mtl.comparison_tables import comparison_tables
from mtl.data import row_texts
from mtl.report import write_report
from train_trainer import or_exit

logger = logging.getLogger(__name__)

RESULTS, TABLES, LATENCY = "comparison.json", "comparison.md", "latency.json"
_TEXTS_OF_LATENCY = 32


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with settings or data ends it with its message alone."""
    argv = list(sys.argv[1:] if argv is None else argv)
    comparison = or_exit(PROGRAM, lambda: set_up(argv))
    try:
        run(comparison)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs from settings to the comparison; returns what `comparison.json` holds."""
    return run(set_up(list(sys.argv[1:] if argv is None else argv)))


def run(comparison: Comparison) -> dict[str, Any]:
    """Trains the parts that are not done, and writes the comparison after every seed that has become whole."""
    for part in comparison.parts:
        if comparison.folder(part).other_settings(comparison.fingerprint(part)):  # As `overwrite` allows.
            comparison.folder(part).remove()
    progress = _Progress(comparison)
    for part in progress.left:
        if part in _of_cost(comparison):
            (comparison.output_dir / LATENCY).unlink(missing_ok=True)
        progress.begin(part)
        if part.kind == PROBE:
            probe_part(comparison, part)
        else:
            train_part(comparison, part, progress.add_step)
        progress.end(part)
        if _is_whole(comparison, part):
            write_comparison(comparison)
        _tidy(comparison)
    progress.close()
    results = write_comparison(comparison)
    _tidy(comparison)
    print(f"\n{comparison_tables(results)}\n\nSaved to {comparison.output_dir}: {RESULTS}, {TABLES}, and every part.")
    return results


def write_comparison(comparison: Comparison) -> dict[str, Any]:
    """Compares what is done, and writes `comparison.json` and `comparison.md`; returns the former's content."""
    finished = [comparison.folder(part).read() for part in comparison.parts if comparison.folder(part).is_done()]
    settings = comparison.settings
    results = compare_parts(
        finished,
        comparison.compared,
        metrics={task.name: settings.metric_of(task) for task in comparison.compared},
        tolerance=settings.tolerance,
        resamples=settings.resamples,
        latency=_latency(comparison),
    )
    first = finished[0].record
    results |= {"plan": _plan(comparison, finished, results.pop("seeds"))}
    results |= {key: first[key] for key in ("precision", "versions", "machine")}
    write_report(results, comparison.output_dir / RESULTS)
    (comparison.output_dir / TABLES).write_text(comparison_tables(results) + "\n", encoding="utf-8")
    return results


def _plan(comparison: Comparison, finished: Sequence[FinishedPart], seeds: Sequence[int]) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for part in [part for part in finished if part.part.kind != PROBE]:
        name = "all tasks" if part.part.kind == MULTI else " + ".join(part.part.tasks)
        figures = parts.setdefault(name, {"rows": part.record["rows"], "epochs": [], "steps": []})
        for key in ("epochs", "steps"):
            figures[key].append(part.record[key])
    return {
        "seeds": list(seeds),
        "max_steps": comparison.budget.max_steps,
        "rows_per_step": comparison.budget.rows_per_step,
        "resamples": comparison.settings.resamples,
        "confidence_level": LEVEL,
        "tolerance_percent": comparison.settings.tolerance,
        "parts": {name: {**figures, "epochs": mean(figures["epochs"])} for name, figures in parts.items()},
    }


def _of_cost(comparison: Comparison) -> list[PlannedPart]:
    """Returns the parts whose models are timed: those of the first seed."""
    first = comparison.settings.seeds[0]
    return [part for part in comparison.parts if part.seed == first and part.kind in (MULTI, SINGLE)]


def _is_whole(comparison: Comparison, last: PlannedPart) -> bool:
    """Returns whether all models of a seed are done, now that the last one is."""
    of_seed = [part for part in comparison.parts if part.seed == last.seed and part.kind in (MULTI, SINGLE)]
    return last in of_seed and all(comparison.folder(part).is_done() for part in of_seed)


def _latency(comparison: Comparison) -> dict[str, Any] | None:
    """Returns the latency of one model against several; measured once, while the models are there."""
    path = comparison.output_dir / LATENCY
    if path.is_file():
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    multi, *singles = [comparison.folder(part).model for part in _of_cost(comparison)]
    if not all((folder / "config.json").is_file() for folder in (multi, *singles)):
        logger.warning("Latency is not measured: the models of the first seed are not there any more.")
        return None
    rows = comparison.splits["test"]
    spread = range(0, len(rows), max(1, len(rows) // _TEXTS_OF_LATENCY))
    texts = row_texts(rows.select(spread)[:_TEXTS_OF_LATENCY])
    latency = measure_latency(multi, singles, texts, comparison.args.device)
    write_report(latency, path)
    return latency


def _tidy(comparison: Comparison) -> None:
    """Removes what finished parts need no more: their checkpoints, and their models if these are not kept."""
    is_timed = (comparison.output_dir / LATENCY).is_file()
    timed = _of_cost(comparison)
    for part in [part for part in comparison.parts if comparison.folder(part).is_done()]:
        folder = comparison.folder(part).model
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        if not comparison.settings.keep_models and (is_timed or part not in timed):
            shutil.rmtree(folder, ignore_errors=True)


class _Progress:
    """Tells which part of how many trains, the time that went by, and the time that is left."""

    def __init__(self, comparison: Comparison) -> None:
        self.parts, self.steps_of_part = comparison.parts, comparison.budget.max_steps
        self.left = [part for part in self.parts if not comparison.folder(part).is_done()]
        self.steps_left = self.steps_of_part * sum(part.kind != PROBE for part in self.left)
        self.steps_made = self.steps_of_this = 0
        self.started = time.perf_counter()
        logger.info(
            "%d parts of %s steps each, %d of them done before.",
            len(self.parts), f"{self.steps_of_part:,}", len(self.parts) - len(self.left),
        )  # fmt: skip
        self.bar: Any = transformers_logging.tqdm(
            total=self.steps_left, desc=PROGRAM, unit="step", disable=comparison.args.disable_tqdm
        )

    def begin(self, part: PlannedPart) -> None:
        """Tells of the part that begins."""
        elapsed = time.perf_counter() - self.started
        seconds = elapsed / self.steps_made * self.steps_left if self.steps_made else None
        left = "what is left is not known yet" if seconds is None else f"about {_minutes(seconds)} left"
        number = self.parts.index(part) + 1
        logger.info("Part %d of %d: %s; %s gone, %s.", number, len(self.parts), part.title, _minutes(elapsed), left)
        self.bar.set_description(f"{PROGRAM}, part {number} of {len(self.parts)}")
        self.steps_of_this = 0

    def add_step(self) -> None:
        """Counts a step of the part."""
        self.steps_of_this += 1
        self.steps_made += 1
        self.steps_left -= 1
        self.bar.update(1)

    def end(self, part: PlannedPart) -> None:
        """Counts the steps that were not made: those before a checkpoint, or after a part has stopped early."""
        if part.kind != PROBE:
            rest = self.steps_of_part - self.steps_of_this
            self.steps_left -= rest
            self.bar.update(rest)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
