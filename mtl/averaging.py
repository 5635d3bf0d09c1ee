"""Averages of the weights over training: what is evaluated and saved, while training itself goes on with the raw ones.

| setting     | the average                                                               |
|-------------|---------------------------------------------------------------------------|
| `ema:D`     | exponential: the weights of a step count D times those of the next        |
| `last:F`    | the mean of the weights after each of the last F of the training's steps  |
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

AVERAGE_NAME = "average.safetensors"
"""The file of a checkpoint that holds the averaged weights; its `model.safetensors` holds the raw ones."""

_COUNT = "num_averaged"  # Beside the weights, whose names have a dot.


@dataclass(frozen=True)
class AverageSetting:
    """What is averaged.

    Args:
        kind: `"ema"` or `"last"`.
        value: The decay, or the fraction of the training's steps.
    """

    kind: str
    value: float

    @classmethod
    def parse(cls, setting: str) -> "AverageSetting":
        """Reads `ema:<decay>` or `last:<fraction>`.

        Raises:
            ValueError: If the setting is another, or its number is out of range.
        """
        kind, _, number = str(setting).partition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if (kind == "ema" and 0.0 < value < 1.0) or (kind == "last" and 0.0 < value <= 1.0):
            return cls(kind, value)
        raise ValueError(
            f"average_weights={setting!r} is not a setting. Use `ema:<decay>` with a decay between 0 and 1, such as "
            "'ema:0.999', or `last:<fraction of training>`, such as 'last:0.25'."
        )

    def first_step(self, max_steps: int) -> int:
        """Returns the first step, counted from 1, whose weights are in the average of a training of `max_steps`."""
        return 1 if self.kind == "ema" else max_steps + 1 - max(1, round(self.value * max_steps))

    def share(self, count: int) -> float:
        """Returns the share of the newest of `count` weights in their average."""
        return 1.0 / count if self.kind == "last" else (1.0 - self.value) / (1.0 - self.value**count)


class WeightAverage:
    """A running average of parameters, in float32: of weights w, a_n = a_(n-1) + s_n (w_n - a_(n-1)).

    `last` takes s_n = 1 / n, which makes a_n the mean: Izmailov et al., "Averaging Weights Leads to Wider Optima and
    Better Generalization", UAI 2018, algorithm 1. `ema` takes s_n = (1 - D) / (1 - D^n), which makes a_n the sum of
    (1 - D) D^(n-i) w_i over i, divided by the sum of these shares, as Adam corrects its moments (Kingma and Ba, ICLR
    2015, section 3): the weights that training started from, with their random heads, have no part in it.

    Args:
        setting: What is averaged.
    """

    def __init__(self, setting: AverageSetting) -> None:
        self.setting = setting
        self.count = 0
        self._averages: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Takes in the weights after a step, by their names."""
        self.count += 1
        share = self.setting.share(self.count)
        for name, weights in parameters:
            if name in self._averages:
                self._averages[name].lerp_(weights.float(), share)
            else:
                self._averages[name] = weights.to(torch.float32, copy=True)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Puts the average into a model."""
        put_weights(model, self._averages)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Lets a model hold the average within a `with` block; its own weights come back bit for bit."""
        own = {name: model.get_parameter(name).detach().clone() for name in self._averages}
        self.apply(model)
        try:
            yield
        finally:
            put_weights(model, own)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the average by parameter, and the count of what went into it."""
        return {**self._averages, _COUNT: torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        """Takes up a saved state, on a device."""
        self.count = int(state[_COUNT])
        self._averages = {name: average.to(device) for name, average in state.items() if name != _COUNT}


@torch.no_grad()
def put_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies weights, given by name, into a model's parameters, in the parameters' own dtype."""
    for name, values in weights.items():
        model.get_parameter(name).copy_(values)


def load_average(model: nn.Module, checkpoint: str | Path) -> bool:
    """Puts the averaged weights of a checkpoint, if it has any, into the model of that checkpoint.

    Args:
        model: The model, with the checkpoint's own weights: what did not train is not in the average.
        checkpoint: Folder of the checkpoint.

    Returns:
        Whether there was an average: one of `last` begins only in the last part of training.
    """
    path = Path(checkpoint, AVERAGE_NAME)
    if not path.is_file():
        return False
    state = load_file(path)
    state.pop(_COUNT)
    put_weights(model, state)
    return True


class AveragingCallback(TrainerCallback):
    """Averages a trainer's weights after each step, and leaves the average in the model when training ends.

    What is averaged are the parameters of the model that the optimizer has; learned task weights are none of them.
    Every rank averages for itself what is equal on all of them.

    Args:
        setting: See the table in this module's docstring; None averages nothing.
    """

    def __init__(self, setting: str | None) -> None:
        self.setting = None if setting is None else AverageSetting.parse(setting)
        self.average: WeightAverage | None = None
        self._names: list[str] = []
        self._first_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Finds what to average; a run that is not resumed begins without an average."""
        if self.setting is None:
            return
        learning = {id(p) for group in kwargs["optimizer"].param_groups for p in group["params"]}
        self._names = [name for name, p in kwargs["model"].named_parameters() if id(p) in learning]
        self._first_step = self.setting.first_step(state.max_steps)
        expected = max(0, state.global_step + 1 - self._first_step)
        if state.global_step == 0 or self.average is None:
            self.average = WeightAverage(self.setting)
        if self.average.count != expected:
            logger.warning(
                "The checkpoint has an average of %s steps, this run would have one of %s by now (its number of steps "
                "is another, or the file is gone). The average begins anew after step %s.",
                self.average.count, expected, state.global_step,
            )  # fmt: skip
            self.average = WeightAverage(self.setting)
        logger.info(
            "Averaging the weights (%s:%g) from step %s of %s on.",
            self.setting.kind, self.setting.value, max(self._first_step, state.global_step + 1), state.max_steps,
        )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Takes in the weights after a step."""
        if self.average is not None and state.global_step >= self._first_step:
            model = kwargs["model"]
            self.average.update((name, model.get_parameter(name).detach()) for name in self._names)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the average in the model: that of the best checkpoint if the best one was loaded."""
        average, self.average = self.average, None
        if average is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            is_averaged = load_average(kwargs["model"], state.best_model_checkpoint)
            found = f"that of {state.best_model_checkpoint}"
        else:
            is_averaged = average.count > 0
            average.apply(kwargs["model"])
            found = f"over {average.count} steps"
        if is_averaged:
            logger.info("The model now holds the average, %s.", found)
        else:
            logger.warning(
                "The model holds no average: the weights in use are of a step before %s, with which it begins.",
                self._first_step,
            )

    @contextlib.contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        """Lets a model hold the average, once there is one, within a `with` block."""
        with contextlib.ExitStack() as stack:
            if self.average is not None and self.average.count > 0:
                stack.enter_context(self.average.swapped(model))
            yield

    def save(self, folder: str | Path) -> None:
        """Writes the average, once there is one, beside a checkpoint's raw weights."""
        if self.average is not None and self.average.count > 0:
            save_file(self.average.state_dict(), Path(folder, AVERAGE_NAME))

    def load(self, checkpoint: str | Path, device: torch.device) -> None:
        """Takes up the average of a checkpoint that training is resumed from."""
        if self.setting is None:
            return
        self.average = WeightAverage(self.setting)
        path = Path(checkpoint, AVERAGE_NAME)
        if path.is_file():
            self.average.load_state_dict(load_file(path), device)
