"""Which parameters learn at which rate: the groups of the optimizer."""

from collections.abc import Iterable

import torch
from torch import nn

from mtl.arguments import MTLTrainingArguments


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    learned_weights: Iterable[nn.Parameter],
    args: MTLTrainingArguments,
) -> None:
    """Splits the groups of an optimizer so that heads and learned task weights have their own learning rate.

    Args:
        optimizer: The optimizer, as `Trainer.create_optimizer` makes it.
        model: The model, wrapped or not.
        learned_weights: Parameters of the weighting, which become a group without weight decay.
        args: The settings of training.
    """
    head_rate = args.learning_rate if args.head_learning_rate is None else args.head_learning_rate
    heads = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.removeprefix("module.").startswith("heads.")
    }
    for group in list(optimizer.param_groups):
        chosen = [parameter for parameter in group["params"] if id(parameter) in heads]
        if chosen:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in heads]
            optimizer.add_param_group({**group, "params": chosen, "lr": head_rate})
    learned = list(learned_weights)
    if learned:
        optimizer.add_param_group({"params": learned, "lr": head_rate, "weight_decay": 0.0})
