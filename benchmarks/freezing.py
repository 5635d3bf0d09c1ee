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
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing heavier: on Linux the peak of a process begins at what the one that starts it has held.
from documents import settings_that_count, write_between, write_json

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(__file__).resolve().with_name("freezing_run.py")
BEGIN, END = "<!-- freezing:begin -->", "<!-- freezing:end -->"
STRATEGIES = (
    "none", "lower_layers:2", "lower_layers:4", "backbone", "all",
    "none/none", "none/heads_except:sentiment", "none/backbone",
)  # fmt: skip
FROZEN_BACKBONE_FACTOR = 5.0
"""Fresh heads that train alone bear a higher rate: `head_learning_rate` times this, chosen on validation."""
CONTINUED_FACTOR = 0.25
"""A trained model is moved less than a fresh one: both learning rates times this."""
# An evaluation or a checkpoint on the way would be in the time. What a cache of embeddings saves is measured apart, by
# `embedding_cache.py`; here `backbone` is to be a forward pass a row, like the others.
COMMON = (
    "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
    "--cache_embeddings", "false",
)  # fmt: skip


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
    if not args.table and args.write is None:
        return measure(args)
    report = _read(args.output)
    if not report["runs"]:
        raise SystemExit(f"{args.output} has no runs yet. Measure first: leave out --table and --write.")
    if args.table:
        print(tables(report))
    if args.write is not None:
        write_between(args.write, BEGIN, END, tables(report))
    return report


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the strategies that the report does not have yet, and writes it after each one."""
    config = settings_that_count(args.settings)
    settings = {"config": config, "max_steps": args.max_steps, "limit": args.limit}
    report = _read(args.output)
    if report["runs"] and report["settings"] != settings:
        raise SystemExit(f"{args.output} was measured with other settings. Give another --output, or move it away.")
    report["settings"] = settings
    jobs = plan(args.strategies, args.repeats, settings, args.work_dir)
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
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "record.json"
    command = [sys.executable, str(RUN), "--record", str(path), *(["--save"] if save else [])]
    command += ["--limit", str(args.limit)] if args.limit is not None else []
    command += ["--", str(args.settings), "--output_dir", str(job.folder), "--seed", str(job.seed)]
    command += ["--freeze", job.strategy.rpartition("/")[2], *job.rates, *COMMON]
    command += ["--backbone", str(job.start)] if job.start is not None else []
    command += ["--max_steps", str(args.max_steps)] if args.max_steps is not None else []
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status != 0:
        raise SystemExit(f"{job.strategy} stopped with status {status}; what went wrong stands above.")
    record = json.loads(path.read_text(encoding="utf-8"))
    return {"strategy": job.strategy, "seed": job.seed, "id": job.folder.name, "rates": list(job.rates), **record}


def _summary(run: Mapping[str, Any]) -> str:
    seconds = f"{run['training']['seconds']:.0f} s, " if run["training"] else ""
    scores = ", ".join(f"{split} {result['score']:.4f}" for split, result in run["results"].items())
    return f"{seconds}{run['peak_memory_mib']:.0f} MiB, score: {scores}"


def tables(report: Mapping[str, Any]) -> str:
    """Returns what the strategies cost and what they reach, as two Markdown tables and a line on the machine."""
    found = dict.fromkeys(run["strategy"] for run in report["runs"])
    names = [*(name for name in STRATEGIES if name in found), *(name for name in found if name not in STRATEGIES)]
    groups = {name: [run for run in report["runs"] if run["strategy"] == name] for name in names}
    metrics = report["runs"][0]["primary_metrics"]
    full = [run["training"]["seconds"] for run in groups.get("none", [])]
    cost = ["Strategy", "Trained parameters", "Share", "Training, s", "Time to `none`", "Tokens/s", "Peak, MiB"]
    quality = ["Strategy", *(f"{task}, {metric}" for task, metric in metrics.items()), "Score"]
    costs = [_cost_cells(name, runs, full) for name, runs in groups.items()]
    qualities = [_quality_cells(name, runs, list(metrics)) for name, runs in groups.items()]
    return "\n\n".join([_table(cost, costs), _table(quality, qualities), _circumstances(report)])


def _cost_cells(name: str, runs: Sequence[Mapping[str, Any]], full: Sequence[float]) -> list[str]:
    parameters = runs[0]["parameters"]
    share = 100 * parameters["trained"] / parameters["total"]
    trainings = [run["training"] for run in runs if run["training"]]
    seconds = [training["seconds"] for training in trainings]
    ratio = f"{statistics.mean(seconds) / statistics.mean(full):.2f}" if seconds and full else "-"
    speeds = [training["tokens_per_second"] for training in trainings]
    peaks = [run["peak_memory_mib"] for run in runs]
    figures = [_mean(values, ",.0f") for values in (seconds, speeds, peaks)]
    return [f"`{name}`", f"{parameters['trained']:,}", f"{share:.2f} %", figures[0], ratio, *figures[1:]]


def _quality_cells(name: str, runs: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> list[str]:
    cells = [f"`{name}`"]
    for task in (*tasks, None):
        found = [[_figure(run["results"][split], task) for run in runs] for split in ("validation", "test")]
        # An undefined metric, such as the correlation with a constant, is None.
        cells.append(" / ".join(_mean([value for value in values if value is not None], ".3f") for values in found))
    return cells


def _figure(result: Mapping[str, Any], task: str | None) -> float | None:
    return result["score"] if task is None else result["tasks"][task]


def _mean(values: Sequence[float], pattern: str) -> str:
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):{pattern}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{pattern}}{deviation}"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _circumstances(report: Mapping[str, Any]) -> str:
    runs, limits = report["runs"], report["settings"]
    rows = " / ".join(f"{runs[0]['results'][split]['rows']:,}" for split in ("validation", "test"))
    machines = {
        f"{run['machine']['cpu']}, {run['machine']['threads']} threads, device {run['machine']['device']}, "
        f"{run['precision']}, torch {run['versions']['torch']}, transformers {run['versions']['transformers']}"
        for run in runs
    }
    steps = max((run["training"]["steps"] for run in runs if run["training"]), default=0)
    seeds = len({run["seed"] for run in runs})
    spread = f"Mean ± standard deviation over {seeds} seeds" if seeds > 1 else "One seed"
    is_trial = limits["max_steps"] is not None or limits["limit"] is not None
    note = " A trial run: the figures say nothing." if is_trial else ""
    where = "; ".join(sorted(machines))
    return f"Quality is validation / test, on {rows} rows. {spread}; steps: {steps:,}. Measured on {where}.{note}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": []}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--settings", type=_path, default=ROOT / "configs" / "vader.yaml", help="Settings file of the trainings.")
    add("--strategies", nargs="+", default=list(STRATEGIES), help="Which to measure; see above for their form.")
    add("--repeats", type=int, default=1, help="Seeds of each strategy.")
    add("--max_steps", type=int, help="Steps of each training; as the settings file says if not given.")
    add("--limit", type=int, help="Rows of each split; all of them if not given.")
    add("--output", type=_path, default=ROOT / "benchmarks" / "results" / "freezing.json", help="The report.")
    add("--work_dir", type=_path, default=ROOT / "outputs" / "freezing", help="Where models go.")
    add("--table", action="store_true", help="Only print the tables.")
    add("--write", type=_path, metavar="FILE", help="Only put the tables between the markers of this file.")
    return parser


def _path(text: str) -> Path:
    return Path(text).resolve()  # The trainings run in another working directory.


if __name__ == "__main__":
    main()
