"""Trials as points of the tasks' metrics: which no other beats, and a picture of each pair of tasks.

The front is the set of those that no other dominates: Deb et al., "A Fast and Elitist Multiobjective Genetic
Algorithm: NSGA-II", IEEE Transactions on Evolutionary Computation 2002, section III.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtl.extras import require
from mtl.metrics import LOWER_IS_BETTER


def pareto_front(points: Sequence[Sequence[float]], directions: Sequence[str]) -> list[int]:
    """Returns the indices of the points that no other dominates: as good everywhere and better somewhere.

    Args:
        points: The values of each point.
        directions: `"maximize"` or `"minimize"` for each value.
    """
    signs = [1.0 if direction == "maximize" else -1.0 for direction in directions]
    scaled = [[sign * value for sign, value in zip(signs, point, strict=True)] for point in points]

    def is_dominated(point: Sequence[float]) -> bool:
        return any(
            other != point and all(theirs >= ours for theirs, ours in zip(other, point, strict=True))
            for other in scaled
        )

    return [index for index, point in enumerate(scaled) if not is_dominated(point)]


def draw_fronts(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws, for each pair of tasks, every trial by their two metrics, and the front; returns the PNG files.

    Args:
        results: What `mtl.search.search` returns.
        folder: Where `pareto-<task>-<task>.png` go.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require("matplotlib", extra="search", what="A search")
    metrics = results["settings"]["metrics"]
    files = []
    for first, second in itertools.combinations(metrics, 2):
        points = {
            trial["number"]: (trial["metrics"][first], trial["metrics"][second])
            for trial in results["trials"]
            if trial["state"] == "complete" and None not in (trial["metrics"][first], trial["metrics"][second])
        }
        if points:
            files.append(folder / f"pareto-{first}-{second}.png")
            best = results["best"] if len(metrics) > 2 and results["settings"]["objectives"] == "tasks" else ()
            _draw(points, [(name, metrics[name]) for name in (first, second)], files[-1], best)
    return files


def _draw(
    points: Mapping[int, tuple[float, float]], axes: Sequence[tuple[str, str]], path: Path, best: Collection[int]
) -> None:
    from matplotlib.figure import Figure  # Without pyplot, which would choose a backend for the whole process.

    directions = ["minimize" if metric in LOWER_IS_BETTER else "maximize" for _, metric in axes]
    numbers, values = list(points), list(points.values())
    front = sorted(pareto_front(values, directions), key=lambda index: values[index])
    others = [index for index in range(len(values)) if index not in front]
    figure = Figure(figsize=(6.4, 4.8), dpi=150, layout="constrained")
    plot = figure.subplots()
    # Stairs: what lies between two trials is not reached, but one of them is as good or better.
    stairs = "steps-post" if directions[0] == "minimize" else "steps-pre"
    line: Any = {"drawstyle": stairs, "color": "tab:blue", "label": "Pareto front of these two"}
    plot.plot(*zip(*(values[index] for index in front), strict=True), "o-", **line)
    ringed = [points[number] for number in best if number in points]
    if ringed:
        ring: Any = {"markersize": 11, "fillstyle": "none", "color": "black", "label": "Pareto front of all tasks"}
        plot.plot(*zip(*ringed, strict=True), "o", **ring)
    if others:
        plot.plot(*zip(*(values[index] for index in others), strict=True), "o", color="silver", label="other trials")
    for value in set(values):
        here = ", ".join(str(number) for number, other in points.items() if other == value)
        plot.annotate(here, value, xytext=(4, 4), textcoords="offset points", fontsize=8)
    labels = [f"{name}: {metric} on validation" for name, metric in axes]
    plot.set(xlabel=labels[0], ylabel=labels[1], title=f"{len(numbers)} trials, by number")
    plot.grid(alpha=0.3)
    plot.legend()
    figure.savefig(path)
