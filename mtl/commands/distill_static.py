"""`mtl distill-static MODEL OUT CONFIG`: a student without layers, many times as fast, and what it loses.

    mtl distill-static outputs/vader outputs/vader-static configs/vader.yaml

The settings give tasks and data; what else is in them is of the model's own training, and settings for the student's
come after them, as `--num_train_epochs 5`.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import set_seed

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.card_origin import find_origin
from mtl.commands.evaluate import predict
from mtl.commands.evaluate_data import chosen_split, measured_tasks
from mtl.console import aligned
from mtl.data import row_texts
from mtl.quantization import TaskChange, outputs_of, primary_figures
from mtl.saved_models import config_fields, load_model
from mtl.settings import RunSettings, parse_settings
from mtl.static_card import static_card
from mtl.static_student import write_static, write_static_encoder
from predictor_mtl import MTLPredictor
from train_setup import Run, assemble, read_data, set_up_logging
from train_trainer import fit_decisions, or_exit, told_when_interrupted, train

PROGRAM = "mtl distill-static"
TRAINING = ".training"
"""Ending of the folder beside the student's that has its vectors before training, and checkpoints."""
DEFAULTS = {
    "freeze": "none",
    "head_learning_rate": "1e-3",
    "learning_rate": "3e-3",
    "max_length": "512",
    "max_steps": "-1",
    "normalize_for_heads": "true",
    "num_train_epochs": "2",
    "precision": "fp32",
    "report_to": "none",
}
"""Settings of the student's training unless told otherwise; rates and epochs chosen on the embedded corpus."""
FIXED = {
    "activation_checkpointing": "false",
    "layer_decay": "none",
    "peft": "none",
    "pooling": "mean",
    "push_to_hub": "false",
    "save_adapter": "false",
    "search": "none",
}
"""Settings that a student has whatever the file says of its teacher's: without layers the others have no meaning."""
HIDDEN_SIZE = 256
_OWN = ("backbone", "teacher", "output_dir", *FIXED)


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the command; what is wrong with model, settings or data ends it with the message alone."""
    options, rest = _parser().parse_known_args(sys.argv[1:] if argv is None else list(argv))
    run, splits = or_exit(PROGRAM, lambda: set_up(options, rest))
    with told_when_interrupted(PROGRAM, run):
        changes, split = finish(options, run, splits)
    run.trainer.end()
    print(f"\n{changes_table(changes, split)}\n\nThe student is in {options.folder}.")


def set_up(options: argparse.Namespace, rest: Sequence[str]) -> tuple[Run, DatasetDict]:
    """Distils the vectors that the student begins with, and prepares its training; returns it with the data.

    Args:
        options: What the command line says.
        rest: Settings of the student's training.

    Raises:
        ImportError: If model2vec is not installed.
        OSError: If model or data cannot be read, or the student's folder cannot be written or holds another model.
        ValueError: If the settings are wrong, set what the command does, or do not fit the teacher.
    """
    given = {word.split("=")[0].removeprefix("--") for word in rest}
    if taken := [name for name in _OWN if name in given]:
        raise ValueError(f"--{taken[0]} is set by the command itself. Leave it out.")
    if options.dimensions < 1:
        raise ValueError(f"--dimensions must be at least 1, found {options.dimensions}.")
    _make_folder(Path(options.folder))
    training = Path(f"{Path(options.folder)}{TRAINING}")
    encoder = training / "encoder"
    own = {"backbone": encoder, "teacher": options.model, "output_dir": training}
    # Of these two a run has one.
    defaults = {key: value for key, value in DEFAULTS.items() if key != "freeze" or "freeze_schedule" not in given}
    words = [word for key, value in {**defaults, **FIXED, **own}.items() for word in (f"--{key}", str(value))]
    settings, args = parse_settings([options.settings, *words, *rest])
    set_up_logging(args)
    for name in ("model2vec", "skeletoken"):  # They tell that a model in memory has no page on the Hub.
        logging.getLogger(name).setLevel(logging.ERROR)
    teacher = load_model(options.model)
    settings = dataclasses.replace(settings, tasks=_tasks(teacher, settings, options.hidden_size))
    write_static_encoder(teacher, encoder, dimensions=options.dimensions)
    set_seed(args.seed)
    splits, labelled = read_data(settings, args)
    split = chosen_split(None, splits)
    measured_tasks([task for task in labelled if task.has_head], splits[split], split)
    run = assemble(settings, args, splits, labelled)
    _check_dimensions(run)
    return run, splits


def finish(options: argparse.Namespace, run: Run, splits: DatasetDict) -> tuple[list[TaskChange], str]:
    """Trains and writes the student, and measures it and its teacher on the rows for testing, where there are such.

    Args:
        options: What the command line says.
        run: The training that [`set_up`] prepared.
        splits: The data, not tokenised.

    Returns:
        Each task in both, and the split that they were measured on.
    """
    train(run)
    run, _ = fit_decisions(run)
    logging.getLogger("mtl").setLevel(logging.WARNING)  # What follows trains nothing.
    folder = Path(options.folder)
    student: MTLModel = run.trainer.model
    write_static(student, folder)
    split = chosen_split(None, splits)
    args = MTLTrainingArguments(str(run.output_dir), precision="fp32", report_to="none", disable_tqdm=True)
    tasks = measured_tasks([task for task in run.tasks if task.has_head], splits[split], split)
    changes = compare(load_model(options.model), MTLPredictor(folder), splits[split], tasks, args)
    measured = {change.task: {change.metric: change.after, "teacher": change.before} for change in changes}
    write_static(student, folder, measured=measured, split=split, rows=len(splits[split]))
    card = static_card(student.config, changes, split=split, origin=find_origin(options.model), model=options.model)
    card.save(folder / "README.md")
    return changes, split


def compare(
    teacher: MTLModel, student: MTLPredictor, rows: Dataset, tasks: Sequence[TaskConfig], args: MTLTrainingArguments
) -> list[TaskChange]:
    """Returns each task's primary metric, before in the teacher and after in the student.

    Args:
        teacher: The teacher.
        student: The student.
        rows: Labelled rows, not tokenised.
        tasks: The student's tasks that these label, each with a head.
        args: How the teacher is run.
    """
    of_teacher = [teacher.config.task(task.name) for task in tasks]
    before = predict(teacher, args, rows, "test", of_teacher).result.metrics
    after = primary_figures(tasks, rows, outputs_of(student, row_texts(rows[:])))
    return [TaskChange(name, metric, before[name][metric], value) for name, (metric, value) in after.items()]


def changes_table(changes: Sequence[TaskChange], split: str) -> str:
    """Returns teacher and student task by task, for a console."""
    rows = [
        [change.task, change.metric, f"{change.before:.4f}", f"{change.after:.4f}", f"{change.points_lost:+.2f}"]
        for change in changes
    ]
    return aligned([f"on {split}", "metric", "teacher", "student", "points lost"], rows)


def _make_folder(folder: Path) -> None:
    """Makes the folder of the student, so that what is wrong with it does not cost a training."""
    fields = config_fields(folder)
    if fields is not None and fields.get("model_type") != "model2vec":
        raise FileExistsError(f"{folder} holds another model, which would be overwritten. Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)


def _tasks(teacher: MTLModel, settings: RunSettings, hidden_size: int) -> list[Any]:
    """Returns the student's tasks: those with a head have the labels of the teacher's, in its order."""
    known = {task.name: task for task in teacher.config.tasks if task.has_head}
    found: list[Any] = []
    for fields, task in zip(settings.tasks, settings.task_configs(), strict=True):
        if not task.has_head:
            found.append(fields)
            continue
        if task.name not in known:
            raise ValueError(
                f"The settings have a task {task.name!r}, and the heads of the model are {sorted(known)}."
            )
        taught = known[task.name]
        # What they do not say of labels would come from the data, perhaps in another order.
        wanted = {"problem_type": task.problem_type, "labels": task.labels, "num_labels": task.num_labels}
        for key, value in wanted.items():
            if value not in (None, getattr(taught, key)):
                raise ValueError(
                    f"Task {task.name!r}: {key} is {value!r} in the settings, and {getattr(taught, key)!r} in the "
                    "model. A student answers as its teacher does: set it alike."
                )
        labels = {} if taught.labels is None else {"labels": list(taught.labels)}
        width = {"hidden_size": hidden_size} if hidden_size else {}
        found.append({**width, **fields, "num_labels": taught.num_labels, **labels})
    return found


def _check_dimensions(run: Run) -> None:
    """Checks that a checkpoint to go on from is of vectors of this width."""
    if run.checkpoint is None:
        return
    config = json.loads((Path(run.checkpoint) / "config.json").read_text(encoding="utf-8"))
    before, now = config["text_config"]["hidden_size"], run.trainer.model.config.hidden_size
    if before != now:
        raise ValueError(
            f"{run.checkpoint!r} cannot be resumed from: its vectors have {before} dimensions, those of this run "
            f"{now}. Set `--dimensions {before}`, or give another folder."
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Distils a saved model into a student without layers, and measures both.",
        epilog="Further arguments are settings of the student's training, see `mtl train --help`.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="Folder, or name on the Hub, of a saved multi-task model, the teacher.")
    add("folder", help="Where the student goes.")
    add("settings", help="Settings file (YAML) with tasks and sources, such as that of the teacher.")
    add("--dimensions", type=int, default=256, help="Width of the student's vectors; %(default)s if not given.")
    hidden_help = "Width of the heads' hidden layer, 0 for none; %(default)s if not given."
    add("--hidden_size", type=int, default=HIDDEN_SIZE, help=hidden_help)
    return parser


if __name__ == "__main__":
    cli()
