"""What a search samples, and from which ranges."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configuration_mtl import TaskConfig

OBJECTIVES = ("score", "tasks")
RATES = ("learning_rate", "head_learning_rate")
DEFAULT_SPACE = {"learning_rate": (1e-5, 5e-4), "head_learning_rate": (1e-4, 1e-2), "weight": (0.1, 10.0)}
"""The ranges that are searched if none are given; where the encoder is frozen, that of the heads alone."""


@dataclass(frozen=True)
class SearchConfig:
    """What is searched, and how long.

    Args:
        n_trials: Trainings in all, those of an earlier, interrupted search among them.
        objectives: `"score"` for the mean of the tasks' primary metrics; `"tasks"` for each of these by itself.
        space: Ranges (least, most), each sampled log-uniformly: `learning_rate`, `head_learning_rate`, `weight` for
            that of every task, `weight_<task>` for that of one. What is not named keeps its value. If not given, those
            of `DEFAULT_SPACE` that have an effect.

    Raises:
        ValueError: If a setting is illegal.
    """

    n_trials: int = 20
    objectives: str = "score"
    space: Mapping[str, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        """Checks the settings; numbers such as `1e-4`, which YAML reads as text, become floats."""
        if isinstance(self.n_trials, bool) or not isinstance(self.n_trials, int) or self.n_trials < 1:
            raise ValueError(f"search: n_trials must be an int of at least 1, found {self.n_trials!r}.")
        if self.objectives not in OBJECTIVES:
            raise ValueError(f"search: objectives {self.objectives!r} is unknown. Use one of {list(OBJECTIVES)}.")
        if self.space is None:
            return
        if not isinstance(self.space, Mapping) or not self.space:
            raise ValueError(f"search: space must map names to ranges, found {self.space!r}.")
        object.__setattr__(self, "space", {name: _range(name, given) for name, given in self.space.items()})

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "SearchConfig":
        """Makes it of a mapping, as a settings file has it.

        Raises:
            ValueError: If it has a key that is no setting.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = [key for key in settings if key not in known]
        if unknown:
            raise ValueError(f"search: there is no setting {unknown[0]!r}. Known are {known}.")
        return cls(**settings)

    def ranges(self, tasks: Sequence[TaskConfig], *, is_frozen: bool = False) -> dict[str, tuple[float, float]]:
        """Returns the range of each thing that is sampled, weights by task.

        Args:
            tasks: The tasks.
            is_frozen: Whether the encoder does not learn.

        Raises:
            ValueError: If the space names what is neither a learning rate nor the weight of a task, or, with a frozen
                encoder, has no effect.
        """
        space = self.space or DEFAULT_SPACE
        weights = {f"weight_{task.name}": space.get("weight") for task in tasks}
        known = [*RATES, "weight", *weights]
        for name in space:
            if name not in known:
                raise ValueError(f"search: space has {name!r}. It may have {known}.")
        if is_frozen:
            void = [name for name in self.space or () if name != "head_learning_rate"]
            if void:
                raise ValueError(
                    f"search: {void} are sampled, but the encoder is frozen: it has no learning rate, and each head "
                    "learns by its own loss alone, whose scale the optimizer evens out. Leave them out of `space`, or "
                    "let the encoder learn."
                )
            return {"head_learning_rate": space["head_learning_rate"]}
        named = {name: space.get(name, every) for name, every in weights.items()}
        rates = {name: space[name] for name in RATES if name in space}
        return {**rates, **{name: given for name, given in named.items() if given is not None}}


def _range(name: str, given: Any) -> tuple[float, float]:
    try:
        least, most = (float(value) for value in given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"search: the range of {name!r} must be two numbers, found {given!r}.") from error
    if not 0 < least <= most < math.inf:
        raise ValueError(f"search: the range of {name!r} must be 0 < least <= most, found {given!r}.")
    return least, most
