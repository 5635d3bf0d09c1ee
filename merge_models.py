"""Merges single-task classifiers into one multi-task model, by distillation over texts that need no labels.

python merge_models.py --teachers topic=<folder> sentiment=<folder> --texts texts.txt --backbone embedded

Settings come from a YAML file and from `--key value` on the command line, which wins; see docs/distillation.md.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import set_seed

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.evaluation import EvaluationResult
from mtl.label_cells import CellError
from mtl.merging import (
    column_values,
    gold_column,
    latency_ms,
    merging_section,
    metrics_of_logits,
    metrics_of_probabilities,
    sizes,
    with_decisions,
)
from mtl.settings import JsonObject, RunSettings, parse_settings_of, resolve_backbone
from mtl.sources import TEXT_COLUMN
from mtl.teacher_columns import teacher_column
from mtl.teachers import Teacher, load_classifier_teacher, with_teachers
from train_setup import Run, assemble, read_sources, set_up_logging
from train_trainer import finish, or_exit, told_when_interrupted

logger = logging.getLogger("merge_models")

PROGRAM = "merge_models.py"
_TEXTS_OF_LATENCY = 32
_LATENCY_REPEATS = 5


@dataclass
class MergeSettings(RunSettings):
    """What to merge; the settings of `RunSettings` beside those that follow from the teachers and the texts.

    Args:
        teachers: `<task>=<folder or name on the Hub>` of each classifier, with the name that its task gets.
        texts: File or data set of the texts: what `path` of a source may be. A TXT file holds one text a line.
        text: Column of the texts.
        split_column: Column that says in which split a text is; without it held-out texts are cut off by `split_seed`.
        labels: Column of each task that has true labels, against which teachers and student are measured; nothing
            learns from them.
    """

    teachers: list[str] = field(default_factory=list, metadata={"help": "<task>=<folder or Hub name> each."})
    texts: str | None = field(default=None, metadata={"help": "File or data set of the texts to learn from."})
    text: str = field(default=TEXT_COLUMN, metadata={"help": "Column of the texts."})
    split_column: str | None = field(default=None, metadata={"help": "Column that says in which split a text is."})
    labels: JsonObject = field(
        default_factory=JsonObject, metadata={"help": "Columns of true labels by task (JSON), for measuring alone."}
    )

    def __post_init__(self) -> None:
        """Checks the settings, and makes the source of them; the tasks come with the teachers."""
        for name in ("tasks", "sources", "teacher"):
            if getattr(self, name):
                raise ValueError(f"`{name}` is not for {PROGRAM}: give `teachers` and `texts`.")
        for name in ("calibrate", "fit_label_thresholds", "abstention_error_rate"):
            given = getattr(self, name)
            if given is not None and given is not False:
                raise ValueError(
                    f"`{name}` is not for {PROGRAM}: it would be fitted to what teachers decide, not to the truth. "
                    "Leave it out, and call `MTLTrainer.calibrate` on rows with true labels."
                )
        self.calibrate = False
        if self.report:
            raise ValueError(f"`report` is not for {PROGRAM}: it would show agreement with teachers as quality.")
        self.report = False
        if self.texts is None:
            raise ValueError("No texts are given. Name a file or data set: `--texts texts.txt`.")
        names = list(self.by_task())
        unknown = [name for name in self.labels if name not in names]
        if unknown:
            raise ValueError(f"`labels` has {unknown}, but the tasks of the teachers are {names}. Correct it.")
        source = {"path": self.texts, "text": self.text, "split_column": self.split_column, "labels": self.labels}
        self.sources = [JsonObject({key: value for key, value in source.items() if value})]

    def by_task(self) -> dict[str, str]:
        """Returns the folder or name of each task's teacher.

        Raises:
            ValueError: If there is none, one is not `<task>=<name>`, or two are of one task.
        """
        pairs = [teacher.partition("=") for teacher in self.teachers]
        if not pairs or not all(task and name for task, _, name in pairs):
            raise ValueError(f"`teachers` are given as `<task>=<folder or Hub name>` each, found {self.teachers}.")
        tasks = [task for task, _, _ in pairs]
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"`teachers` names a task twice: {tasks}. Give every task its own name.")
        return {task: name for task, _, name in pairs}


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the program on the command line; what is wrong with settings or data ends it with its message alone."""
    argv = list(sys.argv[1:] if argv is None else argv)
    run, teachers = or_exit(PROGRAM, lambda: set_up(argv))
    with told_when_interrupted(PROGRAM, run):
        merge(run, teachers, argv)
    run.trainer.end()


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs from settings to the saved, measured model; returns the report."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return merge(*set_up(argv), argv)


def set_up(argv: Sequence[str]) -> tuple[Run, list[Teacher]]:
    """Reads the settings, asks the teachers, and puts model and data into a trainer."""
    settings, args = parse_settings_of(MergeSettings, argv, program=PROGRAM)
    set_up_logging(args)
    _refuse_settings_of_labels(args)
    resolve_backbone(settings.backbone)  # A package that is missing is told before anything is read.
    teachers = [
        load_classifier_teacher(task, name, trust_remote_code=settings.trust_remote_code, device=args.device)
        for task, name in settings.by_task().items()
    ]
    tasks = tuple(task for teacher in teachers for task in teacher.tasks)
    splits = load_texts(settings, args, tasks)
    with args.main_process_first(desc="what teachers say"):
        batch_size = args.per_device_eval_batch_size
        taught = {name: with_teachers(some, tasks, teachers, batch_size=batch_size) for name, some in splits.items()}
    settings.tasks = [JsonObject(task.to_dict()) for task in tasks]
    set_seed(args.seed)  # The fresh heads are drawn before the trainer sets the seed.
    return assemble(settings, args, with_decisions(DatasetDict(taught), tasks), tasks), teachers


