"""`mtl report DIR`: what a run has left in a folder, as one page to look at.

    mtl report outputs/vader

Reads `report.json` with the evidence that a training left in `_report/`, `evaluation.json` (also of the folder
`_evaluation`) and `comparison.json`, of which there may be any; writes `report.html` and `figures/` into `_report/`.
Neither data nor model is needed.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl.html_report import write_html_report
from train_report import EVALUATION_FOLDER, EVIDENCE, PAGE_FOLDER
from train_trainer import or_exit

PROGRAM = "mtl report"
REPORT, COMPARISON = "report.json", "comparison.json"
EVALUATIONS = (f"{EVALUATION_FOLDER}/evaluation.json", "evaluation.json")


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with the files ends it with the message alone."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    files = or_exit(PROGRAM, lambda: write_from_folder(options))
    print(f"The report is in {files[0]}, its {(len(files) - 1) // 2} figures are in {files[0].parent / 'figures'}.")


def write_from_folder(options: argparse.Namespace) -> list[Path]:
    """Writes the page of a folder and its figures; returns the files, the page first.

    Args:
        options: What the command line says.

    Raises:
        ImportError: If the extra `report` is not installed.
        OSError: If a file cannot be read or written.
        ValueError: If the folder has nothing to report, a file is no JSON, or there is no evidence of the split.
    """
    folder = Path(options.folder)
    report, comparison = read_folder(folder)
    return write_html_report(
        report,
        Path(options.output_dir or folder / PAGE_FOLDER),
        comparison=comparison,
        split=options.split,
        title=options.title or folder.resolve().name,
    )


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Returns the report of a folder, with the evidence that was measured later, and the comparison, if there is one.

    Evidence of `mtl evaluate` takes the place of the run's own of the same split.

    Args:
        folder: The folder.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If there is none, or one is no JSON, or of something else.
    """
    needed = {
        REPORT: (),
        **dict.fromkeys(EVALUATIONS, ("split", "num_rows")),
        COMPARISON: ("tasks", "verdict", "cost"),
    }
    found = {name: _read(folder / name, keys) for name, keys in needed.items() if (folder / name).is_file()}
    if not found:
        raise ValueError(f"{folder} has none of {REPORT}, {EVALUATIONS[1]} and {COMPARISON}. Give a folder of a run.")
    report = found.get(REPORT, {})
    if REPORT in found and (kept := folder / PAGE_FOLDER / EVIDENCE).is_file():
        report |= _read(kept)
    measured = {found[name]["split"]: found[name] for name in EVALUATIONS if name in found}
    if measured:
        report["evidence"] = {**(report.get("evidence") or {}), **measured}
    return report, found.get(COMPARISON)


def _read(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Write it anew.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, where an object is expected. Write it anew.")
    if absent := [key for key in needed if key not in content]:
        raise ValueError(f"{path} has no {absent}, so it is not of this package. Take it out of the folder.")
    return content


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Makes one page of what a run has left in a folder.")
    add = parser.add_argument
    add(
        "folder", help="Folder with report.json, evaluation.json or comparison.json, such as the output of a training."
    )
    add("--split", help="Split that is shown in detail; test if there is one, else validation.")
    add("--title", help="What the page is called; the name of the folder if not given.")
    add("--output_dir", help="Where report.html and figures/ go; its folder _report if not given.")
    return parser


if __name__ == "__main__":
    cli()
