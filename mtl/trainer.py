"""`MTLTrainer`: the `Trainer` of transformers, with several tasks, missing labels, and exact normalisation."""

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.adapter_training import AdapterTrainer
from mtl.adapters import has_adapter
from mtl.arguments import MTLTrainingArguments
from mtl.averaging import AveragingCallback
from mtl.checkpoints import TRAINING_ARGS_JSON, check_same_run, last_complete_checkpoint
from mtl.collation import ORIGINAL_COLUMN, ORIGINALS, POOLED, TEACHERS, MTLCollator, further_columns, without_guidance
from mtl.data import label_column
from mtl.distillation import Distillation, count_items
from mtl.embedding_cache import make_embedding_cache, with_lengths
from mtl.evaluation import EvaluationMetrics
from mtl.freeze_schedule import FreezeScheduleCallback, begin_freezing
from mtl.gradient_balance import ConflictCallback, GradientBalance
from mtl.initial_losses import initial_losses
from mtl.loading import follows_plan, make_plan, planned_loader
from mtl.optimization import head_rate, learning_rates, set_learning_rates
from mtl.preservation import PRESERVATION, Preservation, count_rows
from mtl.rejection import fit_rejection, rejects, with_thresholds
from mtl.sharded import check_sharding, is_sharding_asked_for, own_class
from mtl.smoothing import label_smoothing
from mtl.task_losses import TaskLossMeans
from mtl.teacher_columns import teacher_column
from mtl.weighting import WEIGHTINGS, make_weighting
from mtl.weighting_callback import WeightingCallback

logger = logging.getLogger(__name__)

WEIGHTING_NAME = "weighting.safetensors"


