"""Trains, measures and saves a multi-task sentence transformer: `python train_trainer.py configs/vader.yaml`.

Settings come from a YAML file and from `--key value` on the command line, which wins.
"""

import contextlib
import dataclasses
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME

from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.calibration_report import calibration_report
from mtl.card_origin import Origin, find_origin
from mtl.checkpoints import last_complete_checkpoint
from mtl.console import metrics_table, sample_lines, sample_truths
from mtl.evaluation import EvaluationResult, evaluation_of_final_model
from mtl.interrupt import checkpoint_when_interrupted
from mtl.predictions import Predictions, predict_split
from mtl.report import build_report
from mtl.search import search
from mtl.search_space import SearchConfig
from mtl.search_summary import summary
from mtl.settings import RunSettings, parse_settings, resolve_backbone
from train_report import check_report, remove_descriptions, write_descriptions
from train_setup import (
    Run,
    calibration_of_run,
    load_model,
    prepare,
    set_up_logging,
    tasks_to_fit,
    with_thresholds_of,
)

logger = logging.getLogger("train_trainer")

PROGRAM = "train_trainer.py"
RELATED = ("The battery lasts all day.", "I can use it from morning to night on one charge.")
UNRELATED = ("The battery lasts all day.", "The senate rejected the bill on Tuesday.")
FITTED_BY = {
    "temperature": "calibration_temperature",
    "label_thresholds": "label_thresholds",
    "abstention_error_rate": "abstention_threshold",
}
"""Argument of `MTLTrainer.calibrate` -> the setting of a task that it fits."""

Ready = TypeVar("Ready")

Study = Callable[[Run, Sequence[EvaluationResult]], tuple[dict[str, Any], str]]
"""What another program measures of a trained model: figures that go over those of the report, and text of the card."""


def cli(argv: Sequence[str] | None = None) -> None:
    """Runs the program on the command line; what is wrong with settings or data ends it with its message alone."""
    argv = list(sys.argv[1:] if argv is None else argv)
    run = or_exit(PROGRAM, lambda: set_up(argv))
    with told_when_interrupted(PROGRAM, run):
        finish(run, argv)
    run.trainer.end()


