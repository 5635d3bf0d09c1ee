"""Compares the scores by which a head can reject sentences of no class, on the models of `benchmarks/intents.py`.

python benchmarks/rejection.py --data-dir <folder> --seeds 0 1 2 --write docs/tasks.md

Each score's threshold is fitted on the validation rows of CLINC150, in two ways, and measured on its test rows.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy.typing as npt
import torch
from datasets import Dataset
from documents import settings_that_count
from intent_rows import SETTINGS, intent_rows
from seeds import ROOT, add_options, run_seeds

from classification_mtl import confidence
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.arguments import MTLTrainingArguments
from mtl.data import tokenize_splits
from mtl.rejection import fitted_threshold, rejection_metrics
from mtl.trainer import MTLTrainer
from tasks_mtl import REJECTION_SCORES

TASK = "clinc"
FITS = {"most rows right": None, "95 % accepted": 0.95}


def main(argv: list[str] | None = None) -> None:
    """Measures the models of the seeds that the results file does not have yet, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="Folder of the data sets.")
    add_options(parser, "rejection.json")
    options = parser.parse_args(argv)
    models = ROOT / "outputs"
    run_seeds(
        options,
        {"config": settings_that_count(SETTINGS)},
        lambda seed: measure(str(models / f"intents-seed-{seed}"), options.data_dir),
        table,
    )


def measure(folder: str, data_dir: str) -> dict[str, Any]:
    """Returns the figures of a model by score and by way of fitting."""
    model = MTLModel.from_pretrained(folder)
    splits, _ = intent_rows([model.config.task(TASK)], data_dir)
    splits, _ = tokenize_splits(splits, model.tokenizer, max_length=model.max_tokens())
    args = MTLTrainingArguments(f"{folder}/rejection", per_device_eval_batch_size=128, precision="fp32")
    trainer = MTLTrainer(model, args)
    logits, labels = _said(trainer, splits["test"])
    validation = _said(trainer, splits["validation"])

    def figures(task: TaskConfig, acceptance: float | None) -> dict[str, float]:
        threshold = fitted_threshold(task, *validation, acceptance)
        task = replace(task, rejection_threshold=threshold)
        scores = confidence(torch.from_numpy(logits[labels >= 0]), str(task.rejection_score))  # (N,)
        accepted = float((scores >= threshold).double().mean())
        return {**rejection_metrics(task, logits, labels), "accepted": accepted, "threshold": threshold}

    task = replace(model.config.task(TASK), rejection_threshold=None)
    return {
        score: {name: figures(replace(task, rejection_score=score), share) for name, share in FITS.items()}
        for score in REJECTION_SCORES
    }


def _said(trainer: MTLTrainer, rows: Dataset) -> tuple[npt.NDArray, npt.NDArray]:
    """Returns the logits of the head, (N, C), and the labels, (N,)."""
    output: Any = trainer.predict(rows)
    return output.predictions[TASK], output.label_ids[TASK]


def table(runs: dict[str, Any]) -> str:
    """Formats the means over the seeds as Markdown."""
    first = next(iter(FITS))
    lines = [
        "| score | AUROC | fitted so that | in scope, accepted | out of scope, rejected | all rows, right |",
        "|---" * 6 + "|",
    ]
    for score in REJECTION_SCORES:
        for fit in FITS:
            cell = _mean_of(runs, score, fit)
            names = (f"`{score}`", cell("oos_auroc")) if fit == first else ("", "")
            shares = (cell(name) for name in ("accepted", "oos_recall", "joint_accuracy"))
            lines.append(f"| {' | '.join((*names, fit, *shares))} |")
    return "\n".join(lines)


def _mean_of(runs: dict[str, Any], score: str, fit: str) -> Callable[[str], str]:
    return lambda metric: f"{mean(run[score][fit][metric] for run in runs.values()):.4f}"


if __name__ == "__main__":
    main()
