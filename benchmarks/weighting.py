"""Measures loss weightings and gradient aggregations on the embedded corpus: what they cost, and what they reach.

    python benchmarks/weighting.py               # all of them, in some hours; goes on where it stopped
    python benchmarks/weighting.py --table       # the table from the JSON file, as Markdown
    python benchmarks/weighting.py --write FILE  # the same, between the markers `weighting:begin` and `:end` of a file

A method is a setting of `weighting`, or `aggregation/<name>` for one of `aggregation`, with fixed weights. DWA weighs
by the two epochs before, so in one or two epochs its weights are the fixed ones. Each training runs in a process of
its own (`freezing_run.py`), so that its peak of memory is its own. The machine should do nothing else.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from documents import write_json
from records import add_options, begin, circumstances, in_order, markdown_table, mean_cell, quality_cells, record, show

NAME = "weighting"
METHODS = (
    "fixed", "equal", "uncertainty", "dwa", "random", "geometric_mean", "initial_loss",
    "aggregation/mean", "aggregation/pcgrad", "aggregation/aligned_mtl", "aggregation/mgda", "aggregation/imtl_g",
    "aggregation/cagrad", "aggregation/upgrad", "aggregation/dualproj",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what the report does not have yet, or shows the report; returns it."""
    args = _parser().parse_args(argv)
    return show(args, table, NAME) if args.table or args.write is not None else measure(args)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the methods and seeds that the report does not have yet, and writes it after each one."""
    report = begin(args, epochs=args.epochs)
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
    arguments = ["--seed", str(seed), "--num_train_epochs", str(args.epochs), *arguments_of(method)]
    return {"method": method, "seed": seed, **record(args, method, folder, arguments)}


def table(report: Mapping[str, Any]) -> str:
    """Returns what the methods cost and reach as a Markdown table, and a line on how it was measured."""
    runs = report["runs"]
    metrics = runs[0]["primary_metrics"]
    heading = [
        "Method",
        *(f"{task}, {metric}" for task, metric in metrics.items()),
        "Score",
        "Training, s",
        "Peak, MiB",
    ]
    rows = []
    for name in in_order(METHODS, [run["method"] for run in runs]):
        own = [run for run in runs if run["method"] == name]
        seconds, peaks = [run["training"]["seconds"] for run in own], [run["peak_memory_mib"] for run in own]
        costs = [mean_cell(seconds, ",.0f"), mean_cell(peaks, ",.0f")]
        rows.append([f"`{name}`", *quality_cells(own, list(metrics), ".4f"), *costs])
    seeds = sorted({run["seed"] for run in runs})
    epochs = f"{report['settings']['epochs']:g}"
    middle = f", after {epochs} epochs; seeds {seeds}, mean ± standard deviation where there are several"
    return f"{markdown_table(heading, rows)}\n\n{circumstances(report, middle)}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, NAME)
    add = parser.add_argument
    add("--methods", nargs="+", default=list(METHODS), help="Which to measure; see above for their form.")
    add("--seeds", type=int, nargs="+", default=[0], help="Seeds of each method.")
    add("--epochs", type=float, default=3.0, help="Epochs of each training.")
    return parser


if __name__ == "__main__":
    main()
