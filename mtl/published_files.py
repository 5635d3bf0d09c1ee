"""The record that a published folder keeps of its files: what `mtl publish` wrote, and whether it is still that."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "mtl_published.json"
CARD = "README.md"
_FORMAT = 1
_SKIPPED_FOLDERS = (".git", ".cache")


def tree_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yields every file of a folder, by its path in it, in the order of the names; without those of git and caches."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and parts[0] not in _SKIPPED_FOLDERS:
            yield "/".join(parts), path


def write_manifest(folder: Path) -> None:
    """Records the files of a folder, each with its size in bytes and its SHA-256."""
    files = {name: {"size": path.stat().st_size, "sha256": sha256(path)} for name, path in tree_files(folder)}
    content = {"format": _FORMAT, "files": files}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Mapping[str, Any]] | None:
    """Returns what a folder's record says of each file; None if it has none.

    Raises:
        ValueError: If the record cannot be read, or is of a newer release.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known, files = content["format"], dict(content["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}). Publish the model again, into another folder.") from error
    if known != _FORMAT:
        raise ValueError(f"{path} has format {known!r}; this release reads {_FORMAT}. Upgrade this package.")
    return files


def changed_files(folder: Path) -> tuple[list[str], list[str]]:
    """Returns which recorded files are not there, and which have another content; the card may have another.

    Raises:
        ValueError: If there is no record, or it cannot be read.
    """
    recorded = read_manifest(folder)
    if recorded is None:
        raise ValueError(f"{folder} has no {MANIFEST}: `mtl publish` writes it.")
    there = dict(tree_files(folder))
    missing = [name for name in recorded if name not in there]
    changed = [
        name
        for name, entry in recorded.items()
        if name in there and name != CARD and sha256(there[name]) != entry["sha256"]
    ]
    return missing, changed


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
