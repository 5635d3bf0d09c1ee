"""What a model card says of the training: how long and on what, with which settings, and what follows for its use."""

from collections.abc import Sequence
from typing import Any

from configuration_mtl import MTLConfig
from mtl.calibration_report import calibration_limits
from mtl.freeze_schedule import FreezeSchedule
from mtl.markdown import cell, code_block, literal

_ALWAYS = (
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate",
    "head_learning_rate", "lr_scheduler_type", "warmup_steps", "adam_beta2", "weight_decay", "weighting",
    "train_sampling_strategy", "freeze", "freeze_schedule", "peft", "layer_decay", "average_weights",
    "backbone_dropout", "label_smoothing_factor", "head_dropout", "max_length", "seed",
)  # fmt: skip
_IF_SET = (
    "aggregation", "mixture", "homogeneous_batches", "teacher", "distillation_temperature", "gold_share",
    "teacher_annealing", "preserve_embeddings", "early_stopping_patience",
)  # fmt: skip
"""Settings of training that the card shows."""


def training_section(report: dict[str, Any], datasets: Sequence[str], command: str) -> str:
    """Formats what was trained on what.

    Args:
        report: The report of the run, see `mtl.report`.
        datasets: Names of the sources.
        command: The command that trained the model.
    """
    rows = ", ".join(f"{split} {count:,}" for split, count in _of_splits(report, "rows").items())
    if _has_trained(report):
        lines = "\n".join(f"| {key} | {cell(literal(value))} |" for key, value in _shown_settings(report).items())
        did, shown = _duration(report), f"| setting | value |\n|---|---|\n{lines}\n\n"
    else:
        did, shown = f"Nothing was trained, the model was measured in {report['precision']}.", ""
    data = ", ".join(map(literal, datasets))
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    return (
        f"## Training\n\n{code_block(command, 'bash')}\n\nData: {data}; rows: {rows}.\n\n{did}\n\n"
        f"{shown}Versions: {versions}.\n"
    )


def limits_section(config: MTLConfig, report: dict[str, Any]) -> str:
    """Formats what to keep in mind.

    Args:
        config: The model's configuration.
        report: The report of the run.
    """
    truncated, rows = (sum(_of_splits(report, key).values()) for key in ("truncated", "rows"))
    max_length = report["data"]["max_length"]
    limit = "the tokenizer's limit" if max_length is None else f"{max_length} tokens"
    scores = "".join(f"{line}\n" for line in calibration_limits(config.tasks))
    return (
        "## Limits\n\n"
        f"- Texts are cut at {limit}; of the {rows:,} rows of the data above {truncated:,} texts were longer.\n"
        f"{scores}"
        "- The figures hold for data like that named above; other text may fare worse.\n"
    )


def _has_trained(report: dict[str, Any]) -> bool:
    return report["training"].get("train_runtime") is not None


def _of_splits(report: dict[str, Any], key: str) -> dict[str, int]:
    """Returns a count of the data by split; without a training that of train says nothing of the model."""
    counts: dict[str, int] = report["data"][key]
    return {split: count for split, count in counts.items() if split != "train" or _has_trained(report)}


def _duration(report: dict[str, Any]) -> str:
    training, parameters = report["training"], report["parameters"]
    processes = training["num_processes"]
    where = "" if processes == 1 else f" in {processes} processes"
    begun = training.get("resumed_at_step", 0)
    since = f" from step {begun:,} on, where it was resumed" if begun else ""
    return (
        f"Training took {training['train_runtime']:.0f} s{since}{where}: {training['steps']:,} steps of "
        f"{training['effective_batch_size']:,} rows, {training['epochs']:.3g} epochs, in {report['precision']}, with "
        f"{parameters['trained']:,} of {parameters['total']:,} parameters learning{_when(report)}."
    )


def _when(report: dict[str, Any]) -> str:
    given = report["settings"].get("freeze_schedule")
    if given is None:
        return ""
    phases = FreezeSchedule.parse(given).phases
    unreached = [f"{epoch:g}" for epoch, _ in phases if epoch >= report["training"]["epochs"]]
    never = f"; those from epoch {unreached[0]} on, which it did not reach, are counted too" if unreached else ""
    return f" in at least one phase of `freeze_schedule`, fewer at a time{never}"


def _shown_settings(report: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that training went by; of those that are seldom used, the ones that are set."""
    settings = report["settings"]
    hidden = {"num_train_epochs" if settings["max_steps"] > 0 else "max_steps"}  # The other one ends the training.
    if not settings.get("teacher") and not any(source.get("teachers") for source in settings.get("sources", ())):
        hidden |= {"distillation_temperature", "gold_share", "teacher_annealing"}
    elif settings["teacher_annealing"]:
        hidden |= {"gold_share"}
    in_use = settings | {"max_length": report["data"]["max_length"]}
    always = {key: in_use[key] for key in _ALWAYS if in_use.get(key) is not None}
    seldom = {key: settings[key] for key in _IF_SET if settings.get(key) not in (None, False, 0, "none", [])}
    return {key: value for key, value in (always | seldom).items() if key not in hidden}
