"""Settings of training: those of `TrainingArguments`, and what several tasks add to them."""

import argparse
import json
import logging
import math
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy, SchedulerType

from mtl.adapters import adapter_config
from mtl.argument_checks import check_given, check_scheduler
from mtl.averaging import AverageSetting
from mtl.freeze_schedule import FreezeSchedule
from mtl.launch import refuse_lone_process
from mtl.metrics import LOWER_IS_BETTER
from mtl.precision import has_fast_bf16
from mtl.sampling import ANNEALED, NONE, Mixture

logger = logging.getLogger(__name__)


class JsonObject(dict):
    """A dict that argparse can read: given a string, it parses it as JSON."""

    def __init__(self, value: Any = ()) -> None:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise argparse.ArgumentTypeError(
                    f'{value!r} is no JSON, such as {{"key": 1}}, names in double quotes: {error}'
                ) from error
        super().__init__(value)


_LEAST = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "early_stopping_patience": 1, "dataloader_num_workers": 0, "num_train_epochs": 0, "learning_rate": 0,
    "head_learning_rate": 0, "weight_decay": 0,
}  # fmt: skip
"""Least values of settings that nobody else would check before training, or at all: a rate below 0 is gradient ascent,
a patience of 0 stops at the first evaluation whatever it says."""

_WATCH_A_METRIC = (SchedulerType.REDUCE_ON_PLATEAU, SchedulerType.GREEDY)


