"""All figures of a report, each with its data: drawn for a page, and written as PNG and JSON files."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl import figures_intervals, figures_map, figures_matrices, figures_outputs, figures_training
from mtl.figure_style import png_bytes
from mtl.report_splits import shown_split
from tasks_mtl import MULTI_LABEL

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure_name(kind: str, task: str = "") -> str:
    """Returns the name of a figure's files, without their ending."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", f"{kind}-{task}" if task else kind)


@dataclass(frozen=True)
class Plot:
    """A figure of a report.

    Args:
        kind: What it shows, such as `confusion`; with `task`, its name.
        task: Task that it is of, or empty.
        part: Output of that task that it is of, where it has several and each has a figure.
        alt: What it shows in a sentence, for those who do not see it.
        data: All that it is drawn from, also what it has no room for; JSON-ready.
        draw: Draws it.
        caption: What stands below it, if it does not speak for itself.
    """

    kind: str
    task: str
    alt: str
    data: Any
    draw: Callable[[], Figure]
    caption: str = ""
    part: str = ""

    @property
    def name(self) -> str:
        """Its name as a file."""
        return figure_name(self.kind, f"{self.task}-{self.part}" if self.part else self.task)

    @cached_property
    def figure(self) -> Figure:
        """The figure, drawn once."""
        return self.draw()


def report_plots(
    report: Mapping[str, Any], comparison: Mapping[str, Any] | None = None, split: str | None = None
) -> list[Plot]:
    """Returns the figures that a report has data for.

    Args:
        report: What `mtl.report.build_report` gives, with `evidence` by split and `embedding` where it has them; any
            part may be missing.
        comparison: What `mtl compare` found.
        split: The split whose evidence is shown; see [`shown_split`].
    """
    plots = [*_of_training(report), *_of_conflicts(report)]
    chosen = shown_split(report, split)
    if chosen is not None:
        plots += _of_evidence(report["evidence"][chosen])
    plots += _of_embedding(report)
    if comparison is not None:
        plots += _of_comparison(comparison)
    return plots


def write_figures(
    report: Mapping[str, Any], folder: Path, *, comparison: Mapping[str, Any] | None = None, split: str | None = None
) -> list[Path]:
    """Writes each figure of a report as a PNG file, and its data as a JSON file beside it; returns the files.

    Args:
        report: See [`report_plots`].
        folder: Where they go; it is made if it is not there.
        comparison: What `mtl compare` found.
        split: The split whose evidence is shown.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    return write_plots(report_plots(report, comparison, split), folder)


def write_plots(plots: list[Plot], folder: Path) -> list[Path]:
    """Writes figures as PNG and JSON files into a folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for plot in plots:
        name = plot.name
        while name.casefold() in written:  # Names of tasks may differ in case alone, which some file systems ignore.
            name += "-"
        written[name.casefold()] = folder / f"{name}.png"
        written[name.casefold()].write_bytes(png_bytes(plot.figure))
        content = {"kind": plot.kind, "task": plot.task or None, "shows": plot.alt, "data": plot.data}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [file for png in written.values() for file in (png, png.with_suffix(".json"))]


def _of_training(report: Mapping[str, Any]) -> Iterator[Plot]:
    history = report.get("history", [])
    run = figures_training.run_curves(history)
    losses: dict[str, Any] = {key: run[key] for key in ("training_loss", "validation_loss") if key in run}
    if losses:
        alt = "Loss over all tasks by step, in training and on validation."
        yield Plot("loss", "", alt, losses, lambda: figures_training.draw_losses(losses))
    if len(run.get("score", ())) > 1:  # One measurement makes no curve.
        last = run["score"][-1][1]
        alt = f"Score, the mean of the tasks' primary metrics, on validation by step; at the end {last:.3f}."
        yield Plot("score", "", alt, run["score"], lambda: figures_training.draw_metrics({"score": run["score"]}))
    if "learning_rate" in run:
        rate = run["learning_rate"]
        yield Plot("learning_rate", "", "Learning rate by step.", rate, lambda: figures_training.draw_rate(rate))
    for task in report.get("tasks", []):
        yield from _of_task_training(task["name"], figures_training.task_curves(history, task))


def _of_task_training(name: str, curves: Mapping[str, Any]) -> Iterator[Plot]:
    losses = {key: curves[key] for key in ("training_loss", "validation_loss") if curves[key]}
    if losses:
        alt = f"Loss of the task {name} by step, in training and on validation."
        yield Plot("loss", name, alt, losses, lambda: figures_training.draw_losses(losses))
    if metrics := {key: points for key, points in curves["metrics"].items() if len(points) > 1}:
        last = ", ".join(f"{key} {points[-1][1]:.3f}" for key, points in metrics.items())
        alt = f"Metrics of the task {name} on validation by step; at the end {last}."
        yield Plot("metrics", name, alt, metrics, lambda: figures_training.draw_metrics(metrics))


