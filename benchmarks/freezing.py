"""Measures the strategies of transfer learning on the embedded corpus: what they cost, and what they reach.

    python benchmarks/freezing.py                           # all, in about an hour; goes on where it stopped
    python benchmarks/freezing.py --table                   # the tables from the JSON file, as Markdown
    python benchmarks/freezing.py --write docs/transfer.md  # the same, between the markers of that file

A strategy is a setting of `freeze`, trained from the pretrained encoder with fresh heads; or `first/then`: the setting
`then`, trained from the model that `first` left. Heads are frozen only there: fresh ones would stay random.
Each strategy runs in a process of its own (`freezing_run.py`), so that its peak of memory is its own. The machine
should do nothing else: beside another busy process torch's threads wait for each other, and steps take far longer.
"""

import argparse
import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from documents import write_json
from records import add_options, begin, circumstances, in_order, markdown_table, mean_cell, quality_cells, record, show

NAME = "freezing"
STRATEGIES = (
    "none", "lower_layers:2", "lower_layers:4", "backbone", "all",
    "none/none", "none/heads_except:sentiment", "none/backbone",
)  # fmt: skip
FROZEN_BACKBONE_FACTOR = 5.0
"""Fresh heads that train alone bear a higher rate: `head_learning_rate` times this, chosen on validation."""
CONTINUED_FACTOR = 0.25
"""A trained model is moved less than a fresh one: both learning rates times this."""
# What a cache of embeddings saves is measured by `embedding_cache.py`; here `backbone` is to be a forward pass a row,
# like the others.
WITHOUT_CACHE = ("--cache_embeddings", "false")


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        strategy: `freeze`, or `first/then`.
        seed: Seed of the heads, of the order of the rows and of dropout.
        rates: The learning rates, as arguments of the training program.
        start: Folder of the model that it starts from; the encoder of the settings file if there is none.
        folder: Where its model and its record go; the name is another one for other settings.
    """

    strategy: str
    seed: int
    rates: tuple[str, ...]
    start: Path | None
    folder: Path

    def has_model(self) -> bool:
        """Returns whether its model is there, for another job to start from."""
        return all((self.folder / name).is_file() for name in ("config.json", "model.safetensors"))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures what the report does not have yet, or shows the report; returns it."""
    args = _parser().parse_args(argv)
    return show(args, tables, NAME) if args.table or args.write is not None else measure(args)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the strategies that the report does not have yet, and writes it after each one."""
    report = begin(args)
    jobs = plan(args.strategies, args.repeats, report["settings"], args.work_dir)
    todo = _to_do(jobs, report["runs"])
    print(f"{len(jobs)} trainings, {len(jobs) - len(todo)} of them done before.", flush=True)
    starts = {job.start for job in jobs}
    for number, job in enumerate(todo, start=1):
        print(f"[{number}/{len(todo)}] {job.strategy}, seed {job.seed}", flush=True)
        record = _run(job, args, save=job.folder in starts)
        others = [run for run in report["runs"] if (run["strategy"], run["seed"]) != (job.strategy, job.seed)]
        report["runs"] = [*others, record]
        write_json(report, args.output)
        print(f"  {_summary(record)}", flush=True)
    return report


def plan(strategies: Sequence[str], repeats: int, settings: Mapping[str, Any], work_dir: Path) -> list[Job]:
    """Returns every training that the strategies need, each after the one that it starts from.

    Args:
        strategies: The strategies to measure.
        repeats: Seeds of each strategy, counted up from that of the settings file.
        settings: The settings that all of them share.
        work_dir: Folder of the models.
    """
    parts = [strategy.split("/") for strategy in strategies]
    names = dict.fromkeys("/".join(part[: count + 1]) for part in parts for count in range(len(part)))
    jobs: dict[tuple[str, int], Job] = {}
    first_seed = settings["config"].get("seed", 42)
    for seed in range(first_seed, first_seed + repeats):
        for name in names:
            first, _, freeze = name.rpartition("/")
            start = jobs[first, seed].folder if first else None
            rates = _rates(settings["config"], freeze, is_continued=start is not None)
            key = json.dumps([name, seed, rates, start and start.name, settings], sort_keys=True)
            digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
            slug = "".join(char if char.isalnum() else "-" for char in name)
            jobs[name, seed] = Job(name, seed, rates, start, work_dir / f"{slug}-{seed}-{digest}")
    return list(jobs.values())


def _rates(config: Mapping[str, Any], freeze: str, *, is_continued: bool) -> tuple[str, ...]:
    rate = float(config["learning_rate"])
    head_rate = float(config.get("head_learning_rate", rate))
    if is_continued:
        rate, head_rate = rate * CONTINUED_FACTOR, head_rate * CONTINUED_FACTOR
    elif freeze == "backbone":
        head_rate *= FROZEN_BACKBONE_FACTOR
    return ("--learning_rate", f"{rate:g}", "--head_learning_rate", f"{head_rate:g}")


def _to_do(jobs: Sequence[Job], runs: Sequence[Mapping[str, Any]]) -> list[Job]:
    done = {run["id"] for run in runs}
    missing = [job for job in jobs if job.folder.name not in done]
    starts = {job.start for job in missing}
    return [job for job in jobs if job in missing or (job.folder in starts and not job.has_model())]


def _run(job: Job, args: argparse.Namespace, *, save: bool) -> dict[str, Any]:
    arguments = ["--seed", str(job.seed), "--freeze", job.strategy.rpartition("/")[2], *job.rates, *WITHOUT_CACHE]
    arguments += ["--backbone", str(job.start)] if job.start is not None else []
    figures = record(args, job.strategy, job.folder, arguments, save=save)
    return {"strategy": job.strategy, "seed": job.seed, "id": job.folder.name, "rates": list(job.rates), **figures}


def _summary(run: Mapping[str, Any]) -> str:
    seconds = f"{run['training']['seconds']:.0f} s, " if run["training"] else ""
    scores = ", ".join(f"{split} {result['score']:.4f}" for split, result in run["results"].items())
    return f"{seconds}{run['peak_memory_mib']:.0f} MiB, score: {scores}"


def tables(report: Mapping[str, Any]) -> str:
    """Returns what the strategies cost and what they reach, as two Markdown tables and a line on the machine."""
    names = in_order(STRATEGIES, [run["strategy"] for run in report["runs"]])
    groups = {name: [run for run in report["runs"] if run["strategy"] == name] for name in names}
    metrics = report["runs"][0]["primary_metrics"]
    full = [run["training"]["seconds"] for run in groups.get("none", [])]
    cost = ["Strategy", "Trained parameters", "Share", "Training, s", "Time to `none`", "Tokens/s", "Peak, MiB"]
    quality = ["Strategy", *(f"{task}, {metric}" for task, metric in metrics.items()), "Score"]
    costs = [_cost_cells(name, runs, full) for name, runs in groups.items()]
    qualities = [[f"`{name}`", *quality_cells(runs, list(metrics), ".3f")] for name, runs in groups.items()]
    return "\n\n".join([markdown_table(cost, costs), markdown_table(quality, qualities), _circumstances(report)])


def _cost_cells(name: str, runs: Sequence[Mapping[str, Any]], full: Sequence[float]) -> list[str]:
    parameters = runs[0]["parameters"]
    share = 100 * parameters["trained"] / parameters["total"]
    trainings = [run["training"] for run in runs if run["training"]]
    seconds = [training["seconds"] for training in trainings]
    ratio = f"{statistics.mean(seconds) / statistics.mean(full):.2f}" if seconds and full else "-"
    speeds = [training["tokens_per_second"] for training in trainings]
    peaks = [run["peak_memory_mib"] for run in runs]
    figures = [mean_cell(values, ",.0f") for values in (seconds, speeds, peaks)]
    return [f"`{name}`", f"{parameters['trained']:,}", f"{share:.2f} %", figures[0], ratio, *figures[1:]]


def _circumstances(report: Mapping[str, Any]) -> str:
    runs = report["runs"]
    steps = max((run["training"]["steps"] for run in runs if run["training"]), default=0)
    seeds = len({run["seed"] for run in runs})
    spread = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    return circumstances(report, f". {spread}; steps: {steps:,}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, NAME)
    add = parser.add_argument
    add("--strategies", nargs="+", default=list(STRATEGIES), help="Which to measure; see above for their form.")
    add("--repeats", type=int, default=1, help="Seeds of each strategy.")
    return parser


if __name__ == "__main__":
    main()