@dataclass
class MTLTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the settings of multi-task training.

    Args:
        precision: `"auto"` trains in bf16 autocast where the processor has it, else in fp32; or `"bf16"`, `"fp32"`.
        freeze: What does not learn; a setting of `mtl.freezing`. If not given, the model is taken as it is.
        freeze_schedule: What does not learn, and from which epoch on: a mapping from epochs, which may be fractions,
            to settings of `freeze`, in whose place it stands; see `mtl.freeze_schedule`.
        peft: An adapter that learns in the encoder's place: `peft_type` and the settings of that configuration in the
            package `peft`, such as `{"peft_type": "LORA", "r": 8}`; see `mtl.adapters`. It is merged at the end.
        save_adapter: Whether the adapter is also saved alone, before it is merged, in the folder `adapter`.
        weighting: How task losses are weighed; a name in `mtl.weighting.WEIGHTINGS`.
        aggregation: How the encoder's gradients of the tasks become one; `"none"` for the gradient of the weighted
            loss, or a name in `mtl.aggregation.AGGREGATIONS`.
        conflict_steps: Number of optimizer steps from one measurement of the tasks' gradients to the next; none is
            made if not given.
        mixture: How sources share an epoch, which has as many rows as the data; see [`mtl.sampling.Mixture`]. With
            `train_sampling_strategy="group_by_length"` batches hold rows of like length in any mixture.
        homogeneous_batches: Whether a batch, over all ranks, holds rows of one source only.
        head_learning_rate: Learning rate of the heads and of learned task weights; `learning_rate` if not given.
        cache_embeddings: Whether the embeddings of all rows are computed once, and heads train from them: `"auto"`
            does so when the whole encoder is frozen; `"true"` is an error where that cannot be; `"false"` never.
        layer_decay: Factor, above 0 and at most 1, on the learning rate from each layer of the encoder to the one
            below it; the highest has `learning_rate`. All layers have that rate if not given.
        average_weights: What is evaluated and saved instead of the weights of a single step: an average of
            `mtl.averaging`, `ema:<decay>` or `last:<fraction of training>`. Training goes on with the raw weights.
        distillation_temperature: Temperature T at which student and teacher are compared; see `mtl.distillation`.
        teacher_annealing: Whether, where a row has a label and a teacher, the share of the label in the loss rises
            from 0 to 1 over the steps of training.
        gold_share: That share where it does not rise.
        preserve_embeddings: Weight of the loss that keeps embeddings near those of the encoder that training began
            with; 0 for none. See `mtl.preservation`.
        label_smoothing_factor: Share of the training loss that goes to all classes alike, in [0, 1), for single-label
            tasks whose `label_smoothing` is not set. Losses of evaluation are without it.
        early_stopping_patience: Number of evaluations without a better score after which training stops.
        trackio_static_space_id: As in `TrainingArguments`, but only what is named is published: if not given, a push
            to the Hub leaves the curves of trackio where they are.
        hub_strategy: `"end"`: with `push_to_hub` one push at the end, with card and report.
        metric_for_best_model: As in `TrainingArguments`; where a best model is to be found, by default `score`, the
            mean of the tasks' primary metrics. Of losses and RMSE lower is better, of the others higher.

    Raises:
        ImportError: If `report_to` names a service whose package is not installed.
        ValueError: If `precision` is unknown, or a setting is not supported or stands against another.
    """

    precision: str = field(default="auto", metadata={"help": "auto | bf16 | fp32."})
    freeze: str | None = field(
        default=None,
        metadata={
            "help": "none | all | backbone | heads:<task>,... | heads_except:<task> | lower_layers:<N>; several by +."
        },
    )
    freeze_schedule: JsonObject | None = field(
        default=None,
        metadata={"help": 'Settings of freeze, each with the epoch it holds from: {"0": "backbone", "2": "none"}.'},
    )
    peft: JsonObject | None = field(
        default=None, metadata={"help": 'An adapter of the package peft: {"peft_type": "LORA", "r": 8, ...}.'}
    )
    save_adapter: bool = field(default=False, metadata={"help": "Save the adapter alone, too, in the folder adapter."})
    weighting: str = field(
        default="fixed",
        metadata={"help": "fixed | equal | uncertainty | dwa | random | geometric_mean | initial_loss: see docs."},
    )
    aggregation: str = field(
        default="none",
        metadata={"help": "none | sum | mean | pcgrad | aligned_mtl | mgda | imtl_g | cagrad | upgrad | dualproj."},
    )
    conflict_steps: int | None = field(
        default=None, metadata={"help": "Every how many steps conflicts of the tasks' gradients are measured."}
    )
    mixture: str = field(
        default=NONE,
        metadata={"help": "Sources' shares: none | proportional | temperature:<T> | balanced | annealed."},
    )
    homogeneous_batches: bool = field(default=False, metadata={"help": "Whether a batch is of one source only."})
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the heads; learning_rate if not given."}
    )
    cache_embeddings: Literal["auto", "true", "false"] = field(
        default="auto", metadata={"help": "Compute the embeddings of a frozen encoder once: auto | true | false."}
    )
    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor on the learning rate from each layer of the encoder to the one below."}
    )
    average_weights: str | None = field(
        default=None,
        metadata={"help": "Evaluate and save an average of the weights: ema:<decay> | last:<fraction of training>."},
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature at which the student is compared with its teachers."}
    )
    teacher_annealing: bool = field(
        default=False, metadata={"help": "Let the share of labels against teachers rise from 0 to 1 over training."}
    )
    gold_share: float = field(default=0.5, metadata={"help": "Share of the label where a row has a teacher too."})
    preserve_embeddings: float = field(
        default=0.0, metadata={"help": "Weight of the loss that keeps embeddings near the original encoder's."}
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
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "Folder of the checkpoint to go on from; last: the newest whole one, if any."}
    )

    def __post_init__(self) -> None:
        """Chooses the precision, then validates as the base class does."""
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ValueError(f"precision {self.precision!r} is unknown. Use 'auto', 'bf16' or 'fp32'.")
        cache: Any = str(self.cache_embeddings).lower()  # YAML reads `true` as a bool.
        self.cache_embeddings = cache
        if cache not in ("auto", "true", "false"):
            raise ValueError(f"cache_embeddings {cache!r} is unknown. Use 'auto', 'true' or 'false'.")
        refuse_lone_process(os.environ)
        check_given(self)
        self._check_ranges()
        self._check_sampling()
        self._refuse_what_is_not_supported()
        self._check_distillation()
        if self.precision == "bf16" or (self.precision == "auto" and not self.fp16):
            self.bf16 = self.bf16 or self.precision == "bf16" or has_fast_bf16(self.use_cpu)
            # Where there is no accelerator the base class takes bf16 only from those who say so.
            self.use_cpu = self.use_cpu or (self.bf16 and not torch.accelerator.is_available())
        elif self.precision == "fp32" and (self.bf16 or self.fp16):
            raise ValueError("precision='fp32' stands against bf16=True or fp16=True. Set one of them.")
        # Pinned memory serves copies to an accelerator; without one torch warns at every data loader.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        if self.data_seed is None:
            # Else the order of rows follows from whoever has last set torch's seed when training begins.
            self.data_seed = self.seed
        if self.trackio_static_space_id is None:
            # The base class takes None for leave to make a public Space at a push; False, which means no, cannot be
            # written in a settings file.
            self.trackio_static_space_id = False
        self._choose_metric()
        super().__post_init__()
        self._check_ranks()
        if self.lr_scheduler_type in _WATCH_A_METRIC:
            given: Any = self.lr_scheduler_kwargs or {}  # Parsed by now.
            self.lr_scheduler_kwargs = {"mode": "max" if self.greater_is_better else "min", **given}
        check_scheduler(self)

    def _check_ranges(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} must be a number of at least {least}, found {value}.")
        if self.early_stopping_patience is not None and self.eval_strategy in (False, "no", None):
            raise ValueError(
                f"early_stopping_patience={self.early_stopping_patience} counts evaluations, but eval_strategy is "
                "'no'. Set it to 'epoch' or 'steps', or leave the patience out."
            )

    def _refuse_what_is_not_supported(self) -> None:
        if self.conflict_steps is not None and self.conflict_steps < 1:
            raise ValueError(f"conflict_steps must be a positive number of steps, found {self.conflict_steps}.")
        if not 0.0 <= self.label_smoothing_factor < 1.0:
            raise ValueError(f"label_smoothing_factor must be in [0, 1), found {self.label_smoothing_factor}.")
        if not self.eval_do_concat_batches:
            raise ValueError(
                "eval_do_concat_batches=False is not supported: metrics are computed over all rows. Leave it at True."
            )
        self._check_transfer()
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

    def _check_transfer(self) -> None:
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must be above 0 and at most 1, found {self.layer_decay}.")
        if self.average_weights is not None:
            AverageSetting.parse(self.average_weights)
        if self.freeze_schedule is not None:
            if self.freeze is not None:
                raise ValueError(
                    f"freeze={self.freeze!r} and freeze_schedule are both given. Leave one out: a schedule says from "
                    "epoch 0 on what is frozen."
                )
            self.freeze_schedule = JsonObject(FreezeSchedule.parse(self.freeze_schedule).to_dict())
        self._check_adapter()
        self._refuse_sharding()

    def _check_adapter(self) -> None:
        if self.peft is None:
            if self.save_adapter:
                raise ValueError("save_adapter is set, but no adapter trains. Set `peft`, or leave it out.")
            return
        adapter_config(self.peft)
        parts = [] if self.freeze is None else self.freeze.split("+")
        if self.freeze_schedule is not None or not all(part.strip().startswith("heads") for part in parts):
            raise ValueError(
                f"peft is given, and freeze={self.freeze!r}, freeze_schedule={self.freeze_schedule}: the encoder is "
                "frozen but for its adapter. Leave freeze out, or let it name heads only, such as 'heads:<task>'."
            )

    def _refuse_sharding(self) -> None:
        launched = [os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED")]
        if not (self.fsdp or self.deepspeed or any(launched)):
            return
        for name in ("average_weights", "freeze_schedule", "peft"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} does not go with FSDP or DeepSpeed, whose ranks hold parts of the weights. Leave it out, "
                    "or train with the whole model on each rank (`torchrun`, without `fsdp` and `deepspeed`)."
                )

    def _check_ranks(self) -> None:
        # What is frozen has no gradient, which DistributedDataParallel takes only if it looks for it.
        does_not_look = (
            self.ddp_find_unused_parameters is False or self.ddp_static_graph or self.activation_checkpointing
        )
        if self.freeze_schedule is not None and self.world_size > 1 and does_not_look:
            raise ValueError(
                "freeze_schedule over several processes does not go with ddp_find_unused_parameters=False, "
                "ddp_static_graph or activation (gradient) checkpointing. Leave these out, or use `freeze`."
            )

    def _check_sampling(self) -> None:
        mixture = Mixture.parse(self.mixture)
        if self.dataloader_drop_last:
            raise ValueError(
                "dataloader_drop_last is not supported: it leaves rows out of evaluation, too. A short batch does no "
                "harm: losses are normalised by their counts of labels. Leave it False."
            )
        if mixture.kind == NONE and not self.homogeneous_batches:
            return
        if self.train_sampling_strategy not in ("random", "group_by_length"):
            raise ValueError(
                f"train_sampling_strategy={self.train_sampling_strategy!r} stands against mixture={self.mixture!r} "
                f"and homogeneous_batches={self.homogeneous_batches}. Use 'random' or 'group_by_length'."
            )
        if mixture.kind == ANNEALED and self.homogeneous_batches and self.max_steps > 0:
            raise ValueError(
                "mixture='annealed' with homogeneous_batches needs the number of epochs to cut them alike. Set "
                "num_train_epochs instead of max_steps."
            )

    def _check_distillation(self) -> None:
        if not (math.isfinite(self.distillation_temperature) and self.distillation_temperature > 0):
            raise ValueError(f"distillation_temperature must be more than 0, found {self.distillation_temperature}.")
        if not 0 <= self.gold_share <= 1:
            raise ValueError(f"gold_share must be from 0 to 1, found {self.gold_share}.")
        if self.teacher_annealing and self.gold_share != 0.5:
            raise ValueError(
                f"gold_share={self.gold_share} would have no effect with teacher_annealing, which lets it rise from 0 "
                "to 1. Set one of them."
            )
        if not (math.isfinite(self.preserve_embeddings) and self.preserve_embeddings >= 0):
            raise ValueError(f"preserve_embeddings must be a finite weight >= 0, found {self.preserve_embeddings}.")

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
