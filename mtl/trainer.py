"""`MTLTrainer`: the `Trainer` of transformers, with several tasks, missing labels, and exact normalisation."""

import contextlib
import logging
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput, TrainOutput

from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.averaging import AveragingCallback
from mtl.checkpoints import check_same_run, last_complete_checkpoint, warn_of_changes, warn_of_earlier_run
from mtl.collation import ORIGINALS, TEACHERS, MTLCollator, without_guidance
from mtl.distillation import Distillation, count_items
from mtl.embedding_cache import make_embedding_cache
from mtl.evaluation import EvaluationMetrics
from mtl.freeze_schedule import FreezeScheduleCallback, begin_freezing
from mtl.gradient_balance import ConflictCallback, GradientBalance
from mtl.initial_losses import initial_losses
from mtl.optimization import head_rate, learning_rates, set_learning_rates
from mtl.preservation import PRESERVATION, Preservation, count_rows
from mtl.sharded import check_sharding, is_sharding_asked_for
from mtl.smoothing import label_smoothing
from mtl.task_losses import TaskLossMeans
from mtl.tracking import without_trackers
from mtl.trainer_checks import check_arguments, check_prefix, check_train_columns, warn_of_no_effect
from mtl.trainer_decisions import DecisionTrainer
from mtl.trainer_state import EarlyStopping
from mtl.weighting import make_weighting
from mtl.weighting_callback import WeightingCallback

logger = logging.getLogger(__name__)


class MTLTrainer(DecisionTrainer):
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
        check_arguments(model, args, kwargs)
        self._schedule = self._adopt(model, args)
        warn_of_no_effect(model, args)
        tokenizer = kwargs.setdefault("processing_class", model.tokenizer)
        self.averaging = AveragingCallback(args.average_weights)
        self._weighting_callback = WeightingCallback(self.weighting, self._mean_over_ranks, self._initial_losses)
        # They come before the caller's, which are to find the averaged weights when training ends.
        callbacks = [self.averaging, self._schedule, *(callbacks or []), self._weighting_callback]
        if args.early_stopping_patience is not None:
            callbacks.append(EarlyStopping(args.early_stopping_patience))
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
        self.embedding_cache = make_embedding_cache(model, args, self.data_collator, self._autocast)
        self.balance = GradientBalance(model, args, self.weighting, self.accelerator)
        self._conflicts = ConflictCallback(self.balance, self.log)
        self.add_callback(self._conflicts)
        what = "Training" if self.freezing.num_trainable else "Measuring"
        logger.info("%s in %s on %s.", what, args.precision_in_use, args.device)

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
        encoder_key = self.preservation.encoder_key
        self._adopt(model, self.args)
        self._begin_adapter(model)
        self.preservation.encoder_key = encoder_key  # The encoder of every trial begins with the same weights.
        if isinstance(self.compute_metrics, EvaluationMetrics):
            self.compute_metrics = EvaluationMetrics(self.tasks)
        before = self.embedding_cache
        self.embedding_cache = make_embedding_cache(model, self.args, self.data_collator, self._autocast)
        if before is not None and self.embedding_cache is not None:
            self.embedding_cache.take_over(before)
        self._weighting_callback.weighting = self.weighting
        self.balance = self._conflicts.balance = GradientBalance(model, self.args, self.weighting, self.accelerator)
        return model

    def _autocast(self) -> Any:
        # The accelerator is made anew for each trial of a search.
        return self.accelerator.autocast()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains; arguments as in `Trainer.train`, where `True` resumes from the last complete checkpoint.

        Raises:
            ValueError: If every parameter is frozen, no task has a column in the training rows, there is no complete
                checkpoint to resume from, or it is of a run with other tasks, or that trained something else.
        """
        if self.freezing.num_trainable == 0:
            raise ValueError(
                f"freeze={self.freezing.setting!r} leaves no parameter to train. Call `evaluate` or `predict` "
                "instead, or choose a setting that lets something learn, such as 'backbone'."
            )
        if self.model is not None:  # A later trial of a search has none yet.
            check_train_columns(self.model, self.args, self.train_dataset)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(str(self.args.output_dir))
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint in {self.args.output_dir!r} to resume from.")
        if resume_from_checkpoint:
            check_same_run(resume_from_checkpoint, self.model.config, self.args)
            warn_of_changes(resume_from_checkpoint, self.args, self._num_train_rows())
        elif self.args.should_save and self.args.save_strategy != "no":
            warn_of_earlier_run(str(self.args.output_dir))
        self.train_dataset = self.preservation.with_originals(
            self.train_dataset, self.data_collator, resume_from_checkpoint or None
        )
        cache = self.embedding_cache
        with contextlib.nullcontext() if cache is None else cache.prepared(self.train_dataset, self.eval_dataset):
            return super().train(resume_from_checkpoint, *args, **kwargs)

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
            distillation=self.distillation,
            max_steps=self.state.max_steps,
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
        check_prefix(self.tasks, metric_key_prefix)
        arguments = (dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        with self.averaging.averaged(self.model):
            return super().evaluation_loop(*arguments)

    def predict(
        self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Predicts without a word to trackers, whose run ends with the training; see `Trainer.predict`."""
        with without_trackers(self.callback_handler):
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Gives heads, learned task weights and layers their own learning rates; see `Trainer.create_optimizer`."""
        self._schedule.prepare(self.model)
        if self.optimizer is not None:
            return self.optimizer
        optimizer = super().create_optimizer(model)
        rates, learned = learning_rates(self.model, self.args), self.weighting.parameters()
        set_learning_rates(optimizer, model or self.model, rates, learned, head_rate(self.args))
        return optimizer
