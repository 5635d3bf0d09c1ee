"""A sentence or two on what training has made of an embedding, for people who want to search with it."""

import math
from collections.abc import Mapping
from typing import Any

FALL = 0.05
"""Change of Spearman's correlation, or of purity, that is worth a word: search ranks noticeably otherwise."""
STANDARD_ERRORS = 2.0
"""A change of Spearman's correlation must also be so many times 1 / sqrt(pairs), about its standard error. The two
correlations are of the same pairs, so their difference varies less: what passes is no accident."""
CROWDING = 0.5
"""Rise of uniformity that is worth a word: pairs then weigh exp(0.5) = 1.6 times as much in its mean. In
docs/embeddings.md a rise of 0.9 goes with a fall of Spearman by 0.15, one of 0.3 with next to none."""

REMEDY = "Set `preserve_embeddings`, or raise it, or train the embedding too, by a task of docs/similarity.md."


def embedding_advice(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """Says whether an embedding still serves search, and what to do if it does not.

    Args:
        before: The figures of the encoder that training began with; None if it was not measured. See
            `embedding_quality`.
        after: The figures of the trained one.
    """
    if before is None:
        return "The embedding was not compared with that of the encoder before training."
    if before == after:
        return "The encoder is the one that training began with, and so is its embedding."
    told = [text for text in (_of_similarity(before, after), _of_purity(before, after)) if text]
    is_measured = after["similarity"] is not None and after["similarity"]["spearman"] is not None
    if not is_measured:
        told.insert(0, _of_uniformity(before, after))
    return " ".join(told)


def _of_similarity(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    old, new = ((figures["similarity"] or {}).get("spearman") for figures in (before, after))
    if old is None or new is None:
        return None
    pairs, name = after["similarity"]["pairs"], after["similarity"]["name"]
    enough = max(FALL, STANDARD_ERRORS / math.sqrt(pairs))
    figures = f"from {old:.2f} to {new:.2f} ({pairs:,} pairs)"
    if new <= old - enough:
        return f"Spearman on {name} fell {figures}: search with these embeddings will suffer. {REMEDY}"
    if new >= old + enough:
        return f"Spearman on {name} rose {figures}: search with these embeddings should gain."
    return f"Spearman on {name} went {figures}, a change of less than {enough:.2f}: search should do as it did."


def _of_uniformity(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    old, new = before["uniformity"], after["uniformity"]
    measure = "Scored pairs (`similarity_pairs`) would tell what that means for search."
    if new is None:
        return "The embedding after training has no uniformity: rows are too few, or the training has diverged."
    if old is None:
        return measure
    figures = f"uniformity went from {old:.2f} to {new:.2f}"
    if new >= old + CROWDING:
        return f"Embeddings crowd together: {figures}, where 0 is a single point. {measure} {REMEDY}"
    return f"Embeddings are about as spread out as before: {figures}. {measure}"


def _of_purity(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    fallen = []
    for name, found in after["purity"].items():
        old, new = before["purity"][name]["value"], found["value"]
        if old is not None and new is not None and new <= old - FALL:
            fallen.append(f"{name} ({old:.2f} before, {new:.2f} now)")
    return f"Nearest neighbours less often share their label of {', '.join(fallen)}." if fallen else None
