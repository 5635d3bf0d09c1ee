"""Sets a comparison up: reads the data once, plans the parts, and refuses what cannot be compared."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import DatasetDict
from transformers import AutoConfig, set_seed

from configuration_mtl import MTLConfig, TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.commands.compare_run import Comparison, check_part
from mtl.comparison_parts import labelled_rows, with_places
from mtl.comparison_plan import MULTI, PROBE, Budget, plan_parts
from mtl.comparison_settings import PROGRAM, CompareSettings, check_training
from mtl.content_keys import key_of_weights
from mtl.settings import parse_settings_of, resolve_backbone
from train_setup import Run, assemble, read_data, set_up_logging

_MOST_SHOWN = 3


def set_up(argv: Sequence[str]) -> Comparison:
    """Reads settings and data, and checks every part.

    Raises:
        ValueError: If something cannot be compared, or the folder holds parts of other settings.
    """
    settings, args = parse_settings_of(CompareSettings, argv, program=PROGRAM)
    set_up_logging(args)
    check_training(args)
    splits, tasks = read_data(settings, args)
    compared = _compared(settings, args, splits, tasks)
    splits = with_places(splits)
    budget, encoder = _of_multi_task_run(settings, argv, splits, tasks)
    _check_start(settings, tasks)
    names, chosen = ([task.name for task in some] for some in (tasks, compared))
    parts = plan_parts(names, chosen, settings.seeds, pairs=settings.pairs, probe=settings.probe)
    comparison = Comparison(
        tuple(argv), settings, args, _output_dir(argv, args), splits, tasks, compared, encoder, budget, tuple(parts)
    )
    _check_folders(comparison)
    kinds = {(part.kind, part.tasks): part for part in reversed(parts) if part.kind not in (MULTI, PROBE)}
    for part in kinds.values():
        check_part(comparison, part)
    return comparison


def _output_dir(argv: Sequence[str], args: MTLTrainingArguments) -> Path:
    """Returns the folder that is asked for, or one beside that of the settings file, which is of a training."""
    is_typed = any(word.split("=")[0].replace("-", "_") == "__output_dir" for word in argv)
    return Path(str(args.output_dir) if is_typed else f"{args.output_dir}-compare")


def _compared(
    settings: CompareSettings, args: MTLTrainingArguments, splits: DatasetDict, tasks: Sequence[TaskConfig]
) -> tuple[TaskConfig, ...]:
    """Returns the tasks that have a label in test; the others are trained along in the multi-task model."""
    for split in ("train", "test"):
        if split not in splits:
            raise ValueError(
                f"There is no split {split!r} (found {list(splits)}), and {PROGRAM} trains, and measures on test. "
                "Give it in a source, or leave test_fraction above 0."
            )
    counts = {name: _label_counts(some, tasks) for name, some in splits.items()}
    compared = tuple(task for task in tasks if counts["test"][task.name])
    if not compared:
        raise ValueError("No task has a label in split 'test', so nothing can be compared. Fill a column.")
    for task in compared:
        settings.metric_of(task)
        if not counts.get("validation", {}).get(task.name):
            needs = [f"eval_strategy={args.eval_strategy}"] if args.eval_strategy != "no" else []
            needs += ["probe=True"] if settings.probe and task.has_head else []
            if needs:
                raise ValueError(
                    f"Task {task.name!r} has no label in split 'validation', but {' and '.join(needs)} asks for some. "
                    "Fill its column, or set `eval_strategy: no` and `probe: false`."
                )
    return compared


def _label_counts(dataset: DatasetDict, tasks: Sequence[TaskConfig]) -> Mapping[str, int]:
    table = dataset.with_format("arrow")[:]
    return {task.name: int(labelled_rows(table, task, with_loss=True).sum()) for task in tasks}


def _of_multi_task_run(
    settings: CompareSettings, argv: Sequence[str], splits: DatasetDict, tasks: tuple[TaskConfig, ...]
) -> tuple[Budget, str]:
    """Sets the multi-task run up and drops it; returns how long it trains, and the key of the untuned encoder."""
    with tempfile.TemporaryDirectory() as scratch:
        _, args = parse_settings_of(CompareSettings, [*argv, "--output_dir", scratch], program=PROGRAM)
        set_seed(args.seed)
        run = assemble(settings.of_part(tasks), args, splits, tasks)
        if run.trainer.freezing.num_trainable == 0:
            raise ValueError(f"freeze={args.freeze!r}: nothing trains, so there is nothing to compare. Unfreeze some.")
        return _budget(run), key_of_weights(run.trainer.model.backbone)


def _budget(run: Run) -> Budget:
    args = run.trainer.args
    accumulation = args.gradient_accumulation_steps
    steps_per_epoch = max(1, math.ceil(len(run.trainer.get_train_dataloader()) / accumulation))
    max_steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    if max_steps < 1:
        raise ValueError(f"num_train_epochs={args.num_train_epochs} is no training. Set it, or max_steps, above 0.")
    return Budget(max_steps, steps_per_epoch, args.train_batch_size * accumulation)


def _check_start(settings: CompareSettings, tasks: Sequence[TaskConfig]) -> None:
    path, trust = resolve_backbone(settings.backbone), settings.trust_remote_code
    config = AutoConfig.from_pretrained(path, revision=settings.backbone_revision, trust_remote_code=trust)
    saved = config.task_names if config.model_type == MTLConfig.model_type else []
    if known := [task.name for task in tasks if task.name in saved]:
        raise ValueError(
            f"backbone {settings.backbone!r} has learned the tasks {known} already, so a model of one of them would "
            "start from what it shares with the others. Start from an encoder that has not seen them."
        )


def _check_folders(comparison: Comparison) -> None:
    if comparison.settings.overwrite:
        return
    for part in comparison.parts:
        folder = comparison.folder(part)
        if other := folder.other_settings(comparison.fingerprint(part)):
            more = f" and {len(other) - _MOST_SHOWN} more" if len(other) > _MOST_SHOWN else ""
            raise ValueError(
                f"{str(folder.path)!r} is of other settings, data or releases: {'; '.join(other[:_MOST_SHOWN])}{more}."
                " Give another --output_dir, or --overwrite to train such parts anew."
            )
