"""What the benchmarks that train one settings file in many ways share: their records, and the tables of these."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Nothing heavier: on Linux the peak of a process begins at what the one that starts it has held.
from documents import environment, settings_that_count, write_between

ROOT = Path(__file__).resolve().parent.parent
RUN = Path(__file__).resolve().with_name("freezing_run.py")
# An evaluation or a checkpoint on the way would be in the time.
COMMON = ("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false")


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the options that all of them have.

    Args:
        parser: The parser.
        name: Name of the report, of the folder of the trainings, and of the markers in documents.
    """
    add = parser.add_argument
    add("--settings", type=_path, default=ROOT / "configs" / "vader.yaml", help="Settings file of the trainings.")
    add("--max_steps", type=int, help="Steps of each training; as the settings say if not given.")
    add("--limit", type=int, help="Rows of each split; all of them if not given.")
    add("--output", type=_path, default=ROOT / "benchmarks" / "results" / f"{name}.json", help="The report.")
    add("--work_dir", type=_path, default=ROOT / "outputs" / name, help="Where the trainings write.")
    add("--table", action="store_true", help="Only print the tables.")
    add("--write", type=_path, metavar="FILE", help="Only put the tables between the markers of this file.")


def _path(text: str) -> Path:
    return Path(text).resolve()  # The trainings run in another working directory.


def show(args: argparse.Namespace, tables: Callable[[Mapping[str, Any]], str], name: str) -> dict[str, Any]:
    """Prints the tables of a report, or puts them into a document, as the options say; returns the report.

    Raises:
        SystemExit: If the report has no runs yet.
    """
    report = read(args.output)
    if not report["runs"]:
        raise SystemExit(f"{args.output} has no runs yet. Measure first: leave out --table and --write.")
    if args.table:
        print(tables(report))
    if args.write is not None:
        write_between(args.write, f"<!-- {name}:begin -->", f"<!-- {name}:end -->", tables(report))
    return report


def begin(args: argparse.Namespace, **settings: Any) -> dict[str, Any]:
    """Returns the report to go on with: a new one, or that of an earlier call with the same settings.

    Args:
        args: The options.
        **settings: Further settings on which the figures depend.

    Raises:
        SystemExit: If the file has figures of other settings.
    """
    settings |= {"config": settings_that_count(args.settings), "max_steps": args.max_steps, "limit": args.limit}
    report = read(args.output)
    if report["runs"] and report["settings"] != settings:
        raise SystemExit(f"{args.output} was measured with other settings. Give another --output, or move it away.")
    report["settings"] = settings
    return report


def read(path: Path) -> dict[str, Any]:
    """Returns the report of a file, or an empty one if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": []}


def record(
    args: argparse.Namespace, title: str, folder: Path, arguments: Sequence[str], *, save: bool = False
) -> dict[str, Any]:
    """Trains in a process of its own, so that its peak of memory is its own; returns what it recorded.

    Args:
        args: The options.
        title: What is trained, for a message.
        folder: Where the training writes.
        arguments: Further arguments of the training program.
        save: Whether the model is saved.

    Raises:
        SystemExit: If the training fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "record.json"
    command = [sys.executable, str(RUN), "--record", str(path), *(["--save"] if save else [])]
    command += ["--limit", str(args.limit)] if args.limit is not None else []
    command += ["--", str(args.settings), "--output_dir", str(folder), *COMMON, *arguments]
    command += ["--max_steps", str(args.max_steps)] if args.max_steps is not None else []
    status = subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode
    if status != 0:
        raise SystemExit(f"{title} stopped with status {status}; what went wrong stands above.")
    return json.loads(path.read_text(encoding="utf-8"))


def quality_cells(runs: Sequence[Mapping[str, Any]], tasks: Sequence[str], pattern: str) -> list[str]:
    """Returns a cell for each task's metric and one for the score, on validation / test, over the runs."""
    cells = []
    for task in (*tasks, None):
        found = [[_figure(run["results"][split], task) for run in runs] for split in ("validation", "test")]
        # An undefined metric, such as the correlation with a constant, is None.
        cells.append(
            " / ".join(mean_cell([value for value in values if value is not None], pattern) for values in found)
        )
    return cells


def _figure(result: Mapping[str, Any], task: str | None) -> float | None:
    return result["score"] if task is None else result["tasks"][task]


def mean_cell(values: Sequence[float], pattern: str) -> str:
    """Formats the mean of values, with the standard deviation where there are several."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):{pattern}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{pattern}}{deviation}"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats rows of cells as a Markdown table, the first column to the left."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_order(names: Sequence[str], found: Sequence[str]) -> list[str]:
    """Returns the distinct names that were found, those that are known first and in their order."""
    distinct = dict.fromkeys(found)
    return [*(name for name in names if name in distinct), *(name for name in distinct if name not in names)]


def circumstances(report: Mapping[str, Any], middle: str) -> str:
    """Returns a line on how the figures of a report came about.

    Args:
        report: The report.
        middle: What else is to be said, between the rows and the machine.
    """
    runs, settings = report["runs"], report["settings"]
    rows = " / ".join(f"{runs[0]['results'][split]['rows']:,}" for split in ("validation", "test"))
    machines = {
        f"{run['machine']['cpu']}, {run['machine']['threads']} threads, device {run['machine']['device']}, "
        f"{run['precision']}, torch {run['versions']['torch']}, transformers {run['versions']['transformers']}"
        for run in runs
    }
    is_trial = settings["max_steps"] is not None or settings["limit"] is not None
    note = " A trial run: the figures say nothing." if is_trial else ""
    where = "; ".join(sorted(machines))
    return f"Quality is validation / test, on {rows} rows{middle}. Measured on {where}.{note}"
