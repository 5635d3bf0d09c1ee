"""How a benchmark keeps its figures, and puts a table of them into a document."""

import json
import os
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
