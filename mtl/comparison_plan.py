"""What a comparison trains, in which order: the model of all tasks, one model a task, pairs of tasks, and a probe."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

MULTI, SINGLE, PAIR, PROBE = "multi", "single", "pair", "probe"
"""Kinds of part."""


@dataclass(frozen=True)
class PlannedPart:
    """One training of a comparison, or the probe.

    Args:
        kind: `multi`, all tasks; `single`, one of them; `pair`, two; `probe`, linear models on the untuned encoder.
        tasks: Its tasks.
        seed: Seed of the training; None for the probe, which draws nothing.
    """

    kind: str
    tasks: tuple[str, ...]
    seed: int | None = None

    @property
    def name(self) -> str:
        """Name of its folder."""
        which = f"-{'+'.join(self.tasks)}" if self.kind in (SINGLE, PAIR) else ""
        return f"{self.kind}{which}" + ("" if self.seed is None else f"-seed-{self.seed}")

    @property
    def title(self) -> str:
        """What a log says of it."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return {
            MULTI: f"all {len(self.tasks)} tasks in one model{seed}",
            PROBE: "linear models on the untuned encoder",
        }.get(self.kind, f"{' and '.join(self.tasks)} alone{seed}")


def plan_parts(
    tasks: Sequence[str], compared: Sequence[str], seeds: Sequence[int], *, pairs: bool = False, probe: bool = True
) -> list[PlannedPart]:
    """Returns the parts in their order: seed by seed, so that what is done after each seed is a whole comparison.

    Args:
        tasks: All tasks, which the multi-task model learns.
        compared: Those of them that are measured on test, and so are trained alone too.
        seeds: Seeds of the trainings.
        pairs: Whether each pair of the compared tasks is trained together, for what one task does to another. Where
            these two are all tasks, the multi-task model is that pair.
        probe: Whether linear models on the untuned encoder are fitted.
    """
    parts = []
    for place, seed in enumerate(seeds):
        parts.append(PlannedPart(MULTI, tuple(tasks), seed))
        parts += [PlannedPart(SINGLE, (name,), seed) for name in compared]
        if probe and place == 0:
            parts.append(PlannedPart(PROBE, tuple(compared)))
    if pairs:
        both = [pair for pair in itertools.combinations(compared, 2) if set(pair) != set(tasks)]
        parts += [PlannedPart(PAIR, pair, seed) for seed in seeds for pair in both]
    return parts


@dataclass(frozen=True)
class Budget:
    """How long every part trains, as the multi-task run does by its settings.

    Args:
        max_steps: Optimizer steps.
        steps_per_epoch: Optimizer steps of the multi-task run in an epoch of its rows.
        rows_per_step: Rows of an optimizer step.
    """

    max_steps: int
    steps_per_epoch: int
    rows_per_step: int

    def epochs(self, rows: int) -> float:
        """Returns how often a training on so many rows sees each of them."""
        return self.max_steps / self.steps_in_epoch(rows)

    def steps_in_epoch(self, rows: int) -> int:
        """Returns the steps of an epoch of so many rows."""
        return math.ceil(rows / self.rows_per_step)
