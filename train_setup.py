"""Sets a training up: from settings to the trainer with model and data, with what can be refused before any work."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import AutoConfig
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging as transformers_logging

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.calibration_plans import check_calibration_data, check_wanted_of_run, make_plans, wanted_of_run
from mtl.checkpoints import check_checkpoint, check_same_run, last_complete_checkpoint
from mtl.console import ProgressReport
from mtl.data import load_sources, tokenize_splits
from mtl.rejection import check_rejection_data, rejects
from mtl.saved_models import freeze_other_heads, load_saved
from mtl.search import check_search
from mtl.search_space import SearchConfig
from mtl.settings import DEFAULT_MAX_LENGTH, RunSettings, resolve_backbone
from mtl.teachers import completed_tasks, load_mtl_teacher, taught_tasks, with_teachers
from mtl.trainer import MTLTrainer

logger = logging.getLogger("train_setup")

_LAST = (True, "true", "True", "last")
"""Values of `resume_from_checkpoint` that name no folder."""


@dataclass(frozen=True)
class Run:
    """A run's parts, ready to train.

    Args:
        settings: What is trained on what.
        trainer: The trainer, with model, data and the settings of training.
        splits: The tokenised splits.
        tasks: The tasks, with their labels.
        truncated: Count of texts cut at the limit, by split.
        checkpoint: Folder of the checkpoint that it goes on from; None if it begins anew.
    """

    settings: RunSettings
    trainer: MTLTrainer
    splits: DatasetDict
    tasks: tuple[TaskConfig, ...]
    truncated: dict[str, int]
    checkpoint: str | None

    @property
    def output_dir(self) -> Path:
        """Where the run writes."""
        return Path(str(self.trainer.args.output_dir))


def prepare(settings: RunSettings, args: MTLTrainingArguments) -> Run:
    """Loads the data and the model and puts them into a trainer."""
    if args.resume_from_checkpoint and args.resume_from_checkpoint not in _LAST:
        check_checkpoint(args.resume_from_checkpoint)
    return assemble(settings, args, *read_data(settings, args))


def read_data(settings: RunSettings, args: MTLTrainingArguments) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Reads the sources, with what the teachers say of train; returns splits, not yet tokenised, and the tasks."""
    resolve_backbone(settings.backbone)  # A package that is missing is told before anything is read.
    teachers = [
        load_mtl_teacher(name, trust_remote_code=settings.trust_remote_code, device=args.device)
        for name in settings.teacher
    ]
    labelled = {name for source in settings.source_configs() for name in source.labels}
    tasks = completed_tasks(settings.task_configs(), teachers, labelled)
    splits, tasks = read_sources(settings, args, tasks, taught=taught_tasks(tasks, teachers))
    if teachers and "train" in splits:
        with args.main_process_first(desc="what teachers say"):
            splits["train"] = with_teachers(splits["train"], tasks, teachers)
    return splits, tasks


def read_sources(
    settings: RunSettings, args: MTLTrainingArguments, tasks: Sequence[TaskConfig], *, taught: Collection[str]
) -> tuple[DatasetDict, tuple[TaskConfig, ...]]:
    """Reads the sources of the settings; see `load_sources`, also for `taught` and for what is raised."""
    # One process a machine reads and tokenizes; the others then find it in the cache.
    with args.main_process_first(desc="reading the sources"):
        return load_sources(
            settings.source_configs(),
            tasks,
            base_dir=settings.data_dir,
            seed=settings.split_seed,
            validation_fraction=settings.validation_fraction,
            test_fraction=settings.test_fraction,
            drop_empty=settings.drop_empty,
            drop_overlap=settings.drop_overlap,
            taught=taught,
        )


def assemble(
    settings: RunSettings, args: MTLTrainingArguments, splits: DatasetDict, tasks: tuple[TaskConfig, ...]
) -> Run:
    """Loads the model and puts it and the data, not yet tokenised, into a trainer."""
    path = resolve_backbone(settings.backbone)
    model = load_model(settings, path, tasks)
    limit = model.max_tokens() or DEFAULT_MAX_LENGTH
    if settings.max_length is not None and settings.max_length > limit:
        raise ValueError(
            f"max_length is {settings.max_length} tokens, but {path!r} takes at most {limit}. Set `max_length: "
            f"{limit}`."
        )
    others = [name for name in model.config.task_names if name not in {task.name for task in tasks}]
    if others:
        freeze_other_heads(args, others)
    with args.main_process_first(desc="tokenizing"):
        splits, truncated = tokenize_splits(splits, model.tokenizer, max_length=limit, keep_text=True)
    trainer = MTLTrainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
    )
    if others and "backbone" not in trainer.freezing.modules and trainer.freezing.num_trainable:
        logger.warning(
            "The heads of %s stay, but the encoder below them moves, and no labels of theirs hold it: their results "
            "will change. `freeze: backbone` keeps them.",
            others,
        )
    if not args.disable_tqdm:
        _replace_progress(trainer, tasks)
    checkpoint = args.resume_from_checkpoint
    if checkpoint in _LAST:
        checkpoint = last_complete_checkpoint(str(args.output_dir))
    run = Run(settings, trainer, splits, with_thresholds_of(trainer, tasks), truncated, checkpoint)
    _check_before_work(run)
    return run


