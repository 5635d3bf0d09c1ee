"""Whether the tasks pull the shared encoder in different directions: norms and cosines of their gradients, and advice.

A negative cosine means that a step for one task, taken alone, makes the other one worse (to first order).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import mean
from typing import Any

from torch import Tensor

from mtl.preservation import PRESERVATION

NORM, COSINE = "grad_norm_", "grad_cos_"
STRONG_CONFLICT = -0.1
"""Mean cosine at and below which a pair of tasks is said to be in conflict."""
LEAST_MEASUREMENTS = 20
"""Count of measurements of a pair below which nothing is said of it: cosines of single batches vary much."""
UNEVEN_NORMS = 10.0
"""Ratio of mean norms above which one task is said to drown another."""


def check_names(tasks: Sequence[str]) -> None:
    """Checks that every pair of tasks has a name of its own in the log.

    Raises:
        ValueError: If two pairs have not.
    """
    seen: dict[str, tuple[str, str]] = {}
    for pair in combinations(tasks, 2):
        key = "_".join(pair)
        if key in seen:
            raise ValueError(
                f"conflict_steps: the pairs of tasks {seen[key]} and {pair} would both be logged as {COSINE}{key}. "
                "Rename one of these tasks."
            )
        seen[key] = pair


def measure_conflicts(tasks: Sequence[str], gramian: Tensor) -> dict[str, float]:
    """Returns the norm of each task's gradient, `grad_norm_<task>`, and cosines, `grad_cos_<task>_<task>`.

    Args:
        tasks: Names of the rows.
        gramian: Inner products of the gradients; a cosine with one of norm 0 is left out. Shape (rows, rows).
    """
    products = gramian.double().tolist()
    norms = [products[row][row] ** 0.5 for row in range(len(tasks))]
    logs = {f"{NORM}{task}": norm for task, norm in zip(tasks, norms, strict=True)}
    for first, second in combinations(range(len(tasks)), 2):
        if norms[first] > 0 and norms[second] > 0:
            cosine = products[first][second] / (norms[first] * norms[second])
            logs[f"{COSINE}{tasks[first]}_{tasks[second]}"] = max(-1.0, min(1.0, cosine))
    return logs


@dataclass(frozen=True)
class PairConflict:
    """How two tasks got on.

    Args:
        tasks: The two.
        mean_cosine: Mean cosine of their gradients.
        negative_share: Share of the measurements in which it was below 0.
        count: Count of the measurements with labels of both.
    """

    tasks: tuple[str, str]
    mean_cosine: float
    negative_share: float
    count: int

    def __str__(self) -> str:
        """Says it in a few words."""
        return (
            f"{self.tasks[0]!r} and {self.tasks[1]!r}, mean cosine {self.mean_cosine:+.2f}, negative in "
            f"{self.negative_share:.0%} of {self.count}"
        )


@dataclass(frozen=True)
class ConflictSummary:
    """The conflicts of a training.

    Args:
        mean_norms: Mean norm of each task's gradient on the shared parameters, of its weighted loss.
        pairs: The pairs of tasks that were measured together.
    """

    mean_norms: dict[str, float]
    pairs: tuple[PairConflict, ...]

    @property
    def advice(self) -> str:
        """What to do about it, in a sentence or two; about the tasks alone, not about what preserves the embedding."""
        norms = self._about_norms()
        return " ".join([self._about_directions(are_even=not norms), *norms])

    def _about_directions(self, *, are_even: bool) -> str:
        pairs = [pair for pair in self.pairs if PRESERVATION not in pair.tasks]
        if len(self._task_norms()) < 2:
            return "Only one task was measured, so there is nothing that it could be in conflict with."
        if not pairs:
            return "No two tasks had labels in the same step, so nothing is known of conflicts."
        known = [pair for pair in pairs if pair.count >= LEAST_MEASUREMENTS]
        if not known:
            most = max(pairs, key=lambda pair: pair.count)
            return (
                f"Too little to tell: no pair of tasks has {LEAST_MEASUREMENTS} measurements (the most are {most}). "
                "Set a smaller `conflict_steps`, or train longer."
            )
        lowest = min(known, key=lambda pair: pair.mean_cosine)
        return " ".join([_about_lowest(lowest, are_even=are_even), *_about_unknown(len(pairs) - len(known))])

    def _task_norms(self) -> dict[str, float]:
        return {task: norm for task, norm in self.mean_norms.items() if task != PRESERVATION}

    def _about_norms(self) -> list[str]:
        known = {task: norm for task, norm in self._task_norms().items() if norm > 0}
        large, small = (choose(known, key=known.__getitem__, default="") for choose in (max, min))
        if not known or known[large] <= UNEVEN_NORMS * known[small]:
            return []
        return [
            f"The gradient of {large!r} is {known[large] / known[small]:.0f} times that of {small!r}: lower its "
            "`weight`, or choose another `weighting`, such as `initial_loss`."
        ]

    def table(self) -> str:
        """Returns the matrix of mean cosines as Markdown, with the mean norms."""
        cells = {pair.tasks: pair for pair in self.pairs}
        lines = [f"| mean cosine (negative, count) | {' | '.join(self.mean_norms)} | mean norm |"]
        lines.append("|---|" + "---|" * (len(self.mean_norms) + 1))
        for task, norm in self.mean_norms.items():
            row = [_cell(task, other, cells) for other in self.mean_norms]
            lines.append(f"| {task} | {' | '.join(row)} | {norm:.3g} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures and the advice as JSON-ready values."""
        pairs = [{**asdict(pair), "tasks": list(pair.tasks)} for pair in self.pairs]
        return {"mean_norms": self.mean_norms, "pairs": pairs, "advice": self.advice}


