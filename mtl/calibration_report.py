"""What calibration changed, split by split: for the report, and as text of the model card."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy.typing as npt

from configuration_mtl import TaskConfig
from mtl.abstention import ABSTENTION_METRICS
from mtl.calibration_metrics import calibration_figures
from mtl.evaluation import EvaluationMetrics, json_number
from mtl.predictions import Predictions
from tasks_mtl import MULTI_LABEL, PROBABILITY_TYPES

_FITTED = ("calibration_temperature", "label_thresholds", "abstention_threshold")


def calibration_report(predictions: Sequence[Predictions]) -> dict[str, Any]:
    """Measures tasks that have a temperature or thresholds with these and without, as JSON-ready values.

    Args:
        predictions: What the model says of each split.

    Returns:
        By task its `temperature`, `label_thresholds` and `abstention_threshold`, and, in `before` and `after`, by
        split what `calibration_figures` gives, with F1 of a multi-label task, and coverage and error of what is kept
        of one that abstains.
    """
    report: dict[str, Any] = {}
    for some in predictions:
        for task in some.tasks:
            if all(getattr(task, key) is None for key in _FITTED):
                continue
            empty = {key.removeprefix("calibration_"): task.to_dict().get(key) for key in _FITTED}
            entry = report.setdefault(task.name, {**empty, "before": {}, "after": {}})
            plain = replace(task, calibration_temperature=None, label_thresholds=None, abstention_threshold=None)
            for when, as_it_was in (("before", plain), ("after", task)):
                entry[when][some.result.split] = _figures(as_it_was, some.logits[task.name], some.labels[task.name])
    return report


def _figures(task: TaskConfig, logits: npt.NDArray, labels: npt.NDArray) -> dict[str, Any]:
    metrics = EvaluationMetrics([task]).by_task({task.name: logits}, {task.name: labels})[task.name]
    keys = ("f1_micro", "f1_macro") if task.problem_type == MULTI_LABEL else ABSTENTION_METRICS
    decided = {key: json_number(metrics[key]) for key in keys if key in metrics}
    return {**calibration_figures(task, logits, labels), **decided}


def calibration_section(calibration: Mapping[str, Any]) -> list[str]:
    """Formats [`calibration_report`] as a section of a card; nothing if no task is calibrated."""
    rows, decisions = [], []
    for name, entry in calibration.items():
        for split, after in entry["after"].items():
            before = entry["before"][split]
            cells = [_change(before[key], after[key]) for key in ("ece", "nll", "brier")]
            if entry["temperature"] is not None:
                rows.append(f"| `{name}` | {split} | {entry['temperature']:.4f} | {' | '.join(cells)} |")
            if entry["label_thresholds"] is not None:
                changed = _change(before["f1_micro"], after["f1_micro"])
                decisions.append(f"- `{name}`, {split}: thresholds of the labels change micro F1 from {changed}.")
            if entry["abstention_threshold"] is not None:
                share, error = (_shown(after[key]) for key in ("coverage", "kept_error"))
                decisions.append(
                    f"- `{name}`, {split}: abstains below a score of {entry['abstention_threshold']:.4f}; kept are "
                    f"{share} of the rows, and of these {error} are wrong."
                )
    if not rows and not decisions:
        return []
    text = ["## Calibration", ""]
    if rows:
        text += [
            "Logits are divided by a temperature, fitted on validation; what is without it comes first. ECE is the",
            "expected calibration error in 15 bins, NLL the negative log-likelihood in nats.",
            "",
            "| task | split | temperature | ECE | NLL | Brier score |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    return ["\n".join([*text, *decisions, *([""] if decisions else [])])]


def calibration_limits(tasks: Sequence[TaskConfig]) -> list[str]:
    """Says, as lines of a list, which tasks' scores are calibrated and which are not."""
    able = [task for task in tasks if task.problem_type in PROBABILITY_TYPES]
    plain = [f"`{task.name}`" for task in able if task.calibration_temperature is None]
    lines = []
    if len(plain) < len(able):
        lines.append(
            "- Scores are calibrated by one temperature a task, on validation data like that named above; on other "
            "text they may again be too sure."
        )
    if plain:
        lines.append(f"- Scores of {', '.join(plain)} are softmax or sigmoid outputs and have not been calibrated.")
    return lines


def _change(before: float | None, after: float | None) -> str:
    return f"{_shown(before)} to {_shown(after)}"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
