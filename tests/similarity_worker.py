"""Trains a tiny model on objectives of the embedding and writes its weights and log; alone, or by torchrun."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from worker_models import make_model, make_tokenizer

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.data import label_column
from mtl.trainer import MTLTrainer
from tasks_mtl import CONTRASTIVE, IGNORE_INDEX, POSITIVE_PAIRS, SCORED_PAIRS, TRIPLETS

TASKS = (
    TaskConfig("topic", num_labels=3),
    TaskConfig("scored", SCORED_PAIRS),
    TaskConfig("found", POSITIVE_PAIRS, symmetric=True),
    TaskConfig("third", TRIPLETS, margin=0.5),
    TaskConfig("classes", CONTRASTIVE, num_labels=3),
)


def make_rows(count: int) -> Dataset:
    """Returns rows of random tokens; those of the second four have no further text, so a batch of a rank has none."""
    generator = torch.Generator().manual_seed(0)

    def tokens() -> list[int]:
        length = int(torch.randint(3, 12, (), generator=generator))
        return torch.randint(1, 50, (length,), generator=generator).tolist()

    rows = []
    for number in range(count):
        compared = number // 4 != 1
        row: dict[str, Any] = {"input_ids": tokens()}
        row["further_1_input_ids"] = tokens() if compared else []
        row["further_2_input_ids"] = tokens() if compared and number % 3 else []
        labels = {
            "topic": number % 3 if number % 8 < 5 else IGNORE_INDEX,
            "scored": float(number % 7) if compared and number % 5 else float("nan"),
            "found": 1 if compared and number % 4 else IGNORE_INDEX,
            "third": 1 if row["further_2_input_ids"] else IGNORE_INDEX,
            "classes": number % 2 if number % 5 else IGNORE_INDEX,
        }
        rows.append(row | {label_column(name): label for name, label in labels.items()})
    return Dataset.from_list(rows)


def main() -> None:
    """Trains and writes `weights.safetensors` and `log.json`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--accumulation", type=int, required=True)
    options = parser.parse_args()
    model, tokenizer = make_model(TASKS), make_tokenizer()
    args = MTLTrainingArguments(
        output_dir=str(options.folder),
        use_cpu=True,
        disable_tqdm=True,
        max_steps=4,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=options.accumulation,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        precision="fp32",
    )
    rows = make_rows(64)
    trainer = MTLTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
    trainer.train()
    evaluated = trainer.evaluate()
    if trainer.is_world_process_zero():
        save_file(model.state_dict(), options.folder / "weights.safetensors")
        log = {"world_size": args.world_size, "history": trainer.state.log_history, "evaluated": evaluated}
        (options.folder / "log.json").write_text(json.dumps(log))
    trainer.end()


if __name__ == "__main__":
    main()
