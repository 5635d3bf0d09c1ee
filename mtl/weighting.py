"""How the losses of the tasks become the one scalar that is minimised."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from configuration_mtl import REGRESSION, TaskConfig


class LossWeighting(nn.Module, ABC):
    """Base of the weightings; a subclass may hold learned parameters, which the trainer optimises and saves."""

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)

    @abstractmethod
    def forward(self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0) -> Tensor:
        """Returns the weighted loss of one micro-batch, shape ().

        Args:
            task_losses: Each task's summed loss in the micro-batch over its count of labels in the whole step; over
                the micro-batches of a step they add up to the mean loss. Shape () each.
            num_items: Each task's count of valid labels in the whole step. Shape () each.
            share: This micro-batch's share of the step, for terms that do not depend on the batch.
        """

    @abstractmethod
    def current_weights(self) -> dict[str, float]:
        """Returns the factor now on each task's loss."""


class FixedWeighting(LossWeighting):
    """Sum of the task losses, each times the static weight of its `TaskConfig`."""

    def forward(self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0) -> Tensor:
        """See [`LossWeighting.forward`]."""
        return torch.stack([task.weight * task_losses[task.name] for task in self.tasks]).sum()

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        return {task.name: float(task.weight) for task in self.tasks}


class UncertaintyWeighting(LossWeighting):
    """Learns a log-variance s a task and minimises sum of exp(-s) L + s / 2, with L / 2 for squared error.

    Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, equations 7 and 10.
    The static weights of the tasks multiply their terms. A task without a label in a step takes no part in it.
    """

    def __init__(self, tasks: Sequence[TaskConfig]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def forward(self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0) -> Tensor:
        """See [`LossWeighting.forward`]."""
        terms = []
        for task, log_variance in zip(self.tasks, self.log_variance, strict=True):
            present = (num_items[task.name] > 0).to(log_variance.dtype)  # ()
            precision = self._factor(task) * torch.exp(-log_variance)  # ()
            terms.append(task.weight * (precision * task_losses[task.name] + present * share * log_variance / 2))
        return torch.stack(terms).sum()

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        precisions = torch.exp(-self.log_variance.detach()).tolist()
        return {
            task.name: task.weight * self._factor(task) * precision
            for task, precision in zip(self.tasks, precisions, strict=True)
        }

    @staticmethod
    def _factor(task: TaskConfig) -> float:
        return 0.5 if task.problem_type == REGRESSION else 1.0


WEIGHTINGS: dict[str, type[LossWeighting]] = {"fixed": FixedWeighting, "uncertainty": UncertaintyWeighting}
"""Weightings by the name that settings use."""


def make_weighting(name: str, tasks: Sequence[TaskConfig]) -> LossWeighting:
    """Builds a weighting by name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting {name!r} is unknown. Use one of {list(WEIGHTINGS)}.")
    return WEIGHTINGS[name](tasks)
