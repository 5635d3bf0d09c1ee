"""Forest plots: figures with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtl.figure_style import BLUE, INK, MUTED, in_figure_style, new_plot, one_line
from mtl.metrics import LOWER_IS_BETTER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SLICES = 12
"""Count of slices of one kind that are drawn, those with the most rows."""
_ENDS = ("value", "low", "high")
_ROW_HEIGHT = 0.235  # Inches.


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    Args:
        group: What it belongs to; a line of its own above the first of a group.
        label: Its name.
        value: The figure.
        low: Lower end of the interval; None if there is none.
        high: Upper end.
        is_main: Whether it is the one that counts.
    """

    group: str
    label: str
    value: float
    low: float | None
    high: float | None
    is_main: bool = False


def metric_estimates(evidence: Mapping[str, Any]) -> list[Estimate]:
    """Returns the metrics of every task of which more is better, from the evidence of a split.

    Errors and losses are in units of their own, so they share no axis with these.
    """
    return [
        Estimate(name, key, metric["value"], metric["low"], metric["high"], key == task["primary_metric"])
        for name, task in evidence["tasks"].items()
        for key, metric in task["metrics"].items()
        if key not in LOWER_IS_BETTER and metric["value"] is not None
    ]


def slice_estimates(evidence: Mapping[str, Any], task: str) -> list[Estimate]:
    """Returns a task's primary metric on each slice, 12 at most of a kind, from the evidence of a split."""
    kinds: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for part in evidence.get("slices", []):
        figure = part["tasks"].get(task)
        if figure is not None and figure["value"] is not None:
            kinds.setdefault(part["by"], []).append((part["value"], figure))
    return [
        Estimate(f"by {kind}", f"{one_line(name)} ({figure['support']:,})", *(figure[key] for key in _ENDS))
        for kind, found in kinds.items()
        for name, figure in _largest(found)
    ]


def _largest(found: Sequence[tuple[str, Mapping[str, Any]]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the slices with the most rows, in their order."""
    places = sorted(range(len(found)), key=lambda place: -found[place][1]["support"])[:MOST_SLICES]
    return [found[place] for place in sorted(places)]


def gain_estimates(comparison: Mapping[str, Any]) -> list[Estimate]:
    """Returns what each task gains, in percent, by being trained with the others, from a comparison."""
    found = []
    for name, task in comparison["tasks"].items():
        ends, gain = task["difference"], task["relative_gain_percent"]
        if gain is None:
            continue
        factor = (-100.0 if task["lower_is_better"] else 100.0) / abs(task["single_task"]["mean"])
        known = [end * factor for end in (ends["low"], ends["high"]) if end is not None]
        low, high = (min(known), max(known)) if len(known) == 2 else (None, None)
        found.append(Estimate("", f"{name} ({task['metric']})", gain, low, high))
    mean = comparison.get("mean_relative_gain_percent") or {}
    if mean.get("value") is not None:
        found.append(Estimate("", "mean of the tasks", mean["value"], mean["low"], mean["high"], is_main=True))
    return found


@in_figure_style
def draw_forest(
    estimates: Sequence[Estimate], *, axis: str, line: float | None = None, form: str = ".3f", width: float = 6.4
) -> Figure:
    """Draws figures with their intervals, from top to bottom, with the numbers beside them.

    Args:
        estimates: The figures.
        axis: What they are.
        line: Where a vertical line stands, to compare with.
        form: How numbers are formatted.
        width: Width in inches.
    """
    rows = _rows(estimates)
    figure, plot = new_plot(width, 0.75 + _ROW_HEIGHT * len(rows))
    if line is not None:
        plot.axvline(line, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for place, row in enumerate(rows):
        if isinstance(row, str):
            continue
        if row.low is not None and row.high is not None:
            plot.plot([row.low, row.high], [place, place], color=BLUE, linewidth=2.4 if row.is_main else 1.4)
        plot.plot(row.value, place, "D" if row.is_main else "o", color=BLUE, markersize=5.5 if row.is_main else 4.5)
        beside: Any = {"transform": plot.get_yaxis_transform(), "va": "center", "fontsize": 8.5}
        plot.text(1.02, place, _numbers(row, form), color=INK if row.is_main else MUTED, **beside)
    labels = [one_line(row, 34) if isinstance(row, str) else one_line(row.label, 34) for row in rows]
    plot.set_yticks(range(len(rows)), labels, color=INK)
    for label, row in zip(plot.get_yticklabels(), rows, strict=True):
        if isinstance(row, str) or row.is_main:
            label.set_fontweight("bold")
    plot.set(ylim=(len(rows) - 0.4, -0.6), xlabel=one_line(axis, 60))
    plot.margins(x=0.06)
    plot.grid(visible=False, axis="y")
    plot.tick_params(axis="y", length=0)
    plot.spines["left"].set_visible(False)
    return figure


def _rows(estimates: Sequence[Estimate]) -> list[Estimate | str]:
    rows: list[Estimate | str] = []
    group = ""
    for estimate in estimates:
        if estimate.group != group:
            group = estimate.group
            rows.append(group)
        rows.append(estimate)
    return rows


def _numbers(row: Estimate, form: str) -> str:
    value = f"{row.value:{form}}"
    return value if row.low is None or row.high is None else f"{value}  [{row.low:{form}}, {row.high:{form}}]"
