"""Tells a weighting what happens in training, and keeps its learned parameters alike on all processes."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mtl.loss_weighting import LossWeighting


class WeightingCallback(TrainerCallback):
    """Calls the hooks of a weighting, averages the gradients of its parameters over ranks, and clears them.

    They are outside the model, so neither DistributedDataParallel nor `model.zero_grad()` reaches them.

    Args:
        weighting: The weighting.
        reduce_mean: Averages a tensor over processes.
        measure: Returns the mean loss of each task before training.
    """

    def __init__(
        self,
        weighting: LossWeighting,
        reduce_mean: Callable[[Tensor], Tensor],
        measure: Callable[[], Mapping[str, float]],
    ) -> None:
        self.weighting = weighting
        self.reduce_mean = reduce_mean
        self.measure = measure
        self._goes_on = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measures the initial losses, unless the checkpoint has them."""
        self._goes_on = not float(state.epoch or 0.0).is_integer()
        if self.weighting.needs_initial_losses:
            self.weighting.set_initial_losses(self.measure())

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells of an epoch, unless it is one that a resumed run goes on with."""
        # Not by `state.epoch`: of data without a length it is a share of all steps, and no whole number here.
        if not self._goes_on:
            self.weighting.start_epoch()
        self._goes_on = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells of an optimizer step."""
        self.weighting.start_step(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells of the end of a step, and averages gradients."""
        self.weighting.end_step()
        for parameter in self.weighting.parameters():
            if args.world_size > 1 and parameter.grad is not None:
                parameter.grad = self.reduce_mean(parameter.grad)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Clears gradients."""
        self.weighting.zero_grad()
