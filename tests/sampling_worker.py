"""Trains a tiny model over a plan of rows, once through and once resumed, and notes the rows of every batch."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import BertConfig, set_seed
from worker_models import make_tokenizer

from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.data import label_column
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX

TASKS = (TaskConfig("topic", num_labels=3), TaskConfig("mood", num_labels=2))
SIZES = {"large": 32, "middle": 8, "small": 3}  # 43 rows, which no batch size below divides.


class RecordingTrainer(MTLTrainer):
    """Notes the rows of every batch that it trains on; the first token of a row is its number, from 1."""

    rows: list[list[int]]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Notes the rows; see `Trainer.training_step`."""
        if not hasattr(self, "rows"):
            self.rows = []
        self.rows.append([number - 1 for number in inputs["input_ids"][:, 0].tolist()])
        return super().training_step(model, inputs, *args, **kwargs)


def make_rows() -> Dataset:
    """Returns rows of three sources, each with labels of one task or both, of unequal length."""
    sources = [name for name, count in SIZES.items() for _ in range(count)]
    rows = []
    for number, source in enumerate(sources):
        length = 2 + number * 7 % 11
        rows.append(
            {
                "input_ids": [number + 1, *(1 + (number + place) % 49 for place in range(length - 1))],
                "length": length,
                "source": source,
                label_column("topic"): number % 3 if source != "small" else IGNORE_INDEX,
                label_column("mood"): number % 2 if source != "large" else IGNORE_INDEX,
            }
        )
    return Dataset.from_list(rows)


def make_trainer(folder: Path, **settings: Any) -> RecordingTrainer:
    """Returns a trainer of a fresh tiny model, with dropout; the same one for the same settings."""
    set_seed(0)
    text_config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    tokenizer = make_tokenizer()
    values: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "precision": "fp32"}
    args = MTLTrainingArguments(str(folder), use_cpu=True, disable_tqdm=True, **{**values, **settings})
    model = MTLModel(MTLConfig(text_config=text_config, tasks=list(TASKS)))
    return RecordingTrainer(model, args, train_dataset=make_rows(), processing_class=tokenizer)


def train_and_resume(folder: Path, *, resume_step: int, **settings: Any) -> dict[str, Any]:
    """Trains, and again from the checkpoint of a step; returns the rows of both and writes their final weights."""
    whole = make_trainer(folder, save_strategy="steps", save_steps=resume_step, **settings)
    whole.train()
    resumed = make_trainer(folder, **settings)
    resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume_step}"))
    if whole.is_world_process_zero():
        for name, trainer in (("whole", whole), ("resumed", resumed)):
            save_file(trainer.model.state_dict(), folder / f"{name}.safetensors")
    return {"whole": whole.rows, "resumed": resumed.rows}


def main() -> None:
    """Runs every setting, and writes the rows that this rank saw as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options = parser.parse_args()
    results = []
    for number, settings in enumerate(options.settings):
        results.append(train_and_resume(options.folder / str(number), **settings))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    (options.folder / f"rank{rank}.json").write_text(json.dumps(results))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # A rank that leaves while the other one still talks to it can abort it.
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
