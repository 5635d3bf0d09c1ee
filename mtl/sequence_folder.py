"""The folder of a task that became a plain sequence classifier: weights, tokenizer and a card."""

import copy
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from batching_mtl import Text
from configuration_mtl import MTLConfig, TaskConfig
from modeling_mtl import MTLModel
from mtl.card_origin import Origin
from mtl.saved_models import config_fields
from mtl.sequence_card import SavedClassifier, classifier_card
from mtl.sequence_classification import (
    PROBES,
    classifier_tokenizer,
    largest_difference,
    to_sequence_classification,
)
from sharing_mtl import save_tokenizer


def save_sequence_classification(
    model: MTLModel,
    task: str,
    folder: str | os.PathLike[str],
    *,
    origin: Origin | None = None,
    sentences: Sequence[Text] = PROBES,
) -> SavedClassifier:
    """Writes one task as a folder that `AutoModelForSequenceClassification` and every pipeline load without our code.

    Args:
        model: The model, in float32, with its tokenizer.
        task: Name of one of its tasks.
        folder: Where it goes.
        origin: What the card says of the model's name, licence and languages; nothing if not given.
        sentences: What the logits of both are compared on.

    Raises:
        FileExistsError: If another model than a classifier is in the folder.
        KeyError: If there is no such task.
        ValueError: See `to_sequence_classification`.
    """
    folder = Path(folder)
    _refuse_other_model(folder)
    classifier = to_sequence_classification(model, task, sentences=sentences)
    found, encoder_layers = model.config.task(task), model.config.text_config.num_hidden_layers
    saved = SavedClassifier(
        folder=folder,
        class_name=type(classifier).__name__,
        encoder_layers=encoder_layers,
        added_layers=classifier.config.num_hidden_layers - encoder_layers,
        differences=_differences(model, found, classifier, sentences),
    )
    classifier.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # safetensors lets only their owner read them.
        shutil.copymode(folder / "config.json", weights)
    save_tokenizer(classifier_tokenizer(model), folder)
    classifier_card(saved, found, origin or Origin()).save(folder / "README.md")
    return saved


def _refuse_other_model(folder: Path) -> None:
    """Lets a classifier be replaced, as an earlier export is one, and nothing else."""
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file, and the classifier is a folder. Give another.")
    fields = config_fields(folder)
    if fields is None:
        return
    is_ours, classes = fields.get("model_type") == MTLConfig.model_type, fields.get("architectures") or [""]
    if is_ours or not str(classes[0]).endswith("ForSequenceClassification"):
        what = "a multi-task model" if is_ours else f"another model ({folder / 'config.json'})"
        raise FileExistsError(f"{folder} holds {what}, which would be overwritten. Give another folder.")


def _differences(
    model: MTLModel, task: TaskConfig, classifier: PreTrainedModel, sentences: Sequence[Text]
) -> dict[str, float]:
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        candidate: Any = classifier if dtype == torch.float32 else copy.deepcopy(classifier)
        candidate.to(dtype)
        found[str(dtype).removeprefix("torch.")] = largest_difference(model, task, candidate, sentences)
    return found
