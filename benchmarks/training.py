"""Measures how fast this package trains, against the `Trainer` and sentence-transformers' trainer in the same run.

    python benchmarks/training.py --write README.md   # about a quarter of an hour
    python benchmarks/training.py --table             # the table of the JSON file

All train the same encoder on the same rows of the embedded corpus with the same batch size. This package and the plain
`Trainer` train all three tasks; sentence-transformers' trainer trains one, topic. The two others have their defaults:
fp32 and batches as the rows come. This package has its own: bf16 where the processor has it, and batches of sentences
of like length; `mtl-fp32` is without the former. Tokens are counted without padding. Each training is a process of its
own, one after another and in turns, so that a slow minute of the machine is nobody's alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Nothing heavier: on Linux the peak of a process begins at what the one that starts it has held.
from documents import add_report_options, environment, settings_that_count, show_report, write_json
from records import ROOT, markdown_table

NAME = "training"
RUN = Path(__file__).resolve().with_name("training_run.py")
SETTINGS = "configs/vader.yaml"
WAYS = {
    "mtl": "`MTLTrainer`, 3 tasks",
    "mtl-fp32": "`MTLTrainer` in fp32, 3 tasks",
    "trainer": "`Trainer`, 3 tasks",
    "sentence-transformers": "`SentenceTransformerTrainer`, 1 task",
}
"""Ways of training, and what a table calls them."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, or shows what was measured before; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=100, help="Optimizer steps of each training.")
    add("--repeats", type=int, default=3, help="Trainings of each way.")
    add_report_options(parser, NAME)
    options = parser.parse_args(argv)
    if not options.table:
        write_json(measure(options.steps, options.repeats), options.output)
    return show_report(options, NAME, table)


def measure(steps: int, repeats: int) -> dict[str, Any]:
    """Trains in every way so many times, in turns, and returns the report.

    Raises:
        SystemExit: If a training fails.
    """
    runs = []
    for repeat in range(repeats):
        for way in WAYS:
            sys.stderr.write(f"repeat {repeat + 1} of {repeats}: {way}\n")
            runs.append(_record(way, steps))
    return {"settings": {"config": settings_that_count(ROOT / SETTINGS), "steps": steps}, "runs": runs}


def _record(way: str, steps: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "record.json")
        command = [sys.executable, str(RUN), "--way", way, "--record", str(path)]
        command += ["--settings", SETTINGS, "--steps", str(steps)]
        status = subprocess.run(command, cwd=ROOT, env=environment(HF_HUB_OFFLINE="1"), check=False).returncode
        if status != 0:
            raise SystemExit(f"{way} stopped with status {status}; what went wrong stands above.")
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def table(report: Mapping[str, Any]) -> str:
    """Returns the medians of the ways, and how much faster this package is, as Markdown."""
    groups = {way: [run for run in report["runs"] if run["way"] == way] for way in WAYS}
    speeds = {way: _median(runs, "tokens_per_second") for way, runs in groups.items()}
    rows = [
        [
            WAYS[way],
            runs[0]["precision"],
            f"{speeds[way]:,.0f}",
            f"{speeds['mtl'] / speeds[way]:.2f}x",
            f"{_median(runs, 'peak_memory_mib'):,.0f}",
        ]
        for way, runs in groups.items()
    ]
    heading = ["Trained by", "Precision", "Tokens/s", "`MTLTrainer` is faster", "Peak memory, MiB"]
    first, machine = report["runs"][0], report["runs"][0]["machine"]
    note = (
        f"Medians of {len(groups['mtl'])} trainings of {first['steps']} steps, {first['tokens']:,} tokens each. "
        f"{machine['cpu']}, {machine['threads']} threads, torch {first['versions']['torch']}, transformers "
        f"{first['versions']['transformers']}, sentence-transformers {first['versions']['sentence-transformers']}."
    )
    return f"{markdown_table(heading, rows)}\n\n{note}"


def _median(runs: Sequence[Mapping[str, Any]], figure: str) -> float:
    return statistics.median(run[figure] for run in runs)


if __name__ == "__main__":
    main()
