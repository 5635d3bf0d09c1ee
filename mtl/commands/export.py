"""`mtl export onnx|openvino MODEL`: one graph from token ids to the embedding and every task, to run without torch.

    mtl export onnx outputs/vader
    mtl export openvino outputs/vader exported --int8 configs/vader.yaml

The graph is kept if it agrees with the model. `--int8` adds a graph in int8, and shows every task before and after.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers.utils import logging as transformers_logging

from batching_mtl import Text
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.commands.evaluate_data import DATA_HELP, add_source_options, chosen_split, load_data, measured_tasks
from mtl.console import aligned
from mtl.data import row_texts
from mtl.export import PARITY_TEXTS, Exported, export
from mtl.export_folder import ONNX, OPENVINO
from mtl.quantization import CALIBRATION_ROWS, CLOSE_POINTS, Quantized, quantize
from mtl.saved_models import load_model
from train_trainer import or_exit

PROGRAM = "mtl export"
_SEED = 0


@dataclass(frozen=True)
class Int8Data:
    """What int8 is made with.

    Args:
        calibration: Texts that the ranges of activations are taken from.
        rows: Other rows, which are measured.
        split: Name of the split that they are of.
        tasks: The tasks that they label.
    """

    calibration: list[Text]
    rows: Dataset
    split: str
    tasks: tuple[TaskConfig, ...]


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with the model or the data ends it with the message alone."""
    options, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # It tells which packages it could do without.
    or_exit(PROGRAM, lambda: write(options, rest))


def write(options: argparse.Namespace, rest: Sequence[str] = ()) -> tuple[Exported, Quantized | None]:
    """Writes the graphs that the options name, tells what they are, and returns them.

    Args:
        options: What the command line says.
        rest: Further settings, where the data of `--int8` is a settings file.

    Raises:
        ImportError: If the packages of the runtime are not installed.
        OSError: If model or data cannot be read.
        ValueError: If the model cannot be exported, or there are no rows to measure int8 on.
    """
    if rest and options.data is None:
        raise ValueError(f"{rest[0]!r} is unknown. `--help` lists what the command takes.")
    model = load_model(options.model)
    folder = Path(options.model if options.folder is None else options.folder)
    if not folder.is_dir() and options.folder is None:
        raise ValueError(f"{options.model!r} is on the Hub. Say where the graph goes: {PROGRAM} ... <folder>.")
    if folder.resolve() != Path(options.model).resolve() and (folder / "config.json").is_file():
        raise FileExistsError(
            f"{folder} holds another model, whose tokenizer would be overwritten. Give another folder, or none: "
            "then it is that of the model."
        )
    data = None if options.data is None else read_data(options, rest, model)  # What is wrong is told before the work.
    graph = export(model, folder, options.backend)
    print(_line(folder, graph))
    if data is None:
        return graph, None
    quantized = quantize(
        model, folder, options.backend, calibration=data.calibration, rows=data.rows, tasks=data.tasks
    )
    print(f"{_line(folder, quantized.graph)}\n\n{changes_table(quantized, data.split)}")
    return graph, quantized


def read_data(options: argparse.Namespace, rest: Sequence[str], model: MTLModel) -> Int8Data:
    """Reads the data of `--int8`: texts to calibrate on are of the split for training, and never among those measured.

    Raises:
        OSError: If the data cannot be read.
        ValueError: If it labels no task of the model, or has too few rows.
    """
    splits, known = load_data(options, rest, [task for task in model.config.tasks if task.has_head])
    split = chosen_split(options.split, splits)
    measured, calibration = splits[split], splits.get("train")
    if calibration is None or split == "train":
        order = np.random.default_rng(_SEED).permutation(len(measured))  # (N,)
        count = min(CALIBRATION_ROWS, len(measured) // 2)
        calibration, measured = measured.select(order[:count]), measured.select(np.sort(order[count:]))
    else:
        order = np.random.default_rng(_SEED).permutation(len(calibration))  # (N,)
        calibration = calibration.select(order[:CALIBRATION_ROWS])
    if not len(calibration):
        raise ValueError(f"{options.data!r} has {len(measured)} rows, too few to calibrate on some. Give more.")
    return Int8Data(row_texts(calibration[:]), measured, split, tuple(measured_tasks(known, measured, split)))


def changes_table(quantized: Quantized, split: str) -> str:
    """Returns every task before and after, and what follows, for a console."""
    rows = [
        [change.task, change.metric, f"{change.before:.4f}", f"{change.after:.4f}", f"{change.points_lost:+.2f}"]
        for change in quantized.changes
    ]
    table = aligned(["task", "metric", "fp32", "int8", "points lost"], rows)
    if quantized.is_close:
        verdict = f'No task loses more than {CLOSE_POINTS} points: `precision="auto"` takes int8.'
    else:
        found = f"A task loses more than {CLOSE_POINTS} points"
        if quantized.unmeasured:
            found = f"Of {list(quantized.unmeasured)} there is no label"
        verdict = f'{found}: `precision="auto"` takes fp32; `precision="int8"` takes it.'
    measured = f"{quantized.rows:,} rows of {split!r}; mean cosine of the embeddings {quantized.mean_cosine:.4f}."
    return f"{table}\n{measured}\n{verdict}"


def _line(folder: Path, graph: Exported) -> str:
    return (
        f"{folder / graph.file}: {graph.backend}, {graph.precision}, {graph.size_mib:.1f} MiB; its outputs "
        f"differ from the model's by {graph.difference:.1e} at most, on {len(PARITY_TEXTS)} texts."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Writes a saved model as a graph, with all that a predictor without torch needs beside it.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("backend", choices=(ONNX, OPENVINO), help="The runtime.")
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("folder", nargs="?", help="Where the export goes; the folder of the model if not given.")
    add("--int8", dest="data", metavar="DATA", help=f"Add a graph in int8, measured on labelled data. {DATA_HELP}")
    add("--split", help="Split that is measured; test if there is one, else validation, else train.")
    add_source_options(parser)
    parser.set_defaults(compare_with=None, pairs=[], by=[])
    return parser


if __name__ == "__main__":
    cli()
