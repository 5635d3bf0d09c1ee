"""What a trainer refuses at the door."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.adapters import has_adapter
from mtl.arguments import MTLTrainingArguments
from mtl.evaluation import doubled_metric, keys_without_threshold, metric_keys
from mtl.labels import count_labelled, label_column
from mtl.metrics import METRICS, PRIMARY_METRIC
from mtl.optimization import learning_rates
from mtl.rejection import THRESHOLD_METRICS
from mtl.teacher_columns import teacher_column
from mtl.weighting import WEIGHTINGS
from tasks_mtl import CONTRASTIVE, POSITIVE_PAIRS

logger = logging.getLogger(__name__)


def check_arguments(model: MTLModel, args: MTLTrainingArguments, others: Mapping[str, Any]) -> None:
    """Refuses arguments of a trainer that would have no effect, or stand against each other.

    Args:
        model: The model.
        args: The settings.
        others: The trainer's other arguments by name.

    Raises:
        ValueError: If there are such arguments.
    """
    check_prefix(model.config.tasks, "eval")
    _check_metric_names(model.config.tasks)
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
    _check_best_metric(model.config.tasks, args)
    if others.get("compute_metrics") is None:
        _check_metric_is_measured(model.config.tasks, args, others.get("eval_dataset"))
    if args.weighting != "equal" and all(task.weight == 0 for task in model.config.tasks):
        raise ValueError(f"All tasks {model.config.task_names} have weight 0, so nothing would be learned. Raise one.")
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


def _check_best_metric(tasks: Sequence[TaskConfig], args: MTLTrainingArguments) -> None:
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    for task in tasks:
        metric = name.removeprefix(f"{task.name}_")
        if metric != name and metric in keys_without_threshold(task):
            is_rejection = metric in THRESHOLD_METRICS
            kind, instead = (
                ("rejection", "oos_auroc") if is_rejection else ("abstention", PRIMARY_METRIC[task.problem_type])
            )
            raise ValueError(
                f"metric_for_best_model={args.metric_for_best_model!r} is measured at the {kind} threshold of task "
                f"{task.name!r}, which is fitted after training only. Choose '{task.name}_{instead}', or set the "
                f"task's `{kind}_threshold`."
            )


def _check_metric_is_measured(tasks: Sequence[TaskConfig], args: MTLTrainingArguments, dataset: Any) -> None:
    """Refuses a metric that the Trainer would not find at its first evaluation, after an epoch of training."""
    if args.metric_for_best_model is None or args.eval_strategy == "no" or dataset is None:
        return
    several = isinstance(dataset, Mapping)
    datasets: Mapping[str, Any] = dataset if several else {"": dataset}
    known = [
        f"{name}_{metric}" if several else metric
        for name, rows in datasets.items()
        for metric in ["score", "loss", *(key for task in tasks for key in _measured(task, rows))]
    ]
    name = args.metric_for_best_model.removeprefix("eval_")
    if name not in (*known, "runtime", "samples_per_second", "steps_per_second"):
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"metric_for_best_model={args.metric_for_best_model!r} is not measured on the evaluation data."
            f"{f' Did you mean {near[0]!r}?' if near else ''} Use one of {known}."
        )


def _check_metric_names(tasks: Sequence[TaskConfig]) -> None:
    if (doubled := doubled_metric(tasks)) is not None:
        raise ValueError("Tasks {!r} and {!r} both have a metric named {!r}. Rename one of them.".format(*doubled))


def _measured(task: TaskConfig, rows: Any) -> list[str]:
    """Returns the names of the metrics of a task on some rows; without a labelled one that of their count alone."""
    absent = keys_without_threshold(task)
    if isinstance(rows, Dataset):  # What streams is not read for this.
        column = label_column(task.name)
        has_column = column in rows.column_names
        if not has_column or not count_labelled(task, rows.select_columns(column).with_format("arrow")[:][column]):
            absent += ["loss", *(metric.key for metric in METRICS[task.problem_type])]
    return [f"{task.name}_{key}" for key in metric_keys(task) if key not in absent]


def warn_of_no_effect(model: MTLModel, args: MTLTrainingArguments) -> None:
    """Tells which tasks and losses learn nothing: of the encoder alone while it is frozen, or of batches of one row.

    Args:
        model: The model, frozen as it trains.
        args: The settings.
    """
    if encoder_learns(model, args):
        among_rows = [task.name for task in model.config.tasks if task.problem_type in (POSITIVE_PAIRS, CONTRASTIVE)]
        if among_rows and args.per_device_train_batch_size == 1:
            logger.warning(
                "The tasks %s compare the rows of a micro-batch, and per_device_train_batch_size=1 leaves none to "
                "compare. Raise it, and lower gradient_accumulation_steps.",
                among_rows,
            )
        return
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return
    names = [task.name for task in model.config.tasks if not task.has_head]
    if names:
        logger.warning(
            "The tasks %s have no head, and the encoder is frozen: they are measured, but learn nothing.", names
        )
    if args.preserve_embeddings:
        logger.warning("preserve_embeddings=%s has no effect while the encoder is frozen.", args.preserve_embeddings)


def check_train_columns(model: MTLModel, args: MTLTrainingArguments, dataset: Any) -> None:
    """Refuses training rows without a column of any task, and tells which tasks or settings learn from none.

    Args:
        model: The model, frozen as it trains.
        args: The settings.
        dataset: The training rows.

    Raises:
        ValueError: If no task has a column of labels or of a teacher.
    """
    if not isinstance(dataset, Dataset):
        return
    wanted = {task.name: (label_column(task.name), teacher_column(task.name)) for task in model.config.tasks}
    without = [name for name, columns in wanted.items() if not set(columns) & set(dataset.column_names)]
    found = f"The training rows have no column {label_column('<task>')!r} or {teacher_column('<task>')!r}"
    if len(without) == len(wanted):
        raise ValueError(
            f"{found} of any task of {without} (found {dataset.column_names}), so nothing would be learned. "
            "`mtl.data.load_sources` makes them; rename yours, or name the tasks alike."
        )
    kept = [name for name, head in model.heads.items() if not any(p.requires_grad for p in head.parameters())]
    if silent := [name for name in without if name not in kept]:
        logger.warning("%s of the tasks %s (found %s): they learn nothing.", found, silent, dataset.column_names)
    keys = ("teacher_annealing", "distillation_temperature", "gold_share")
    given = any(getattr(args, key) != getattr(MTLTrainingArguments, key) for key in keys)
    if given and not any(teacher in dataset.column_names for _, teacher in wanted.values()):
        logger.warning(
            "teacher_annealing=%s, distillation_temperature=%s and gold_share=%s have no effect: no task has a "
            "teacher. Give one by `teacher`, or by `teachers` of a source.",
            args.teacher_annealing, args.distillation_temperature, args.gold_share,
        )  # fmt: skip


def encoder_learns(model: MTLModel, args: MTLTrainingArguments) -> bool:
    """Returns whether anything in the encoder of a model, frozen as it trains, learns at some time."""
    weights = any(parameter.requires_grad for parameter in model.backbone.parameters())
    return weights or bool(args.peft or args.freeze_schedule)


def check_prefix(tasks: Sequence[TaskConfig], prefix: str) -> None:
    """Refuses a prefix of metrics with which two of them would have one name.

    Raises:
        ValueError: If a task's name begins with it.
    """
    for task in tasks:
        # The Trainer puts the prefix before the name of every metric, but for names that begin with it: the metrics
        # of `test_a` and those of `a` would have one name.
        if task.name.startswith(f"{prefix}_"):
            raise ValueError(
                f"Task {task.name!r}: a name that begins with `{prefix}_` does not go with metric_key_prefix="
                f"{prefix!r}. Give another prefix, or, for `eval`, which is the Trainer's own, rename the task."
            )
