"""Which module may import which: the house's arrows as a table, held against what `ast` reads in every file."""

import ast
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("mtl", "tests", "examples", "benchmarks")
HUB_FILES = (
    "batching_mtl", "problem_types_mtl", "tasks_mtl", "configuration_mtl", "classification_mtl", "similarity_mtl",
    "heads_mtl", "passes_mtl", "inference_mtl", "interop_mtl", "pipeline_mtl", "sharing_mtl", "modeling_mtl"
)  # fmt: skip

# Importer -> what of the house it may import; the first row that fits counts. Patterns as in `fnmatch`.
ALLOWED = {
    "batching_mtl": (),
    "problem_types_mtl": (),
    "tasks_mtl": ("problem_types_mtl",),
    "configuration_mtl": ("tasks_mtl",),
    "classification_mtl": ("tasks_mtl",),
    "similarity_mtl": ("tasks_mtl",),
    "heads_mtl": ("classification_mtl", "similarity_mtl", "tasks_mtl"),
    "passes_mtl": ("batching_mtl", "classification_mtl", "configuration_mtl"),
    "inference_mtl": ("batching_mtl", "passes_mtl"),
    "interop_mtl": (),
    "predictor_mtl": (),
    "pipeline_mtl": ("batching_mtl", "classification_mtl"),
    "sharing_mtl": ("configuration_mtl", "pipeline_mtl"),
    "modeling_mtl": (
        "configuration_mtl",
        "heads_mtl",
        "inference_mtl",
        "interop_mtl",
        "sharing_mtl",
        "similarity_mtl",
        "tasks_mtl",
    ),
    "mtl.trainer": (*HUB_FILES, "mtl", "mtl.*"),
    "mtl.commands.*": (*HUB_FILES, "predictor_mtl", "mtl", "mtl.*", "train_*"),
    "mtl": (*HUB_FILES, "mtl.*"),
    "mtl.*": (*HUB_FILES, "predictor_mtl", "mtl", "mtl.*"),
    "train_setup": (*HUB_FILES, "mtl", "mtl.*"),
    "train_report": (*HUB_FILES, "mtl", "mtl.*", "train_setup"),
    "train_*": (*HUB_FILES, "mtl", "mtl.*", "train_setup", "train_report"),
    "merge_*": (*HUB_FILES, "mtl", "mtl.*", "train_*"),
    "examples.*": (*HUB_FILES, "mtl", "mtl.*", "train_*"),
    "benchmarks.*": (*HUB_FILES, "predictor_mtl", "mtl", "mtl.*", "train_*", "merge_*", "benchmarks.*"),
    "tests.*": ("*",),
}
# What only these may import, whatever the table above says.
RESERVED = {"mtl.trainer": ("train_*", "mtl.commands.*", "examples.*", "benchmarks.*", "tests.*")}


def module_names(root: Path) -> dict[str, Path]:
    """Returns every module of the house by its dotted name; a package goes by the name of its folder."""
    files = [*root.glob("*.py"), *(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))]
    names = {}
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


def imports(source: str, module: str, known: Collection[str], is_package: bool = False) -> Iterator[str]:
    """Yields the modules that a module imports, anywhere in it; of `from a import b`, `a.b` if that is a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if is_package else module.split(".")[:-1]
            base = parts[: len(parts) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}".lstrip(".")
                yield inner if inner in known else origin


def arrows(root: Path) -> set[tuple[str, str]]:
    """Returns every (importer, imported) pair of modules of the house."""
    names = module_names(root)
    # Tests import their helpers by bare names, as pytest puts their folder on the path.
    bare = {name.removeprefix("tests."): name for name in names if name.startswith("tests.")}
    found = set()
    for module, file in names.items():
        for imported in imports(file.read_text(encoding="utf-8"), module, names, file.name == "__init__.py"):
            target = bare.get(imported, imported) if module.startswith("tests.") else imported
            if target in names:
                found.add((module, target))
    return found


def is_allowed(importer: str, imported: str) -> bool:
    """Returns whether the tables have the arrow."""
    holders = RESERVED.get(imported)
    if holders is not None and not any(fnmatchcase(importer, holder) for holder in holders):
        return False
    row = next((targets for pattern, targets in ALLOWED.items() if fnmatchcase(importer, pattern)), ())
    return any(fnmatchcase(imported, target) for target in row)


def ring(pairs: set[tuple[str, str]]) -> list[str]:
    """Returns modules that import one another in a ring (and those between two rings), or an empty list."""
    left = pairs
    while True:
        importers, imported = ({pair[side] for pair in left} for side in (0, 1))
        kept = {(a, b) for a, b in left if a in imported and b in importers}
        if kept == left:
            return sorted(importers)
        left = kept


def test_every_arrow_of_the_house_is_in_the_table() -> None:
    found = arrows(ROOT)
    assert ("modeling_mtl", "configuration_mtl") in found, "the reader found nothing: is the folder right?"
    assert ("mtl", "modeling_mtl") in found
    wrong = sorted(f"{importer} -> {imported}" for importer, imported in found if not is_allowed(importer, imported))
    assert not wrong, f"These imports point the wrong way: {wrong}. Move what is shared to a module below both."


def test_no_ring_of_imports() -> None:
    assert ring(arrows(ROOT)) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("configuration_mtl", "modeling_mtl"),
        ("inference_mtl", "sharing_mtl"),
        ("sharing_mtl", "modeling_mtl"),
        ("modeling_mtl", "mtl.data"),
        ("modeling_mtl", "mtl"),
        ("mtl", "mtl.trainer"),
        ("mtl.evaluation", "mtl.trainer"),
        ("mtl.evaluation", "train_trainer"),
        ("mtl.trainer", "train_trainer"),
        ("train_setup", "train_trainer"),
        ("mtl.data", "tests.conftest"),
        ("train_trainer", "examples.quickstart"),
        ("a_new_root_file", "configuration_mtl"),
    ],
)
def test_table_refuses(importer: str, imported: str) -> None:
    assert not is_allowed(importer, imported)


def test_reader_finds_every_form_of_import(tmp_path: Path) -> None:
    (tmp_path / "mtl" / "sub").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    files = {
        "modeling_mtl.py": "try:\n    from .configuration_mtl import A\nexcept ImportError:\n"
        "    from configuration_mtl import A\n",
        "configuration_mtl.py": "def late():\n    import mtl.data as data\n    return data\n",
        "mtl/__init__.py": "",
        "mtl/data.py": "from mtl import trainer\n",
        "mtl/trainer.py": "from . import data\nimport torch, mtl.sub.deep\n",
        "mtl/sub/__init__.py": "from .deep import x\n",
        "mtl/sub/deep.py": "from ..data import y\nfrom transformers import trainer\n",
        "tests/helper.py": "",
        "tests/test_a.py": "import helper\nfrom mtl.data import y\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = arrows(tmp_path)
    assert found == {
        ("modeling_mtl", "configuration_mtl"),
        ("configuration_mtl", "mtl.data"),
        ("mtl.data", "mtl.trainer"),
        ("mtl.trainer", "mtl.data"),
        ("mtl.trainer", "mtl.sub.deep"),
        ("mtl.sub", "mtl.sub.deep"),
        ("mtl.sub.deep", "mtl.data"),
        ("tests.test_a", "tests.helper"),
        ("tests.test_a", "mtl.data"),
    }
    assert ring(found) == ["mtl.data", "mtl.sub.deep", "mtl.trainer"]