class MTLTrainer(AdapterTrainer):
    """Trains an [`MTLModel`] on rows that carry labels for some or all of its tasks.

    The loss of a task is the sum over its valid labels divided by their count in the whole optimizer step, over all
    micro-batches and ranks, so that how a step is cut into micro-batches does not change its gradient. What a teacher
    says of a row counts like a label of it, see `mtl.distillation`.

    Args:
        model: The model.
        args: The settings; `MTLTrainingArguments`.
        data_collator: Makes batches in which every task has a label tensor; `MTLCollator` if not given.
        compute_metrics: Metrics of an evaluation; [`EvaluationMetrics`] of the model's tasks if not given.
        callbacks: Further callbacks.
        **kwargs: As in `Trainer`: `train_dataset`, `eval_dataset`, `processing_class` (the tokenizer) ...

    Raises:
        ValueError: If a setting is illegal, an argument is given that would have no effect, several GPUs would share
            one process, or FSDP is asked for where it cannot work.
    """

    model: MTLModel
    args: MTLTrainingArguments

    def __init__(
        self,
        model: MTLModel,
        args: MTLTrainingArguments,
        *,
        data_collator: Any = None,
        compute_metrics: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        _check_arguments(model, args, kwargs)
        self._schedule = self._adopt(model, args)
        tokenizer = kwargs.setdefault("processing_class", model.tokenizer)
        self.averaging = AveragingCallback(args.average_weights)
        self._weighting_callback = WeightingCallback(self.weighting, self._mean_over_ranks, self._initial_losses)
        # They come before the caller's, which are to find the averaged weights when training ends.
        callbacks = [self.averaging, self._schedule, *(callbacks or []), self._weighting_callback]
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
        super().__init__(
            model,
            args,
            data_collator=data_collator or MTLCollator(tokenizer, self.tasks),
            compute_metrics=compute_metrics or EvaluationMetrics(self.tasks),
            callbacks=callbacks,
            **kwargs,
        )
        check_sharding(
            getattr(self.accelerator.state, "fsdp_plugin", None),
            is_asked_for=is_sharding_asked_for(args),
            has_learned_weights=any(True for _ in self.weighting.parameters()),
        )
        self.label_smoother = None  # The base class's own, for one task.
        self.loss_is_scaled_for_ga = True
        self._task_losses = TaskLossMeans()
        self.embedding_cache = make_embedding_cache(
            model, args, self.data_collator, autocast=self.accelerator.autocast
        )
        self.balance = GradientBalance(model, args, self.weighting, self.accelerator)
        self._conflicts = ConflictCallback(self.balance, self.log)
        self.add_callback(self._conflicts)
        logger.info("Training in %s on %s.", args.precision_in_use, args.device)

    def _adopt(self, model: MTLModel, args: MTLTrainingArguments) -> FreezeScheduleCallback:
        self.tasks = tuple(model.config.tasks)
        self.freezing, schedule = begin_freezing(model, args.freeze, args.freeze_schedule)
        weighting = make_weighting(args.weighting, self.tasks, seed=args.seed, reduce_mean=self._mean_over_ranks)
        self.weighting = weighting.to(args.device)
        self._label_smoothing = label_smoothing(self.tasks, args.label_smoothing_factor)
        self.distillation = Distillation(self.tasks, args, self._label_smoothing)
        self.preservation = Preservation(model, args)
        return schedule

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Takes over the tasks, with their weights, of the model of a trial; see `Trainer.call_model_init`."""
        model: Any = super().call_model_init(trial)
        self._adopt(model, self.args)
        if isinstance(self.compute_metrics, EvaluationMetrics):
            self.compute_metrics = EvaluationMetrics(self.tasks)
        before, self.embedding_cache = (
            self.embedding_cache,
            make_embedding_cache(model, self.args, self.data_collator, self._autocast),
        )
        if before is not None and self.embedding_cache is not None:
            self.embedding_cache.take_over(before)
        self._weighting_callback.weighting = self.weighting
        self.balance = self._conflicts.balance = GradientBalance(model, self.args, self.weighting, self.accelerator)
        return model

    def _autocast(self) -> Any:
        return self.accelerator.autocast()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains; arguments as in `Trainer.train`, where `True` resumes from the last complete checkpoint.

        Raises:
            ValueError: If every parameter is frozen, there is no complete checkpoint to resume from, or it is of a run
                with other tasks, or that trained something else.
        """
        if self.freezing.num_trainable == 0:
            raise ValueError(
                f"freeze={self.freezing.setting!r} leaves no parameter to train. Call `evaluate` or `predict` "
                "instead, or choose a setting that lets something learn, such as 'backbone'."
            )
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir!r} to resume from.")
        if resume_from_checkpoint:
            check_same_run(resume_from_checkpoint, self.model.config, self.args)
        self.train_dataset = self.preservation.with_originals(
            self.train_dataset, self.data_collator, resume_from_checkpoint or None
        )
        cache = self.embedding_cache
        with contextlib.nullcontext() if cache is None else cache.prepared(self.train_dataset, self.eval_dataset):
            return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_dataloader(
        self,
        dataset: Dataset,
        description: str,
        batch_size: int,
        sampler_fn: Any = None,
        is_training: bool = False,
        dataloader_key: str | None = None,
    ) -> DataLoader:
        rows = None if self.embedding_cache is None else self.embedding_cache.rows(dataset)
        # Only what is fetched changes: the sampler sees the tokens, and so gives the order that it would give.
        sampler = sampler_fn if rows is None or sampler_fn is None else lambda _: with_lengths(sampler_fn(dataset))
        return super()._get_dataloader(
            dataset if rows is None else rows, description, batch_size, sampler, is_training, dataloader_key
        )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Counts none for batches of embeddings, where the base class would warn; see `Trainer.floating_point_ops`."""
        return 0 if POOLED in inputs else super().floating_point_ops(inputs)

    def get_train_dataloader(self) -> DataLoader:
        """Follows a plan of rows where a mixture or several ranks need one; see `Trainer.get_train_dataloader`."""
        if self.train_dataset is None or not follows_plan(self.args, self.train_dataset):
            return super().get_train_dataloader()
        dataset: Any = self.train_dataset
        plan = make_plan(self.args, dataset, self._train_batch_size)
        rows = None if self.embedding_cache is None else self.embedding_cache.rows(dataset)
        if rows is not None:
            dataset = rows
        elif hasattr(dataset, "column_names"):
            dataset = self._remove_unused_columns(dataset, description="Training")
        return planned_loader(plan, dataset, self.data_collator, self.args)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Weighs the task losses of a micro-batch; see `Trainer.compute_loss`."""
        counts = num_items_in_batch or self._get_num_items_in_batch([inputs], self.args.device)
        teachers, originals = inputs.get(TEACHERS), inputs.get(ORIGINALS)
        smoothing = self._label_smoothing if model.training else None  # Evaluation measures the loss itself.
        outputs = model(**without_guidance(inputs), num_items_in_batch=counts, smoothing=smoothing)
        if model.training:
            self._task_losses.add(outputs.task_losses, inputs["labels"], counts)
        if teachers:
            gold_share = self.distillation.gold_share(self.state.global_step, self.state.max_steps)
            outputs.task_losses |= self.distillation.task_losses(
                outputs.logits, inputs["labels"], teachers, counts, gold_share
            )
        # The ranks' gradients and losses are averaged, but the counts are already those of all ranks.
        losses = {name: loss * self.accelerator.num_processes for name, loss in outputs.task_losses.items()}
        share = 1.0 / self.current_gradient_accumulation_steps if model.training else 1.0
        self.weighting.train(model.training)
        terms = self.weighting.terms(losses, counts, share)
        if model.training:
            self.weighting.observe(losses, counts)
            if originals is not None:
                kept = self.preservation.loss(outputs.embeddings, originals, counts)
                terms[PRESERVATION] = kept * self.accelerator.num_processes
            self.balance.add(terms, counts, self.state.global_step)
        loss = torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Goes backwards for the heads alone where the encoder's gradients are aggregated; see `Trainer`."""
        if self.balance.aggregation is None:
            loss: Any = super().training_step(model, inputs, num_items_in_batch)
        else:
            model.train()
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
            self.balance.backward(loss)
        if self.accelerator.sync_gradients:  # The last micro-batch of the step.
            self.balance.end_step(self.state.global_step)
        return loss.detach()

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Leaves out teachers and original embeddings: evaluation is by labels; see `Trainer.prediction_step`."""
        return super().prediction_step(model, without_guidance(inputs), prediction_loss_only, ignore_keys)

    def fit_rejection(
        self, dataset: Any = None, *, acceptance: float | None = None, task_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Fits the rejection thresholds of tasks, by default of all that have an `out_of_scope_label`.

        From then on the model, its configuration and every evaluation have them; see `mtl.rejection.fit_rejection`,
        also for what is raised. Without a data set it is `eval_dataset`.
        """
        chosen = [task for task in self.tasks if rejects(task) and (task_names is None or task.name in task_names)]
        rows = self.eval_dataset if dataset is None else dataset
        thresholds = fit_rejection(self, rows, chosen, acceptance=acceptance)
        self.model.config.tasks = with_thresholds(self.tasks, thresholds)
        self.tasks = tuple(self.model.config.tasks)
        if isinstance(self.compute_metrics, EvaluationMetrics):
            self.compute_metrics = EvaluationMetrics(self.tasks)
        return thresholds

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """Counts what each task learns from in all micro-batches of a step, over all ranks."""
        if not batch_samples or "labels" not in batch_samples[0]:
            return None
        found = {**count_items(self.tasks, batch_samples), **count_rows(batch_samples)}
        counts = torch.stack([count.to(device) for count in found.values()])
        if self.args.world_size > 1:
            counts = self._sum_over_ranks(counts)
        return dict(zip(found, counts.unbind(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds to each training log the mean loss of every task since the last one; see `Trainer.log`."""
        if "loss" in logs:
            reduce = self._sum_over_ranks if self.args.world_size > 1 else None
            means = {f"loss_{name}": mean for name, mean in self._task_losses.take(reduce).items()}
            means |= self.distillation.take_means(reduce) | self.preservation.take_mean(reduce)
            logs.update(means)
            if means and not self.weighting.is_constant:
                logs.update({f"weight_{name}": weight for name, weight in self.weighting.current_weights().items()})
        super().log(logs, start_time)

    def _sum_over_ranks(self, tensors: Any) -> Any:
        return self.accelerator.reduce(tensors, reduction="sum")

    def _mean_over_ranks(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="mean")

    def _initial_losses(self) -> dict[str, float]:
        return initial_losses(
            self.model_wrapped,
            self.train_dataset,
            self.tasks,
            collate=self.data_collator,
            prepare=self._prepare_inputs,
            context=self.compute_loss_context_manager,
            batch_size=self.args.per_device_train_batch_size,
        )

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Measures the averaged weights, once there are any; refuses a prefix that would hide a task's name.

        See `Trainer.evaluation_loop`.
        """
        _check_prefix(self.tasks, metric_key_prefix)
        arguments = (dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        with self.averaging.averaged(self.model):
            return super().evaluation_loop(*arguments)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Gives heads, learned task weights and layers their own learning rates; see `Trainer.create_optimizer`."""
        self._schedule.prepare(self.model)
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        rates, learned = learning_rates(self.model, self.args), self.weighting.parameters()
        set_learning_rates(optimizer, model or self.model, rates, learned, head_rate(self.args))
        return optimizer

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses a checkpoint of other weights, of which the base class loads what fits, and warns."""
        state, missing = self.model.state_dict(), set(load_result.missing_keys)
        # A tensor under two names is saved under one of them.
        loaded = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
        missing = {name for name in missing if state[name].data_ptr() not in loaded}
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit the model: {sorted(missing)[:3]} are missing, "
                f"{load_result.unexpected_keys[:3]} are not of the model. Go on from it by "
                "`MTLModel.from_pretrained(<checkpoint>)`, or train anew in another `output_dir`."
            )

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        state = self.weighting.state_dict()
        if self.args.should_save and state:
            save_file(state, os.path.join(output_dir, WEIGHTING_NAME))
        if self.args.should_save:
            self.preservation.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.weighting.state_dict():
            self.weighting.load_state_dict(load_file(os.path.join(checkpoint, WEIGHTING_NAME)))
        if checkpoint is not None:
            self.averaging.load(checkpoint, self.args.device)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        with own_class(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            # The base class pickles the settings; a shared folder is to hold nothing that runs when it is read.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            (folder / TRAINING_ARGS_JSON).write_text(self.args.to_json_string() + "\n")
            self.averaging.save(folder)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Keeps the card that was saved with the model, where the base class would write over it."""
        if not (Path(str(self.args.output_dir)) / "README.md").exists():
            super().create_model_card(*args, **kwargs)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: Any = self._signature_columns
        columns = [column(task.name) for task in self.tasks for column in (label_column, teacher_column)]
        for column in [*columns, *further_columns(self.processing_class), ORIGINAL_COLUMN]:
            if column not in known:
                known.append(column)

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        # Under group_by_length the base class shuffles evaluation, and predictions come back in another order.
        if self.args.world_size <= 1 and hasattr(eval_dataset, "__len__"):
            return SequentialSampler(eval_dataset)
        return None


def _check_arguments(model: MTLModel, args: MTLTrainingArguments, others: dict[str, Any]) -> None:
    _check_prefix(model.config.tasks, "eval")
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported: counts of labels by task do not "
            "scatter. Launch one process a GPU: `torchrun --nproc_per_node=<N> ...`."
        )
    if others.get("compute_loss_func") is not None:
        raise ValueError("compute_loss_func would have no effect: the tasks' losses are weighed by `weighting`.")
    if has_adapter(model) and (args.peft or args.freeze or args.freeze_schedule):
        raise ValueError(
            f"The model has an adapter, and peft={args.peft}, freeze={args.freeze!r} or freeze_schedule="
            f"{args.freeze_schedule} says what else is to learn. Leave these out, or merge the adapter first."
        )
    learning_rates(model, args)  # Refuses a `layer_decay` for which the encoder has no layers.
    kind = WEIGHTINGS.get(args.weighting)
    if kind is not None and not kind.is_additive and args.gradient_accumulation_steps > 1:
        raise ValueError(
            f"weighting={args.weighting!r} needs the losses of the whole step at once, so it does not go with "
            f"gradient_accumulation_steps={args.gradient_accumulation_steps}. Set that to 1, with a larger batch."
        )
    has_optimizer = others.get("optimizers", (None, None))[0] is not None
    own_rates = args.head_learning_rate is not None or args.layer_decay is not None
    if has_optimizer and (own_rates or (kind is not None and kind.is_learned)):
        raise ValueError(
            f"An optimizer is given, so head_learning_rate={args.head_learning_rate}, layer_decay={args.layer_decay} "
            f"and weighting={args.weighting!r} would have no effect. Leave them at their defaults, or give no "
            "optimizer."
        )


def _check_prefix(tasks: Sequence[TaskConfig], prefix: str) -> None:
    for task in tasks:
        # The Trainer puts the prefix before the name of every metric, but for names that begin with it: the metrics
        # of `test_a` and those of `a` would have one name.
        if task.name.startswith(f"{prefix}_"):
            raise ValueError(
                f"Task {task.name!r}: a name that begins with `{prefix}_` does not go with metric_key_prefix="
                f"{prefix!r}. Give another prefix, or, for `eval`, which is the Trainer's own, rename the task."
            )
