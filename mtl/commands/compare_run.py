"""Trains and measures the parts of a comparison, each as `train_trainer.py` would with the same settings."""

import dataclasses
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import ExportableState

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.checkpoints import last_complete_checkpoint
from mtl.comparison_cost import disk_mib
from mtl.comparison_parts import PartFolder, fingerprint, in_order, part_rows
from mtl.comparison_plan import PROBE, Budget, PlannedPart
from mtl.comparison_probe import INVERSE_STRENGTHS, STRENGTHS
from mtl.comparison_settings import PROGRAM, CompareSettings, part_overrides, part_tasks
from mtl.content_keys import key_of_rows
from mtl.evaluation import EvaluationResult, evaluate_split
from mtl.predictions import Predictions, predict_split
from mtl.report import environment
from mtl.settings import parse_settings_of
from mtl.weighted_metrics import labelled_rows as has_label
from tasks_mtl import POSITIVE_PAIRS
from train_setup import Run, assemble
from train_trainer import fit_decisions, train


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared on what.

    Args:
        argv: The command line.
        settings: Its settings.
        args: Settings of training, as of the multi-task run.
        output_dir: Folder of the comparison.
        splits: All rows, not yet tokenised, with the column `place`.
        tasks: All tasks, with their labels.
        compared: Those that are compared.
        encoder: Key of the untuned encoder's weights.
        budget: How long every part trains.
        parts: The parts in their order.
        known: Fingerprints that were made already, by name of the part.
    """

    argv: tuple[str, ...]
    settings: CompareSettings
    args: MTLTrainingArguments
    output_dir: Path
    splits: DatasetDict
    tasks: tuple[TaskConfig, ...]
    compared: tuple[TaskConfig, ...]
    encoder: str
    budget: Budget
    parts: tuple[PlannedPart, ...]
    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def folder(self, part: PlannedPart) -> PartFolder:
        """Returns the folder of a part."""
        return PartFolder(self.output_dir / "parts" / part.name)

    def fingerprint(self, part: PlannedPart) -> dict[str, Any]:
        """Returns all that the figures of a part depend on; made once, as the rows do not change."""
        if part.name not in self.known:
            self.known[part.name] = self._fingerprint(part)
        return self.known[part.name]

    def _fingerprint(self, part: PlannedPart) -> dict[str, Any]:
        rows, tasks = part_rows(self.splits, part, self.tasks), part_tasks(part, self.tasks)
        rows_key = "-".join(key_of_rows(some, sorted(some.column_names)) for some in rows.values())
        settings = self.settings.of_part(tasks)
        if part.kind == PROBE:
            metrics = {task.name: self.settings.metric_of(task) for task in tasks}
            own = {"strengths": [*INVERSE_STRENGTHS, *STRENGTHS], "metrics": metrics}
            return fingerprint(settings, None, tasks, rows=rows_key, encoder=self.encoder) | own
        args = part_args(self, part, rows, self.folder(part).model, resume=False)
        return fingerprint(settings, args, tasks, rows=rows_key, encoder=self.encoder)


def part_args(
    comparison: Comparison, part: PlannedPart, rows: DatasetDict, output_dir: Path, *, resume: bool
) -> MTLTrainingArguments:
    """Returns the settings of training of a part, from the command line and what the part has beside it."""
    tasks = part_tasks(part, comparison.tasks)
    overrides = part_overrides(part, tasks, comparison.args, comparison.budget, len(rows["train"]))
    overrides += ["--output_dir", str(output_dir), *(["--resume_from_checkpoint", "last"] if resume else [])]
    _, args = parse_settings_of(CompareSettings, [*comparison.argv, *overrides], program=PROGRAM)
    args.conflict_steps = None  # It would cost time, and no figure here shows what it finds.
    return args


def set_up_part(comparison: Comparison, part: PlannedPart, output_dir: Path, *, resume: bool = False) -> Run:
    """Puts a part's model and rows into a trainer, as `train_trainer.set_up` does for a settings file."""
    rows, tasks = part_rows(comparison.splits, part, comparison.tasks), part_tasks(part, comparison.tasks)
    args = part_args(comparison, part, rows, output_dir, resume=resume)
    set_seed(args.seed)  # The fresh heads are drawn before the trainer sets the seed.
    return assemble(comparison.settings.of_part(tasks), args, rows, tasks)


