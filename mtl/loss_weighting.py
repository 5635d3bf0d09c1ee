"""What every weighting of the task losses is, and when the trainer calls which part of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from configuration_mtl import TaskConfig


def step_seed(seed: int, step: int) -> int:
    """Returns a seed of 32 bits for the draws of one step: the same in every process, and in a resumed run."""
    return int(np.random.SeedSequence([seed % 2**64, step]).generate_state(1)[0])


class LossWeighting(nn.Module, ABC):
    """Base of the weightings; parameters of a subclass are optimised by the trainer, and saved as its buffers are.

    Args:
        tasks: The tasks. The static weight of a task multiplies what a weighting gives it, unless the class says more.
        seed: Seed of the weightings that draw.
        reduce_mean: Averages a tensor over processes; None for one process.
    """

    is_additive: ClassVar[bool] = True
    """Whether the losses of the micro-batches of a step add up to the loss of the step."""
    is_learned: ClassVar[bool] = False
    """Whether there are parameters, which have to be in the optimizer."""
    is_constant: ClassVar[bool] = False
    """Whether the weights are known from the settings, so that a log need not tell them."""

    def __init__(
        self, tasks: Sequence[TaskConfig], *, seed: int = 0, reduce_mean: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.seed = seed
        self.reduce_mean = reduce_mean or (lambda tensor: tensor)
        static = torch.tensor([float(task.weight) for task in self.tasks])
        self.register_buffer("static", static, persistent=False)  # (tasks,)
        self.static: Tensor

    def forward(self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0) -> Tensor:
        """Returns the weighted loss of one micro-batch, the sum of its [`terms`], shape ()."""
        return torch.stack(list(self.terms(task_losses, num_items, share).values())).sum()

    @abstractmethod
    def terms(
        self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0
    ) -> dict[str, Tensor]:
        """Returns what each task adds to the weighted loss of one micro-batch, shape () each.

        Args:
            task_losses: Each task's summed loss in the micro-batch over its count of labels in the whole step; over
                the micro-batches of a step, and averaged over processes, they add up to the mean loss. Shape () each.
            num_items: Each task's count of valid labels in the whole step. Shape () each.
            share: This micro-batch's share of the step, for terms that do not depend on the batch.
        """

    @abstractmethod
    def current_weights(self) -> dict[str, float]:
        """Returns the factor now on each task's loss."""

    @property
    def needs_initial_losses(self) -> bool:
        """Whether `set_initial_losses` is to be called before training."""
        return False

    def set_initial_losses(self, losses: Mapping[str, float]) -> None:
        """Takes the mean loss of each task before training."""

    def start_epoch(self) -> None:
        """Is called when an epoch begins, but not when one is gone on with."""

    def start_step(self, step: int) -> None:
        """Is called before the first micro-batch of an optimizer step, with the count of steps before it."""

    def observe(self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor]) -> None:
        """Is called with each micro-batch of training; arguments as of `terms`."""

    def end_step(self) -> None:
        """Is called after the last micro-batch of an optimizer step."""

    def _by_name(self, values: Tensor) -> dict[str, float]:
        return {task.name: value for task, value in zip(self.tasks, values.tolist(), strict=True)}

    def _vector(self, values: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([values[task.name] for task in self.tasks])  # (tasks,)


class FactorWeighting(LossWeighting):
    """Base of the weightings that multiply each loss by a factor without gradient."""

    @abstractmethod
    def factors(self) -> Tensor:
        """Returns the factors now, shape (tasks,)."""

    def terms(
        self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0
    ) -> dict[str, Tensor]:
        """See [`LossWeighting.terms`]."""
        factors = self.factors().unbind()
        return {task.name: factor * task_losses[task.name] for task, factor in zip(self.tasks, factors, strict=True)}

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        return self._by_name(self.factors())
