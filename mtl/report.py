"""What a run leaves behind in figures: settings, versions, data, training, and the result on each split."""

import json
import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import Trainer

from mtl.evaluation import EvaluationResult

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "scikit-learn")


def build_report(
    trainer: Trainer,
    *,
    settings: dict[str, Any],
    data: dict[str, Any],
    training: dict[str, Any],
    results: Sequence[EvaluationResult],
) -> dict[str, Any]:
    """Gathers a run's figures as JSON-ready values.

    Args:
        trainer: The trainer, after training; gives the history and the counts of parameters.
        settings: The settings of the run.
        data: Counts of rows and of truncated texts by split.
        training: Metrics of the training, such as its runtime in seconds.
        results: Results on the splits.
    """
    freezing = trainer.freezing
    return {
        "settings": settings,
        "tasks": [task.to_dict() for task in trainer.tasks],
        "data": data,
        "parameters": {
            "total": freezing.num_total,
            "trained": freezing.num_trainable,
            "frozen_modules": list(freezing.modules),
        },
        "precision": trainer.args.precision_in_use,
        "training": training,
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "history": trainer.state.log_history,
        "results": {result.split: result.to_dict() for result in results},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": {"platform": platform.platform(), "cpu_count": os.cpu_count(), "device": str(trainer.args.device)},
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Writes a report as JSON, in one step, so that an interrupted write leaves none or the old one."""
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(report, indent=2, default=str, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(draft, path)


def peak_memory_mib() -> float:
    """Returns the most memory this process has held, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024  # Bytes on macOS, KiB on Linux.
