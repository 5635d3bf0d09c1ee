"""What it costs to ask one model for everything, against one model a task."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from batching_mtl import Text
from modeling_mtl import MTLModel
from mtl.merging import latency_ms

REPEATS = 5
_BYTES_PER_MIB = 2**20


def disk_mib(folder: Path) -> float:
    """Returns how much the weights in a model's folder take on disk, in MiB."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / _BYTES_PER_MIB


def measure_latency(multi: Path, singles: Sequence[Path], texts: Sequence[Text], device: Any) -> dict[str, Any]:
    """Times one saved model against several, which answer one after the other, on the same texts.

    Args:
        multi: Folder of the one.
        singles: Folders of the others.
        texts: The texts, which go in one batch.
        device: Where the models run.

    Returns:
        `multi_task` and `single_task` in ms, the medians of `REPEATS` calls in turn, and under `about` the count of
        texts and of repeats, and the device.
    """
    one = _answers(multi, texts, device)
    several = [_answers(folder, texts, device) for folder in singles]
    calls = {"multi_task": one, "single_task": lambda: [answer() for answer in several]}
    about = {"texts": len(texts), "device": str(device), "repeats": REPEATS}
    return {**latency_ms(calls, repeats=REPEATS), "about": about}


def _answers(folder: Path, texts: Sequence[Text], device: Any) -> Callable[[], Any]:
    model = MTLModel.from_pretrained(folder).to(device).eval()
    # A model of tasks without a head answers with embeddings.
    answer: Any = model.predict if any(task.has_head for task in model.config.tasks) else model.encode
    return lambda: answer(list(texts), batch_size=len(texts), show_progress_bar=False)
