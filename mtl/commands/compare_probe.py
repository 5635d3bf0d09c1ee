"""Fits the probe of a comparison: linear models on the embeddings of the encoder as it was before any training."""

import dataclasses
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.commands.compare_run import Comparison, predict_test, set_up_part
from mtl.comparison_parts import PLACE, in_order, labelled_rows, part_rows
from mtl.comparison_plan import MULTI, PlannedPart
from mtl.comparison_probe import Rows, fit_probe
from mtl.data import row_texts
from mtl.evaluation import json_number
from mtl.labels import label_column
from mtl.report import environment

logger = logging.getLogger(__name__)

_EVALUATED_AT_ONCE = 64


def probe_part(comparison: Comparison, part: PlannedPart) -> None:
    """Fits and measures linear models of the compared tasks; one without a head is measured with the encoder as it is.

    A task without a labelled row in train or in validation is left out.
    """
    folder, started = comparison.folder(part), time.perf_counter()
    folder.remove()
    folder.begin(comparison.fingerprint(part))
    everything = PlannedPart(MULTI, tuple(task.name for task in comparison.tasks), comparison.settings.seeds[0])
    with tempfile.TemporaryDirectory() as scratch:
        run = set_up_part(comparison, everything, Path(scratch))
        untuned = in_order(predict_test(run))
    wanted = {kind: [f"{kind}.{task.name}" for task in comparison.compared] for kind in ("logits", "labels")}
    arrays = {name: untuned[name] for name in (PLACE, *wanted["logits"], *wanted["labels"])}
    figures = {}
    for task, probe in _probes(comparison, part, run.trainer.model).items():
        if probe is None:
            del arrays[f"logits.{task}"], arrays[f"labels.{task}"]
        else:
            arrays[f"logits.{task}"] = probe.logits
            figures[task] = {"strength": probe.strength, "validation": json_number(probe.validation)}
    # Linear models decide at a probability of one half.
    plain = [dataclasses.replace(task, label_thresholds=None) for task in comparison.compared]
    record = {
        **dataclasses.asdict(part),
        "probes": figures,
        "task_configs": [task.to_dict() for task in plain],
        "seconds": round(time.perf_counter() - started, 2),
        **environment(run.trainer.args.device),
    }
    folder.finish(record, arrays)
    run.trainer.accelerator.free_memory()


def _probes(comparison: Comparison, part: PlannedPart, model: MTLModel) -> dict[str, Any]:
    with_head = [task for task in comparison.compared if task.has_head]
    if not with_head:
        return {}
    mine = dataclasses.replace(part, tasks=tuple(task.name for task in with_head))
    rows = part_rows(comparison.splits, mine, comparison.tasks)
    embeddings = {name: _embeddings(model, rows[name]) for name in ("train", "validation") if name in rows}
    # Every test row, in the order of its place.
    test = _embeddings(model, comparison.splits["test"])  # (N, H)
    found: dict[str, Any] = {}
    for task in with_head:
        given = {name: _labelled(task, rows[name], some) for name, some in embeddings.items()}
        if not all(name in given and len(given[name][1]) for name in ("train", "validation")):
            logger.warning("Task %r is not probed: train or validation has no labelled row of it.", task.name)
            found[task.name] = None
            continue
        metric = comparison.settings.metric_of(task)
        probe = found[task.name] = fit_probe(task, given["train"], given["validation"], test, metric)
        logger.info("Probe of %r: %s on validation %.4f.", task.name, metric, probe.validation)
    return found


def _embeddings(model: MTLModel, rows: Dataset) -> npt.NDArray[np.float32]:
    """Returns what heads see of the rows, before any scaling to length 1. Shape (N, H)."""
    embeddings: Any = model.encode(row_texts(rows[:]), batch_size=_EVALUATED_AT_ONCE, normalize_embeddings=False)
    return embeddings


def _labelled(task: TaskConfig, rows: Dataset, embeddings: npt.NDArray) -> Rows:
    given = labelled_rows(rows.with_format("arrow")[:], task, with_loss=True)  # (N,)
    return embeddings[given], np.asarray(rows[label_column(task.name)][:])[given]
