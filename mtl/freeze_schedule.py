"""What learns from which epoch on: gradual unfreezing, linear probing and then fine-tuning, as one setting.

A schedule is a mapping from an epoch, which may be a fraction, to a setting of `mtl.freezing` that holds from it on:
`{0: backbone, 1: "lower_layers:4", 2: "lower_layers:2", 3: none}` unfreezes gradually (Howard and Ruder, "Universal
Language Model Fine-tuning for Text Classification", ACL 2018, section 3.3); `{0: backbone, 2: none}` trains the heads
first and then everything (Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution", ICLR 2022).
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from modeling_mtl import MTLModel
from mtl.freezing import Freezing, apply_freezing, count_parameters, frozen_modules

logger = logging.getLogger(__name__)

_ROUNDING_EPOCHS = 1e-9  # Epochs are counted in floats: 1 + 3/10 is not the nearest one to 1.3.


@dataclass(frozen=True)
class FreezeSchedule:
    """Settings of `mtl.freezing`, each with the epoch from which it holds, in order.

    Args:
        phases: Epoch and setting of each phase; the first epoch is 0.
    """

    phases: tuple[tuple[float, str], ...]

    @classmethod
    def parse(cls, schedule: Mapping[Any, Any]) -> "FreezeSchedule":
        """Reads a mapping from epoch to setting, as it comes from YAML, JSON or Python.

        Raises:
            ValueError: If it is no mapping, a key is no epoch, a value no text, an epoch stands twice, or none is 0.
        """
        if not isinstance(schedule, Mapping):
            raise ValueError(f"freeze_schedule must be a mapping from epochs to settings, found {schedule!r}.")
        phases: dict[float, str] = {}
        for key, setting in schedule.items():
            epoch = _as_epoch(key)
            if epoch in phases:
                raise ValueError(f"freeze_schedule: epoch {epoch:g} stands twice ({dict(schedule)}). Leave one out.")
            if not isinstance(setting, str):
                raise ValueError(
                    f"freeze_schedule: epoch {epoch:g} has {setting!r}, which is no setting of `freeze`. To freeze "
                    "nothing, write 'none'."
                )
            phases[epoch] = setting
        if 0.0 not in phases:
            raise ValueError(
                f"freeze_schedule has no epoch 0, so nothing says what learns first; found {dict(schedule)}. Add it, "
                "such as `0: backbone`."
            )
        return cls(tuple(sorted(phases.items())))

    def at(self, epoch: float) -> str:
        """Returns the setting that holds at an epoch."""
        return [setting for start, setting in self.phases if start <= epoch + _ROUNDING_EPOCHS][-1]

    def to_dict(self) -> dict[str, str]:
        """Returns the schedule as JSON holds it."""
        return {str(int(epoch) if epoch.is_integer() else epoch): setting for epoch, setting in self.phases}

    def __str__(self) -> str:
        """Says it in a line for the log."""
        return ", ".join(f"{setting} from epoch {epoch:g}" for epoch, setting in self.phases)


def begin_freezing(
    model: MTLModel, setting: str | None, schedule: Mapping[Any, Any] | None
) -> tuple[Freezing, "FreezeScheduleCallback"]:
    """Freezes what a setting says, or what the first phase of a schedule does, after a look at all of them.

    Args:
        model: The model.
        setting: A setting of `mtl.freezing`; None leaves the model as it is.
        schedule: A mapping as [`FreezeSchedule`] reads it, in the setting's place.

    Returns:
        What is frozen (of a schedule: in every phase, with the count of parameters that learn in any), and the
        callback that applies the phases.

    Raises:
        ValueError: If a setting is unknown or does not fit the model, or a phase leaves nothing to learn.
    """
    if schedule is None:
        return apply_freezing(model, setting), FreezeScheduleCallback(None)
    parsed = FreezeSchedule.parse(schedule)
    for epoch, phase in parsed.phases:
        if len(_frozen_parameters(model, phase)) == sum(1 for _ in model.parameters()):
            raise ValueError(f"freeze_schedule: {phase!r}, from epoch {epoch:g} on, leaves no parameter to learn.")
    apply_freezing(model, parsed.at(0.0))
    learning = sum(parameter.numel() for parameter in ever_learning(model, parsed))
    always = set.intersection(*(set(frozen_modules(model, phase)) for _, phase in parsed.phases))
    _, total = count_parameters(model)
    return Freezing(str(parsed), tuple(sorted(always)), learning, total), FreezeScheduleCallback(parsed)


def ever_learning(model: MTLModel, schedule: FreezeSchedule) -> list[nn.Parameter]:
    """Returns the parameters that learn in some phase."""
    always = set.intersection(*(_frozen_parameters(model, setting) for _, setting in schedule.phases))
    return [parameter for parameter in model.parameters() if id(parameter) not in always]


def _frozen_parameters(model: MTLModel, setting: str) -> set[int]:
    modules = [model.get_submodule(name) for name in frozen_modules(model, setting)]
    return {id(parameter) for module in modules for parameter in module.parameters()}


class FreezeScheduleCallback(TrainerCallback):
    """Applies, before each step, the setting that holds at its epoch.

    While a parameter is frozen it has no gradient, and torch's optimizers pass over it: no weight decay, no moments.

    Args:
        schedule: The schedule; None changes nothing.
    """

    def __init__(self, schedule: FreezeSchedule | None) -> None:
        self.schedule = schedule
        self._setting: str | None = None

    def prepare(self, model: MTLModel) -> None:
        """Lets everything that ever learns require gradients: optimizer and DistributedDataParallel take no other."""
        if self.schedule is not None:
            for parameter in ever_learning(model, self.schedule):
                parameter.requires_grad_(True)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Applies the setting to begin with: the first, or where a resumed run stands."""
        for epoch, setting in self.schedule.phases if self.schedule is not None else ():
            if epoch >= state.num_train_epochs:
                logger.warning(
                    "freeze_schedule: %r, from epoch %g on, is never reached in %s epochs.",
                    setting, epoch, state.num_train_epochs,
                )  # fmt: skip
        self._setting = None
        self._apply(kwargs["model"], state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Applies the setting of the step."""
        self._apply(kwargs["model"], state)

    def _apply(self, model: MTLModel, state: TrainerState) -> None:
        if self.schedule is None:
            return
        epoch = state.epoch or 0.0
        setting = self.schedule.at(epoch)
        if setting != self._setting:
            logger.info("Epoch %.2f, step %s: freeze_schedule takes %r.", epoch, state.global_step, setting)
            apply_freezing(model, setting)
            self._setting = setting


def _as_epoch(key: Any) -> float:
    try:
        epoch = math.nan if isinstance(key, bool) else float(key)
    except (TypeError, ValueError):
        epoch = math.nan
    if not math.isfinite(epoch) or epoch < 0:
        raise ValueError(f"freeze_schedule: {key!r} is no epoch. The keys are numbers from 0 on, such as 0, 1 or 1.5.")
    return epoch
