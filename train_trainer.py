"""Trains, measures and saves a multi-task sentence transformer: `python train_trainer.py configs/vader.yaml`.

Settings come from a YAML file and from `--key value` on the command line, which wins.
"""

import dataclasses
import json
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from transformers import AutoConfig, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging as transformers_logging

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel, set_dropout
from mtl.arguments import MTLTrainingArguments
from mtl.card import build_card
from mtl.checkpoints import head_meaning, last_complete_checkpoint
from mtl.console import ProgressReport, metrics_table, sample_lines, true_labels
from mtl.data import SourceConfig, load_sources, row_texts, tokenize_splits
from mtl.evaluation import EvaluationResult, evaluate_split, evaluation_of_final_model
from mtl.rejection import check_rejection_data, rejects
from mtl.report import build_report, write_report
from mtl.search import SearchConfig, search, summary
from mtl.settings import (
    DEFAULT_MAX_LENGTH,
    EMBEDDED_BACKBONE,
    EMBEDDED_BACKBONE_NAME,
    RunSettings,
    parse_settings,
    resolve_backbone,
)
from mtl.trainer import MTLTrainer

logger = logging.getLogger("train_trainer")

CARD, REPORT = "README.md", "report.json"
RELATED = ("The battery lasts all day.", "I can use it from morning to night on one charge.")
UNRELATED = ("The battery lasts all day.", "The senate rejected the bill on Tuesday.")


@dataclass(frozen=True)
class Run:
    """A run's parts, ready to train.

    Args:
        settings: What is trained on what.
        trainer: The trainer, with model, data and the settings of training.
        splits: The tokenised splits.
        tasks: The tasks, with their labels.
        truncated: Count of texts cut at the limit, by split.
    """

    settings: RunSettings
    trainer: MTLTrainer
    splits: DatasetDict
    tasks: tuple[TaskConfig, ...]
    truncated: dict[str, int]

    @property
    def output_dir(self) -> Path:
        """Where the run writes."""
        return Path(str(self.trainer.args.output_dir))