@contextlib.contextmanager
def told_when_interrupted(program: str, run: Run) -> Iterator[None]:
    """Ends the program on Ctrl-C with what was saved, and how to go on from it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            how = str(interrupt)
        elif run.settings.search is not None:
            how = "The same command goes on with the trials that are missing"
        elif (checkpoint := last_complete_checkpoint(run.output_dir)) is not None:
            how = f"The same command with `--resume_from_checkpoint last` goes on from {checkpoint}"
        else:
            how = "There is no checkpoint to go on from"
        print(f"{program}: interrupted. {how}.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def or_exit(program: str, set_up: Callable[[], Ready]) -> Ready:
    """Returns what a program sets up; what is wrong with its settings or data ends it with the message alone."""
    try:
        return set_up()
    except (ImportError, OSError, ValueError, StrictDataclassError) as error:
        logger.debug("The set-up failed.", exc_info=True)  # With `--log_level debug`.
        # What checks a configuration hides the message behind the names of its own parts.
        told = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        sys.exit(f"{program}: error: {told}")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs from settings to the saved, measured model; returns the report."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return finish(set_up(argv), argv)


def set_up(argv: Sequence[str]) -> Run:
    """Reads the settings and prepares what they ask for; see `parse_settings` and `prepare`."""
    settings, args = parse_settings(argv)
    set_up_logging(args)
    check_report(settings)
    set_seed(args.seed)  # The fresh heads are drawn before the trainer sets the seed.
    return prepare(settings, args)


def finish(run: Run, argv: Sequence[str], *, program: str = PROGRAM, study: Study | None = None) -> dict[str, Any]:
    """Trains, saves, measures and describes; returns the report.

    The model is saved before it is measured, so that what fails then does not cost the training.

    Args:
        run: The run.
        argv: The command line.
        program: The program that it is of.
        study: What is measured of the trained model, and told in the card, in place of its results.
    """
    args = run.trainer.args
    if run.settings.search is not None:
        return search_settings(run)
    is_first = run.trainer.is_world_process_zero()
    # Before the training, which a card that cannot be read should not cost, and which may write over it.
    origin = find_origin(run.settings.backbone, run.settings.backbone_revision) if is_first else Origin()
    training = train(run)
    if is_first:
        remove_descriptions(run.output_dir)
    run.trainer.save_model(_internal_call=True)  # A call of the user's would push before card and report exist.
    with _told_that_it_is_saved(run):
        report = _measure_and_describe(run, [program, *argv], training, origin, study)
    if args.push_to_hub:  # In every process: a model in shards is gathered from all of them.
        run.trainer.push_to_hub(commit_message="Upload model, card and report")
    return report


@contextlib.contextmanager
def _told_that_it_is_saved(run: Run) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"The training was over, and its model is in {run.output_dir}") from None


def _measure_and_describe(
    run: Run, command: Sequence[str], training: dict[str, Any], origin: Origin, study: Study | None
) -> dict[str, Any]:
    args = run.trainer.args
    run, fitted = fit_decisions(run)
    if fitted is not None:
        run.trainer.save_model(_internal_call=True)
    results, predictions = measure(run, from_log=fitted is None and _may_read_log(run))
    report = build_report(
        args,
        tasks=run.tasks,
        settings=_as_settings(run.settings, args),
        data=_data(run),
        freezing=run.trainer.freezing,
        training=training,
        history=run.trainer.state.log_history,
        results=results,
        calibration=calibration_report(predictions),
    )
    report["chosen_on_validation"] = fitted or {}
    text = ""
    if study is not None:
        figures, text = study(run, results)
        report |= figures
    if run.trainer.is_world_process_zero():
        model = whole_model(run)
        shown = results if study is None else []
        report |= write_descriptions(run, report, shown, command, predictions, model=model, origin=origin, text=text)
        show(run, results, model)
    return report


def fit_decisions(run: Run) -> tuple[Run, dict[str, list[str]] | None]:
    """Fits the thresholds and temperatures that are to be fitted.

    Returns:
        The run with them, and the names of the tasks that have been given each, or None if nothing was to be fitted.
    """
    rejecting, wanted = [task.name for task in tasks_to_fit(run)], calibration_of_run(run)
    validation = run.splits.get("validation")
    fitted: dict[str, list[str]] = {}
    if rejecting:
        acceptance = run.settings.rejection_acceptance
        found = run.trainer.fit_rejection(validation, acceptance=acceptance, task_names=rejecting)
        fitted["rejection_threshold"] = list(found)
    calibrated = run.trainer.calibrate(validation, **wanted)
    for argument, key in FITTED_BY.items():
        fitted[key] = [name for name in wanted[argument] if getattr(calibrated[name], key) is not None]
    run = dataclasses.replace(run, tasks=with_thresholds_of(run.trainer, run.tasks))
    return run, {key: names for key, names in fitted.items() if names} if rejecting or calibrated else None


def _may_read_log(run: Run) -> bool:
    # The log of a resumed run may hold evaluations of an earlier process, on other data; that of a run with an adapter
    # those of the model before the adapter was merged; any log those at the thresholds before a fit. And one split is
    # run over, for the evidence.
    args = run.trainer.args
    return not args.resume_from_checkpoint and args.peft is None and "test" in run.splits


def train(run: Run) -> dict[str, Any]:
    """Trains, from the last complete checkpoint if asked to; without anything to train, only says so."""
    if run.trainer.freezing.num_trainable == 0:
        logger.warning("freeze=%s: nothing trains, the model is only evaluated.", run.trainer.freezing.setting)
        return {}
    if run.trainer.args.resume_from_checkpoint:
        logger.info("Resuming from %s.", run.checkpoint or "the start: there is no complete checkpoint yet")
    begun = _steps_before(run.checkpoint)  # Of which `save_total_limit` may leave nothing.
    started = time.perf_counter()
    with checkpoint_when_interrupted(run.trainer):
        output = run.trainer.train(resume_from_checkpoint=run.checkpoint)
    args = run.trainer.args
    return {
        **output.metrics,
        **({"resumed_at_step": begun} if begun else {}),
        "steps": output.global_step,
        "epochs": run.trainer.state.epoch,
        "num_processes": args.world_size,
        "effective_batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


def _steps_before(checkpoint: str | None) -> int:
    return (
        0 if checkpoint is None else TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME))).global_step
    )


def search_settings(run: Run) -> dict[str, Any]:
    """Searches learning rates and task weights instead of training once; returns the trials, see `mtl.search`."""
    path = resolve_backbone(run.settings.backbone)
    config = SearchConfig.from_dict(run.settings.search or {})
    results = search(run.trainer, lambda tasks: load_model(run.settings, path, tuple(tasks)), config, tasks=run.tasks)
    print(f"\n{summary(results)}\nAll trials and the pictures are in {run.output_dir}.")
    return results


def measure(run: Run, *, from_log: bool) -> tuple[list[EvaluationResult], list[Predictions]]:
    """Returns the results on validation and test, and what the model says of the splits that it was run over.

    Args:
        run: The run, after training.
        from_log: Whether the log may have measured this very model on validation, which then is not run over again.
    """
    results, predictions = [], []
    for split in ("validation", "test"):
        if split not in run.splits:
            continue
        arguments = (run.trainer, run.splits[split], split, run.tasks)
        known = evaluation_of_final_model(*arguments) if from_log and split == "validation" else None
        if known is None:
            predictions.append(predict_split(*arguments))
        results.append(known or predictions[-1].result)
    return results, predictions


def whole_model(run: Run) -> MTLModel:
    """Returns the trained model; one in shards cannot be called by one process alone, but what it has saved can."""
    return MTLModel.from_pretrained(run.output_dir) if run.trainer.is_fsdp_enabled else run.trainer.model


def show(run: Run, results: Sequence[EvaluationResult], model: MTLModel) -> None:
    """Prints the results, some predictions by name, and what similarity looks like."""
    for result in results:
        print(metrics_table(f"\n{result.split}: score {result.score:.4f}, {result.num_rows:,} rows", result.metrics))
    split = results[-1].split if results else "train"
    count = min(run.settings.num_samples, len(run.splits[split]))
    rows = list(run.splits[split].shuffle(seed=run.trainer.args.seed).select(range(count)))
    print(f"\n{count} sentences of {split}:")
    print(sample_lines(model, rows, sample_truths(rows, run.tasks, run.settings.source_configs())))
    print("\nCosine similarity of the embeddings:")
    for kind, pair in (("related", RELATED), ("unrelated", UNRELATED)):
        first, second = model.encode(list(pair))
        print(f"  {kind:<10} {float(first @ second):+.3f}  {pair[0]!r} / {pair[1]!r}")


def _data(run: Run) -> dict[str, Any]:
    rows = {name: len(split) for name, split in run.splits.items()}
    return {"rows": rows, "truncated": run.truncated, "max_length": run.trainer.model.max_tokens()}


def _as_settings(settings: RunSettings, args: MTLTrainingArguments) -> dict[str, Any]:
    # The token, if there is one, is masked by `to_sanitized_dict`'s source, `to_dict`.
    return {**json.loads(args.to_json_string()), **dataclasses.asdict(settings)}


if __name__ == "__main__":
    cli()
