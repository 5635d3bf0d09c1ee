"""Measures loss weightings and gradient aggregations on the embedded corpus: what they cost, and what they reach.

    python benchmarks/weighting.py                            # all of them, in some hours; goes on where it stopped
    python benchmarks/weighting.py --table                    # the table from the JSON file, as Markdown
    python benchmarks/weighting.py --write docs/weighting.md  # the same, between the markers of that file

A method is a setting of `weighting`, or `aggregation/<name>` for one of `aggregation`, with fixed weights. DWA weighs
by the two epochs before, so in one or two epochs its weights are the fixed ones. Each training runs in a process of
its own (`freezing_run.py`), so that its peak of memory is its own. The machine should do nothing else.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Nothing heavier: on Linux the peak of a process begins at what the one that starts it has held.
from documents import settings_that_count, write_between, write_json

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(__file__).resolve().with_name("freezing_run.py")
BEGIN, END = "<!-- weighting:begin -->", "<!-- weighting:end -->"
METHODS = (
    "fixed", "equal", "uncertainty", "dwa", "random", "geometric_mean", "initial_loss",
    "aggregation/mean", "aggregation/pcgrad", "aggregation/aligned_mtl", "aggregation/mgda", "aggregation/imtl_g",
    "aggregation/cagrad", "aggregation/upgrad", "aggregation/dualproj",
)  # fmt: skip
# An evaluation or a checkpoint on the way would be in the time.
COMMON = ("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what the report does not have yet, or shows the report; returns it."""
    args = _parser().parse_args(argv)
    if not args.table and args.write is None:
        return measure(args)
    report = _read(args.output)
    if not report["runs"]:
        raise SystemExit(f"{args.output} has no runs yet. Measure first: leave out --table and --write.")
    if args.table:
        print(table(report))
    if args.write is not None:
        write_between(args.write, BEGIN, END, table(report))
    return report


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the methods and seeds that the report does not have yet, and writes it after each one."""
    config = settings_that_count(args.settings)
    settings = {"config": config, "epochs": args.epochs, "max_steps": args.max_steps, "limit": args.limit}
    report = _read(args.output)
    if report["runs"] and report["settings"] != settings:
        raise SystemExit(f"{args.output} was measured with other settings. Give another --output, or move it away.")
    report["settings"] = settings
    done = {(run["method"], run["seed"]) for run in report["runs"]}
    todo = [(method, seed) for seed in args.seeds for method in args.methods if (method, seed) not in done]
    print(f"{len(args.seeds) * len(args.methods)} trainings, {len(todo)} of them to do.", flush=True)
    for number, (method, seed) in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {method}, seed {seed}", flush=True)
        report["runs"].append(_run(method, seed, args))
        write_json(report, args.output)
    return report


def arguments_of(method: str) -> list[str]:
    """Returns a method as arguments of the training program."""
    kind, _, name = method.rpartition("/")
    return [f"--{kind or 'weighting'}", name]


def _run(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    folder = args.work_dir / f"{method.replace('/', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    command = [sys.executable, str(RUN), "--record", str(path)]
    command += ["--limit", str(args.limit)] if args.limit is not None else []
    command += ["--", str(args.settings), "--output_dir", str(folder), "--seed", str(seed), *COMMON]
    command += ["--num_train_epochs", str(args.epochs), *arguments_of(method)]
    command += ["--max_steps", str(args.max_steps)] if args.max_steps is not None else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status != 0:
        raise SystemExit(f"{method} stopped with status {status}; what went wrong stands above.")
    return {"method": method, "seed": seed, **json.loads(path.read_text(encoding="utf-8"))}


def table(report: Mapping[str, Any]) -> str:
    """Returns what the methods cost and reach as a Markdown table, and a line on how it was measured."""
    runs = report["runs"]
    metrics = runs[0]["primary_metrics"]
    found = dict.fromkeys(run["method"] for run in runs)
    names = [*(name for name in METHODS if name in found), *(name for name in found if name not in METHODS)]
    heading = [
        "Method",
        *(f"{task}, {metric}" for task, metric in metrics.items()),
        "Score",
        "Training, s",
        "Peak, MiB",
    ]
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)]]
    for name in names:
        own = [run for run in runs if run["method"] == name]
        figures = [_pair(own, task) for task in (*metrics, None)]
        seconds, peaks = [run["training"]["seconds"] for run in own], [run["peak_memory_mib"] for run in own]
        lines.append([f"`{name}`", *figures, _mean(seconds, ",.0f"), _mean(peaks, ",.0f")])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{_circumstances(report)}"


def _pair(runs: Sequence[Mapping[str, Any]], task: str | None) -> str:
    cells = []
    for split in ("validation", "test"):
        results = [run["results"][split] for run in runs]
        values = [result["score"] if task is None else result["tasks"][task] for result in results]
        # An undefined metric, such as the correlation with a constant, is None.
        cells.append(_mean([value for value in values if value is not None], ".4f"))
    return " / ".join(cells)


def _mean(values: Sequence[float], pattern: str) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):{pattern}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{pattern}}{deviation}"


def _circumstances(report: Mapping[str, Any]) -> str:
    runs, settings = report["runs"], report["settings"]
    rows = " / ".join(f"{runs[0]['results'][split]['rows']:,}" for split in ("validation", "test"))
    machines = {
        f"{run['machine']['cpu']}, {run['machine']['threads']} threads, device {run['machine']['device']}, "
        f"{run['precision']}, torch {run['versions']['torch']}, transformers {run['versions']['transformers']}"
        for run in runs
    }
    seeds = sorted({run["seed"] for run in runs})
    is_trial = settings["max_steps"] is not None or settings["limit"] is not None
    note = " A trial run: the figures say nothing." if is_trial else ""
    return (
        f"Quality is validation / test, on {rows} rows, after {settings['epochs']:g} epochs; seeds {seeds}, mean ± "
        f"standard deviation where there are several. Measured on {'; '.join(sorted(machines))}.{note}"
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": []}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--settings", type=_path, default=ROOT / "configs" / "vader.yaml", help="Settings file of the trainings.")
    add("--methods", nargs="+", default=list(METHODS), help="Which to measure; see above for their form.")
    add("--seeds", type=int, nargs="+", default=[0], help="Seeds of each method.")
    add("--epochs", type=float, default=3.0, help="Epochs of each training.")
    add("--max_steps", type=int, help="Steps of each training instead of epochs.")
    add("--limit", type=int, help="Rows of each split; all of them if not given.")
    add("--output", type=_path, default=ROOT / "benchmarks" / "results" / "weighting.json", help="The report.")
    add("--work_dir", type=_path, default=ROOT / "outputs" / "weighting", help="Where the trainings write.")
    add("--table", action="store_true", help="Only print the table.")
    add("--write", type=_path, metavar="FILE", help="Only put the table between the markers of this file.")
    return parser


def _path(text: str) -> Path:
    return Path(text).resolve()  # The trainings run in another working directory.


if __name__ == "__main__":
    main()
