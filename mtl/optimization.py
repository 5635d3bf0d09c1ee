"""Which parameters learn at which rate: the groups of the optimizer."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.freezing import find_layers


def head_rate(args: MTLTrainingArguments) -> float:
    """Returns the learning rate of heads and learned task weights."""
    return args.learning_rate if args.head_learning_rate is None else args.head_learning_rate


def learning_rates(model: MTLModel, args: MTLTrainingArguments) -> dict[str, float]:
    """Returns the learning rate of every parameter by its name.

    Heads have `head_learning_rate`. With `layer_decay` d the highest of n layers has `learning_rate` r, each one below
    it d times the rate of the one above, the embeddings d^n r, and what is beside the layers, such as a last norm, r:
    the discriminative fine-tuning of Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification",
    ACL 2018, section 3.2, where d is 1 / 2.6.

    Args:
        model: The model, not wrapped.
        args: The settings of training.

    Raises:
        ValueError: If `layer_decay` is set and the encoder has no list of layers with weights of their own.
    """
    factors = {} if args.layer_decay is None else _layer_factors(model, args.layer_decay)
    rates = {}
    for name, _ in model.named_parameters():
        factor = next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)
        rates[name] = head_rate(args) if name.startswith("heads.") else args.learning_rate * factor
    return rates


def _layer_factors(model: MTLModel, decay: float) -> dict[str, float]:
    """Returns what multiplies the rate of the parameters whose names begin with a prefix."""
    name, layers, below = find_layers(model.backbone, f"layer_decay={decay}", "Leave layer_decay out.")
    factors = {f"backbone.{name}.{index}.": decay ** (len(layers) - 1 - index) for index in range(len(layers))}
    return factors | {f"backbone.{module}.": decay ** len(layers) for module in below}


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rates: Mapping[str, float],
    learned_weights: Iterable[nn.Parameter],
    head_rate: float,
) -> None:
    """Splits the groups of an optimizer by learning rate; weight decay and the other settings of a group stay.

    Args:
        optimizer: The optimizer, as `Trainer.create_optimizer` makes it.
        model: The model, wrapped or not.
        rates: Rate of each parameter by its name in the model; see [`learning_rates`].
        learned_weights: Parameters of the weighting, which become a group without weight decay.
        head_rate: Rate of the learned weights.
    """
    by_id = {id(parameter): rates[_unwrapped(name)] for name, parameter in model.named_parameters()}
    for group in list(optimizer.param_groups):
        base = group["lr"]
        found: dict[float, list[nn.Parameter]] = {base: []}
        for parameter in group["params"]:
            found.setdefault(by_id[id(parameter)], []).append(parameter)
        # The first group keeps `learning_rate`, even if it is left empty: its rate is the one in the log.
        group["params"] = found.pop(base)
        for rate in sorted(found, reverse=True):
            optimizer.add_param_group({**group, "params": found[rate], "lr": rate})
    learned = list(learned_weights)
    if learned:
        optimizer.add_param_group({"params": learned, "lr": head_rate, "weight_decay": 0.0})


def _unwrapped(name: str) -> str:
    return name.removeprefix("module.").replace("_fsdp_wrapped_module.", "")
