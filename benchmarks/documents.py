"""How a benchmark keeps its figures, and puts a table of them into a document."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

FOR_THE_CARD = ("license", "language")


def settings_that_count(path: Path) -> dict[str, Any]:
    """Reads a settings file, less what only the model card shows: no figure depends on that."""
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for source in settings.get("sources", ()):
        source.pop("license", None)
    return {key: value for key, value in settings.items() if key not in FOR_THE_CARD}


def environment(**more: str) -> dict[str, str]:
    """Returns the environment of a process that is to import this package from where it lies, and `more`."""
    root = str(Path(__file__).resolve().parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **more}


def write_json(value: Any, path: Path) -> None:
    """Writes a JSON file in one step, so that an interrupted write leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def add_report_options(parser: argparse.ArgumentParser, name: str) -> None:
    """Adds the options of a benchmark that measures everything at once; `name` is that of its report."""
    add = parser.add_argument
    report = Path(__file__).resolve().with_name("results") / f"{name}.json"
    add("--output", type=Path, default=report, help="The report.")
    add("--table", action="store_true", help="Measure nothing, only show and write the report.")
    add("--write", type=Path, metavar="FILE", help="Put the table between the markers of this file.")


def show_report(options: argparse.Namespace, name: str, table: Callable[[Mapping[str, Any]], str]) -> dict[str, Any]:
    """Prints the table of a report, and puts it between the markers of that name; returns the report."""
    report: dict[str, Any] = json.loads(options.output.read_text(encoding="utf-8"))
    text = table(report)
    sys.stdout.write(text + "\n")
    if options.write is not None:
        write_between(options.write, f"<!-- {name}:begin -->", f"<!-- {name}:end -->", text)
    return report


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Puts a text between two markers of a file.

    Raises:
        SystemExit: If the file does not have both markers, in their order.
    """
    before, found_begin, rest = path.read_text(encoding="utf-8").partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise SystemExit(f"{path} lacks the lines {begin} and {end}. Put them where the tables belong.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
