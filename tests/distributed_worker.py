"""Trains a tiny model for a few steps and writes its weights and log; run alone, or by torchrun on several ranks."""

import argparse
import json
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from worker_models import make_model, make_tokenizer

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.data import label_column
from mtl.teacher_columns import as_teacher_column, teacher_column
from mtl.trainer import MTLTrainer
from tasks_mtl import IGNORE_INDEX, ORDINAL, OUT_OF_SCOPE_INDEX, REGRESSION

TASKS = (
    TaskConfig("topic", num_labels=3, label_smoothing=0.1, out_of_scope_label="none"),
    TaskConfig("valence", REGRESSION, weight=0.5),
    TaskConfig("stars", ORDINAL, num_labels=4),
)


def make_rows(count: int) -> Dataset:
    """Returns rows of random tokens; labels are missing unevenly, so that ranks hold different numbers of them."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(count):
        length = int(torch.randint(3, 12, (), generator=generator))
        has_topic, has_valence = number % 8 < 5, number % 3 == 0
        without_topic = OUT_OF_SCOPE_INDEX if number % 8 == 5 else IGNORE_INDEX
        rows.append(
            {
                "input_ids": torch.randint(1, 50, (length,), generator=generator).tolist(),
                label_column("topic"): number % 3 if has_topic else without_topic,
                label_column("stars"): number % 4 if number % 7 < 3 else IGNORE_INDEX,
                label_column("valence"): float(number % 5) if has_valence else float("nan"),
            }
        )
    return Dataset.from_list(rows)


def taught(rows: Dataset) -> Dataset:
    """Returns the rows with random teachers, unevenly missing."""
    generator = torch.Generator().manual_seed(1)
    for name, width in (("topic", 3), ("valence", 1)):
        values = torch.randn(len(rows), width, generator=generator).softmax(dim=-1)  # (N, C)
        values[[number % 7 < 3 for number in range(len(rows))]] = float("nan")
        rows = rows.add_column(teacher_column(name), as_teacher_column(values.numpy()))
    return rows


def main() -> None:
    """Trains and writes `weights.safetensors`, `weighting.safetensors` and `log.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, default={}, help="Further settings of training, as JSON.")
    options = parser.parse_args()
    model, tokenizer = make_model(TASKS), make_tokenizer()
    args = MTLTrainingArguments(
        output_dir=str(options.folder),
        use_cpu=True,
        disable_tqdm=True,
        max_steps=5,
        learning_rate=1e-2,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        weighting="uncertainty",
        logging_steps=1,
        save_strategy="no",
        precision="fp32",
        **options.settings,
    )
    rows = make_rows(96)
    train = taught(rows) if "teacher_annealing" in options.settings else rows
    model.tokenizer = tokenizer
    trainer = MTLTrainer(model, args, train_dataset=train, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    trainer.fit_rejection(acceptance=0.8)
    trainer.calibrate(abstention_error_rate={"topic": 0.5})
    evaluated = trainer.evaluate()
    if trainer.is_world_process_zero():
        save_file(model.state_dict(), options.folder / "weights.safetensors")
        save_file(trainer.weighting.state_dict(), options.folder / "weighting.safetensors")
        log = {"world_size": args.world_size, "history": trainer.state.log_history, "evaluated": evaluated}
        found = {task.name: task.calibration_temperature for task in trainer.tasks}
        log["temperatures"] = {name: temperature for name, temperature in found.items() if temperature is not None}
        log["is_cached"] = trainer.embedding_cache is not None
        (options.folder / "log.json").write_text(json.dumps(log))
    trainer.end()


if __name__ == "__main__":
    main()