def _about_lowest(lowest: PairConflict, *, are_even: bool) -> str:
    if lowest.mean_cosine <= STRONG_CONFLICT:
        return (
            f"Strong conflict ({lowest} measurements): try `aggregation: pcgrad`, a `hidden_size` for the heads of "
            "these tasks, or a model of its own for one of them."
        )
    if lowest.negative_share > 0.5:
        return (
            f"Too little to tell: the gradients that agree least ({lowest} measurements) mostly differ in direction, "
            "but hardly on average. Compare with a model of its own for one of these tasks."
        )
    # Cosines say nothing of lengths, so weights are spoken of only where these are alike.
    suffices = "equal weights should do" if are_even else "gradients need no aggregation"
    if lowest.mean_cosine > 0:
        return f"The mean cosines stay above zero (the lowest: {lowest} measurements): {suffices}."
    return (
        f"No strong conflict (the lowest: {lowest} measurements): the tasks hardly touch each other, so {suffices} "
        "unless one of them learns too little."
    )


def _about_unknown(count: int) -> list[str]:
    few = f"fewer than {LEAST_MEASUREMENTS} measurements, too few to tell"
    return [f"Of {count} pair{'s' if count > 1 else ''} there are {few}."] if count else []


def _cell(task: str, other: str, cells: Mapping[tuple[str, str], PairConflict]) -> str:
    pair = cells.get((task, other)) or cells.get((other, task))
    return "" if pair is None else f"{pair.mean_cosine:+.2f} ({pair.negative_share:.0%}, {pair.count})"


def summarize_conflicts(history: Sequence[Mapping[str, Any]]) -> ConflictSummary | None:
    """Returns the conflicts over a whole training, of a resumed one from its first step, or None if none was measured.

    Args:
        history: The log of the trainer, with what [`measure_conflicts`] gave.
    """
    measured = [entry for entry in history if any(key.startswith(NORM) for key in entry)]
    tasks = list(dict.fromkeys(key.removeprefix(NORM) for entry in measured for key in entry if key.startswith(NORM)))
    if not tasks:
        return None
    norms = {task: mean(entry[f"{NORM}{task}"] for entry in measured if f"{NORM}{task}" in entry) for task in tasks}
    pairs = []
    for first, second in combinations(tasks, 2):
        keys = (f"{COSINE}{first}_{second}", f"{COSINE}{second}_{first}")
        cosines = [entry[key] for entry in measured for key in keys if key in entry]
        if cosines:
            negative = sum(cosine < 0 for cosine in cosines) / len(cosines)
            pairs.append(PairConflict((first, second), mean(cosines), negative, len(cosines)))
    return ConflictSummary(norms, tuple(pairs))
