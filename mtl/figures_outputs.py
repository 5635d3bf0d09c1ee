"""What a head says against what is so: how far its probabilities can be believed, and how far its numbers are off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtl.figure_style import BLUE, MUTED, VERMILLION, in_figure_style, new_figure, new_plot, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@in_figure_style
def draw_reliability(calibration: Mapping[str, Any], *, of_labels: bool = False) -> Figure:
    """Draws accuracy by confidence, at the temperature and without it, and below how many rows each bin has.

    Args:
        calibration: `bins`, `temperature`, and `before` with the bins without it, as the evidence of a task has them.
        of_labels: Whether the bins are of each label's probability, chosen or not, as those of a multi-label task.
    """
    sure, right = ("probability of a label", "share that has it") if of_labels else ("confidence", "accuracy")
    figure = new_figure(4.2, 4.2)
    plot, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    plot.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
    lines = [("without temperature", (calibration.get("before") or {}).get("bins"), VERMILLION, "o--")]
    temperature = calibration.get("temperature")
    name = "scores" if temperature is None else f"at temperature {temperature:.2f}"
    lines.append((name, calibration["bins"], BLUE, "o-"))
    for label, bins, colour, style in lines:
        filled = [some for some in bins or () if some["count"]]
        if filled:
            places = [[some[key] for some in filled] for key in ("confidence", "accuracy")]
            plot.plot(*places, style, color=colour, label=label)
    plot.set(title="Reliability", ylabel=right, xlim=(0, 1), ylim=(0, 1))
    plot.legend(loc="upper left")
    bins = calibration["bins"]
    edges = [some["low"] for some in bins]
    widths = [some["high"] - some["low"] for some in bins]
    counts.bar(edges, [some["count"] for some in bins], widths, align="edge", color=BLUE, alpha=0.75, linewidth=0)
    counts.set(xlabel=sure, ylabel="count")
    counts.locator_params(axis="y", nbins=3)
    return figure


@in_figure_style
def draw_predicted(residuals: Mapping[str, Any], output: str = "") -> Figure:
    """Draws predicted by true numbers, one point a row, from one output's entry in the evidence.

    Args:
        residuals: The entry.
        output: Name of the output, for the title, where there are several.
    """
    figure, plot = new_plot(4.2, 3.8)
    true, predicted = zip(*residuals["points"], strict=True)
    ends = [min(*true, *predicted), max(*true, *predicted)] if len(true) > 1 else [true[0], predicted[0]]
    plot.plot(ends, ends, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    plot.plot(true, predicted, "o", color=BLUE, alpha=0.45, markersize=3.5, markeredgewidth=0)
    plot.set(xlabel="true", ylabel="predicted", title=_title("Predicted by true", output))
    return figure


@in_figure_style
def draw_residuals(residuals: Mapping[str, Any], output: str = "") -> Figure:
    """Draws how many rows are off by how much, from one output's entry in the evidence; see [`draw_predicted`]."""
    figure, plot = new_plot(4.2, 3.8)
    edges, counts = residuals["histogram"]["edges"], residuals["histogram"]["counts"]
    plot.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75)
    plot.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    plot.axvline(residuals["mean"], color=VERMILLION, linewidth=1.4, label=f"mean {residuals['mean']:+.3g}")
    plot.legend(loc="upper right")
    plot.set(xlabel="predicted less true", ylabel="rows", title=_title("Residuals", output))
    return figure


def _title(what: str, output: str) -> str:
    return one_line(f"{what}, {output}" if output else what, 48)
