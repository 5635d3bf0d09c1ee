"""Matrices as coloured cells: which classes are taken for which, and what tasks do to one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mtl.figure_style import INK, MUTED, in_figure_style, new_plot, one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_CLASSES = 20
"""Count of classes that a picture has room for."""
_MOST_NUMBERS = 12  # Rows up to which a number stands in each cell.
_ABOVE, _BELOW = "#0071b1", "#b34a00"  # The same on light and dark pages: white can be read on both.
_WHITE_ABOVE = 0.8  # Opacity from which white is easier to read on the colour than black.


def most_confused(matrix: Sequence[Sequence[int]], most: int = MOST_CLASSES) -> list[int]:
    """Returns, in their order, the places of all classes, or of those that the most frequent confusions are between.

    Args:
        matrix: How often each class, a row, is taken for each, a column.
        most: Count of classes from which on some are left out.
    """
    if len(matrix) <= most:
        return list(range(len(matrix)))
    chosen: dict[int, None] = {}
    for pair in confused_pairs(matrix):
        new = [place for place in pair if place not in chosen]
        if len(chosen) + len(new) > most:
            break
        chosen |= dict.fromkeys(new)
    return sorted(chosen)


def confused_pairs(matrix: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Returns the places of true and predicted class of all confusions, the most frequent first."""
    counts = np.asarray(matrix)  # (C, C)
    places = [(int(row), int(column)) for row, column in np.argwhere(counts > 0) if row != column]
    return sorted(places, key=lambda pair: (-counts[pair], pair))


@in_figure_style
def draw_confusion(confusion: Mapping[str, Any]) -> Figure:
    """Draws how the rows of each class are predicted, as shares; of many classes, those that are confused most.

    The last column counts the rows that are predicted as a class that is not shown.
    """
    counts = np.asarray(confusion["matrix"])  # (C, C)
    places = most_confused(confusion["matrix"])
    shown = counts[np.ix_(places, places)]  # (S, S)
    labels = [one_line(confusion["labels"][place], 22) for place in places]
    columns = list(labels)
    if len(places) < len(counts):
        rest = counts[places].sum(axis=1, keepdims=True) - shown.sum(axis=1, keepdims=True)  # (S, 1)
        shown, columns = np.concatenate([shown, rest], axis=1), [*labels, "any other"]
    totals = counts[places].sum(axis=1, keepdims=True)  # (S, 1)
    shares = np.divide(shown, totals, out=np.zeros(shown.shape), where=totals > 0)  # (S, S) or (S, S + 1)
    side = 1.9 + 0.42 * max(3, len(labels)) if len(labels) <= _MOST_NUMBERS else 1.9 + 0.26 * len(labels)
    figure, plot = new_plot(side + 0.4, side)
    texts = [[f"{count:,}" if count else "" for count in row] for row in shown.tolist()]
    _cells(plot, shares, texts if len(labels) <= _MOST_NUMBERS else None)
    _name(plot, labels, columns)
    plot.set(xlabel="predicted", ylabel="true", title="Confusions")
    return figure


@in_figure_style
def draw_signed(
    names: Sequence[str], matrix: Sequence[Sequence[float | None]], *, opaque: float, rows: str, columns: str
) -> Figure:
    """Draws a square matrix of numbers above (blue) and below zero (brown); unknown ones are left out.

    Args:
        names: Name of each row and column.
        matrix: The numbers. Shape (N, N).
        opaque: The number whose colour is full, if none is larger, so that small ones do not look large.
        rows: What the rows are.
        columns: What the columns are.
    """
    values = np.asarray(matrix, dtype=np.float64)  # (N, N), nan where None was
    scale = np.nanmax(np.abs(values), initial=opaque)
    side = 1.8 + 0.62 * max(2, len(names))
    figure, plot = new_plot(side + 0.4, side)
    texts = [["" if value is None else f"{value:+.2f}" for value in row] for row in matrix]
    _cells(plot, values / scale, texts if len(names) <= 2 * _MOST_NUMBERS else None)
    labels = [one_line(name, 22) for name in names]
    _name(plot, labels, labels)
    plot.set(xlabel=columns, ylabel=rows)
    return figure


def conflict_matrix(conflicts: Mapping[str, Any]) -> tuple[list[str], list[list[float | None]]]:
    """Returns the names of what was measured, and the mean cosines of the gradients of each two, from a report."""
    names = list(conflicts["mean_norms"])
    cosines = {frozenset(pair["tasks"]): pair["mean_cosine"] for pair in conflicts["pairs"]}
    return names, [[cosines.get(frozenset((row, column))) for column in names] for row in names]


def _cells(plot: Axes, shares: npt.NDArray[np.float64], texts: Sequence[Sequence[str]] | None) -> None:
    """Fills cells by shares from -1 to 1: the colour says the sign, its opacity the size."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    known = [(int(row), int(column)) for row, column in np.argwhere(np.isfinite(shares) & (shares != 0))]
    cells = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in known]
    colours = [to_rgba(_ABOVE if shares[place] > 0 else _BELOW, abs(float(shares[place]))) for place in known]
    plot.add_collection(PatchCollection(cells, facecolors=colours, linewidths=0))
    rows, columns = shares.shape
    for row in range(rows if texts else 0):
        for column in range(columns):
            share = shares[row, column]
            if texts and texts[row][column] and np.isfinite(share):
                colour = "#ffffff" if abs(share) > _WHITE_ABOVE else INK
                style: Any = {"ha": "center", "va": "center", "color": colour, "fontsize": 8.5}
                plot.text(column, row, texts[row][column], **style)
    plot.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), aspect="equal")


def _name(plot: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    upright = len(columns) <= 4 and max(map(len, columns), default=0) <= 10
    turn: Any = {} if upright else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    plot.set_xticks(range(len(columns)), columns, color=INK, **turn)
    plot.set_yticks(range(len(rows)), rows, color=INK)
    plot.set_xticks([place - 0.5 for place in range(len(columns) + 1)], minor=True)
    plot.set_yticks([place - 0.5 for place in range(len(rows) + 1)], minor=True)
    plot.grid(visible=False, which="major")
    plot.grid(visible=True, which="minor")
    plot.tick_params(which="both", length=0)
    plot.spines[:].set_visible(False)
    plot.xaxis.label.set_color(MUTED)