def _check_before_work(run: Run) -> None:
    """Refuses what would otherwise end a search or a training after much has been set up, or at its end."""
    settings = run.settings
    if settings.search is not None:  # It fits no threshold, and finds by itself what to go on from.
        check_search(run.trainer, SearchConfig.from_dict(settings.search), run.tasks)
        return
    if run.checkpoint is not None:
        check_same_run(run.checkpoint, run.trainer.model.config, run.trainer.args)
    to_fit = tasks_to_fit(run)
    if settings.fit_rejection and not to_fit:
        raise ValueError(
            "fit_rejection=True has no effect: no task has an `out_of_scope_label` without a "
            "`rejection_threshold` of the settings. Give a task one, or leave it out."
        )
    check_rejection_data(to_fit, run.splits.get("validation"), settings.rejection_acceptance)
    check_wanted_of_run(settings, run.tasks, **_chances(run))
    check_calibration_data(make_plans(run.tasks, **calibration_of_run(run)), run.splits.get("validation"))


def tasks_to_fit(run: Run) -> list[TaskConfig]:
    """Returns the tasks whose rejection thresholds are to be fitted; see `RunSettings.fit_rejection`."""
    given = {task.name for task in run.settings.task_configs() if task.rejection_threshold is not None}
    trains = run.trainer.freezing.num_trainable > 0
    return [
        task
        for task in run.tasks
        if rejects(task) and task.name not in given
        if (run.settings.fit_rejection is None and (trains or task.rejection_threshold is None))
        or run.settings.fit_rejection
    ]


def calibration_of_run(run: Run) -> dict[str, Any]:
    """Returns what is to be calibrated, as arguments of `MTLTrainer.calibrate`; see `wanted_of_run`."""
    return wanted_of_run(run.settings, run.tasks, **_chances(run))


def _chances(run: Run) -> dict[str, bool]:
    return {"trains": run.trainer.freezing.num_trainable > 0, "has_validation": "validation" in run.splits}


def with_thresholds_of(trainer: MTLTrainer, tasks: Sequence[TaskConfig]) -> tuple[TaskConfig, ...]:
    """Returns the tasks as the trainer's model has them, which may have others too."""
    known = {task.name: task for task in trainer.tasks}
    return tuple(known[task.name] for task in tasks)


def load_model(settings: RunSettings, path: str, tasks: tuple[TaskConfig, ...]) -> MTLModel:
    """Loads a saved multi-task model, with a fresh head for each new task, or puts heads on a plain encoder.

    Raises:
        OSError: If there is no such folder, and no such repository can be read.
        ValueError: If a saved model has tasks that the settings do not name or that mean something else there, or
            another pooling or normalisation.
    """
    revision, trust = settings.backbone_revision, settings.trust_remote_code
    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust)
    except OSError as error:
        raise OSError(
            f"backbone {path!r}: there is no such folder in {str(Path.cwd())!r}, and the Hub did not give it either. "
            "A model of your own has to be trained first (`make train` leaves one in outputs/vader). "
            f"The Hub's answer: {error}"
        ) from error
    if config.model_type == MTLConfig.model_type:
        return load_saved(settings, path, tasks, config)
    return MTLModel.from_backbone(
        path,
        tasks=tasks,
        backbone_dropout=settings.backbone_dropout,
        pooling=settings.pooling,
        normalize_for_heads=settings.normalize_for_heads,
        head_dropout=settings.head_dropout,
        max_seq_length=DEFAULT_MAX_LENGTH if settings.max_length is None else settings.max_length,
        revision=revision,
        trust_remote_code=trust,
    )


def set_up_logging(args: MTLTrainingArguments) -> None:
    """Lets the program and its modules tell what they do, and transformers only errors."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    level = logging.INFO if args.should_log and args.log_level == "passive" else args.get_process_log_level()
    for name in ("train_trainer", "train_setup", "train_report", "merge_models", "mtl"):
        logging.getLogger(name).setLevel(level)
    transformers_logging.set_verbosity_error()  # Its load report lists the pooler that is left out on purpose.


def _replace_progress(trainer: MTLTrainer, tasks: Sequence[TaskConfig]) -> None:
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(ProgressReport(tasks))
