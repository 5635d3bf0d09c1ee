"""What somebody who loads a folder downloads and may run: files, code with its imports, and what is wrong there."""

import ast
import contextlib
import json
import pickletools
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mtl.published_files import MANIFEST, changed_files, read_manifest, tree_files

EXPECTED_PACKAGES = frozenset(
    {"torch", "transformers", "huggingface_hub", "safetensors", "numpy", "tokenizers", "onnxruntime", "openvino"}
)
"""What code of a folder may import beyond the standard library; the two runtimes when they are asked for."""
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".t7")
_RUNNABLE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")
"""What code can import."""
_PROTOCOL = b"\x80"  # How a pickle begins, since protocol 2, and now and then the length of another file's header.
_ENOUGH_OPERATIONS = 5
_LOOKED_AT = 1 << 16  # bytes
_PICKLE, _CODE, _WEIGHTS, _OTHER = "pickle", "code", "weights", "other"


@dataclass(frozen=True)
class FolderFile:
    """A file of a folder.

    Args:
        path: Path in the folder.
        size: Size in bytes.
        kind: `weights` (safetensors, ONNX, OpenVINO), `code` (Python), `pickle`, or `other`.
    """

    path: str
    size: int
    kind: str


@dataclass(frozen=True)
class CodeFile:
    """A Python file of a folder.

    Args:
        path: Path in the folder.
        packages: Packages that it imports beyond the standard library and its siblings.
        unexpected: Those among them that are not in `EXPECTED_PACKAGES`.
    """

    path: str
    packages: tuple[str, ...]
    unexpected: tuple[str, ...]


@dataclass(frozen=True)
class Inventory:
    """What a folder holds.

    Args:
        files: Its files.
        code: Its Python files.
        problems: What must not be, a sentence each: pickles, files that are damaged, missing, or changed, code that
            was added, links to folders.
    """

    files: tuple[FolderFile, ...]
    code: tuple[CodeFile, ...]
    problems: tuple[str, ...]

    @property
    def total_size(self) -> int:
        """Size of all files, in bytes."""
        return sum(file.size for file in self.files)


def take_inventory(folder: Path) -> Inventory:
    """Reads what a folder holds; nothing of it is run or unpickled."""
    there = dict(tree_files(folder))
    files = tuple(FolderFile(name, path.stat().st_size, _kind(path)) for name, path in there.items())
    problems = [f"{file.path} is a pickle: loading it can run any code." for file in files if file.kind == _PICKLE]
    code = []
    for file in files:
        try:
            if file.kind == _CODE:
                code.append(_code_file(file.path, there[file.path], folder))
            elif file.path.endswith(".json"):
                _check_json(there[file.path])
            elif file.path.endswith(".safetensors"):
                tensor_names(there[file.path])
        except (SafetensorError, SyntaxError, ValueError) as error:
            problems.append(f"{file.path} is damaged: {error}.")
    problems += _wrong_indexes(there)
    problems += _changes(folder, there)
    problems += _odd_links(folder)
    return Inventory(files, tuple(code), tuple(problems))


def tensor_names(path: Path) -> list[str]:
    """Returns the names of the tensors of a safetensors file.

    Raises:
        SafetensorError: If it is damaged.
    """
    with safe_open(path, framework="numpy") as file:
        return list(file.keys())


def _kind(path: Path) -> str:
    if _is_pickle(path):
        return _PICKLE
    if path.suffix == ".py":
        return _CODE
    return _WEIGHTS if path.suffix in (".safetensors", ".onnx", ".bin", ".data") else _OTHER


def _is_pickle(path: Path) -> bool:
    """Tells by the content, and by the name, unless it is the weights of an OpenVINO graph, which have such a name."""
    with path.open("rb") as file:
        if _starts_a_pickle(file.read(_LOOKED_AT)):
            return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith(".pkl") for name in archive.namelist()):
                return True
    is_graph = path.suffix == ".bin" and path.with_suffix(".xml").is_file()
    return path.suffix.lower() in _PICKLE_SUFFIXES and not is_graph


def _starts_a_pickle(data: bytes) -> bool:
    count = 0
    with contextlib.suppress(ValueError):  # Where it goes on as no pickle does.
        if data.startswith(_PROTOCOL):
            for operation, _, _ in pickletools.genops(data):  # Which reads them, and runs none.
                count += 1
                if operation.name == "STOP" or count == _ENOUGH_OPERATIONS:
                    return True
    return False


def _code_file(name: str, path: Path, folder: Path) -> CodeFile:
    siblings = {file.stem for place in (path.parent, folder) for file in place.glob("*.py")}
    found = {package.partition(".")[0] for package in _imported(path.read_text(encoding="utf-8"))}
    packages = sorted(found - siblings - sys.stdlib_module_names)
    return CodeFile(name, tuple(packages), tuple(package for package in packages if package not in EXPECTED_PACKAGES))


def _imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _check_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _wrong_indexes(there: Mapping[str, Path]) -> Iterator[str]:
    for name, path in there.items():
        if not name.endswith(".index.json"):
            continue
        try:
            weight_map = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        except (ValueError, KeyError, TypeError):
            yield f"{name} is no index of weights."
            continue
        folder = name.rpartition("/")[0]
        for file in sorted(set(weight_map.values())):
            full = f"{folder}/{file}" if folder else file
            if full not in there:
                yield f"{full} is missing, which {name} names."
            elif missing := _missing_tensors(there[full], [key for key, value in weight_map.items() if value == file]):
                yield f"{full} lacks {missing[0]!r} ({len(missing)} tensors in all), which {name} names."


def _missing_tensors(path: Path, wanted: Collection[str]) -> list[str]:
    try:
        held = set(tensor_names(path))
    except (SafetensorError, ValueError):
        return []  # It is damaged, which is told already.
    return [name for name in wanted if name not in held]


def _changes(folder: Path, there: Collection[str]) -> list[str]:
    if not (folder / MANIFEST).is_file():
        return []
    try:
        missing, changed = changed_files(folder)
        recorded = read_manifest(folder) or {}
    except ValueError as error:
        return [str(error)]
    told = [f"{name} is missing, which `mtl publish` wrote." for name in missing]
    told += [f"{name} is not as `mtl publish` wrote it." for name in changed]
    # Loaders tell of weights that do not belong there, but code beside the others is run by nobody, until it is.
    added = [name for name in there if name.lower().endswith(_RUNNABLE) and name not in recorded]
    return told + [f"{name} is code that `mtl publish` did not write.{_how_it_came(name)}" for name in added]


def _how_it_came(name: str) -> str:
    return " Python leaves it where code is imported from: delete the folder." if "__pycache__" in name else ""


def _odd_links(folder: Path) -> Iterator[str]:
    """Yields what the list of files cannot show; a link to a file, as in the cache of the Hub, is that file."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.is_file():
            what = "to a folder, which is not looked into" if path.is_dir() else "to nothing"
            yield f"{path.relative_to(folder).as_posix()} is a link {what}."


def inventory_dict(inventory: Inventory) -> dict[str, Any]:
    """Returns an inventory as JSON-ready values, sizes in bytes."""
    return {
        "files": [{"path": file.path, "size": file.size, "kind": file.kind} for file in inventory.files],
        "total_size": inventory.total_size,
        "code": [
            {"path": file.path, "packages": list(file.packages), "unexpected": list(file.unexpected)}
            for file in inventory.code
        ],
        "problems": list(inventory.problems),
    }
