"""How the losses of the tasks become the one scalar that is minimised: the weightings by name, and the plain ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from configuration_mtl import TaskConfig
from mtl.adaptive_weighting import DWAWeighting, GeometricMeanWeighting, InitialLossWeighting, RandomWeighting
from mtl.loss_weighting import LossWeighting
from tasks_mtl import REGRESSION


class FixedWeighting(LossWeighting):
    """Sum of the task losses, each times the static weight of its `TaskConfig`."""

    is_constant = True

    def terms(
        self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0
    ) -> dict[str, Tensor]:
        """See [`LossWeighting.terms`]."""
        return {name: weight * task_losses[name] for name, weight in self.current_weights().items()}

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        return {task.name: float(task.weight) for task in self.tasks}


class EqualWeighting(FixedWeighting):
    """Sum of the task losses; the static weights of the tasks have no effect."""

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        return {task.name: 1.0 for task in self.tasks}


class UncertaintyWeighting(LossWeighting):
    """Learns a log-variance s a task and minimises sum of exp(-s) L + s / 2, with L / 2 for squared error.

    Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, equations 7 and 10.
    The static weights of the tasks multiply their terms. A task without a label in a step takes no part in it.
    """

    is_learned = True

    def __init__(self, tasks: Sequence[TaskConfig], **settings: Any) -> None:
        super().__init__(tasks, **settings)
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks)))

    def terms(
        self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0
    ) -> dict[str, Tensor]:
        """See [`LossWeighting.terms`]."""
        terms = {}
        for task, log_variance in zip(self.tasks, self.log_variance, strict=True):
            present = (num_items[task.name] > 0).to(log_variance.dtype)  # ()
            precision = self._factor(task) * torch.exp(-log_variance)  # ()
            term = precision * task_losses[task.name] + present * share * log_variance / 2  # ()
            terms[task.name] = task.weight * term
        return terms

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        precisions = torch.exp(-self.log_variance.detach()).tolist()
        return {
            task.name: task.weight * self._factor(task) * precision
            for task, precision in zip(self.tasks, precisions, strict=True)
        }

    @staticmethod
    def _factor(task: TaskConfig) -> float:
        return 0.5 if task.problem_type == REGRESSION or task.loss == "cosine" else 1.0  # Of squared errors.


WEIGHTINGS: dict[str, type[LossWeighting]] = {
    "fixed": FixedWeighting,
    "equal": EqualWeighting,
    "uncertainty": UncertaintyWeighting,
    "dwa": DWAWeighting,
    "random": RandomWeighting,
    "geometric_mean": GeometricMeanWeighting,
    "initial_loss": InitialLossWeighting,
}
"""Weightings by the name that settings use."""


def make_weighting(name: str, tasks: Sequence[TaskConfig], **settings: Any) -> LossWeighting:
    """Builds a weighting by name; settings as of [`LossWeighting`].

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in WEIGHTINGS:
        raise ValueError(f"weighting {name!r} is unknown. Use one of {list(WEIGHTINGS)}.")
    return WEIGHTINGS[name](tasks, **settings)
