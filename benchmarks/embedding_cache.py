"""Measures what a frozen encoder saves: heads that train from embeddings, and lower layers without a backward pass.

    python benchmarks/embedding_cache.py --write docs/transfer.md   # half an hour; the tables go between the markers

The two trainings that a ratio compares run one after the other in each repeat, so that both see the same machine.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from documents import environment, settings_that_count, write_between, write_json

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(__file__).resolve().with_name("embedding_cache_run.py")
BEGIN, END = "<!-- embedding-cache:begin -->", "<!-- embedding-cache:end -->"
BACKBONE, LAYERS = "configs/freeze_backbone.yaml", "configs/vader.yaml"
STRATEGIES = ("none", "lower_layers:0", "lower_layers:2", "lower_layers:4")
COMMON = ("--save_strategy", "no", "--load_best_model_at_end", "false", "--disable_tqdm", "true")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, or with --table shows what was measured; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each training, of which the median counts.")
    parser.add_argument("--epochs", type=int, default=3, help="Epochs with the encoder frozen.")
    parser.add_argument("--steps", type=int, default=40, help="Steps with lower layers frozen.")
    parser.add_argument("--limit", type=int, help="Rows of each split; all of them if not given.")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "embedding_cache.json")
    parser.add_argument("--write", type=Path, metavar="FILE", help="File with the markers between which tables go.")
    parser.add_argument("--table", action="store_true", help="Measure nothing, show what was measured.")
    parser.add_argument("overrides", nargs="*", help="Further settings, after --, as for train_trainer.py.")
    options = parser.parse_args(argv)
    report = json.loads(options.output.read_text(encoding="utf-8")) if options.table else measure(options)
    if not options.table:
        write_json(report, options.output)
    print(tables(report))
    if options.write is not None:
        write_between(options.write, BEGIN, END, tables(report))
    return report


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs every training as often as asked for; returns the report."""
    jobs = {
        f"cache_embeddings: {value}": [
            BACKBONE,
            "--cache_embeddings",
            value,
            "--num_train_epochs",
            str(options.epochs),
        ]
        for value in ("false", "true")
    }
    steps = ["--max_steps", str(options.steps), "--eval_strategy", "no"]
    jobs |= {f"freeze: {name}": [LAYERS, "--freeze", name, *steps] for name in STRATEGIES}
    runs: dict[str, list[Any]] = {name: [] for name in jobs}
    for repeat in range(options.repeats):
        for name, arguments in jobs.items():
            print(f"repeat {repeat + 1} of {options.repeats}, {name}", file=sys.stderr, flush=True)
            runs[name].append(_run([*arguments, *COMMON, *options.overrides], options, evaluate=BACKBONE in arguments))
    settings = {name: settings_that_count(ROOT / name) for name in (BACKBONE, LAYERS)}
    return {
        "settings": {**settings, "limit": options.limit, "steps": options.steps, "overrides": options.overrides},
        "runs": runs,
    }


def _run(arguments: Sequence[str], options: argparse.Namespace, *, evaluate: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        command = [sys.executable, str(RUN), "--record", str(record), *(["--evaluate"] if evaluate else [])]
        command += ["--limit", str(options.limit)] if options.limit is not None else []
        # Each run computes its embeddings anew: the cache is a folder of its own.
        own_cache = environment(HF_DATASETS_CACHE=folder)
        subprocess.run([*command, "--", *arguments, "--output_dir", folder], cwd=ROOT, env=own_cache, check=True)
        return json.loads(record.read_text(encoding="utf-8"))


def tables(report: Mapping[str, Any]) -> str:
    """Returns two Markdown tables, of epochs and of steps, and a line on the machine."""
    runs = report["runs"]
    without, cached = runs["cache_embeddings: false"], runs["cache_embeddings: true"]
    ratios = [_later(slow) / _later(fast) for slow, fast in zip(without, cached, strict=True)]
    lines = [
        "| `freeze: backbone` | before training, s | epoch 1, s | later epochs, s | faster | "
        + " | ".join(f"test {name}" for name in without[0]["test"])
        + " |",
        "|---|" + "---:|" * (4 + len(without[0]["test"])),
    ]
    for name, some, ratio in (("false", without, "1"), ("true", cached, f"{median(ratios):.0f}x")):
        figures = [_median(some, "preparing_seconds", ".1f"), f"{median(run['epoch_seconds'][0] for run in some):.1f}"]
        test = [f"{median(run['test'][key] for run in some):.4f}" for key in some[0]["test"]]
        cells = [*figures, f"{median(_later(run) for run in some):.2f}", ratio, *test]
        lines.append(f"| `cache_embeddings: {name}` | {' | '.join(cells)} |")
    lines += [
        "",
        "| `freeze` | step, ms | time to `none` | peak, MiB | memory to `none` |",
        "|---|---:|---:|---:|---:|",
    ]
    full = runs["freeze: none"]
    for name in STRATEGIES:
        some = runs[f"freeze: {name}"]
        cells = [_median(some, "step_ms", ".0f"), _ratio(some, full, "step_ms")]
        cells += [_median(some, "peak_memory_mib", ",.0f"), _ratio(some, full, "peak_memory_mib")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _circumstances(report)])


def _circumstances(report: Mapping[str, Any]) -> str:
    run = report["runs"]["cache_embeddings: true"][0]
    limits = "" if report["settings"]["limit"] is None else " A trial run on some of the rows."
    return (
        f"Medians of {len(report['runs']['freeze: none'])} runs, ratios within a run; {run['rows']:,} rows of train, "
        f"steps of 32, {run['precision']}, {run['machine']['threads']} threads of {run['machine']['cpu']}.{limits}"
    )


def _later(run: Mapping[str, Any]) -> float:
    return median(run["epoch_seconds"][1:])


def _median(runs: Sequence[Mapping[str, Any]], key: str, pattern: str) -> str:
    return f"{median(run[key] for run in runs):{pattern}}"


def _ratio(runs: Sequence[Mapping[str, Any]], full: Sequence[Mapping[str, Any]], key: str) -> str:
    return f"{median(run[key] / other[key] for run, other in zip(runs, full, strict=True)):.2f}"


if __name__ == "__main__":
    main()
