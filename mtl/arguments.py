"""Settings of training: those of `TrainingArguments`, and what several tasks add to them."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy, SchedulerType

from mtl.metrics import LOWER_IS_BETTER
from mtl.precision import has_fast_bf16

logger = logging.getLogger(__name__)

_WATCH_A_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


@dataclass
class MTLTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of multi-task training.

    Args:
        precision: `"auto"` trains in bf16 autocast where the processor has it, else in fp32; or `"bf16"`, `"fp32"`.
        freeze: What does not learn; a setting of `mtl.freezing`. If not given, the model is taken as it is.
        weighting: How task losses are weighed; a name in `mtl.weighting.WEIGHTINGS`.
        head_learning_rate: Learning rate of the heads and of learned task weights; `learning_rate` if not given.
        label_smoothing_factor: Share of the training loss that goes to all classes alike, in [0, 1), for single-label
            tasks whose `label_smoothing` is not set. Losses of evaluation are without it.
        early_stopping_patience: Number of evaluations without a better score after which training stops.
        hub_strategy: `"end"`: with `push_to_hub` one push at the end, with card and report.
        metric_for_best_model: As in `TrainingArguments`; where a best model is to be found, by default `score`, the
            mean of the tasks' primary metrics. Of losses and RMSE lower is better, of the others higher.

    Raises:
        ValueError: If `precision` is unknown, or a setting is not supported or stands against another.
    """

    precision: str = field(default="auto", metadata={"help": "auto | bf16 | fp32."})
    freeze: str | None = field(
        default=None,
        metadata={"help": "none | all | backbone | heads:<task>,... | heads_except:<task> | lower_layers:<N>."},
    )
    weighting: str = field(default="fixed", metadata={"help": "How task losses are weighed: fixed | uncertainty."})
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the heads; learning_rate if not given."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better score after which training stops."}
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "With push_to_hub: end pushes once, with card and report; no other is taken."}
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "The metric that chooses the best model; score, the mean over tasks, if none."}
    )

    def __post_init__(self) -> None:
        """Chooses the precision, then validates as the base class does."""
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision {self.precision!r} is unknown. Use 'auto', 'bf16' or 'fp32'.")
        self._refuse_what_is_not_supported()
        if self.precision == "bf16" or (self.precision == "auto" and not self.fp16):
            self.bf16 = self.bf16 or self.precision == "bf16" or has_fast_bf16(self.use_cpu)
            # Where there is no accelerator the base class takes bf16 only from those who say so.
            self.use_cpu = self.use_cpu or (self.bf16 and not torch.accelerator.is_available())
        elif self.precision == "fp32" and (self.bf16 or self.fp16):
            raise ValueError("precision='fp32' stands against bf16=True or fp16=True. Set one of them.")
        # Pinned memory serves copies to an accelerator; without one torch warns at every data loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self._choose_metric()
        super().__post_init__()
        if self.lr_scheduler_type in _WATCH_A_METRIC:
            given: Any = self.lr_scheduler_kwargs or {}  # Parsed by now.
            self.lr_scheduler_kwargs = {"mode": "max" if self.greater_is_better else "min", **given}

    def _refuse_what_is_not_supported(self) -> None:
        if not 0.0 <= self.label_smoothing_factor < 1.0:
            raise ValueError(f"label_smoothing_factor must be in [0, 1), found {self.label_smoothing_factor}.")
        if not self.eval_do_concat_batches:
            raise ValueError(
                "eval_do_concat_batches=False is not supported: metrics are computed over all rows. Leave it at True."
            )
        strategy = HubStrategy(self.hub_strategy)
        if strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy={strategy.value!r} is not supported: it uploads pickled settings, and models without "
                "their code. Use 'end', or push a checkpoint with `MTLModel.from_pretrained(...).push_to_hub(...)`."
            )
        if self.save_only_model and self.resume_from_checkpoint:
            raise ValueError(
                "resume_from_checkpoint needs the optimizer's state, which save_only_model leaves out. Set one."
            )

    def _choose_metric(self) -> None:
        # Given in any case, the Trainer would look for it at every evaluation, whatever the evaluation measures.
        seeks_best = (
            self.load_best_model_at_end
            or self.early_stopping_patience is not None
            or self.save_strategy == SaveStrategy.BEST
            or self.lr_scheduler_type in _WATCH_A_METRIC
        )
        if seeks_best and self.metric_for_best_model is None:
            self.metric_for_best_model = "score"
        name = self.metric_for_best_model
        if name is not None and self.greater_is_better is None:
            self.greater_is_better = not any(name == low or name.endswith(f"_{low}") for low in LOWER_IS_BETTER)

    @property
    def precision_in_use(self) -> str:
        """The precision of the forward and backward pass."""
        return "bf16 autocast" if self.bf16 else "fp16 autocast" if self.fp16 else "fp32"
