"""Trains a tiny model with each weighting and writes weights and logs; run alone, or by torchrun on two ranks."""

import argparse
import json
from pathlib import Path
from typing import Any

from distributed_worker import TASKS, make_rows
from safetensors.torch import save_file
from worker_models import make_model, make_tokenizer

from mtl.arguments import MTLTrainingArguments
from mtl.trainer import MTLTrainer

WEIGHTINGS = ("equal", "dwa", "random", "geometric_mean", "initial_loss")


def main() -> None:
    """Trains for three epochs a weighting, of two steps or, where there are no micro-batches, four."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    options = parser.parse_args()
    tokenizer = make_tokenizer()
    results: dict[str, Any] = {}
    for weighting in WEIGHTINGS:
        args = MTLTrainingArguments(
            output_dir=str(options.folder),
            use_cpu=True,
            disable_tqdm=True,
            num_train_epochs=3,
            learning_rate=0.05,
            optim="sgd",
            per_device_train_batch_size=options.batch_size,
            gradient_accumulation_steps=1 if weighting == "geometric_mean" else 2,
            train_sampling_strategy="sequential",
            weighting=weighting,
            conflict_steps=2,
            logging_steps=1,
            save_strategy="no",
            precision="fp32",
        )
        model = make_model(TASKS)
        trainer = MTLTrainer(model, args, train_dataset=make_rows(32), processing_class=tokenizer)
        trainer.train()
        results[weighting] = trainer.state.log_history
        if trainer.is_world_process_zero():
            save_file(model.state_dict(), options.folder / f"{weighting}.safetensors")
    if trainer.is_world_process_zero():
        log = {"world_size": args.world_size, "history": results}
        (options.folder / "log.json").write_text(json.dumps(log))
    trainer.end()


if __name__ == "__main__":
    main()
