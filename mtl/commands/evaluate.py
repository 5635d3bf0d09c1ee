"""`mtl evaluate MODEL DATA`: all that labelled data says of a saved model.

    mtl evaluate outputs/vader data/vader/vader.parquet --split_column split
    mtl evaluate outputs/vader configs/vader.yaml --split validation

Writes `evaluation.json` and shows the figures with their intervals. Nothing is trained, and the model stays as it is.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import AutoConfig
from transformers.utils import logging as transformers_logging

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.bootstrap import CONFIDENCE_LEVEL, RESAMPLES
from mtl.data import load_sources, tokenize_splits
from mtl.evidence import build_evidence, count_resamples
from mtl.evidence_tables import evidence_tables
from mtl.parts import column_names
from mtl.predictions import Predictions, predict_split
from mtl.report import write_report
from mtl.settings import DEFAULT_MAX_LENGTH, parse_settings
from mtl.sources import TEXT_COLUMN, SourceConfig
from mtl.trainer import MTLTrainer
from train_setup import read_sources
from train_trainer import or_exit

PROGRAM = "mtl evaluate"
EVALUATION = "evaluation.json"
_SETTINGS = (".yaml", ".yml")
_PREFERRED = ("test", "validation", "train")
_OF_SOURCE = ("text", "text_pair", "compare_with", "split_column", "label_separator")

logger = logging.getLogger(__name__)


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with model or data ends it with the message alone."""
    options, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else list(argv))
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    transformers_logging.set_verbosity_error()
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
            labels that the model does not know.
    """
    model = load(options.model)
    splits, tasks = load_data(options, rest, model.config.tasks)
    args = MTLTrainingArguments(
        str(output_folder(options)),
        per_device_eval_batch_size=options.batch_size,
        report_to="none",
        disable_tqdm=options.quiet,
    )
    predictions = predict(model, args, splits, chosen_split(options.split, splits), tasks)
    total = count_resamples(predictions, options.resamples)
    with transformers_logging.tqdm(
        total=total, desc="Intervals", unit=" resamples", disable=options.quiet, leave=False
    ) as bar:
        settings = {"resamples": options.resamples, "level": options.level, "seed": options.seed}
        evidence = build_evidence(predictions, **settings, progress=bar.update)
    found = {"model": options.model, "data": options.data, "precision": args.precision_in_use, **evidence}
    output_folder(options).mkdir(parents=True, exist_ok=True)
    write_report(found, output_folder(options) / EVALUATION)
    return found


def load(name: str) -> MTLModel:
    """Loads a saved multi-task model.

    Args:
        name: Its folder, or its name on the Hub.

    Raises:
        OSError: If there is none.
        ValueError: If it is another kind of model.
    """
    kind = AutoConfig.from_pretrained(name).model_type
    if kind != MTLConfig.model_type:
        raise ValueError(f"{name!r} is a {kind!r} model. Give a multi-task model, as `train_trainer.py` saves it.")
    return MTLModel.from_pretrained(name)


def load_data(
    options: argparse.Namespace, rest: Sequence[str], tasks: Sequence[TaskConfig]
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Reads the data; returns its splits, and those of a model's tasks that it labels.

    Of a settings file the splits are those of a training with it, with the same cuts.
    """
    if Path(options.data).suffix in _SETTINGS:
        settings, args = parse_settings([options.data, *rest])
        sources = [_with_tasks(source, tasks, options.by) for source in settings.source_configs()]
        sources = [source for source in sources if source.labels or source.pairs]
        kept = dataclasses.replace(settings, sources=[_as_settings(source) for source in sources] or settings.sources)
        labelled = labelled_tasks(sources, tasks, options)
        return read_sources(kept, args, labelled, taught=())
    if rest:
        raise ValueError(f"{rest[0]!r} is unknown. `{PROGRAM} --help` lists what the command takes.")
    source = source_of(options, tasks)
    splits, known = load_sources(
        [source], labelled_tasks([source], tasks, options), validation_fraction=0.0, test_fraction=0.0
    )
    return splits, known


