"""Weightings whose weights change, or are found, while a run goes on: DWA, random, geometric mean, initial loss.

torchjd has scalarizers of the same names. They are not used here because they see one vector of losses a call: its DWA
averages calls and not labels, and keeps that outside its state; its Random draws from the global generator anew for
each micro-batch and rank; its GeometricMean and UW know no task without labels. Then the loss would depend on how a
step is cut, and a resumed run would not equal the unbroken one. Its IMTLL is twice UW with the sign of s turned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from configuration_mtl import TaskConfig
from mtl.loss_weighting import FactorWeighting, LossWeighting, step_seed

DWA_TEMPERATURE = 2.0
"""The temperature T of DWA, as in its paper."""


class DWAWeighting(FactorWeighting):
    """Dynamic weight average: weighs by how slowly each task's training loss fell over the two epochs before.

    With K tasks, K softmax(w / T), where w is the mean loss of the last epoch over that of the one before, and 1 where
    those two are not known. The means are those over all labels of the epoch.
    Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention", CVPR 2019, equation 7.
    """

    def __init__(self, tasks: Sequence[TaskConfig], **settings: Any) -> None:
        super().__init__(tasks, **settings)
        size = len(self.tasks)
        self.register_buffer("epoch_means", torch.full((2, size), torch.nan))  # The last one stands last.
        for name in ("loss_sums", "label_counts"):  # Of the epoch so far.
            self.register_buffer(name, torch.zeros(size))
        self.epoch_means: Tensor
        self.loss_sums: Tensor
        self.label_counts: Tensor
        self._step: tuple[Tensor, Tensor] | None = None

    def observe(self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor]) -> None:
        """See [`LossWeighting.observe`]."""
        losses, counts = self._vector(task_losses).detach(), self._vector(num_items)
        self._step = (losses if self._step is None else self._step[0] + losses, counts)

    def end_step(self) -> None:
        """See [`LossWeighting.end_step`]."""
        if self._step is not None:
            losses, counts = self._step
            self.loss_sums += self.reduce_mean(losses) * counts
            self.label_counts += counts
            self._step = None

    def start_epoch(self) -> None:
        """See [`LossWeighting.start_epoch`]."""
        # The end of an epoch is seen at the begin of the next: a checkpoint may be written between its last step and
        # its end, and the run that goes on from it would never be told of the end.
        if self.label_counts.any():
            self.epoch_means = torch.stack([self.epoch_means[1], self.loss_sums / self.label_counts])
            self.loss_sums.zero_()
            self.label_counts.zero_()

    def factors(self) -> Tensor:
        """See [`FactorWeighting.factors`]."""
        older, newer = self.epoch_means
        rates = torch.where(older > 0, newer / older, 1.0).nan_to_num(nan=1.0)
        return self.static * len(self.tasks) * torch.softmax(rates / DWA_TEMPERATURE, dim=0)


class RandomWeighting(FactorWeighting):
    """Random loss weighting: the softmax of standard normal draws, anew for each step; the weights add up to 1.

    The draw follows from the seed and the number of the step alone. Evaluation takes the static weights.
    Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting", TMLR 2022, algorithm 2.
    """

    def __init__(self, tasks: Sequence[TaskConfig], **settings: Any) -> None:
        super().__init__(tasks, **settings)
        self._draw = torch.zeros(len(self.tasks))
        self.start_step(0)

    def start_step(self, step: int) -> None:
        """See [`LossWeighting.start_step`]."""
        generator = torch.Generator().manual_seed(step_seed(self.seed, step))
        self._draw = torch.softmax(torch.randn(len(self.tasks), generator=generator), dim=0).to(self.static.device)

    def factors(self) -> Tensor:
        """See [`FactorWeighting.factors`]."""
        return self.static * self._draw if self.training else self.static


class GeometricMeanWeighting(LossWeighting):
    """Geometric mean of the losses above 0 of the tasks that have labels in the step.

    A loss of exactly 0, as the margin of triplets has when all keep it, has no gradient; as a factor it would also
    take away that of all other tasks, so it is left out as a task without labels is.

    The static weights are exponents: the mean is exp(sum of w log L / sum of w). So that the gradient is exact over
    processes, each loss gets the derivative of the mean by it as a factor; the terms still add up to the mean.
    Evaluation takes the static weights.
    Chennupati, Sistu, Yogamani and Rawashdeh, "MultiNet++", CVPR Workshops 2019, equation 3.
    """

    is_additive = False

    def __init__(self, tasks: Sequence[TaskConfig], **settings: Any) -> None:
        super().__init__(tasks, **settings)
        self._factors: Tensor | None = None

    def terms(
        self, task_losses: dict[str, Tensor], num_items: dict[str, Tensor], share: float = 1.0
    ) -> dict[str, Tensor]:
        """See [`LossWeighting.terms`]."""
        factors = self.static
        if self.training:
            losses = self.reduce_mean(self._vector(task_losses).detach())  # (tasks,)
            factors = self._factors = self._derivatives(losses, (self._vector(num_items) > 0) & (losses > 0))
        return {
            task.name: factor * task_losses[task.name]
            for task, factor in zip(self.tasks, factors.unbind(), strict=True)
        }

    def _derivatives(self, losses: Tensor, present: Tensor) -> Tensor:
        exponents = self.static * present
        exponents = exponents / exponents.sum().clamp(min=torch.finfo(losses.dtype).tiny)
        losses = torch.where(present, losses, 1.0)
        return exponents * torch.exp((exponents * losses.log()).sum()) / losses  # (tasks,)

    def current_weights(self) -> dict[str, float]:
        """See [`LossWeighting.current_weights`]."""
        return self._by_name(self.static if self._factors is None else self._factors)


class InitialLossWeighting(FactorWeighting):
    """Divides each task's loss by what it was before training, so that all begin at their static weight."""

    def __init__(self, tasks: Sequence[TaskConfig], **settings: Any) -> None:
        super().__init__(tasks, **settings)
        self.register_buffer("initial", torch.full((len(self.tasks),), torch.nan))
        self.initial: Tensor

    @property
    def needs_initial_losses(self) -> bool:
        """Whether they are not known yet: a resumed run has those of its checkpoint."""
        return bool(self.initial.isnan().any())

    def set_initial_losses(self, losses: Mapping[str, float]) -> None:
        """See [`LossWeighting.set_initial_losses`].

        Raises:
            ValueError: If a task has none, or one that nothing can be divided by.
        """
        for task in self.tasks:
            loss = losses.get(task.name)
            if loss is None or not 0 < loss < float("inf"):
                found = "no label or teacher in the training rows" if loss is None else f"an initial loss of {loss}"
                raise ValueError(
                    f"weighting='initial_loss': task {task.name!r} has {found}, so nothing can be divided by it. Take "
                    "the task out, give it labels, or choose another weighting."
                )
        self.initial.copy_(torch.tensor([losses[task.name] for task in self.tasks]))

    def factors(self) -> Tensor:
        """See [`FactorWeighting.factors`]."""
        return self.static / self.initial.nan_to_num(nan=1.0)
