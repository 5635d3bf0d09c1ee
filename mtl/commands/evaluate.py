"""`mtl evaluate MODEL DATA`: all that labelled data says of a saved model.

    mtl evaluate outputs/vader data/vader/vader.parquet --split_column split
    mtl evaluate outputs/vader configs/vader.yaml --split validation

Writes `evaluation.json` and shows the figures with their intervals. Nothing is trained, and the model stays as it is.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict
from transformers.utils import logging as transformers_logging

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.bootstrap import CONFIDENCE_LEVEL, RESAMPLES, check_settings
from mtl.commands import SEVERAL
from mtl.commands.evaluate_data import DATA_HELP, add_source_options, chosen_split, load_data, measured_tasks
from mtl.data import tokenize_splits
from mtl.evidence import build_evidence, count_resamples
from mtl.evidence_tables import evidence_tables
from mtl.predictions import Predictions, predict_split
from mtl.report import write_report
from mtl.saved_models import load_model
from mtl.settings import DEFAULT_MAX_LENGTH
from mtl.trainer import MTLTrainer
from train_report import EVALUATION_FOLDER
from train_trainer import or_exit

PROGRAM = "mtl evaluate"
EVALUATION = "evaluation.json"
_BY_LENGTH = "by_length"


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with model or data ends it with the message alone."""
    options, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
    if options.quiet:
        transformers_logging.disable_progress_bar()
        datasets.disable_progress_bars()
    found = or_exit(PROGRAM, lambda: evaluate(options, rest))
    print(evidence_tables(found))
    print(f"\nAll of it, with the surest errors, is in {output_folder(options) / EVALUATION}.")


def evaluate(options: argparse.Namespace, rest: Sequence[str] = ()) -> dict[str, Any]:
    """Measures the model on the split that the options name, and writes the evidence; returns it.

    Args:
        options: What the command line says.
        rest: Further settings, where the data is a settings file.

    Raises:
        OSError: If model or data cannot be read.
        ValueError: If the data has no label of any task of the model, lacks a column or split that was named, or has
            labels that the model does not know; or if an option has a value that makes no sense.
    """
    check_settings(options.resamples, options.level)
    args = MTLTrainingArguments(
        str(output_folder(options)),
        per_device_eval_batch_size=options.batch_size,
        precision=options.precision,
        report_to="none",
        disable_tqdm=options.quiet,
    )
    model = load_model(options.model)
    output_folder(options).mkdir(parents=True, exist_ok=True)  # What cannot be written is told before the work.
    splits, tasks = load_data(options, rest, model.config.tasks)
    split = chosen_split(options.split, splits)
    measured = measured_tasks(tasks, splits[split], split)
    predictions = predict(model, args, splits[split], split, measured)
    total = count_resamples(predictions, options.resamples)
    with transformers_logging.tqdm(
        total=total, desc="Intervals", unit=" resamples", disable=options.quiet, leave=False
    ) as bar:
        settings = {"resamples": options.resamples, "level": options.level, "seed": options.seed}
        evidence = build_evidence(predictions, **settings, progress=bar.update)
    found = {"model": options.model, "data": options.data, "precision": args.precision_in_use, **evidence}
    write_report(found, output_folder(options) / EVALUATION)
    return found


def predict(
    model: MTLModel, args: MTLTrainingArguments, rows: Dataset, name: str, tasks: Sequence[TaskConfig]
) -> Predictions:
    """Runs the model over a split, not yet tokenised, in the order of length."""
    limit = model.max_tokens() or DEFAULT_MAX_LENGTH
    # Under the name of train they would stay in the order of the file, with more padding.
    tokenized, _ = tokenize_splits(DatasetDict({_BY_LENGTH: rows}), model.tokenizer, max_length=limit, keep_text=True)
    return predict_split(MTLTrainer(model, args), tokenized[_BY_LENGTH], name, tasks)


def output_folder(options: argparse.Namespace) -> Path:
    """Returns where the evidence is written."""
    if options.output_dir is not None:
        return Path(options.output_dir)
    return Path(options.model) / EVALUATION_FOLDER if Path(options.model).is_dir() else Path("outputs/evaluation")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Measures a saved model on labelled data.", allow_abbrev=False
    )
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("data", help=DATA_HELP)
    add("--split", help="Split to measure; test if there is one, else validation, else train.")
    add_source_options(parser)
    add("--compare_with", **SEVERAL, metavar="COLUMN", help="Columns of further texts, for tasks on the embedding.")
    add("--pairs", **SEVERAL, default=[], metavar="TASK", help="Tasks that are measured on these texts, unlabelled.")
    add("--by", **SEVERAL, default=[], metavar="COLUMN", help="Columns by which figures are broken down.")
    add("--resamples", type=int, default=RESAMPLES, help="Resamples of an interval; %(default)s if not given.")
    level_help = "Probability with which an interval is to hold; %(default)s if not given."
    add("--level", type=float, default=CONFIDENCE_LEVEL, help=level_help)
    add("--seed", type=int, default=0, help="Seed of the resamples; %(default)s if not given.")
    add("--batch_size", type=int, default=64, help="Sentences per forward pass; %(default)s if not given.")
    add("--precision", default="auto", help="auto (the default), as evaluations in a training, bf16, or fp32.")
    add("--output_dir", help="Where evaluation.json goes; the folder `_evaluation` of the model if not given.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


if __name__ == "__main__":
    cli()