def source_of(options: argparse.Namespace, tasks: Sequence[TaskConfig]) -> SourceConfig:
    """Returns the data as a source: the label column of each task is what was said, or has the task's name.

    Raises:
        ValueError: If `--labels` is no mapping of tasks that the model has.
    """
    settings = {key: value for key in _OF_SOURCE if (value := getattr(options, key))}
    labels = dict(options.labels or {})
    unknown = [name for name in labels if name not in {task.name for task in tasks}]
    if unknown:
        raise ValueError(f"--labels has {unknown}, but the tasks of the model are {[task.name for task in tasks]}.")
    there = column_names(SourceConfig(path=options.data, **{"text": TEXT_COLUMN, **settings}))
    labels = {task.name: task.name for task in tasks if task.name in there} | labels
    return SourceConfig(path=options.data, labels=labels, slices=options.by, **settings)


def labelled_tasks(
    sources: Sequence[SourceConfig], tasks: Sequence[TaskConfig], options: argparse.Namespace
) -> list[TaskConfig]:
    """Returns the tasks that a source labels, and says which ones none does.

    Raises:
        ValueError: If that is all of them.
    """
    names = {name for source in sources for name in (*source.labels, *source.pairs)}
    missing = [task.name for task in tasks if task.name not in names]
    if len(missing) == len(tasks):
        raise ValueError(
            f"{options.data!r} has no labels of any task of {options.model!r}, which are {missing}. Name their "
            f"""columns: `--labels '{{"{missing[0]}": "<column>"}}'`."""
        )
    if missing:
        logger.warning("The data has no labels of %s: these tasks are not measured.", missing)
    return [task for task in tasks if task.name in names]


def chosen_split(name: str | None, splits: Mapping[str, Any]) -> str:
    """Returns the split to measure: the one that is named, or the first there is of test, validation and train.

    Raises:
        ValueError: If there is none of that name.
    """
    if name is None:
        return next(split for split in _PREFERRED if split in splits)
    if name not in splits:
        raise ValueError(f"The data has no split {name!r}, but {list(splits)}. Name one of them, or leave it out.")
    return name


def predict(
    model: MTLModel, args: MTLTrainingArguments, splits: DatasetDict, name: str, tasks: Sequence[TaskConfig]
) -> Predictions:
    """Runs the model over a split, not yet tokenised."""
    limit = model.max_tokens() or DEFAULT_MAX_LENGTH
    chosen = DatasetDict({name: splits[name]})
    tokenized, _ = tokenize_splits(chosen, model.tokenizer, max_length=limit, keep_text=True)
    return predict_split(MTLTrainer(model, args), tokenized[name], name, tasks)


def output_folder(options: argparse.Namespace) -> Path:
    """Returns where the evidence is written."""
    if options.output_dir is not None:
        return Path(options.output_dir)
    return Path(options.model) / "evaluation" if Path(options.model).is_dir() else Path("outputs/evaluation")


def _with_tasks(source: SourceConfig, tasks: Sequence[TaskConfig], slices: Sequence[str]) -> SourceConfig:
    names = {task.name for task in tasks}
    labels = {name: column for name, column in source.labels.items() if name in names}
    pairs = [name for name in source.pairs if name in names]
    return dataclasses.replace(source, labels=labels, pairs=pairs, teachers={}, slices=[*source.slices, *slices])


def _as_settings(source: SourceConfig) -> Any:
    return {key: value for key, value in dataclasses.asdict(source).items() if value}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Measures a saved model on labelled data.")
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model.")
    add("data", help="File, folder or data set; or a settings file (YAML), whose sources and cuts are used.")
    add("--split", help="Split to measure; test if there is one, else validation, else train.")
    add("--labels", type=json.loads, help="Column of each task, as JSON; a column of the task's name if not given.")
    add("--text", help="Column of the texts; `text` if not given.")
    add("--text_pair", help="Column of second texts, read together with the first.")
    add("--compare_with", nargs="+", help="Columns of further texts, for tasks on the embedding.")
    add("--split_column", help="Column that says in which split a row is.")
    add("--label_separator", help="What stands between the labels of a cell.")
    add("--by", nargs="+", default=[], metavar="COLUMN", help="Columns by which figures are broken down.")
    add("--resamples", type=int, default=RESAMPLES, help="Resamples of an interval.")
    add("--level", type=float, default=CONFIDENCE_LEVEL, help="Probability with which an interval is to hold.")
    add("--seed", type=int, default=0, help="Seed of the resamples.")
    add("--batch_size", type=int, default=64, help="Sentences per forward pass.")
    add("--output_dir", help="Where evaluation.json goes; the folder `evaluation` of the model if not given.")
    add("--quiet", action="store_true", help="Show no progress.")
    return parser


if __name__ == "__main__":
    cli()
