"""What the log of a training shows: losses and metrics of each task by step, and the learning rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl.figure_style import BLUE, GREEN, PALETTE, VERMILLION, in_figure_style, new_plot
from mtl.metrics import LOWER_IS_BETTER, METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = list[list[float]]
"""Pairs of step and value."""

_SIZE = (4.6, 2.9)


def task_curves(history: Sequence[Mapping[str, Any]], task: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a task's curves: `training_loss`, `validation_loss`, and `metrics` by name.

    Args:
        history: The trainer's log.
        task: `name` and `problem_type`, as `TaskConfig.to_dict` gives them.
    """
    name = task["name"]
    keys = [metric.key for metric in METRICS.get(task["problem_type"], ())]
    return {
        "training_loss": curve(history, f"loss_{name}"),
        "validation_loss": curve(history, f"eval_{name}_loss"),
        "metrics": _known({key: curve(history, f"eval_{name}_{key}") for key in keys if key not in LOWER_IS_BETTER}),
    }


def run_curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the curves of all tasks together, by name: losses, the score, the learning rate, the gradient's norm."""
    names = {
        "training_loss": "loss",
        "validation_loss": "eval_loss",
        "score": "eval_score",
        "learning_rate": "learning_rate",
        "gradient_norm": "grad_norm",
    }
    return _known({name: curve(history, key) for name, key in names.items()})


def curve(history: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Returns step and value of each entry of a log that has a number under a key."""
    return [[entry["step"], entry[key]] for entry in history if entry.get(key) is not None and "step" in entry]


@in_figure_style
def draw_losses(curves: Mapping[str, Any]) -> Figure:
    """Draws the loss on training and validation batches by step."""
    figure, plot = new_plot(*_SIZE)
    _lines(
        plot,
        [("training", curves.get("training_loss"), BLUE), ("validation", curves.get("validation_loss"), VERMILLION)],
    )
    plot.set(xlabel="step", ylabel="loss", title="Loss")
    return figure


@in_figure_style
def draw_metrics(metrics: Mapping[str, Curve]) -> Figure:
    """Draws metrics on validation by step."""
    figure, plot = new_plot(*_SIZE)
    _lines(plot, [(key, metrics[key], PALETTE[place % len(PALETTE)]) for place, key in enumerate(metrics)])
    plot.set(
        xlabel="step", title=f"{next(iter(metrics)) if len(metrics) == 1 else 'metrics'} on validation".capitalize()
    )
    return figure


@in_figure_style
def draw_rate(points: Curve) -> Figure:
    """Draws the learning rate by step."""
    figure, plot = new_plot(*_SIZE)
    _lines(plot, [("learning rate", points, GREEN)])
    plot.set(xlabel="step", ylim=(0, None), title="Learning rate")
    plot.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    return figure


def _known(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    return {key: points for key, points in curves.items() if points}


def _lines(plot: Axes, lines: Iterable[tuple[str, Curve | None, str]]) -> None:
    drawn = 0
    for label, points, colour in lines:
        if points:
            # A dot at each measurement while they can be told apart; one measurement is nothing but a dot.
            style = "o-" if len(points) <= 25 else "-"
            plot.plot(*zip(*points, strict=True), style, color=colour, label=label)
            drawn += 1
    if drawn > 1:
        plot.legend(loc="best")
    plot.margins(y=0.12)
