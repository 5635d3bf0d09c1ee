"""Trains once in one way and measures it, in a process of its own; `benchmarks/training.py` starts it.

It writes one JSON record. Reading the data and loading the model are in no time, and in the peak of memory only.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset
from freezing_run import machine
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from mtl.collation import MTLCollator
from mtl.labels import label_column
from mtl.report import peak_memory_mib
from mtl.settings import parse_settings, resolve_backbone
from train_setup import Run, prepare

PACKAGES = ("torch", "transformers", "accelerate", "sentence-transformers")
QUIET = ("--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", "--report_to", "none")
LEARNING_RATE = 2e-5
"""Of the trainers with their defaults; no time depends on it."""
TASK = "topic"
"""What a trainer of one task learns."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one way of training and writes its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", choices=list(WAYS), required=True)
    parser.add_argument("--record", type=Path, required=True, help="JSON file to write.")
    parser.add_argument("--settings", required=True, help="Settings file.")
    parser.add_argument("--steps", type=int, required=True, help="Optimizer steps.")
    options = parser.parse_args(argv)
    transformers_logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(options.way, options.settings, options.steps, folder)
    options.record.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def measure(way: str, settings_file: str, steps: int, folder: str) -> dict[str, Any]:
    """Trains for some steps and returns the figures as JSON-ready values.

    Args:
        way: A key of [`WAYS`].
        settings_file: The settings of the data, the model and the batch.
        steps: Optimizer steps.
        folder: Where a trainer may write.
    """
    given = [settings_file, "--output_dir", folder, "--max_steps", str(steps), *QUIET, *SETTINGS.get(way, ())]
    settings, args = parse_settings(given)
    set_seed(args.seed)
    run = prepare(settings, args)
    # The same rows for all, each in an order of its own.
    rows = run.splits["train"].shuffle(seed=0).select(range(steps * args.per_device_train_batch_size))
    trainer = WAYS[way](run, rows, folder)
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    tokens = sum(map(len, rows["input_ids"]))
    return {
        "way": way,
        "steps": steps,
        "tokens": tokens,
        "seconds": clock.seconds,
        "tokens_per_second": tokens / clock.seconds,
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "precision": args.precision_in_use if way in SETTINGS else "fp32",
        "loss": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": machine(str(args.device)),
    }


class Clock(TrainerCallback):
    """Takes the time from the first step's begin to the last one's end, with the fetching of batches between."""

    def __init__(self) -> None:
        self._begin, self.seconds = 0.0, 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts before the first batch is fetched."""
        self._begin = self._begin or time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes the time so far."""
        self.seconds = time.perf_counter() - self._begin


def _mtl_trainer(run: Run, rows: Dataset, folder: str) -> Trainer:
    run.trainer.train_dataset = rows
    return run.trainer


def _plain_trainer(run: Run, rows: Dataset, folder: str) -> Trainer:
    """The `Trainer` with its defaults, on the same model, tasks and batch; the model sums the losses itself."""
    model = run.trainer.model
    # Columns of labels are no arguments of `forward`; the collator makes `labels` of them.
    args = TrainingArguments(folder, remove_unused_columns=False, learning_rate=LEARNING_RATE, **_steps(run))
    return Trainer(model, args, train_dataset=rows, data_collator=MTLCollator(model.tokenizer, run.tasks))


def _sentence_transformers_trainer(run: Run, rows: Dataset, folder: str) -> Trainer:
    """The trainer of sentence-transformers with its defaults, on the same encoder and batch, and one of the tasks."""
    model = SentenceTransformer(resolve_backbone(run.settings.backbone), device="cpu")
    model.max_seq_length = run.settings.max_length
    task = next(task for task in run.tasks if task.name == TASK)
    args = SentenceTransformerTrainingArguments(folder, learning_rate=LEARNING_RATE, **_steps(run))
    labelled = rows.select_columns(["text", label_column(TASK)]).rename_column(label_column(TASK), "label")
    loss = LinearClassificationLoss(model, task.num_labels or 0)
    return SentenceTransformerTrainer(model, args, train_dataset=labelled, loss=loss)


def _steps(run: Run) -> dict[str, Any]:
    args = run.trainer.args
    same: dict[str, Any] = {"max_steps": args.max_steps, "seed": args.seed, "use_cpu": args.use_cpu}
    same["per_device_train_batch_size"] = args.per_device_train_batch_size
    return {**same, "save_strategy": "no", "report_to": "none", "logging_steps": args.logging_steps}


class LinearClassificationLoss(nn.Module):
    """Cross-entropy of a linear layer on the embedding: sentence-transformers' own takes pairs of sentences.

    Args:
        model: The model.
        num_labels: Count of classes, C.
    """

    def __init__(self, model: SentenceTransformer, num_labels: int) -> None:
        super().__init__()
        self.model = model
        self.classifier = nn.Linear(model.get_embedding_dimension() or 0, num_labels)

    def forward(self, sentence_features: Sequence[Mapping[str, Tensor]], labels: Tensor) -> Tensor:
        """Returns the mean loss, (), of a batch with its labels, (B,)."""
        embeddings = self.model(dict(sentence_features[0]))["sentence_embedding"]  # (B, H)
        return F.cross_entropy(self.classifier(embeddings), labels)


WAYS: dict[str, Callable[[Run, Dataset, str], Trainer]] = {
    "mtl": _mtl_trainer,
    "mtl-fp32": _mtl_trainer,
    "trainer": _plain_trainer,
    "sentence-transformers": _sentence_transformers_trainer,
}
"""Name of each way of training -> what makes its trainer from a run, rows and a folder."""
SETTINGS: dict[str, tuple[str, ...]] = {"mtl": (), "mtl-fp32": ("--precision", "fp32")}
"""Settings of this package's own ways."""

if __name__ == "__main__":
    main()
