"""Measures what static students of several widths are worth: their speed against their teacher's, and what they lose.

    python benchmarks/static.py outputs/vader --write docs/static.md   # some minutes, after `make train`
    python benchmarks/static.py --table                                # the table of the JSON file

Each student is distilled by `mtl distill-static` with its defaults. Speeds are of embedding and all tasks for the same
sentences of the embedded corpus, with the defaults of each; teacher and students answer in turns after a run that is
not measured, and a speed is the median of the ratios within a repeat. Figures are of the split for testing.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from documents import add_report_options, environment, show_report, write_json
from freezing_run import machine
from records import ROOT, markdown_table
from tokenizers import Tokenizer
from turns import drawn_sentences, in_turns

from modeling_mtl import MTLModel
from predictor_mtl import MTLPredictor, read_manifest

NAME = "static"
SETTINGS = ROOT / "configs" / "vader.yaml"
TEACHER, TOKENIZER = "teacher", "the students' tokenizer alone"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, or shows what was measured before; returns the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("teacher", nargs="?", help="Folder of the model, trained by `make train`.")
    add("--dimensions", type=int, nargs="+", default=[64, 128, 256], help="Widths of the students.")
    add("--settings", type=Path, default=SETTINGS, help="Settings file of the teacher.")
    add("--sentences", type=int, default=2000, help="Sentences, drawn at random.")
    add("--repeats", type=int, default=5, help="Runs of each.")
    add("--work_dir", type=Path, default=ROOT / "outputs" / NAME, help="Where the students are written.")
    add_report_options(parser, NAME)
    options = parser.parse_args(argv)
    if not options.table:
        if options.teacher is None:
            parser.error("name the folder of the teacher")
        write_json(measure(options), options.output)
    return show_report(options, NAME, table)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Distils every student, runs all in turns, and returns the report.

    Raises:
        CalledProcessError: If a student is not made.
    """
    students = {f"{width} dimensions": options.work_dir / str(width) for width in options.dimensions}
    for width, folder in zip(options.dimensions, students.values(), strict=True):
        sys.stderr.write(f"distilling {folder}\n")
        command = ["distill-static", options.teacher, str(folder), str(options.settings), "--dimensions", str(width)]
        subprocess.run([sys.executable, "-m", "mtl.cli", *command], check=True, env=environment(), cwd=ROOT)
    sentences = drawn_sentences(options.sentences)
    runs: dict[str, Callable[[], Any]] = {
        TEACHER: partial(MTLModel.from_pretrained(options.teacher).encode_and_predict, sentences),
        **{name: partial(MTLPredictor(folder).encode_and_predict, sentences) for name, folder in students.items()},
    }
    tokenizer = Tokenizer.from_file(str(next(iter(students.values())) / "tokenizer.json"))
    runs[TOKENIZER] = partial(tokenizer.encode_batch_fast, sentences)
    graphs = {name: read_manifest(folder)["graphs"][0] for name, folder in students.items()}
    return {
        "sentences": len(sentences),
        "seconds": in_turns(runs, options.repeats),
        "measured": {name: graph["measured"] for name, graph in graphs.items()},
        "rows": {name: graph["rows"] for name, graph in graphs.items()},
        "mib": {name: (folder / "model.safetensors").stat().st_size / 2**20 for name, folder in students.items()},
        "machine": machine("cpu"),
    }


def table(report: Mapping[str, Any]) -> str:
    """Returns speed, size and figures of teacher and students, as Markdown."""
    measured = report["measured"]
    tasks = {name: next(key for key in task if key != TEACHER) for name, task in next(iter(measured.values())).items()}
    heading = ["", "Sentences/s", "Speed", "Vectors, MiB", *(f"{name}, {metric}" for name, metric in tasks.items())]
    of_teacher = [f"{task[TEACHER]:.4f}" for task in next(iter(measured.values())).values()]
    seconds = report["seconds"]
    rows = [[TEACHER, _rate(report, TEACHER), "1x", "", *of_teacher]]
    for name, figures in measured.items():
        ratios = [theirs / ours for theirs, ours in zip(seconds[TEACHER], seconds[name], strict=True)]
        cells = [f"{figures[task][metric]:.4f}" for task, metric in tasks.items()]
        rows.append(
            [name, _rate(report, name), f"{statistics.median(ratios):.0f}x", f"{report['mib'][name]:.1f}", *cells]
        )
    rows.append([TOKENIZER, _rate(report, TOKENIZER), *[""] * (len(heading) - 2)])
    where = report["machine"]
    note = (
        f"Embedding and all tasks for {report['sentences']:,} sentences, medians of {len(seconds[TEACHER])}; figures "
        f"on {next(iter(report['rows'].values())):,} rows for testing. {where['cpu']}, {where['threads']} threads."
    )
    return f"{markdown_table(heading, rows)}\n\n{note}"


def _rate(report: Mapping[str, Any], name: str) -> str:
    return f"{report['sentences'] / statistics.median(report['seconds'][name]):,.0f}"


if __name__ == "__main__":
    main()
