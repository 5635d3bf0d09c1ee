"""`mtl predict MODEL FILE ... --output OUT.parquet`: what a model says of every row of files of any size.

    mtl predict outputs/vader reviews.csv --output predicted.parquet
    mtl predict outputs/vader "logs/*.jsonl" --text message --keep id --embeddings --output predicted.parquet

Memory does not grow with the files. Called again after it was stopped or killed, it goes on where it was.
"""

import argparse
import glob
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from mtl.bulk import PART_ROWS, BulkJob, BulkResult, run_bulk
from mtl.bulk_inputs import InputColumns, check_inputs, count_rows
from mtl.bulk_models import BulkOptions, TorchBulkModel
from mtl.bulk_ray import run_bulk_on_ray
from mtl.commands import SEVERAL
from train_trainer import or_exit

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""
LOCAL, RAY = "local", "ray"
_AT_ONCE = 1e-9
"""Seconds that the bar waits for: with any, it is shown at the first rows, and not before what is wrong is told."""


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with model or files ends it with the message alone."""
    parser = bulk_parser("mtl predict", "Predicts every task for the rows of files, into a Parquet file.")
    add = parser.add_argument
    add("--tasks", **SEVERAL, metavar="TASK", help="Tasks that have columns; all if not given.")
    add("--embeddings", action="store_true", help="Write embeddings, too, from the same pass.")
    add("--probabilities", action="store_true", help="Write the probability of every label, too.")
    add("--prefix", default="", help="What stands before the names of predicted columns.")
    run_command(parser, argv, predictions=True)


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None, *, predictions: bool) -> None:
    """Runs a bulk command to its end, and says what it wrote.

    Args:
        parser: Its options, those of [`bulk_parser`] among them.
        argv: The command line; that of the process if not given.
        predictions: Whether tasks have columns.
    """
    options = parser.parse_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    if options.quiet:
        transformers_logging.disable_progress_bar()
    try:
        result = or_exit(parser.prog, lambda: run(options, predictions=predictions))
    except KeyboardInterrupt:
        print(f"{parser.prog}: stopped. The same command goes on where it was.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    print(summary(result))


def run(options: argparse.Namespace, *, predictions: bool) -> BulkResult:
    """Answers and writes what the options say.

    Raises:
        ImportError: If `--engine ray` is asked for and Ray is not installed.
        OSError: If there is no such model or file, or the output is there of something else.
        ValueError: If the files cannot be read, or the options do not fit them or the model.
    """
    job = _job(options, predictions)
    check_inputs(job.inputs, job.columns)  # Before the model is loaded, and once more after it.
    how = BulkOptions(
        options.model, options.revision, options.trust_remote_code, options.precision, options.batch_size
    )
    model = TorchBulkModel(how)
    print(f"Answering in {how.precision_in_use}.", file=sys.stderr)
    total = count_rows([path for path in job.inputs if path.is_file()])
    with transformers_logging.tqdm(
        total=total, desc="Rows", unit=" rows", disable=options.quiet, delay=_AT_ONCE
    ) as bar:
        if options.engine == RAY:
            return run_bulk_on_ray(model, job, how, workers=options.workers, progress=bar.update)
        return run_bulk(model, job, progress=bar.update)


def summary(result: BulkResult) -> str:
    """Says what a run wrote."""
    if not result.rows and not result.rows_before:
        return f"{result.output} was there already."
    before = f", {result.rows_before:,} of them by an earlier call" if result.rows_before else ""
    without = (
        f" Rows of this call without a text, which have nulls: {result.without_text:,}." if result.without_text else ""
    )
    return f"{result.rows_before + result.rows:,} rows are in {result.output}{before}.{without}"


def bulk_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Returns the options that bulk commands share."""
    parser = argparse.ArgumentParser(prog=program, description=description, allow_abbrev=False)
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("inputs", nargs="+", metavar="file", help="CSV, TSV, JSON lines, Parquet or text files; may be patterns.")
    add("--output", type=Path, required=True, help="Parquet file to write; with --parts a folder.")
    add("--text", default="text", metavar="COLUMN", help="Column of the texts; `text` if not given.")
    add("--text_pair", metavar="COLUMN", help="Column of second texts, read together with the first.")
    add("--keep", **SEVERAL, default=[], metavar="COLUMN", help="Columns of the files that the output has, too.")
    add("--parts", action="store_true", help="Leave the output in parts, for readers that take a folder.")
    add("--part_rows", type=int, default=PART_ROWS, help="Rows of a part; %(default)s if not given.")
    add("--strict", action="store_true", help="Refuse a row without a text, instead of writing nulls.")
    add("--overwrite", action="store_true", help="Replace an output of something else.")
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto (the default): bf16 where it is fast.",
    )
    add("--batch_size", type=int, help="Sentences per forward pass; by a budget of tokens if not given.")
    add("--engine", choices=(LOCAL, RAY), default=LOCAL, help="ray: on workers of Ray, here or of RAY_ADDRESS.")
    add("--workers", type=int, default=2, help="Workers of --engine ray; %(default)s if not given.")
    add("--revision", help="Branch, tag or commit of a model on the Hub.")
    add("--trust_remote_code", action="store_true", help="Let code of the encoder's own repository run.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


def _job(options: argparse.Namespace, predictions: bool) -> BulkJob:
    columns = InputColumns(options.text, options.text_pair, tuple(options.keep))
    wanted: dict[str, Any] = {"embeddings": not predictions or options.embeddings, "predictions": predictions}
    if predictions:
        wanted |= {"probabilities": options.probabilities, "prefix": options.prefix}
    tasks = tuple(options.tasks) if predictions and options.tasks else None
    places = {"parts": options.parts, "part_rows": options.part_rows}
    how = {"strict": options.strict, "overwrite": options.overwrite}
    return BulkJob(_files(options.inputs), options.output, columns, tasks=tasks, **wanted, **places, **how)


def _files(patterns: Sequence[str]) -> tuple[Path, ...]:
    found: list[Path] = []
    for pattern in patterns:
        # A file of that very name may have brackets in it.
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise FileNotFoundError(f"There is no file {pattern!r} in {str(Path.cwd())!r}.")
        found += map(Path, matches)
    return tuple(found)