def cli() -> None:
    """Runs the program on the command line; what is wrong with settings or data ends it with its message alone."""
    argv = sys.argv[1:]
    try:
        run = set_up(argv)
    except (ImportError, OSError, ValueError) as error:
        logger.debug("The set-up failed.", exc_info=True)  # With `--log_level debug`.
        sys.exit(f"train_trainer.py: error: {error}")
    finish(run, argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs from settings to the saved, measured model; returns the report."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return finish(set_up(argv), argv)


def set_up(argv: Sequence[str]) -> Run:
    """Reads the settings and prepares what they ask for; see `parse_settings` and `prepare`."""
    settings, args = parse_settings(argv)
    _set_up_logging(args)
    set_seed(args.seed)  # The fresh heads are drawn before the trainer sets the seed.
    return prepare(settings, args)


def finish(run: Run, argv: Sequence[str]) -> dict[str, Any]:
    """Trains, saves, measures and describes; returns the report.

    The model is saved before it is measured, so that what fails then does not cost the training.
    """
    args = run.trainer.args
    if run.settings.search is not None:
        return search_settings(run)
    training = train(run)
    if run.trainer.is_world_process_zero():
        for name in (CARD, REPORT):  # Those of an earlier run would speak of another model.
            (run.output_dir / name).unlink(missing_ok=True)
    run.trainer.save_model(_internal_call=True)  # A call of the user's would push before card and report exist.
    run, fitted = fit_thresholds(run)
    if fitted:
        run.trainer.save_model(_internal_call=True)
    # The log of a resumed run may hold evaluations of an earlier process, on other data; that of a run with an adapter
    # those of the model before the adapter was merged, and any log those at the thresholds before the fit.
    results = measure(run, from_log=not args.resume_from_checkpoint and args.peft is None and not fitted)
    report = build_report(
        args,
        tasks=run.tasks,
        settings=_as_settings(run.settings, args),
        data={"rows": {name: len(split) for name, split in run.splits.items()}, "truncated": run.truncated},
        freezing=run.trainer.freezing,
        training=training,
        history=run.trainer.state.log_history,
        results=results,
    )
    if run.trainer.is_world_process_zero():
        describe(run, report, results, argv)
        show(run, results)
        if args.push_to_hub:
            run.trainer.push_to_hub(commit_message="Upload model, card and report")
    return report


def prepare(settings: RunSettings, args: MTLTrainingArguments) -> Run:
    """Loads the data and the model and puts them into a trainer."""
    path = resolve_backbone(settings.backbone)
    base_dir = Path(settings.data_dir) if settings.data_dir is not None else Path()
    splits, tasks = load_sources(
        [SourceConfig.from_dict(source) for source in settings.sources],
        settings.task_configs(),
        base_dir=base_dir,
        seed=args.seed,
        validation_fraction=settings.validation_fraction,
        test_fraction=settings.test_fraction,
        drop_empty=settings.drop_empty,
        drop_overlap=settings.drop_overlap,
    )
    model = load_model(settings, path, tasks)
    limit = model.max_tokens() or DEFAULT_MAX_LENGTH
    if settings.max_length is not None and settings.max_length > limit:
        raise ValueError(
            f"max_length is {settings.max_length} tokens, but {path!r} takes at most {limit}. Set `max_length: "
            f"{limit}`."
        )
    splits, truncated = tokenize_splits(splits, model.tokenizer, max_length=limit, keep_text=True)
    trainer = MTLTrainer(
        model,
        args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
    )
    if not args.disable_tqdm:
        _replace_progress(trainer, tasks)
    run = Run(settings, trainer, splits, trainer.tasks, truncated)
    if settings.search is None:  # A search fits no threshold.
        check_rejection_data(_tasks_to_fit(run), splits.get("validation"), settings.rejection_acceptance)
    return run


def _tasks_to_fit(run: Run) -> list[TaskConfig]:
    """Returns the tasks whose rejection thresholds are to be fitted; see `RunSettings.fit_rejection`."""
    given = {task.name for task in run.settings.task_configs() if task.rejection_threshold is not None}
    trains = run.trainer.freezing.num_trainable > 0
    return [
        task
        for task in run.trainer.tasks
        if rejects(task) and task.name not in given
        if (run.settings.fit_rejection is None and (trains or task.rejection_threshold is None))
        or run.settings.fit_rejection
    ]


def fit_thresholds(run: Run) -> tuple[Run, bool]:
    """Fits the rejection thresholds that are to be fitted; returns the run with them, and whether there are any."""
    names = [task.name for task in _tasks_to_fit(run)]
    if not names:
        return run, False
    acceptance = run.settings.rejection_acceptance
    run.trainer.fit_rejection(run.splits["validation"], acceptance=acceptance, task_names=names)
    return dataclasses.replace(run, tasks=run.trainer.tasks), True


def load_model(settings: RunSettings, path: str, tasks: tuple[TaskConfig, ...]) -> MTLModel:
    """Loads a saved multi-task model with the same tasks, or puts fresh heads on a plain encoder.

    Raises:
        OSError: If there is no such folder, and no such repository can be read.
        ValueError: If a saved model has other tasks, pooling or normalisation than the settings.
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
        return _load_saved(settings, path, tasks, config)
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


def _load_saved(settings: RunSettings, path: str, tasks: tuple[TaskConfig, ...], config: Any) -> MTLModel:
    """Loads a saved model; the settings may change how it trains, but not what its heads mean."""
    saved_heads, wanted_heads = (
        {task.name: head_meaning(task.to_dict()) for task in some if task.has_head} for some in (config.tasks, tasks)
    )
    if saved_heads != wanted_heads:
        raise ValueError(
            f"The model {path!r} has the heads {saved_heads}, the settings ask for {wanted_heads}. Set them alike."
        )
    for name in ("pooling", "normalize_for_heads"):
        saved, wanted = getattr(config, name), getattr(settings, name)
        if saved != wanted:
            raise ValueError(
                f"The model {path!r} was trained with {name}={saved!r}, the settings ask for {wanted!r}. Set `{name}: "
                f"{saved}`."
            )
    config.tasks = _with_settings_of(config.tasks, tasks)
    config.head_dropout = settings.head_dropout
    if settings.max_length is not None:
        config.max_seq_length = settings.max_length
    if settings.backbone_dropout is not None:
        set_dropout(config.text_config, settings.backbone_dropout)
    return MTLModel.from_pretrained(
        path,
        config=config,
        revision=settings.backbone_revision or "main",
        trust_remote_code=settings.trust_remote_code,
    )


def _with_settings_of(saved: Sequence[TaskConfig], wanted: Sequence[TaskConfig]) -> list[TaskConfig]:
    """Returns the saved heads as the settings want them trained, in their order, then the tasks without a head."""
    by_name = {task.name: task for task in wanted}
    heads = [_with_settings(task, by_name[task.name]) for task in saved if task.has_head]
    return heads + [task for task in wanted if not task.has_head]


def _with_settings(saved: TaskConfig, wanted: TaskConfig) -> TaskConfig:
    """Returns a saved head as the settings want it trained; a fitted threshold stays unless it means another thing."""
    keys = ("out_of_scope_label", "rejection_score")
    is_same = all(getattr(saved, key) == getattr(wanted, key) for key in keys)
    if wanted.rejection_threshold is None and is_same:
        wanted = dataclasses.replace(wanted, rejection_threshold=saved.rejection_threshold)
    settings = ("weight", "label_smoothing", *keys, "rejection_threshold")
    return dataclasses.replace(saved, **{key: getattr(wanted, key) for key in settings})


def train(run: Run) -> dict[str, Any]:
    """Trains, from the last complete checkpoint if asked to; without anything to train, only says so."""
    if run.trainer.freezing.num_trainable == 0:
        logger.warning("freeze=%s: nothing trains, the model is only evaluated.", run.trainer.freezing.setting)
        return {}
    resume = run.trainer.args.resume_from_checkpoint
    if resume in (True, "true", "True", "last"):
        resume = last_complete_checkpoint(run.output_dir)
        logger.info("Resuming from %s.", resume or "the start: there is no complete checkpoint yet")
    started = time.perf_counter()
    output = run.trainer.train(resume_from_checkpoint=resume)
    return {**output.metrics, "steps": output.global_step, "wall_seconds": round(time.perf_counter() - started, 1)}


def search_settings(run: Run) -> dict[str, Any]:
    """Searches learning rates and task weights instead of training once; returns the trials, see `mtl.search`."""
    path = resolve_backbone(run.settings.backbone)
    config = SearchConfig.from_dict(run.settings.search or {})
    results = search(run.trainer, lambda tasks: load_model(run.settings, path, tuple(tasks)), config)
    print(f"\n{summary(results)}\nAll trials and the pictures are in {run.output_dir}.")
    return results


def measure(run: Run, *, from_log: bool) -> list[EvaluationResult]:
    """Returns the results on validation, from the log if that may have measured this very model, and on test."""
    results = []
    if "validation" in run.splits:
        arguments = (run.trainer, run.splits["validation"], "validation", run.tasks)
        known = evaluation_of_final_model(*arguments) if from_log else None
        results.append(known or evaluate_split(*arguments))
    if "test" in run.splits:
        results.append(evaluate_split(run.trainer, run.splits["test"], "test", run.tasks))
    return results


def show(run: Run, results: Sequence[EvaluationResult]) -> None:
    """Prints the results, some predictions by name, and what similarity looks like."""
    model = run.trainer.model
    for result in results:
        print(metrics_table(f"\n{result.split}: score {result.score:.4f}, {result.num_rows:,} rows", result.metrics))
    split = results[-1].split if results else "train"
    count = min(run.settings.num_samples, len(run.splits[split]))
    rows = run.splits[split].shuffle(seed=run.trainer.args.seed).select(range(count))
    print(f"\n{count} sentences of {split}:")
    print(sample_lines(model, row_texts(rows[:]), [true_labels(row, run.tasks) for row in rows]))
    print("\nCosine similarity of the embeddings:")
    for kind, pair in (("related", RELATED), ("unrelated", UNRELATED)):
        first, second = model.encode(list(pair))
        print(f"  {kind:<10} {float(first @ second):+.3f}  {pair[0]!r} / {pair[1]!r}")


def describe(run: Run, report: dict[str, Any], results: Sequence[EvaluationResult], argv: Sequence[str]) -> None:
    """Writes `report.json` and the model card with the figures, beside the model."""
    output, settings = run.output_dir, run.settings
    write_report(report, output / REPORT)
    card = build_card(
        run.trainer.model.config,
        name=run.trainer.args.hub_model_id or output.name,
        base_model=_hub_name(settings.backbone),
        license=settings.license,
        language=settings.language,
        datasets=[str(SourceConfig.from_dict(source).name) for source in settings.sources],
        results=results,
        report=report,
        command=shlex.join(["python", "train_trainer.py", *without_tokens(argv)]),
    )
    card.save(output / CARD)
    print(f"\nSaved to {output}: the model with its code, {REPORT}, and the card in {CARD}.")


def without_tokens(argv: Sequence[str]) -> list[str]:
    """Returns a command line as it may be published: the values of options such as `--hub_token` are masked."""
    shown: list[str] = []
    for word in argv:
        name, equals, _ = word.partition("=")
        if shown and _is_token(shown[-1]):
            shown.append("<token>")
        else:
            shown.append(f"{name}=<token>" if equals and _is_token(name) else word)
    return shown


def _is_token(option: str) -> bool:
    return option.startswith("--") and option.endswith("token")


def _hub_name(backbone: str) -> str | None:
    if backbone == EMBEDDED_BACKBONE:
        return EMBEDDED_BACKBONE_NAME
    return None if Path(backbone).is_dir() else backbone


def _set_up_logging(args: MTLTrainingArguments) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    for name in ("train_trainer", "mtl"):
        logging.getLogger(name).setLevel(args.get_process_log_level() if args.log_level != "passive" else logging.INFO)
    transformers_logging.set_verbosity_error()  # Its load report lists the pooler that is left out on purpose.


def _as_settings(settings: RunSettings, args: MTLTrainingArguments) -> dict[str, Any]:
    # The token, if there is one, is masked by `to_sanitized_dict`'s source, `to_dict`.
    return {**json.loads(args.to_json_string()), **dataclasses.asdict(settings)}


def _replace_progress(trainer: MTLTrainer, tasks: Sequence[TaskConfig]) -> None:
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)
    trainer.add_callback(ProgressReport(tasks))


if __name__ == "__main__":
    cli()
