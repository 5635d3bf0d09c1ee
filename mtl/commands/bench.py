"""`mtl bench MODEL`: which runtime and precision answer fastest on this machine, and which to take.

    mtl bench outputs/vader
    mtl bench outputs/vader reviews.csv --text review --threads 2

Measured are torch, and ONNX Runtime and OpenVINO where they are installed; int8 where the model was exported in it.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from mtl.bench import ROUNDS, Measured, bench, fastest
from mtl.bulk_inputs import InputColumns, check_inputs, read_blocks
from mtl.console import aligned
from mtl.saved_models import load_model
from train_trainer import or_exit

PROGRAM = "mtl bench"
_WORDS = (
    "the of and to in is that it was for on with as at by from this but they have not are or had his her she were we "
    "there been one all their which when who will more about if out so said what up its into than them can only other "
    "new some time could these two may then do first any my now such like our over man me even most made after also"
)


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with model or texts ends it with the message alone."""
    options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # It tells which packages it could do without.
    measured, count = or_exit(PROGRAM, lambda: run(options))
    print(f"{count:,} texts, medians of {options.rounds} rounds, {torch.get_num_threads()} threads\n")
    print(bench_table(measured))
    if options.json is not None:
        content = json.dumps([dataclasses.asdict(one) for one in measured], indent=2)
        options.json.write_text(content + "\n", encoding="utf-8")


def run(options: argparse.Namespace) -> tuple[list[Measured], int]:
    """Measures what the options say; returns it, and of how many texts it is.

    Raises:
        OSError: If there is no such model or file.
        ValueError: If the file has no texts, or a count is below 1.
    """
    for name in ("sentences", "rounds", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name} must be at least 1, found {getattr(options, name)}.")
    if options.json is not None and not options.json.resolve().parent.is_dir():
        raise FileNotFoundError(f"--json {options.json}: there is no such folder. Make it first.")
    texts = made_up_texts(options.sentences)
    if options.file is not None:
        texts = read_texts(options.file, options.text, options.sentences)
    model = load_model(options.model)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = Path(options.model) if Path(options.model).is_dir() else None
    transformers_logging.enable_progress_bar()  # What was to stay quiet is the loading.
    with transformers_logging.tqdm(disable=options.quiet, bar_format="{elapsed} {desc}", leave=False) as bar:
        counts = {"rounds": options.rounds, "threads": options.threads}
        return bench(model, folder, texts, **counts, progress=bar.set_description_str), len(texts)


def read_texts(file: Path, column: str, count: int) -> list[str]:
    """Returns the first texts of a file.

    Raises:
        OSError: If there is no such file.
        ValueError: If it has no such column, or no text in it.
    """
    columns = InputColumns(column)
    check_inputs([file], columns)
    cells = (cell for block in read_blocks([file], columns, count) for cell in block[column].to_pylist())
    texts = list(itertools.islice((str(cell) for cell in cells if cell is not None), count))
    if not texts:
        raise ValueError(f"{file} has no text in column {column!r}.")
    return texts


def made_up_texts(count: int) -> list[str]:
    """Returns texts of common English words, whose lengths spread as those of sentences do: median 15, 4 to 60."""
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(np.log(15), 0.6, count), 4, 60).astype(int)  # (N,)
    return [" ".join(draw.choice(_WORDS.split(), length)) for length in lengths.tolist()]


def bench_table(measured: Sequence[Measured]) -> str:
    """Returns what was measured, and what to take, for a console."""
    reference = measured[0]
    rows = [
        [
            f"{one.backend} {one.precision}",
            f"{one.per_second:,.0f}",
            f"{one.per_second / reference.per_second:.2f}x",
            f"{one.milliseconds:.1f}",
            "-" if one.same_labels is None else f"{one.same_labels:.1%}",
            f"{one.mean_cosine:.4f}",
            "" if one.is_close else "may lose accuracy",
        ]
        for one in measured
    ]
    heading = ["", "sentences/s", "speed", "one alone, ms", "same labels", "cosine", ""]
    many, alone = fastest(measured), fastest(measured, alone=True)
    return f"{aligned(heading, rows)}\n\nFor many sentences: {_how(many)}.\nFor one at a time: {_how(alone)}."


def _how(one: Measured) -> str:
    if one.backend == "torch":
        return f'torch in {one.precision}, `model.encode_and_predict(texts, precision="{one.precision}")`'
    call = f'`MTLPredictor(folder, backend="{one.backend}", precision="{one.precision}")`'
    data = " --int8 DATA" if one.precision == "int8" else ""
    return f"{one.backend} in {one.precision}, {call} after `mtl export {one.backend} MODEL{data}`"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Measures runtimes and precisions on this machine, and recommends.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("file", type=Path, nargs="?", help="CSV, JSON lines, Parquet or text file of texts; made-up ones otherwise.")
    add("--text", default="text", metavar="COLUMN", help="Column of the texts; `text` if not given.")
    add("--sentences", type=int, default=1000, help="How many texts; %(default)s if not given.")
    add("--rounds", type=int, default=ROUNDS, help="How often each answers them; %(default)s if not given.")
    add("--threads", type=int, help="Threads of each; all cores if not given.")
    add("--json", type=Path, metavar="FILE", help="Write what was measured.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


if __name__ == "__main__":
    cli()
