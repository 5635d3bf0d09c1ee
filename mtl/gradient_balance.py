"""What the trainer does with the gradients of single tasks: aggregate them, and measure their conflicts."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.training_args import OptimizerNames

from modeling_mtl import MTLModel
from mtl.aggregation import Aggregation
from mtl.arguments import MTLTrainingArguments
from mtl.conflicts import check_names, measure_conflicts, summarize_conflicts
from mtl.loss_weighting import LossWeighting
from mtl.task_gradients import TaskGradients

logger = logging.getLogger(__name__)

# Optimizers that the base class treats in a way of their own before or in the backward pass.
_OWN_PASSES = ("lomo", "adalomo", "schedule_free")


class GradientBalance:
    """Gathers the gradients of single tasks where a setting asks for them, and does what it asks for.

    Args:
        model: The model.
        args: The settings: `aggregation` and `conflict_steps`.
        weighting: The weighting of the losses.
        accelerator: The trainer's accelerator.

    Raises:
        ImportError: If a package that the aggregation needs is missing.
        ValueError: If a setting is unknown, or does not go with the others.
    """

    def __init__(
        self, model: MTLModel, args: MTLTrainingArguments, weighting: LossWeighting, accelerator: Accelerator
    ) -> None:
        self.aggregation = None if args.aggregation == "none" else Aggregation(args.aggregation, seed=args.seed)
        self.conflict_steps = args.conflict_steps
        self._device_type = args.device.type
        self._logs: dict[str, float] = {}
        if self.aggregation is not None:
            _refuse("aggregation", args, accelerator, single=True)
            _check_weighting(args, weighting)
        if args.conflict_steps is not None:
            _refuse("conflict_steps", args, accelerator, single=False)
            check_names([task.name for task in weighting.tasks])
        several = accelerator.num_processes > 1
        without_weight = [name for name, weight in weighting.current_weights().items() if weight == 0]
        self.gradients = TaskGradients(
            model,
            without_weight=without_weight,
            reduce_mean=(lambda tensor: accelerator.reduce(tensor, reduction="mean")) if several else None,
        )
        if not self.gradients.shared_parameters() and args.freeze_schedule is None:  # Which may free it later.
            _tell_frozen(args)

    def _is_due(self, step: int) -> bool:
        return self.conflict_steps is not None and (step + 1) % self.conflict_steps == 0

    def add(self, terms: Mapping[str, Tensor], num_items: Mapping[str, Tensor], step: int) -> None:
        """Takes in what each task adds to the loss of a micro-batch; see [`TaskGradients.add`].

        Args:
            terms: The terms. Shape () each.
            num_items: Counts of labels in the whole step. Shape () each.
            step: Number of the optimizer step, from 0.
        """
        if self.aggregation is not None or self._is_due(step):
            with torch.autocast(self._device_type, enabled=False):  # As backward passes are to run.
                self.gradients.add(terms, num_items)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a micro-batch's loss to the `.grad` of the heads alone."""
        own = self.gradients.own_parameters()
        if own:
            loss.backward(inputs=own)

    def end_step(self, step: int) -> None:
        """Measures and aggregates what was gathered in a step, before gradients are clipped."""
        if self.aggregation is None and not self._is_due(step):
            return
        gradients = self.gradients.take()
        if gradients is None:
            return
        if self._is_due(step):
            self._logs = measure_conflicts(gradients.tasks, gradients.gramian())
        if self.aggregation is not None:
            self.aggregation.apply(gradients, step)

    def take_logs(self) -> dict[str, float]:
        """Returns what was measured in the last step, once."""
        logs, self._logs = self._logs, {}
        return logs


class ConflictCallback(TrainerCallback):
    """Logs what was measured after the step it was measured in, and at the end of training the whole of it.

    Args:
        balance: Where it was measured.
        log: The trainer's `log`.
    """

    def __init__(self, balance: GradientBalance, log: Callable[[dict[str, float]], None]) -> None:
        self.balance = balance
        self.log = log

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells if there is to be no measurement."""
        steps = self.balance.conflict_steps
        if steps is not None and steps > state.max_steps and state.is_world_process_zero:
            logger.warning("conflict_steps=%s measures nothing in %s steps. Lower it.", steps, state.max_steps)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs what the step has."""
        logs = self.balance.take_logs()
        if logs:
            should_log = control.should_log
            self.log(logs)
            control.should_log = should_log  # Which every log takes back: that of the losses is still to come.

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Logs the matrix and the advice."""
        summary = summarize_conflicts(state.log_history)
        if summary is not None and state.is_world_process_zero:
            logger.info("Task gradients on the shared encoder:\n%s\n%s", summary.table(), summary.advice)


def _refuse(setting: str, args: MTLTrainingArguments, accelerator: Accelerator, *, single: bool) -> None:
    """Refuses what differentiating by task does not go with.

    Args:
        setting: Name of the setting that asks for it.
        args: The settings.
        accelerator: The trainer's accelerator.
        single: Whether it does not go with several processes either.
    """
    value = getattr(args, setting)
    checkpointing: Any = args.activation_checkpointing_kwargs or {}  # Parsed by now.
    is_reentrant = bool(args.activation_checkpointing) and checkpointing.get("use_reentrant", False)
    optim = OptimizerNames(args.optim).value
    kind = accelerator.distributed_type
    sharded = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM}
    faults = {
        f"{accelerator.num_processes} processes: each would aggregate the gradients of its own rows. Train in one, "
        "with more gradient_accumulation_steps": single and accelerator.num_processes > 1,
        f"{kind.value}, which shards the parameters": kind in sharded,
        f"optim={optim!r}, which has a part of its own in each pass": single and optim.startswith(_OWN_PASSES),
        "fp16, whose losses are scaled as a whole. Use bf16 or fp32": args.fp16,
        "torch_compile, whose graphs can be differentiated only once": args.torch_compile,
        "activation_checkpointing_kwargs={'use_reentrant': True}, which allows only a whole backward pass. Set it to "
        "False, which is the default": is_reentrant,
    }
    for fault, is_given in faults.items():
        if is_given:
            raise ValueError(f"{setting}={value!r} does not go with {fault}.")


def _check_weighting(args: MTLTrainingArguments, weighting: LossWeighting) -> None:
    if weighting.is_learned or not weighting.is_additive:
        raise ValueError(
            f"aggregation={args.aggregation!r} does not go with weighting={args.weighting!r}, whose weights follow "
            "from the gradient or the losses of a plain step. Use 'fixed', 'equal', 'dwa', 'random' or 'initial_loss'."
        )


def _tell_frozen(args: MTLTrainingArguments) -> None:
    if args.aggregation != "none":
        logger.info("aggregation=%s: the encoder is frozen, so the heads train as without it.", args.aggregation)
    if args.conflict_steps is not None:
        logger.warning("conflict_steps=%d: the encoder is frozen, so nothing is measured.", args.conflict_steps)
