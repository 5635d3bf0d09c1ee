"""The settings of a comparison, and what they become for each of its parts.

What a training of all tasks is told, and one of a single task cannot take over, is decided here: how losses are
weighed, where evaluations fall, which metric chooses the best model.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from configuration_mtl import TaskConfig
from mtl.arguments import JsonObject, MTLTrainingArguments
from mtl.comparison_plan import MULTI, SINGLE, Budget, PlannedPart
from mtl.evaluation import metric_keys
from mtl.freeze_schedule import FreezeSchedule
from mtl.metrics import METRICS, PRIMARY_METRIC
from mtl.rejection import rejects
from mtl.sampling import ANNEALED
from mtl.settings import RunSettings
from tasks_mtl import CLASS_TYPES, MULTI_LABEL, PROBABILITY_TYPES

PROGRAM = "mtl compare"
_LEAST_RESAMPLES = 100


@dataclass
class CompareSettings(RunSettings):
    """What to compare; the settings of `RunSettings` beside those of the comparison.

    Args:
        seeds: Seeds of the trainings, in the place of `seed`. One says nothing of how much trainings differ.
        pairs: Whether each pair of tasks is trained together too, for the matrix of what one does to another.
        probe: Whether linear models on the untuned encoder's embeddings are compared too.
        tolerance: Harm that is taken in exchange for one model in place of several, in percent of the figure of the
            single-task model.
        metrics: Metric of a task by which it is compared; its primary one if not given.
        resamples: Resamples of the bootstrap over test rows.
        keep_models: Whether the trained models are kept; figures and predictions are in any case.
        overwrite: Whether a part of other settings, in the same folder, is trained anew instead of being an error.
    """

    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of the trainings."})
    pairs: bool = field(default=False, metadata={"help": "Train each pair of tasks together, too."})
    probe: bool = field(default=True, metadata={"help": "Compare with linear models on the untuned encoder."})
    tolerance: float = field(default=0.0, metadata={"help": "Harm that is accepted, in percent of the figure alone."})
    metrics: JsonObject = field(
        default_factory=JsonObject, metadata={"help": "Metric of a task (JSON), in place of its primary one."}
    )
    resamples: int = field(default=1000, metadata={"help": "Resamples of the bootstrap over test rows."})
    keep_models: bool = field(default=True, metadata={"help": "Keep the trained models, not their figures alone."})
    overwrite: bool = field(default=False, metadata={"help": "Train parts of other settings in the folder anew."})

    def __post_init__(self) -> None:
        """Checks what can be told without the data."""
        super().__post_init__()
        names = [task.name for task in self.task_configs()]
        if len(names) < 2:
            raise ValueError(f"The settings have one task, {names}: there is nothing to share. Name two or more.")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}. Give at least one, each once.")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"tolerance must be a number of percent, at least 0, found {self.tolerance}.")
        if self.resamples < _LEAST_RESAMPLES:
            raise ValueError(f"resamples must be at least {_LEAST_RESAMPLES}, found {self.resamples}.")
        if self.search is not None:
            raise ValueError(f"`search` is not for {PROGRAM}. Search first, then compare with what was found.")
        unknown = [name for name in self.metrics if name not in names]
        if unknown:
            raise ValueError(f"`metrics` has {unknown}, but the tasks are {names}. Correct it.")

    def metric_of(self, task: TaskConfig) -> str:
        """Returns the metric by which a task is compared.

        Raises:
            ValueError: If its problem type has no such metric.
        """
        metric = self.metrics.get(task.name, PRIMARY_METRIC[task.problem_type])
        known = [one.key for one in METRICS[task.problem_type]]
        if metric not in known:
            raise ValueError(f"Task {task.name!r} ({task.problem_type}) has no metric {metric!r}. Use one of {known}.")
        return str(metric)

    def of_part(self, tasks: Sequence[TaskConfig]) -> RunSettings:
        """Returns the settings of a run of some of the tasks; they hold no teacher, as the rows have what it says."""
        values = {item.name: getattr(self, item.name) for item in fields(RunSettings)}
        names = {task.name for task in tasks}
        values |= {"tasks": [task for task in self.tasks if task["name"] in names], "teacher": []}
        if not any(map(rejects, tasks)):
            values |= {"fit_rejection": None, "rejection_acceptance": None}
        # What no task of the part can have fitted, and would be refused.
        for key, types, given, default in (
            ("calibrate", PROBABILITY_TYPES, "calibration_temperature", None),
            ("fit_label_thresholds", (MULTI_LABEL,), "label_thresholds", False),
            ("abstention_error_rate", CLASS_TYPES, "abstention_threshold", None),
        ):
            if not any(task.problem_type in types and getattr(task, given) is None for task in tasks):
                values[key] = default
        return RunSettings(**values)


def check_training(args: MTLTrainingArguments) -> None:
    """Refuses settings of training that a comparison cannot follow.

    Raises:
        ValueError: If there are such settings.
    """
    if args.world_size > 1:
        raise ValueError(f"{PROGRAM} runs in one process, found {args.world_size}. Start it without torchrun.")
    for name, why in (
        ("push_to_hub", "it trains many models; train the one that you choose by `mtl train`"),
        ("resume_from_checkpoint", "the same command goes on by itself where it was interrupted"),
    ):
        if getattr(args, name):
            raise ValueError(f"{name}={getattr(args, name)} is not for {PROGRAM}: {why}. Leave it out.")
    for setting in [args.freeze or "", *(args.freeze_schedule or {}).values()]:
        if any(part.strip().startswith("heads") for part in setting.split("+")):
            raise ValueError(
                f"{setting!r} freezes heads, which a model of one task may not have, or would be all that it has. "
                f"Leave heads out of `freeze` and `freeze_schedule` for {PROGRAM}."
            )
    if args.mixture == ANNEALED and args.homogeneous_batches:
        raise ValueError(
            f"mixture='annealed' with homogeneous_batches needs a number of epochs, but parts of {PROGRAM} train for "
            "a number of steps. Choose another mixture."
        )


def part_tasks(part: PlannedPart, tasks: Sequence[TaskConfig]) -> tuple[TaskConfig, ...]:
    """Returns the tasks of a part; one that trains alone has weight 1, as there is nothing to weigh it against."""
    chosen = [task for task in tasks if task.name in part.tasks]
    return tuple(dataclasses.replace(task, weight=1.0) if part.kind == SINGLE else task for task in chosen)


def part_overrides(
    part: PlannedPart, tasks: Sequence[TaskConfig], args: MTLTrainingArguments, budget: Budget, rows: int
) -> list[str]:
    """Returns what the command line of a part has beside that of the comparison.

    The multi-task run follows its settings as they are. The others have its steps, and are evaluated and saved at the
    same steps, so that none has more chances to find a best model.

    Args:
        part: The part.
        tasks: Its tasks.
        args: Settings of the multi-task run.
        budget: How long every part trains.
        rows: Rows on which the part trains.
    """
    values: dict[str, Any] = {"seed": part.seed}
    if part.kind != MULTI:
        values |= {"max_steps": budget.max_steps, **_same_steps(args, budget), **_best_metric(tasks, args)}
        if args.freeze_schedule is not None:
            values["freeze_schedule"] = _scaled(args.freeze_schedule, budget, rows)
    if part.kind == SINGLE:
        values |= {"weighting": "fixed", "aggregation": "none"}
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def _same_steps(args: MTLTrainingArguments, budget: Budget) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for kind in ("eval", "save"):
        if getattr(args, f"{kind}_strategy") == "epoch":
            values |= {f"{kind}_strategy": "steps", f"{kind}_steps": budget.steps_per_epoch}
    if "eval_strategy" in values and args.eval_delay:
        values["eval_delay"] = math.ceil(args.eval_delay * budget.steps_per_epoch)
    return values


def _best_metric(tasks: Sequence[TaskConfig], args: MTLTrainingArguments) -> dict[str, Any]:
    """Lets the score choose the best model where the metric that does is of a task that the part has not."""
    name = (args.metric_for_best_model or "score").removeprefix("eval_")
    known = ["score", "loss", *(f"{task.name}_{key}" for task in tasks for key in metric_keys(task))]
    return {} if name in known else {"metric_for_best_model": "score", "greater_is_better": True}


def _scaled(schedule: dict[str, str], budget: Budget, rows: int) -> str:
    """Returns a schedule whose phases begin at the same steps, though an epoch has fewer."""
    factor = budget.steps_per_epoch / budget.steps_in_epoch(rows)
    return json.dumps({str(epoch * factor): setting for epoch, setting in FreezeSchedule.parse(schedule).phases})
