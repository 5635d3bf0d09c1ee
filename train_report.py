"""What a training leaves to look at: evidence of each split, what became of the embedding, a page, and pictures."""

import importlib.util
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mtl import MTLModel
from mtl.embedding_quality import embedding_quality
from mtl.evidence import build_evidence
from mtl.extras import require
from mtl.predictions import Predictions
from mtl.report import write_report
from mtl.scored_pairs import ScoredPairs, read_scored_pairs
from mtl.settings import RunSettings, resolve_backbone
from train_setup import Run, load_model

logger = logging.getLogger("train_report")

PAGE_FOLDER = "_report"
"""Where the page is: it quotes texts of the data, and a Trainer pushes nothing whose name begins so."""
EVIDENCE, FIGURES = "evidence.json", "figures"


def check_report(settings: RunSettings) -> None:
    """Checks what the settings ask for, before anything is trained.

    Raises:
        ImportError: If a page is wanted and the extra `report` is not installed.
        OSError: If there is no file of scored pairs.
        ValueError: If that file is not as it must be.
    """
    if settings.report:
        require("matplotlib", extra="report", what="`report`")
    read_pairs(settings)


def read_pairs(settings: RunSettings) -> ScoredPairs | None:
    """Reads the scored pairs of the settings, if they name some; raises as `read_scored_pairs` does."""
    return None if settings.similarity_pairs is None else read_scored_pairs(settings.similarity_pairs)


def write_page(
    run: Run, report: dict[str, Any], predictions: Sequence[Predictions], model: MTLModel
) -> dict[str, Any]:
    """Writes the evidence of a run, and a page and pictures of it; returns what they add to its report.

    `_report/` holds `evidence.json`, the page `report.html`, and its figures with their data; `figures/` holds the
    pictures for the card, which quote no text.

    Args:
        run: The run, after training.
        report: Its report so far.
        predictions: What the model says of the splits.
        model: The trained model, whole.

    Returns:
        `embedding`, its figures before and after, if it was measured, and `figures`, the names of the pictures.
    """
    if run.settings.report is False:
        return {}
    folder = run.output_dir / PAGE_FOLDER
    folder.mkdir(exist_ok=True)
    evidence = {some.result.split: build_evidence(some, seed=run.settings.split_seed) for some in predictions}
    embedding = _embedding(run, model)
    found = {"evidence": evidence, "embedding": embedding}
    write_report(found, folder / EVIDENCE)
    added: dict[str, Any] = {"figures": []}
    if embedding is not None:
        added["embedding"] = {key: value for key, value in embedding.items() if key != "map"}
    if not run.settings.report and importlib.util.find_spec("matplotlib") is None:
        logger.info('No page is made of the report: that needs `pip install "mtl-sentence-transformers[report]"`.')
        return added
    from mtl.html_report import write_html_report

    files = write_html_report({**report, **found}, folder, title=run.output_dir.resolve().name)
    pictures = run.output_dir / FIGURES
    pictures.mkdir(exist_ok=True)
    for file in [file for file in files if file.suffix == ".png"]:
        shutil.copy2(file, pictures)
        added["figures"].append(file.name)
    return added


def remove_page(output_dir: Path) -> None:
    """Removes what an earlier run has left in a folder: it would speak of another model."""
    for folder in (output_dir / PAGE_FOLDER, output_dir / FIGURES):
        if folder.is_dir():
            shutil.rmtree(folder)


def _embedding(run: Run, model: MTLModel) -> dict[str, Any] | None:
    split = next((name for name in ("test", "validation") if name in run.splits), None)
    if split is None or not run.settings.embedding_report:
        return None
    before = load_model(run.settings, resolve_backbone(run.settings.backbone), run.tasks)
    device: Any = model.device  # The annotation of `PreTrainedModel.to` takes none.
    before.to(device)
    found = embedding_quality(before, model, run.splits[split], run.tasks, pairs=read_pairs(run.settings))
    logger.info("Embedding on %s: %s", split, found["advice"])
    return {"split": split, **found}