def _of_conflicts(report: Mapping[str, Any]) -> Iterator[Plot]:
    conflicts = report.get("conflicts")
    if conflicts and conflicts["pairs"]:
        names, matrix = figures_matrices.conflict_matrix(conflicts)
        alt = f"Matrix of the mean cosines of the tasks' gradients. {conflicts.get('advice', '')}"
        draw = functools.partial(figures_matrices.draw_signed, opaque=0.5, rows="gradient of", columns="gradient of")
        yield Plot("conflicts", "", alt, conflicts, functools.partial(draw, names, matrix))


def _of_evidence(evidence: Mapping[str, Any]) -> Iterator[Plot]:
    if estimates := figures_intervals.metric_estimates(evidence):
        alt = f"Metrics of each task on {evidence['split']} with their intervals; the table beside it has the numbers."
        data = {name: task["metrics"] for name, task in evidence["tasks"].items()}
        axis = f"metric on {evidence['split']}"
        yield Plot("results", "", alt, data, lambda: figures_intervals.draw_forest(estimates, axis=axis))
    for name, task in evidence["tasks"].items():
        yield from _of_outputs(name, task)
        yield from _of_slices(name, task, evidence)


def _of_outputs(name: str, task: Mapping[str, Any]) -> Iterator[Plot]:
    if (confusion := task.get("confusion")) and confusion["matrix"]:
        count, shown = len(confusion["matrix"]), len(figures_matrices.most_confused(confusion["matrix"]))
        which = f"{count} classes" if shown == count else f"the {shown} of {count} classes that are confused most"
        alt = f"Confusion matrix of the task {name}: how rows of {which} are predicted."
        if shown:  # Of many classes of which none is confused there is nothing to show.
            yield Plot("confusion", name, alt, confusion, lambda: figures_matrices.draw_confusion(confusion))
    if (calibration := task.get("calibration")) and calibration["bins"]:
        of_labels = task["problem_type"] == MULTI_LABEL
        what = "Share of rows that have a label by its probability" if of_labels else "Accuracy by confidence"
        alt = f"{what}, of the task {name}; expected calibration error {calibration['ece']:.4f}."
        draw = functools.partial(figures_outputs.draw_reliability, calibration, of_labels=of_labels)
        yield Plot("reliability", name, alt, calibration, draw)
    for residuals in task.get("residuals", []):
        yield from _of_residuals(name, residuals, residuals["output"] if len(task["residuals"]) > 1 else "")


def _of_residuals(name: str, residuals: Mapping[str, Any], part: str) -> Iterator[Plot]:
    which = f"{name}, {part}" if part else name
    alt = f"Predicted by true numbers of {which}, {len(residuals['points'])} rows."
    draw = functools.partial(figures_outputs.draw_predicted, residuals, part)
    yield Plot("predicted", name, alt, residuals["points"], draw, part=part)
    alt = f"Residuals of {which}: mean {residuals['mean']:.3g}, standard deviation {residuals['std']:.3g}."
    data = {key: value for key, value in residuals.items() if key != "points"}
    draw = functools.partial(figures_outputs.draw_residuals, residuals, part)
    yield Plot("residuals", name, alt, data, draw, part=part)


def _of_slices(name: str, task: Mapping[str, Any], evidence: Mapping[str, Any]) -> Iterator[Plot]:
    estimates = figures_intervals.slice_estimates(evidence, name)
    if len(estimates) > 1:
        metric = task["primary_metric"]
        whole = task["metrics"].get(metric, {}).get("value")
        alt = f"{metric} of the task {name} on slices of {evidence['split']}, with intervals; the line is all of it."
        data = [part for part in evidence["slices"] if name in part["tasks"]]
        draw = figures_intervals.draw_forest
        yield Plot("slices", name, alt, data, lambda: draw(estimates, axis=f"{name}: {metric}", line=whole))


def _of_embedding(report: Mapping[str, Any]) -> Iterator[Plot]:
    plane = (report.get("embedding") or {}).get("map")
    if plane and plane["points"]:
        for name in plane["tasks"]:
            alt = f"Map of {len(plane['points'])} sentences by their embeddings, in the colours of their {name}."
            own = {**plane, "tasks": {name: plane["tasks"][name]}}
            yield Plot("map", name, alt, own, functools.partial(figures_map.draw_map, own, name))


def _of_comparison(comparison: Mapping[str, Any]) -> Iterator[Plot]:
    if gains := figures_intervals.gain_estimates(comparison):
        alt = "What each task gains by being trained with the others, in percent, with intervals."
        axis = "gain over a model of its own, %"
        draw = figures_intervals.draw_forest
        yield Plot("gains", "", alt, comparison["tasks"], lambda: draw(gains, axis=axis, line=0.0, form="+.2f"))
    if transfer := comparison.get("transfer"):
        alt = "What each task, a row, gains in percent by being trained together with each other one, a column."
        words: dict[str, Any] = {"rows": "gain of, %", "columns": "trained together with"}
        matrix = functools.partial(figures_matrices.draw_signed, opaque=1.0, **words)
        yield Plot("transfer", "", alt, transfer, functools.partial(matrix, transfer["tasks"], transfer["matrix"]))
