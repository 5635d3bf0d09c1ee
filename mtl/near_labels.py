"""Labels that look the same and are not: another form of the same characters, or white space more or less."""

import logging
import unicodedata
from collections.abc import Iterable

logger = logging.getLogger(__name__)

_MOST_SHOWN = 5  # pairs listed in a warning


def shown(label: str) -> str:
    """Returns a label in quotes, escaped where it would look like another one."""
    return repr(label) if unicodedata.is_normalized("NFC", label) else ascii(label)


def warn_of_near_labels(task_name: str, found: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Tells which labels of a task differ only in white space or in their Unicode form; they stay as they are.

    Args:
        task_name: Name of the task.
        found: The name of each source, with the labels that it has.
    """
    first: dict[str, tuple[str, str]] = {}
    pairs: dict[tuple[str, str], str] = {}
    for source, labels in found:
        for label in labels:
            known, where = first.setdefault(_plain(label), (label, source))
            if label != known:
                both = f"{shown(known)} (source {where!r}) and {shown(label)} (source {source!r})"
                pairs.setdefault((known, label), both)
    if pairs:
        logger.warning(
            "Task %r: labels that differ only in white space or in the form of their characters are classes of their "
            "own: %s (%d such pairs in all). Write them alike, if they mean the same.",
            task_name, "; ".join(list(pairs.values())[:_MOST_SHOWN]), len(pairs),
        )  # fmt: skip


def _plain(label: str) -> str:
    return " ".join(unicodedata.normalize("NFC", label).split())
