"""Training in shards (FSDP): what cannot work is refused, and a sharded model is saved as what it is."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule


def is_sharding_asked_for(args: Any) -> bool:
    """Returns whether the settings, or `accelerate launch`, ask for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding(plugin: Any, *, is_asked_for: bool, has_learned_weights: bool) -> None:
    """Refuses what cannot work in shards.

    Args:
        plugin: The FSDP plugin of accelerate's state; None if nothing is sharded.
        is_asked_for: Whether settings or launcher ask for FSDP.
        has_learned_weights: Whether the weighting of tasks has parameters.

    Raises:
        ValueError: If FSDP was asked for but is not in use, is of version 1, or saves shards, or weights are learned.
    """
    if plugin is None:
        if is_asked_for:
            raise ValueError(
                "FSDP is asked for, but accelerate shards over several accelerators only, and would train whole "
                "copies without a word. Start a process for each of several GPUs, or leave FSDP out (DDP)."
            )
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP 1 flattens parameters, so that those of the heads have no learning rate of their own. Set "
            "`fsdp_version: 2`."
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise ValueError(
            f"FSDP with {plugin.state_dict_type} saves shards, which are no model to load. Set `fsdp_state_dict_type: "
            "FULL_STATE_DICT`."
        )
    if has_learned_weights:
        raise ValueError(
            "Learned task weights are outside of the sharded model, where FSDP's optimizer cannot reach them. Choose "
            "another `weighting`, or DDP."
        )


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """Gives a model, while it is saved, its own class back, instead of the one that FSDP 2 has put in its place.

    The class decides which code is saved with the model, and under which name it is loaded.
    """
    sharded = type(model)
    own: Any = next(base for base in sharded.__mro__ if not issubclass(base, FSDPModule))
    if own is sharded:
        yield
        return
    model.__class__ = own
    try:
        yield
    finally:
        model.__class__ = sharded
