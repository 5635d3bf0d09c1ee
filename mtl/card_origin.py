"""What a model was started from, and what the card of a saved model says that holds for its successor too."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from configuration_mtl import MTLConfig
from mtl.settings import EMBEDDED_BACKBONE, EMBEDDED_BACKBONE_LICENSE, EMBEDDED_BACKBONE_NAME

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Origin:
    """What a model was started from.

    Args:
        base_model: Name on the Hub of the encoder, or of the saved multi-task model; None if none is known.
        starts_from: Name of the saved multi-task model, of a folder its last part; None for a plain encoder.
        license: Licence of that saved model, as its card has it.
        language: Languages of that model, as its card has them.
        encoder_license: Licence of a plain encoder, as its card has it.
    """

    base_model: str | None = None
    starts_from: str | None = None
    license: str | None = None
    language: tuple[str, ...] | None = None
    encoder_license: str | None = None


def find_origin(backbone: str, revision: str | None = None) -> Origin:
    """Returns what the setting `backbone` names; a saved model's card is read where it has one.

    Args:
        backbone: The setting: `embedded`, a folder, or a name on the Hub.
        revision: Branch, tag or commit of it.

    Raises:
        OSError: If there is no such model.
    """
    if backbone == EMBEDDED_BACKBONE:
        return Origin(EMBEDDED_BACKBONE_NAME, encoder_license=EMBEDDED_BACKBONE_LICENSE)
    path = os.path.expanduser(backbone)
    is_folder = Path(path).is_dir()
    on_hub = None if is_folder else path
    fields, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    card = _card_of(path, revision)
    if fields.get("model_type") != MTLConfig.model_type:
        return Origin(on_hub, encoder_license=card.license)
    language = [card.language] if isinstance(card.language, str) else card.language
    named = card.base_model if isinstance(card.base_model, str) else next(iter(card.base_model or ()), None)
    return Origin(
        on_hub or named,
        on_hub or Path(path).resolve().name,
        license=card.license,
        language=tuple(language) if language else None,
    )


def _card_of(path: str, revision: str | None) -> ModelCardData:
    found = cached_file(
        path,
        "README.md",
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if found is None:
        return ModelCardData()
    try:
        data: ModelCardData = ModelCard.load(found, ignore_metadata_errors=True).data
    except (OSError, ValueError, yaml.YAMLError) as error:
        logger.warning("The card of %r cannot be read, so nothing is taken from it: %s", path, error)
        return ModelCardData()
    return data
