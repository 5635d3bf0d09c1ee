"""The running means of the task losses between two logs, exact over micro-batches and processes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tasks_mtl import valid_labels


class TaskLossMeans:
    """Gathers each task's summed loss and count of labels, and gives their quotient."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], labels: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> None:
        """Takes in a micro-batch.

        Args:
            losses: Each task's summed loss in the micro-batch over its count of labels in the whole step. Shape ().
            labels: The micro-batch's labels.
            counts: Each task's count of labels in the whole step. Shape ().
        """
        for name, loss in losses.items():
            self.note(name, loss * counts[name].clamp(min=1), valid_labels(labels[name]).sum())

    def note(self, name: str, total: Tensor, count: Tensor) -> None:
        """Takes in a sum of losses over some items, and how many these are; shape () each."""
        self._sums[name] = self._sums.get(name, 0.0) + total.detach()
        self._counts[name] = self._counts.get(name, 0) + count

    def take(self, reduce: Callable[[Any], Any] | None = None) -> dict[str, float]:
        """Returns the mean loss of each task that had labels since the last call, and begins anew.

        Args:
            reduce: Sums tensors over processes; None for one process.
        """
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[name] for name in names])  # (tasks,)
        counts = torch.stack([self._counts[name] for name in names]).to(sums)  # (tasks,)
        if reduce is not None:
            sums, counts = reduce((sums, counts))
        self._sums, self._counts = {}, {}
        means = zip(names, (sums / counts).tolist(), counts.tolist(), strict=True)
        return {name: mean for name, mean, count in means if count > 0}
