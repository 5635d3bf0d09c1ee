"""What training has made of the sentence embedding: how well it serves search, before and after."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from batching_mtl import Text
from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.content_keys import key_of_weights
from mtl.data import row_texts
from mtl.embedding_advice import embedding_advice
from mtl.embedding_geometry import (
    class_alignment,
    neighbour_purity,
    pair_alignment,
    plane,
    rank_correlation,
    uniformity,
)
from mtl.evaluation import json_number
from mtl.labels import label_column
from mtl.scored_pairs import ScoredPairs, pairs_of_tasks
from mtl.sources import FURTHER_COLUMNS
from tasks_mtl import CLASS_ID_TYPES, POSITIVE_PAIRS

MAP_POINTS = 1500
MAX_ROWS = 4000
"""Rows of a split that are encoded: 4,000 take some 20 seconds a model of 22 million parameters on two cores."""

_LONGEST_TEXT = 200
_DIGITS = 4  # of a coordinate in the map: finer than any picture


@dataclass(frozen=True, eq=False)
class _Material:
    """What both embeddings are measured on.

    Args:
        texts: The rows' texts.
        classes: Class ids of each task with classes, below 0 for rows without one. Shape (N,) each.
        partners: For each task of positive pairs, the rows that have a pair, (P,), and their second texts.
        pairs: Scored pairs, if there are any.
    """

    texts: list[Text]
    classes: dict[str, npt.NDArray[np.int64]]
    partners: dict[str, tuple[npt.NDArray[np.int64], list[str]]]
    pairs: ScoredPairs | None


def embedding_quality(
    before: MTLModel | None,
    after: MTLModel,
    rows: Dataset,
    tasks: Sequence[TaskConfig],
    *,
    pairs: ScoredPairs | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
    batch_size: int = 64,
) -> dict[str, Any]:
    """Measures the unit embeddings of two models on the same rows, and says what became of them.

    Args:
        before: A model with the encoder that training began with, same pooling and limit of tokens; None if there is
            none to compare with. An encoder that did not change is measured once.
        after: The trained model.
        rows: Rows of a split with column `text` and label columns, as `load_sources` gives them.
        tasks: The tasks whose labels are looked at.
        pairs: Scored pairs; those of a task of type `scored_pairs` among the rows if not given.
        max_rows: How many rows are looked at, drawn at random where there are more.
        seed: Seed of that draw.
        batch_size: Sentences per forward pass.

    Returns:
        JSON-ready: `before` (or None) and `after`, each with `similarity` (`spearman`, `pairs`, `name`; or None),
        `purity` by task (see `Purity`), `alignment` by task, `uniformity` and `rows`; `map`, a plane of `after`, whose
        `rows` are positions among the rows given; and `advice`. What is undefined is None.
    """
    order = np.random.default_rng(seed).permutation(len(rows))[:max_rows]  # (N,)
    material = _material(rows.select(order), tasks, pairs or pairs_of_tasks(rows, tasks))
    units = _encode(after, material.texts, batch_size)  # (N, H)
    new = _figures(after, units, material, batch_size)
    old = None
    if before is not None and _encodes_alike(before, after):
        old = new
    elif before is not None:
        old = _figures(before, _encode(before, material.texts, batch_size), material, batch_size)
    return {
        "before": old,
        "after": new,
        "map": _map(units[:MAP_POINTS], order[:MAP_POINTS], material, tasks),
        "advice": embedding_advice(old, new),
    }


def _material(rows: Dataset, tasks: Sequence[TaskConfig], pairs: ScoredPairs | None) -> _Material:
    cells: Any = rows.with_format(None)[:]
    labelled = [task for task in tasks if label_column(task.name) in cells]
    classes, partners = {}, {}
    for task in labelled:
        labels = np.asarray(cells[label_column(task.name)])  # (N,) or (N, C)
        if task.problem_type in CLASS_ID_TYPES:
            classes[task.name] = labels
        elif task.problem_type == POSITIVE_PAIRS:
            given = np.flatnonzero(labels == 1)  # (P,)
            partners[task.name] = (given, [cells[FURTHER_COLUMNS[0]][row] for row in given])
    return _Material(row_texts(cells), classes, partners, pairs)


def _encode(model: MTLModel, texts: Sequence[Text], batch_size: int) -> npt.NDArray[np.float32]:
    return model.encode(texts, batch_size=batch_size, normalize_embeddings=True)


def _encodes_alike(before: MTLModel, after: MTLModel) -> bool:
    if before is after:
        return True
    pooling, limits = ({getter(model) for model in (before, after)} for getter in (_pooling, MTLModel.max_tokens))
    return len(pooling) == len(limits) == 1 and key_of_weights(before.backbone) == key_of_weights(after.backbone)


def _pooling(model: MTLModel) -> str:
    return model.config.pooling


def _figures(model: MTLModel, units: npt.NDArray[np.float32], material: _Material, batch_size: int) -> dict[str, Any]:
    similarity = None
    if material.pairs is not None:
        first, second = (_encode(model, texts, batch_size) for texts in (material.pairs.first, material.pairs.second))
        spearman = json_number(rank_correlation(first, second, material.pairs.scores))
        similarity = {"spearman": spearman, "pairs": len(first), "name": material.pairs.name}
    purity, alignment = {}, {}
    for name, classes in material.classes.items():
        labelled = classes >= 0  # (N,)
        found = asdict(neighbour_purity(units[labelled], classes[labelled]))
        purity[name] = {key: json_number(value) for key, value in found.items()}
        alignment[name] = json_number(class_alignment(units[labelled], classes[labelled]))
    for name, (given, texts) in material.partners.items():
        alignment[name] = json_number(pair_alignment(units[given], _encode(model, texts, batch_size)))
    return {
        "similarity": similarity,
        "purity": purity,
        "alignment": alignment,
        "uniformity": json_number(uniformity(units)),
        "rows": len(units),
    }


def _map(
    units: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], material: _Material, tasks: Sequence[TaskConfig]
) -> dict[str, Any]:
    found = plane(units)
    names = {task.name: list(task.id2label.values()) for task in tasks if task.name in material.classes}
    return {
        "method": "pca",
        "explained": None if found.explained is None else list(found.explained),
        "points": found.points.round(_DIGITS).tolist(),
        "rows": rows.tolist(),
        "texts": [_shown(text) for text in material.texts[: len(units)]],
        "tasks": {
            name: {"labels": labels, "of_point": np.maximum(material.classes[name][: len(units)], -1).tolist()}
            for name, labels in names.items()
        },
    }


def _shown(text: Text) -> str:
    whole = text if isinstance(text, str) else " / ".join(text)
    return whole if len(whole) <= _LONGEST_TEXT else f"{whole[: _LONGEST_TEXT - 1]}…"
