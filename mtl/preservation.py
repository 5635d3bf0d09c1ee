"""Keeping an embedding near what it was: 1 - cosine to the embedding by the encoder that training began with.

The original's embeddings of the training rows are computed once, before the first step, and kept in a file of the
cache of `datasets`, which is found again by the content of the tokens and of the encoder. They become a column of the
training data. What is saved beside a checkpoint is the key of that encoder, so that a run which goes on from it cannot
take the tuned encoder for the original.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from torch import Tensor
from torch.nn import functional as F

from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.collation import ORIGINAL_COLUMN, ORIGINALS
from mtl.content_keys import cache_file, key_of, key_of_config, key_of_rows, key_of_weights
from mtl.task_losses import TaskLossMeans

PRESERVATION_NAME = "preservation.json"
PRESERVATION = "preservation"
"""Name of the loss in the log, as if it were a task's."""
ROWS = "<rows>"
"""Key, which no task can have, of the count of rows with an original embedding."""

_CACHE_VERSION = 1  # raise it when other vectors come out for the same tokens and the same encoder
_ROWS_AT_ONCE = 1000


class Preservation:
    """The embedding-preservation loss of a run: its targets, its value, its mean for the log.

    Args:
        model: The model.
        args: The settings of training; give the weight and the batch size.

    Raises:
        ValueError: If a task's name would stand in the log for this loss.
    """

    def __init__(self, model: MTLModel, args: MTLTrainingArguments) -> None:
        self.model, self.args = model, args
        self.weight = args.preserve_embeddings
        self.encoder_key: str | None = None
        self._means = TaskLossMeans()
        if not self.weight:
            return
        if PRESERVATION in model.config.task_names:
            raise ValueError(f"Task {PRESERVATION!r}: the log of preserve_embeddings has that name. Rename the task.")

    def with_originals(self, dataset: Any, collator: Any, checkpoint: str | None) -> Any:
        """Returns the training data with the embeddings by the encoder as it is now; with weight 0 as it is.

        Args:
            dataset: The tokenised training rows.
            collator: Makes the batches.
            checkpoint: Folder of the checkpoint that training goes on from, if it does; not loaded yet.

        Raises:
            ValueError: If the encoder is not the one that the run of the checkpoint, or an earlier call, began with,
                or the data set is not one of `datasets`.
        """
        if not self.weight or (self.encoder_key is not None and ORIGINAL_COLUMN in dataset.column_names):
            return dataset
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"preserve_embeddings needs training rows as a `datasets.Dataset`, found {type(dataset).__name__}."
            )
        key = key_of(key_of_weights(self.model.backbone), self.model.config.pooling)
        dataset = dataset.with_format(None)  # In another one rows are tensors, of which no key can be made.
        known = self.encoder_key if checkpoint is None else _saved_key(checkpoint)
        if known not in (None, key):
            raise ValueError(
                f"preserve_embeddings: the encoder of this model is not the one that {checkpoint or 'this trainer'!r} "
                "began with, so the embeddings to preserve cannot be computed. Build the model as the first run did "
                "(`MTLModel.from_backbone`); training loads the weights of the checkpoint itself."
            )
        self.encoder_key = key
        with self.args.main_process_first(desc="embeddings of the original encoder"):
            originals = self._embed(dataset, collator, key)
        dataset = dataset.remove_columns(_present(dataset, [ORIGINAL_COLUMN]))
        return concatenate_datasets([dataset, originals], axis=1)

    def _embed(self, dataset: Dataset, collator: Any, encoder_key: str) -> Dataset:
        inputs = _present(dataset, ["input_ids", *self.model.tokenizer.model_input_names])
        tokens = dataset.select_columns(inputs)
        config = key_of_config(self.model.config.text_config)
        key = key_of(_CACHE_VERSION, encoder_key, config, inputs, key_of_rows(tokens, inputs))
        was_training = self.model.training
        self.model.eval()
        try:
            return tokens.map(
                self._embed_batch,
                batched=True,
                batch_size=_ROWS_AT_ONCE,
                remove_columns=inputs,
                fn_kwargs={"collator": collator},
                features=Features({ORIGINAL_COLUMN: List(Value("float32"), length=self.model.config.hidden_size)}),
                new_fingerprint=key,
                cache_file_name=cache_file("originals", key),
                desc="Embedding with the original encoder",
            )
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def _embed_batch(self, columns: Mapping[str, Sequence[Any]], collator: Any) -> dict[str, Any]:
        lengths = torch.tensor([len(ids) for ids in columns["input_ids"]])  # (N,)
        found = torch.empty(len(lengths), self.model.config.hidden_size)  # (N, H)
        for rows in lengths.argsort(stable=True).split(self.args.per_device_eval_batch_size):
            examples = [{name: values[row] for name, values in columns.items()} for row in rows.tolist()]
            batch = collator(examples)
            inputs = {name: batch[name].to(self.model.device) for name in (*columns, "attention_mask")}
            found[rows] = F.normalize(self.model(**inputs).embeddings.float(), dim=-1).cpu()
        return {ORIGINAL_COLUMN: found.numpy()}

    def loss(self, embeddings: Tensor, originals: Tensor, num_items: Mapping[str, Tensor]) -> Tensor:
        """Returns the weight times the sum of 1 - cosine over the rows, over the rows of the whole step. Shape ().

        Args:
            embeddings: The embeddings now. Shape (B, H).
            originals: Those by the original encoder. Shape (B, H).
            num_items: Counts over the whole optimizer step; that of `ROWS` is used. Shape () each.
        """
        total = (1.0 - F.cosine_similarity(embeddings.float(), originals, dim=-1)).sum()  # ()
        self._means.note(PRESERVATION, total, torch.tensor(len(originals), device=total.device))
        return self.weight * total / num_items[ROWS].clamp(min=1)

    def take_mean(self, reduce: Callable[[Any], Any] | None = None) -> dict[str, float]:
        """Returns `loss_preservation`, the unweighted mean over rows since the last call, and begins anew.

        Args:
            reduce: Sums tensors over processes; None for one process.
        """
        return {f"loss_{name}": mean for name, mean in self._means.take(reduce).items()}

    def save(self, folder: str) -> None:
        """Writes the key of the original encoder into a checkpoint, if there is one."""
        if self.encoder_key is not None:
            Path(folder, PRESERVATION_NAME).write_text(json.dumps({"original_encoder": self.encoder_key}) + "\n")


def count_rows(batches: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Returns the count of rows with an original embedding under `ROWS`, or nothing if batches have none."""
    if not batches or ORIGINALS not in batches[0]:
        return {}
    return {ROWS: torch.tensor(sum(len(batch[ORIGINALS]) for batch in batches))}


def _saved_key(checkpoint: str) -> str:
    file = Path(checkpoint, PRESERVATION_NAME)
    if not file.is_file():
        raise ValueError(
            f"{os.fspath(checkpoint)!r} is of a run without preserve_embeddings, so it does not tell which encoder "
            "that run began with. Set preserve_embeddings to 0, or start anew in another `output_dir`."
        )
    return json.loads(file.read_text())["original_encoder"]


def _present(dataset: Dataset, columns: Sequence[str]) -> list[str]:
    return [column for column in dict.fromkeys(columns) if column in dataset.column_names]
