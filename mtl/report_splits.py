"""Which split of a report is shown in detail."""

from collections.abc import Mapping
from typing import Any

_PREFERRED = ("test", "validation")


def shown_split(report: Mapping[str, Any], split: str | None = None) -> str | None:
    """Returns the split whose evidence is shown: the one named, else test, validation, or the first; None without any.

    Raises:
        ValueError: If there is no evidence of the split that is named.
    """
    evidence = report.get("evidence") or {}
    if split is not None:
        if split not in evidence:
            raise ValueError(f"There is no evidence of a split {split!r}, but of {list(evidence)}. Name one of them.")
        return split
    return next((name for name in (*_PREFERRED, *evidence) if name in evidence), None)
