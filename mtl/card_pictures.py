"""What a model card shows beside its figures: pictures of the evidence, and what became of the embedding."""

from collections.abc import Mapping
from typing import Any

_KINDS = ("results", "score", "confusion", "reliability", "predicted", "map", "conflicts")
"""Kinds of picture that a card shows, in their order; a page of the report has all."""
_MOST_PICTURES = 12


def pictures_section(report: Mapping[str, Any]) -> list[str]:
    """Returns the section of the card with the pictures of `figures/`, or nothing if there is none.

    Args:
        report: The report of the run; `figures` are the names of the files.
    """
    by_kind = [[name for name in report.get("figures") or () if _kind(name) == kind] for kind in _KINDS]
    names = [name for some in by_kind for name in some]
    if not names:
        return []
    lines = [f"![{name.removesuffix('.png').replace('-', ' of ', 1)}](figures/{name})\n" for name in names]
    more = f"{len(names) - _MOST_PICTURES} more are in `figures/`.\n" if len(names) > _MOST_PICTURES else ""
    return ["## Pictures\n", *lines[:_MOST_PICTURES], *([more] if more else [])]


def _kind(name: str) -> str:
    return name.removesuffix(".png").partition("-")[0]


def embedding_section(report: Mapping[str, Any]) -> list[str]:
    """Returns the section of the card on the embedding before and after training, or nothing if it was not measured.

    Args:
        report: The report of the run; `embedding` is what `mtl.embedding_quality` gives, less the map.
    """
    embedding = report.get("embedding")
    if not embedding:
        return []
    before, after = embedding["before"] or {}, embedding["after"]
    rows = [("uniformity", before.get("uniformity"), after["uniformity"])]
    if after["similarity"] is not None:
        name = f"Spearman on {after['similarity']['name']} ({after['similarity']['pairs']:,} pairs)"
        rows.insert(0, (name, (before.get("similarity") or {}).get("spearman"), after["similarity"]["spearman"]))
    for task, purity in after["purity"].items():
        old = (before.get("purity") or {}).get(task, {})
        name = f"`{task}`: purity of {purity['neighbours']} neighbours (chance {_figure(purity['chance'])})"
        rows.append((name, old.get("value"), purity["value"]))
    table = [f"| {name} | {_figure(old)} | {_figure(new)} |" for name, old, new in rows]
    return [
        f"## The embedding\n\nOn {after['rows']:,} rows of {embedding['split']}, before and after training.\n",
        "| | before | after |\n|---|---|---|",
        *table,
        f"\n{embedding['advice']}\n",
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
