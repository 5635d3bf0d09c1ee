"""Trains a settings file with several seeds, and tells what each reached: what the benchmarks of quality share."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from documents import settings_that_count, write_between, write_json

ROOT = Path(__file__).resolve().parent.parent

Columns = Sequence[tuple[str, str]]
"""Task and metric of each column of a table."""


def add_options(parser: argparse.ArgumentParser, output: str) -> None:
    """Adds the options that every benchmark of seeds has; `output` names the file of results by default."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / output)
    parser.add_argument("--write", type=Path, help="File with the markers between which the table goes.")
    parser.add_argument("overrides", nargs="*", help="Further settings, after --, as for train_trainer.py.")


def measure(options: argparse.Namespace, settings: str, columns: Columns, places: Sequence[str] = ()) -> None:
    """Runs the seeds that the results file does not have yet, then writes the table.

    Args:
        options: The options that [`add_options`] added.
        settings: The settings file, from the root.
        columns: What the table shows.
        places: Further settings on which no figure depends, such as where the data lies.
    """
    count = {"config": settings_that_count(ROOT / settings), "overrides": options.overrides}

    def train(seed: int) -> dict[str, Any]:
        folder = ROOT / "outputs" / f"{options.output.stem}-seed-{seed}"
        return run(settings, seed, folder, [*places, *options.overrides])

    run_seeds(options, count, train, lambda runs: table(runs, columns))


def run_seeds(
    options: argparse.Namespace,
    settings: dict[str, Any],
    train: Callable[[int], dict[str, Any]],
    tables: Callable[[dict[str, Any]], str],
) -> None:
    """Trains the seeds that the results file does not have yet, then shows and writes the tables.

    Args:
        options: `seeds`, `output` and `write`, as of [`add_options`].
        settings: All that the figures depend on.
        train: Trains with a seed; returns the figures.
        tables: Formats the figures of the seeds.

    Raises:
        SystemExit: If the file has figures of other settings.
    """
    report = json.loads(options.output.read_text()) if options.output.is_file() else {"settings": settings, "runs": {}}
    if report["settings"] != settings:
        raise SystemExit(f"{options.output} was measured with other settings. Give another --output, or move it away.")
    for number, seed in enumerate(options.seeds, start=1):
        if str(seed) not in report["runs"]:
            sys.stderr.write(f"seed {seed}: run {number} of {len(options.seeds)}\n")
            report["runs"][str(seed)] = train(seed)
            write_json(report, options.output)
    text = tables(report["runs"])
    sys.stdout.write(text + "\n")
    if options.write is not None:
        name = options.output.stem
        write_between(options.write, f"<!-- {name}:begin -->", f"<!-- {name}:end -->", text)


def run(settings: str, seed: int, folder: Path, further: Sequence[str]) -> dict[str, Any]:
    """Trains in a process of its own, so that its peak of memory is its own; returns the figures of its report."""
    command = [sys.executable, "train_trainer.py", settings, "--seed", str(seed), "--output_dir", str(folder)]
    subprocess.run([*command, *further], cwd=ROOT, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    report = json.loads((folder / "report.json").read_text())
    return {key: report[key] for key in ("results", "training", "precision", "peak_memory_mib", "versions", "machine")}


def table(results: dict[str, Any], columns: Columns) -> str:
    """Formats the figures on test, seed by seed and their mean, as Markdown."""
    heads = " | ".join(f"{task} {metric}" for task, metric in columns)
    lines = [f"| seed | {heads} | training, s | peak memory, MiB |", "|---" * (len(columns) + 3) + "|"]
    rows = []
    for seed, figures in sorted(results.items(), key=lambda item: int(item[0])):
        tasks = figures["results"]["test"]["tasks"]
        rows.append([tasks[task][metric] for task, metric in columns])
        cells = " | ".join(f"{value:.4f}" for value in rows[-1])
        lines.append(
            f"| {seed} | {cells} | {figures['training']['train_runtime']:.0f} | {figures['peak_memory_mib']:.0f} |"
        )
    lines.append(f"| mean | {' | '.join(f'{mean(column):.4f}' for column in zip(*rows, strict=True))} | | |")
    first = next(iter(results.values()))
    machine, versions = first["machine"], first["versions"]
    lines.append(
        f"\nIn {first['precision']} on {machine['cpu_count']} CPU cores ({machine['platform']}, torch "
        f"{versions['torch']}, transformers {versions['transformers']})."
    )
    return "\n".join(lines)