def check_part(comparison: Comparison, part: PlannedPart) -> None:
    """Sets a part up and drops it, so that what is wrong is told before the first training.

    Raises:
        ValueError: If the part cannot be trained with the settings.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            set_up_part(comparison, part, Path(folder))
        except ValueError as error:
            raise ValueError(f"{part.title} cannot be trained with these settings: {error}") from error


class Stopwatch(TrainerCallback, ExportableState):
    """Counts the seconds of a training, in a resumed one those before the checkpoint too, and tells of each step.

    Args:
        on_step: Called after each step.
    """

    def __init__(self, on_step: Callable[[], None]) -> None:
        self.on_step = on_step
        self.before = 0.0
        self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the training began, less those between an interruption and its resumption."""
        return self.before + time.perf_counter() - self.started

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps; see `ExportableState`."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Goes on from what the checkpoint has, if there is one."""
        states: Any = state.stateful_callbacks if state.global_step else {}
        self.before = states.get(type(self).__name__, {}).get("attributes", {}).get("seconds", 0.0)
        self.started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells of the step."""
        self.on_step()


def train_part(comparison: Comparison, part: PlannedPart, on_step: Callable[[], None]) -> None:
    """Trains a part, from its last whole checkpoint if it was interrupted, and writes its model and figures."""
    folder = comparison.folder(part)
    resume = last_complete_checkpoint(folder.model) is not None
    if not resume:
        shutil.rmtree(folder.model, ignore_errors=True)
    folder.begin(comparison.fingerprint(part))
    run = set_up_part(comparison, part, folder.model, resume=resume)
    watch = Stopwatch(on_step)
    run.trainer.add_callback(watch)
    training = train(run)
    seconds = watch.seconds
    run, _ = fit_decisions(run)
    run.trainer.save_model(_internal_call=True)
    results = []
    if "validation" in run.splits:
        results.append(evaluate_split(run.trainer, run.splits["validation"], "validation", run.tasks))
    predictions = predict_test(run)
    record = {
        **dataclasses.asdict(part),
        "epochs": training["steps"] / comparison.budget.steps_in_epoch(len(run.splits["train"])),
        "steps": training["steps"],
        "training_seconds": round(seconds, 2),
        "resumed": resume,
        **_figures(run, [*results, predictions.result]),
    }
    folder.finish(record, in_order(predictions))
    run.trainer.accelerator.free_memory()


def predict_test(run: Run) -> Predictions:
    """Runs a part's model over its test rows; tasks of positive pairs are run over their own rows alone.

    The negatives of a pair are the other texts of its batch. Rows of other tasks, which the multi-task model is
    measured on too, leave fewer of them, and so would raise its figure above that of a model with the same embedding.
    """
    rows = run.splits["test"]
    predictions = predict_split(run.trainer, rows, "test", run.tasks)
    logits = dict(predictions.logits)
    for task in run.tasks:
        mine = np.flatnonzero(has_label(predictions.labels[task.name]))
        if task.problem_type == POSITIVE_PAIRS and 0 < len(mine) < len(rows):
            alone = predict_split(run.trainer, rows.select(mine), "test", run.tasks)
            logits[task.name] = np.full_like(logits[task.name], np.nan)
            logits[task.name][mine] = alone.logits[task.name]
    return dataclasses.replace(predictions, logits=logits)


def _figures(run: Run, results: Sequence[EvaluationResult]) -> dict[str, Any]:
    args = run.trainer.args
    return {
        "rows": {name: len(some) for name, some in run.splits.items()},
        "parameters": sum(parameter.numel() for parameter in run.trainer.model.parameters()),
        "disk_mib": disk_mib(run.output_dir),
        "results": {result.split: result.to_dict() for result in results},
        "task_configs": [task.to_dict() for task in run.tasks],
        "precision": args.precision_in_use,
        **environment(args.device),
    }
