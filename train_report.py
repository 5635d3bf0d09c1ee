"""What a training leaves to look at: report and card, evidence of each split, a page, and pictures."""

import importlib.util
import logging
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_mtl import MTLModel
from mtl.card import build_card
from mtl.card_origin import Origin
from mtl.embedding_quality import embedding_quality
from mtl.evaluation import EvaluationResult
from mtl.evidence import build_evidence
from mtl.export_folder import remove_export
from mtl.extras import require
from mtl.launch import launcher, without_tokens
from mtl.predictions import Predictions
from mtl.report import write_report
from mtl.scored_pairs import ScoredPairs, read_scored_pairs
from mtl.settings import RunSettings, resolve_backbone
from train_setup import Run, load_model

logger = logging.getLogger("train_report")

CARD, REPORT = "README.md", "report.json"
PAGE_FOLDER, EVALUATION_FOLDER = "_report", "_evaluation"
"""Where the page and what `mtl evaluate` finds are: both quote texts of the data, and a Trainer pushes nothing whose
name begins so."""
EVIDENCE, FIGURES = "evidence.json", "figures"
_PAGE_PACKAGES = ("matplotlib", "jinja2")


def check_report(settings: RunSettings) -> None:
    """Checks what the settings ask for, before anything is trained.

    Raises:
        ImportError: If a page is wanted and the extra `report` is not installed.
        OSError: If there is no file of scored pairs.
        ValueError: If that file is not as it must be.
    """
    for package in _PAGE_PACKAGES if settings.report else ():
        require(package, extra="report", what="`report`")
    read_pairs(settings)


def read_pairs(settings: RunSettings) -> ScoredPairs | None:
    """Reads the scored pairs of the settings, if they name some; raises as `read_scored_pairs` does."""
    return None if settings.similarity_pairs is None else read_scored_pairs(settings.similarity_pairs)


def write_descriptions(
    run: Run,
    report: dict[str, Any],
    results: Sequence[EvaluationResult],
    command: Sequence[str],
    predictions: Sequence[Predictions],
    *,
    model: MTLModel,
    origin: Origin,
    text: str = "",
) -> dict[str, Any]:
    """Writes report and card, then evidence, page and pictures, and says where; returns what these add to the report.

    What goes wrong with the page is told, and costs nothing else: not report and card, and not a push of the model.

    Args:
        run: The run, after training.
        report: Its report so far.
        results: The results that the card shows.
        command: The command line.
        predictions: What the model says of the splits.
        model: The trained model, whole.
        origin: What it was started from.
        text: What the card ends with.
    """
    _describe(run, report, results, command, origin=origin, text=text)
    added: dict[str, Any] = {}
    try:
        added = write_page(run, report, predictions, model)
    except Exception:  # Whatever it is: the model is whole without a page.
        logger.exception("No page could be made. The model, %s and %s are there without it.", REPORT, CARD)
    if added:
        _describe(run, {**report, **added}, results, command, origin=origin, text=text)
    print(f"\nSaved to {run.output_dir}: the model with its code, {REPORT}, and the card in {CARD}.")
    if (page := run.output_dir / PAGE_FOLDER / "report.html").is_file():
        print(f"The page to look at is {page}.")
    return added


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
    if not all(importlib.util.find_spec(package) for package in _PAGE_PACKAGES):
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


def remove_descriptions(output_dir: Path) -> None:
    """Removes what an earlier run, or a measurement of its model, has left in a folder: it speaks of another model.

    So do the graphs of an export, which would go on answering as that model. Of `figures/`, in which there may be
    others, only the pictures go that the page has too.
    """
    remove_export(output_dir)
    for name in (CARD, REPORT):
        (output_dir / name).unlink(missing_ok=True)
    pictures = output_dir / FIGURES
    for drawn in (output_dir / PAGE_FOLDER / FIGURES).glob("*.png"):
        (pictures / drawn.name).unlink(missing_ok=True)
    if pictures.is_dir() and not any(pictures.iterdir()):
        pictures.rmdir()
    for folder in (output_dir / PAGE_FOLDER, output_dir / EVALUATION_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)  # Before the model is saved, which it should not cost.


def _describe(
    run: Run,
    report: dict[str, Any],
    results: Sequence[EvaluationResult],
    command: Sequence[str],
    *,
    origin: Origin,
    text: str = "",
) -> None:
    """Writes `report.json` and the model card with the figures, beside the model; the card ends with a text."""
    output, settings = run.output_dir, run.settings
    write_report(report, output / REPORT)
    card = build_card(
        run.trainer.model.config,
        name=run.trainer.args.hub_model_id or output.resolve().name,
        origin=origin,
        license=settings.license,
        language=settings.language,
        sources=settings.source_configs(),
        results=results,
        report=report,
        command=shlex.join([*launcher(os.environ), *without_tokens(command)]),
    )
    card.text += text
    card.save(output / CARD)


def _embedding(run: Run, model: MTLModel) -> dict[str, Any] | None:
    split = next((name for name in ("test", "validation") if name in run.splits), None)
    if split is None or not run.settings.embedding_report:
        return None
    before = _model_before(run)
    if before is not None:
        device: Any = model.device  # The annotation of `PreTrainedModel.to` takes none.
        before.to(device)
    found = embedding_quality(before, model, run.splits[split], run.tasks, pairs=read_pairs(run.settings))
    logger.info("Embedding on %s: %s", split, found["advice"])
    return {"split": split, **found}


def _model_before(run: Run) -> MTLModel | None:
    """Loads what the run began with; None if that was a model in its own folder, which the trained one replaced."""
    path = resolve_backbone(run.settings.backbone)
    if os.path.realpath(path) == os.path.realpath(run.output_dir):
        return None
    return load_model(run.settings, path, run.tasks)
