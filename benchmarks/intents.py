"""Trains one model on three intent data sets, five heads, with several seeds, and writes what each reached on test.

python benchmarks/intents.py --data-dir <folder> --seeds 0 1 2 --write README.md

The folder holds clinc150/clinc150.parquet, hwu64/hwu64.parquet and banking77/banking77.parquet, each with a column
`split`; configs/intents.yaml says where they come from. A try is measured with an --output of its own, such as
benchmarks/results/intents-longer.json, and its settings after --, as --num_train_epochs 20. `--compare
docs/intents.md` writes the table of all tries, without training.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import yaml
from documents import settings_that_count, write_between
from seeds import ROOT, add_options, measure

SETTINGS = "configs/intents.yaml"
TASKS = ("clinc", "hwu", "banking")
"""What tries are compared by: the intents."""
NOT_SHOWN = ("sources",)
"""Where the labels of the tasks come from: the tasks tell what a try learned."""
COLUMNS = tuple((name, "accuracy") for name in (*TASKS, "clinc_domain", "hwu_scenario"))


def main(argv: list[str] | None = None) -> None:
    """Runs the seeds that the results file does not have yet, then writes the table; or the table of all tries."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="Folder of the data sets.")
    parser.add_argument("--compare", type=Path, help="File for the table of all tries, between its markers.")
    add_options(parser, "intents.json")
    options = parser.parse_args(argv)
    if options.compare is not None:
        write_between(options.compare, "<!-- tries:begin -->", "<!-- tries:end -->", tries(options.output.parent))
    elif options.data_dir is None:
        parser.error("--data-dir is needed to train: the folder of the data sets.")
    else:
        measure(options, SETTINGS, COLUMNS, ["--data_dir", options.data_dir])


def tries(folder: Path) -> str:
    """Formats the means over the seeds of every try as Markdown, the best on validation first.

    Args:
        folder: The folder of the results files; the name of each begins with `intents`. Each holds the settings that
            it was measured with, so what the table shows beside the settings file follows that file.
    """
    heads = " | ".join(TASKS)
    first = f"| settings beside those of {SETTINGS} | seeds | validation: {heads} | mean loss | test: {heads} |"
    lines = [first, "|---" * 9 + "|"]
    current = settings_that_count(ROOT / SETTINGS)
    rows = [_row(json.loads(path.read_text()), current) for path in folder.glob("intents*.json")]
    return "\n".join([*lines, *(text for _, text in sorted(rows, reverse=True))])


def _row(report: dict[str, Any], current: dict[str, Any]) -> tuple[float, str]:
    runs = list(report["runs"].values())
    validation, losses = _means(runs, "validation", "accuracy"), _means(runs, "validation", "loss")
    tried = report["settings"]["config"] | _settings_of(report["settings"]["overrides"])
    different = [key for key in tried if tried[key] != current.get(key) and key not in NOT_SHOWN]
    others = [f"`{key}: {_cell(tried[key], current.get(key))}`" for key in different]
    others += [f"no `{key}`" for key in current if key not in tried]
    figures = [*validation, _mean_of_all(losses), *_means(runs, "test", "accuracy")]
    cells = " | ".join("-" if value is None else f"{value:.4f}" for value in figures)
    rank = _mean_of_all(validation)
    return -1.0 if rank is None else rank, f"| {', '.join(others) or 'none'} | {len(runs)} | {cells} |"


def _means(runs: Sequence[dict[str, Any]], split: str, metric: str) -> list[float | None]:
    """Returns the mean over the runs of a metric of each task; None where a split has no labels of the task."""
    values = [[run["results"][split]["tasks"][task].get(metric) for run in runs] for task in TASKS]
    return [_mean_of_all(of_task) for of_task in values]


def _mean_of_all(values: Sequence[Any]) -> float | None:
    return None if None in values else mean(values)


def _settings_of(arguments: Sequence[str]) -> dict[str, Any]:
    """Reads `--key value` and `--key value value`, as they are given to train_trainer.py."""
    settings: dict[str, list[str]] = {}
    for word in arguments:
        if word.startswith("--"):
            values = settings[word.removeprefix("--")] = []
        else:
            values.append(word)
    read = {key: [_read(value) for value in values] for key, values in settings.items()}
    return {key: values[0] if len(values) == 1 else values for key, values in read.items()}


def _read(word: str) -> Any:
    """Reads a value as in a settings file; 1e-4, too, is a number on the command line."""
    try:
        number = float(word)
    except ValueError:
        return yaml.safe_load(word)
    return int(number) if number.is_integer() else number


def _cell(value: Any, current: Any) -> str:
    if isinstance(value, list) and isinstance(current, list):
        more = [item for item in value if item not in current]
        if len(more) == len(value) - len(current):  # Nothing is missing.
            return "... " + json.dumps(more)
    return json.dumps(value) if isinstance(value, (list, dict)) else str(value)


if __name__ == "__main__":
    main()