def _refuse_settings_of_labels(args: MTLTrainingArguments) -> None:
    for name, without_effect in (("label_smoothing_factor", 0.0), ("teacher_annealing", False), ("gold_share", 0.5)):
        if getattr(args, name) != without_effect:
            raise ValueError(
                f"{name}={getattr(args, name)} has no effect in {PROGRAM}: nothing learns from labels. Leave it "
                "out, or use columns of teachers in `train_trainer.py`."
            )


def load_texts(settings: MergeSettings, args: MTLTrainingArguments, tasks: Sequence[TaskConfig]) -> DatasetDict:
    """Reads the texts, and the true labels that there are.

    Raises:
        ValueError: If nothing is to train on, or nothing held out to measure on, or a true label is none of its task.
    """
    try:
        splits, _ = read_sources(settings, args, tasks, taught={task.name for task in tasks})
    except CellError as error:
        raise ValueError(
            f"{error.fact} The labels are those of the teacher: write true ones as it does (lists, where a text may "
            "have several), and leave out or empty those that it does not know."
        ) from error
    if "train" not in splits or len(splits) == 1:
        raise ValueError(
            f"The texts have the splits {list(splits)}, but some are to train on and others to measure on. Leave "
            "validation_fraction or test_fraction above 0, or correct `split_column`."
        )
    return splits


def merge(run: Run, teachers: Sequence[Teacher], argv: Sequence[str]) -> dict[str, Any]:
    """Trains, saves, measures and describes; returns the report."""

    def study(run: Run, results: Sequence[EvaluationResult]) -> tuple[dict[str, Any], str]:
        figures = compare(run, teachers, results)
        text = merging_section(figures, run.tasks)
        if run.trainer.is_world_process_zero():
            print(f"{text}\nIn what follows the true labels are what the teachers decide.")
        # As results of evaluation they would pass for figures against labels.
        return {"results": {}, "merging": figures}, text

    return finish(run, argv, program=PROGRAM, study=study)


def compare(run: Run, teachers: Sequence[Teacher], results: Sequence[EvaluationResult]) -> dict[str, Any]:
    """Returns how the trained model stands to its teachers, as JSON-ready values.

    Args:
        run: The run, after training.
        teachers: The teachers.
        results: The model's results on held-out splits, where labels are what teachers decide.
    """
    by_task = {teacher.tasks[0].name: teacher for teacher in teachers}
    return {
        "teachers": {
            task: {"name": _name_to_publish(teacher.name), **sizes(teacher.model)} for task, teacher in by_task.items()
        },
        "agreement": {result.split: result.to_dict()["tasks"] for result in results},
        "gold": {result.split: _against_labels(run, result.split) for result in results},
        "cost": _cost(run, teachers),
    }


def _name_to_publish(name: str) -> str:
    return Path(name).name if Path(name).is_dir() else name  # Where it lies here says nothing to others.


def _against_labels(run: Run, split: str) -> dict[str, Any]:
    dataset = run.splits[split]
    labelled = [task for task in run.tasks if gold_column(task.name) in dataset.column_names]
    if not labelled:
        return {}
    # Evaluation sees the teachers' decisions; the logits are the same.
    predictions: Any = run.trainer.predict(dataset, metric_key_prefix="_").predictions
    found = {}
    for task in labelled:
        labels = column_values(dataset, gold_column(task.name))
        says = column_values(dataset, teacher_column(task.name))  # (N, C)
        found[task.name] = {
            "teacher": metrics_of_probabilities(task, says, labels),
            "student": metrics_of_logits(task, predictions[task.name], labels),
        }
    return found


def _cost(run: Run, teachers: Sequence[Teacher]) -> dict[str, Any]:
    model = run.trainer.model
    student = Teacher("student", model.eval(), model.tokenizer, run.tasks, model.max_tokens())
    split = next(name for name in ("test", "validation") if name in run.splits)
    rows = len(run.splits[split])
    # From longest to shortest, as they are ordered by length.
    places = range(0, rows, max(1, rows // _TEXTS_OF_LATENCY))
    texts = run.splits[split].select(places)[:_TEXTS_OF_LATENCY][TEXT_COLUMN]
    calls = {
        "teachers": lambda: [teacher.says(texts) for teacher in teachers],
        "student": lambda: student.says(texts),
    }
    durations = latency_ms(calls, repeats=_LATENCY_REPEATS)
    each = [sizes(teacher.model) for teacher in teachers]
    costs: dict[str, Any] = {
        "teachers": {key: sum(cost[key] for cost in each) for key in ("parameters", "size_mib")},
        "student": sizes(model),
    }
    for who, duration in durations.items():
        costs[who]["latency_ms"] = round(duration, 3)
    costs["ratio"] = {key: round(value / costs["student"][key], 3) for key, value in costs["teachers"].items()}
    about = {"texts": len(texts), "device": str(model.device), "repeats": _LATENCY_REPEATS}
    return {**costs, "latency_of": about}


if __name__ == "__main__":
    cli()
