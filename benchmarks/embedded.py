"""Trains the embedded default with several seeds and writes what each reached on test: the table of the README.

python benchmarks/embedded.py --seeds 0 1 2 --write README.md

The precision is that of the processor; with --output benchmarks/results/embedded-fp32.json, say, the figures of
another one (-- --precision fp32) stand beside them, and go between markers of that file's name.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from documents import settings_that_count, write_between, write_json

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = "configs/vader.yaml"
COLUMNS = (("topic", "accuracy"), ("sentiment", "accuracy"), ("valence", "pearson"))


def main(argv: list[str] | None = None) -> None:
    """Runs the seeds that the results file does not have yet, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "embedded.json")
    parser.add_argument("--write", type=Path, help="File with the markers between which the table goes.")
    parser.add_argument("overrides", nargs="*", help="Further settings, after --, as for train_trainer.py.")
    options = parser.parse_args(argv)
    settings = {"config": settings_that_count(ROOT / SETTINGS), "overrides": options.overrides}
    report = json.loads(options.output.read_text()) if options.output.is_file() else {"settings": settings, "runs": {}}
    if report["settings"] != settings:
        raise SystemExit(f"{options.output} was measured with other settings. Give another --output, or move it away.")
    for number, seed in enumerate(options.seeds, start=1):
        if str(seed) not in report["runs"]:
            sys.stderr.write(f"seed {seed}: run {number} of {len(options.seeds)}\n")
            report["runs"][str(seed)] = run(seed, options.overrides)
            write_json(report, options.output)
    text = table(report["runs"])
    sys.stdout.write(text + "\n")
    if options.write is not None:
        name = options.output.stem
        write_between(options.write, f"<!-- {name}:begin -->", f"<!-- {name}:end -->", text)


def run(seed: int, overrides: list[str]) -> dict[str, Any]:
    """Trains in a process of its own, so that its peak of memory is its own; returns the figures of its report."""
    folder = ROOT / "outputs" / f"embedded-seed-{seed}"
    command = [sys.executable, "train_trainer.py", SETTINGS, "--seed", str(seed), "--output_dir", str(folder)]
    subprocess.run([*command, *overrides], cwd=ROOT, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    report = json.loads((folder / "report.json").read_text())
    return {key: report[key] for key in ("results", "training", "precision", "peak_memory_mib", "versions", "machine")}


def table(results: dict[str, Any]) -> str:
    """Formats the figures on test, seed by seed and their mean, as Markdown."""
    heads = " | ".join(f"{task} {metric}" for task, metric in COLUMNS)
    lines = [f"| seed | {heads} | training, s | peak memory, MiB |", "|---|---|---|---|---|---|"]
    rows = []
    for seed, figures in sorted(results.items(), key=lambda item: int(item[0])):
        tasks = figures["results"]["test"]["tasks"]
        rows.append([tasks[task][metric] for task, metric in COLUMNS])
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


if __name__ == "__main__":
    main()
