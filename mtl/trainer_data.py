"""Which rows a trainer sees, in which order, and in what form."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.collation import ORIGINAL_COLUMN, POOLED, further_columns
from mtl.embedding_cache import EmbeddingCache, with_lengths
from mtl.labels import label_column
from mtl.loading import follows_plan, make_plan, planned_loader
from mtl.teacher_columns import teacher_column
from mtl.trainer_state import StateTrainer


class DataTrainer(StateTrainer):
    """A `Trainer` that follows plans of rows, and takes embeddings that were computed before in place of tokens."""

    args: MTLTrainingArguments
    tasks: Sequence[TaskConfig]
    embedding_cache: EmbeddingCache | None

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
