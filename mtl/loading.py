"""Settings and training data -> the plan of `mtl.sampling`, and the data loader that follows it."""

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers.trainer_utils import seed_worker

from mtl.arguments import MTLTrainingArguments
from mtl.sampling import ANNEALED, NONE, PROPORTIONAL, Mixture, SamplingPlan

logger = logging.getLogger(__name__)

SOURCE_COLUMN = "source"
_GROUPED, _SEQUENTIAL, _REBALANCED = "group_by_length", "sequential", "batch_rebalance"


class PlannedBatchSampler(Sampler[list[int]]):
    """Gives one rank its batches of a plan.

    Args:
        plan: The plan.
        rank: The rank.
    """

    def __init__(self, plan: SamplingPlan, rank: int = 0) -> None:
        self.plan = plan
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, counted from 0; the Trainer calls it before each."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return len(self.plan)

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the rows of each batch of the epoch."""
        for step in self.plan.steps(self.epoch):
            yield step[self.rank]


def follows_plan(args: MTLTrainingArguments, dataset: Any) -> bool:
    """Returns whether training batches come from a plan; if not, from the Trainer's own sampler.

    One process without a mixture needs none. Of several, the Trainer repeats rows where batches do not come out even,
    so they follow one, unless the data has no length, or `batch_rebalance` plans for itself.

    Raises:
        ValueError: If the data has no length, but a mixture or batches of one source are asked for.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        if has_mixture(args):
            raise ValueError(
                f"{_asked_for(args)} need to know every row's source, but the training data is of type "
                f"{type(dataset).__name__}, without a length. Load it into a `datasets.Dataset`, or leave both out."
            )
        return False
    return has_mixture(args) or (args.world_size > 1 and args.train_sampling_strategy != _REBALANCED)


def make_plan(args: MTLTrainingArguments, dataset: Any, batch_size: int) -> SamplingPlan:
    """Reads sources and lengths of the training data and makes the plan.

    Args:
        args: The settings of training.
        dataset: The training data, before columns are removed.
        batch_size: Rows of a batch of one rank.

    Raises:
        ValueError: If the data has no sources where they are needed, or is too small, or a setting stands against it.
    """
    _check_settings(args)
    mixture = Mixture.parse(args.mixture)
    if args.homogeneous_batches and mixture.kind == NONE:
        mixture = Mixture(PROPORTIONAL)
    settings: dict[str, Any] = {
        "sources": _sources(args, dataset),
        "mixture": mixture,
        "batch_rows": batch_size * args.world_size,
        "world_size": args.world_size,
        "accumulation": args.gradient_accumulation_steps,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "shuffle": args.train_sampling_strategy != _SEQUENTIAL,
        "lengths": _lengths(args, dataset) if args.train_sampling_strategy == _GROUPED else None,
        "homogeneous": args.homogeneous_batches,
    }
    num_epochs = math.ceil(args.num_train_epochs)
    if mixture.kind == ANNEALED and args.max_steps > 0:
        updates = math.ceil(len(SamplingPlan(**settings)) / args.gradient_accumulation_steps)
        num_epochs = math.ceil(args.max_steps / updates)
    plan = SamplingPlan(**settings, num_epochs=num_epochs)
    if has_mixture(args) and args.should_log:
        logger.info("%s", describe(plan, _asked_for(args)))
    return plan


def planned_loader(
    plan: SamplingPlan, dataset: Any, collate: Callable[..., Any], args: MTLTrainingArguments
) -> DataLoader:
    """Returns the data loader that gives this rank its batches of a plan, on its device."""
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=PlannedBatchSampler(plan, args.process_index if args.world_size > 1 else 0),
        collate_fn=collate,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        in_order=args.dataloader_in_order,
        worker_init_fn=partial(seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index),
    )
    # As if there were one process: accelerate would share the batches of this rank among all ranks once more, lose
    # what follows a short batch, and keep `set_epoch` from the sampler when a run resumes in mid-epoch.
    return prepare_data_loader(
        loader, args.device, num_processes=1, process_index=0, put_on_device=True, rng_types=None
    )


def describe(plan: SamplingPlan, title: str) -> str:
    """Says in a line for each source how many rows it has, its share of an epoch, and how often each row is seen."""
    first, last = plan.quotas(0), plan.quotas(plan.num_epochs - 1)
    lines = [f"{title}: {plan.num_rows:,} rows and {len(plan):,} batches an epoch."]
    for name, rows in plan.sources.items():
        ends = [first[name]] if plan.mixture.kind != ANNEALED else [first[name], last[name]]
        shares = " to ".join(f"{end / plan.num_rows:.1%}" for end in ends)
        passes = " to ".join(f"{end / len(rows):.2f}" for end in ends)
        lines.append(f"  source {name}: {len(rows):,} rows, share {shares}, {passes} passes an epoch")
    return "\n".join(lines)


def has_mixture(args: MTLTrainingArguments) -> bool:
    """Returns whether the sources of rows decide what comes next."""
    return args.mixture != NONE or args.homogeneous_batches


def _asked_for(args: MTLTrainingArguments) -> str:
    return f"mixture={args.mixture!r}, homogeneous_batches={args.homogeneous_batches}"


def _check_settings(args: MTLTrainingArguments) -> None:
    if args.auto_find_batch_size and args.world_size > 1:
        raise ValueError(
            "auto_find_batch_size does not go with several processes: each would find its own size, and plan other "
            "batches. Set per_device_train_batch_size."
        )
    accelerator: Any = args.accelerator_config  # Parsed by now.
    if accelerator.split_batches or accelerator.dispatch_batches:
        raise ValueError(
            "accelerator_config: split_batches and dispatch_batches have no effect on planned batches (a mixture, or "
            "several processes). Leave them out."
        )
    if getattr(args, "parallelism_config", None) is not None:
        raise ValueError("parallelism_config is not supported: every process takes rows of its own. Leave it out.")


def _sources(args: MTLTrainingArguments, dataset: Any) -> dict[str, np.ndarray]:
    if not has_mixture(args):
        return {"all": np.arange(len(dataset))}
    columns = list(getattr(dataset, "column_names", None) or [])
    if not isinstance(dataset, Dataset) or SOURCE_COLUMN not in columns:
        raise ValueError(
            f"{_asked_for(args)} need column {SOURCE_COLUMN!r} in the training data, but it is of type "
            f"{type(dataset).__name__} with columns {columns}. `mtl.data.load_sources` gives it."
        )
    # In the order of their first rows, which is that of the settings.
    column = np.asarray(dataset.select_columns(SOURCE_COLUMN)[:][SOURCE_COLUMN], dtype=str)  # (rows,)
    names, first, places = np.unique(column, return_index=True, return_inverse=True)
    return {str(names[place]): np.flatnonzero(places == place) for place in np.argsort(first)}


def _lengths(args: MTLTrainingArguments, dataset: Any) -> np.ndarray:
    column = args.length_column_name
    if isinstance(dataset, Dataset) and column in dataset.column_names:
        return np.asarray(dataset.select_columns(column)[:][column])  # (rows,)
    return np.asarray([len(row["input_ids"]) for row in dataset])  # (rows,)
