"""The plane of the embeddings: each sentence a point, in the colour of its label for one task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mtl.figure_style import GRID, MARKERS, MUTED, PALETTE, in_figure_style, new_plot, one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 12
"""Count of labels, the most frequent ones, that a legend names."""
LOOKS = len(PALETTE) * len(MARKERS)
"""Count of looks, a colour and a shape; they come again where there are more labels."""


def frequent_labels(of_point: Sequence[int], most: int = MOST_NAMES) -> list[int]:
    """Returns the labels that most points have, the most frequent first; those below 0 stand for none."""
    counts = Counter(label for label in of_point if label >= 0)
    return sorted(counts, key=lambda label: (-counts[label], label))[:most]


@in_figure_style
def draw_map(plane: Mapping[str, Any], task: str) -> Figure:
    """Draws the points in the colours of a task's labels; those without one are grey.

    Args:
        plane: `points`, and of each of the `tasks` its `labels` and the label `of_point`.
        task: Name of the task.
    """
    labels, of_point = plane["tasks"][task]["labels"], plane["tasks"][task]["of_point"]
    figure, plot = new_plot(6.4, 4.6)
    named = set(frequent_labels(of_point))
    marks: list[Any] = []
    for label in sorted({-1, *of_point}):
        points = [point for point, own in zip(plane["points"], of_point, strict=True) if own == label]
        colour, marker = (GRID, "o") if label < 0 else look(label)
        if points:
            style: Any = {"color": colour, "markersize": 3.2, "markeredgewidth": 0, "alpha": 0.8}
            drawn = plot.plot(*zip(*points, strict=True), marker, **style)
            marks += drawn if label in named else []
    if named:
        # Given one by one: of the labels that it finds itself, matplotlib leaves out those that begin with `_`.
        names = [one_line(labels[label], 26) for label in sorted(named)]
        legend = plot.legend(marks, names, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.6)
        if len({label for label in of_point if label >= 0}) > len(named):
            legend.set_title(f"the {len(named)} most frequent")
            legend.get_title().set_fontsize(8.5)
            legend.get_title().set_color(MUTED)
    plot.set(xticks=[], yticks=[])
    plot.spines[:].set_visible(False)
    plot.grid(visible=False)
    return figure


def look(label: int) -> tuple[str, str]:
    """Returns colour and shape of the points with a label."""
    return PALETTE[label % len(PALETTE)], MARKERS[label // len(PALETTE) % len(MARKERS)]
