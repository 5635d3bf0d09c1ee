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

from configuration_mtl import TaskConfig
from mtl.arguments import MTLTrainingArguments
from mtl.conflicts import summarize_conflicts
from mtl.evaluation import EvaluationResult, json_number
from mtl.freezing import Freezing

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub", "scikit-learn")


def build_report(
    args: MTLTrainingArguments,
    *,
    tasks: Sequence[TaskConfig],
    settings: dict[str, Any],
    data: dict[str, Any],
    freezing: Freezing,
    training: dict[str, Any],
    history: Sequence[dict[str, float]],
    results: Sequence[EvaluationResult],
    calibration: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Gathers a run's figures as JSON-ready values.

    Args:
        args: The settings of training, resolved; give the precision and the device.
        tasks: The tasks, with their labels.
        settings: All settings of the run.
        data: Counts of rows and of truncated texts by split.
        freezing: What was frozen.
        training: Metrics of the training, such as its runtime in seconds.
        history: The trainer's log.
        results: Results on the splits.
        calibration: What temperatures and thresholds change, see `mtl.calibration_report`.
    """
    conflicts = summarize_conflicts(history)
    return {
        "settings": settings,
        "tasks": [task.to_dict() for task in tasks],
        "data": data,
        "parameters": {
            "total": freezing.num_total,
            "trained": freezing.num_trainable,
            "frozen_modules": list(freezing.modules),
        },
        "precision": args.precision_in_use,
        "training": training,
        "conflicts": None if conflicts is None else conflicts.to_dict(),
        "peak_memory_mib": round(peak_memory_mib(), 1),
        "history": [{key: json_number(value) for key, value in entry.items()} for entry in history],
        "calibration": calibration or {},
        "results": {result.split: result.to_dict() for result in results},
        **environment(args.device),
    }


def environment(device: Any) -> dict[str, Any]:
    """Returns the releases and the machine that figures were made with, as `versions` and `machine`."""
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "machine": {"platform": platform.platform(), "cpu_count": os.cpu_count(), "device": str(device)},
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Writes a report as JSON, in one step, so that an interrupted write leaves none or the old one.

    Numbers that JSON does not have, as a diverged training leaves them, are None.
    """
    draft = path.with_suffix(".tmp")
    try:
        content = json.dumps(_with_finite_numbers(report), indent=2, default=str, allow_nan=False)
        draft.write_text(content + "\n", encoding="utf-8")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)  # It is there only if something went wrong, such as a full disk.


def _with_finite_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_finite_numbers(some) for key, some in value.items()}
    if isinstance(value, list | tuple):
        return [_with_finite_numbers(some) for some in value]
    return json_number(value) if isinstance(value, float) else value


def peak_memory_mib() -> float:
    """Returns the most memory this process has held, in MiB."""
    # On Linux `ru_maxrss` begins at what the parent process has held; the kernel's own mark does not.
    status = Path("/proc/self/status")
    if status.is_file():
        marks = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0]) / 1024  # KiB.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024  # Bytes on macOS, KiB on Linux.
