"""The ways to load a folder: what each needs, whether it runs code of the folder, and how equal it has to be."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mtl.verification_compare import Tolerance

INSTALLED, REMOTE_CODE = "this package", "transformers, trust_remote_code"
STATIC, MODEL2VEC = "predictor_mtl.py", "model2vec"
REFERENCES = (REMOTE_CODE, INSTALLED, STATIC, MODEL2VEC)
"""The loaders that others are held against, the first of them that answers."""
SAME_WEIGHTS = Tolerance(1e-6)
"""The same float32 operations on the same weights: sums in another order at most."""
OTHER_GRAPH = Tolerance(1e-5)
"""The same weights in float32, but other kernels, fused and ordered as a runtime likes."""
INT8 = Tolerance(0.98, is_cosine=True)
"""Weights of 8 bits: the least mean cosine to the reference; MiniLM on sentences has 0.997."""
_TASK = "multi-task-classification"
_RUNTIMES = {
    "onnx": ("ONNX Runtime", "onnxruntime", "onnx/model{}.onnx"),
    "openvino": ("OpenVINO", "openvino", "openvino/openvino_model{}.xml"),
}


@dataclass(frozen=True)
class Loader:
    """A way to load a folder.

    Args:
        name: What the table calls it.
        kind: Its function in `mtl.verification_worker`.
        is_there: Whether a folder has what it loads.
        tolerance: How equal it has to be.
        packages: What it imports that may not be installed.
        runs_code: Whether it runs code of the folder.
        options: What else the function is told.
    """

    name: str
    kind: str
    is_there: Callable[[Path], bool]
    tolerance: Tolerance = SAME_WEIGHTS
    packages: tuple[str, ...] = ()
    runs_code: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def known_loaders(folder: Path) -> list[Loader]:
    """Returns the loaders, in the order of the table; those of classifiers are found in the folder."""
    if _fields(folder / "config.json").get("model_type") == "model2vec":
        return list(_of_static_student())
    is_custom = "AutoConfig" in ((_fields(folder / "config.json").get("text_config") or {}).get("auto_map") or {})
    return [
        Loader(
            INSTALLED,
            "package",
            partial(_has, names=("config.json",)),
            runs_code=is_custom,  # That of the encoder.
            options={"trust_remote_code": is_custom},
        ),
        Loader(REMOTE_CODE, "remote_code", partial(_has, names=("config.json", "modeling_mtl.py")), runs_code=True),
        Loader(
            "sentence-transformers",
            "sentence_transformers",
            partial(_has, names=("modules.json",)),
            packages=("sentence_transformers",),
        ),
        Loader("transformers, backbone", "encoder", partial(_has, names=("backbone/config.json", "modules.json"))),
        *_predictors(),
        Loader(f"pipeline {_TASK}", "pipeline", _has_pipeline, runs_code=True),
        *_classifiers(folder),
    ]


def _predictors() -> Iterator[Loader]:
    for backend, (name, package, file) in _RUNTIMES.items():
        for precision, suffix, tolerance in (("fp32", "", OTHER_GRAPH), ("int8", "_int8", INT8)):
            yield Loader(
                f"{name}, {precision}",
                "predictor",
                partial(_has, names=("predictor_mtl.py", file.format(suffix))),
                tolerance,
                packages=("numpy", "tokenizers", package),
                runs_code=True,
                options={"backend": backend, "precision": precision},
            )


def _of_static_student() -> Iterator[Loader]:
    there = partial(_has, names=("predictor_mtl.py", "heads.safetensors", "mtl_inference.json"))
    packages, options = ("numpy", "tokenizers", "safetensors"), {"backend": "static", "precision": "fp32"}
    yield Loader(STATIC, "predictor", there, packages=packages, runs_code=True, options=options)
    yield Loader(MODEL2VEC, "model2vec", _always, packages=("model2vec",))


def _classifiers(folder: Path) -> Iterator[Loader]:
    """Yields a loader for each plain classifier of one task in a folder of the task's name."""
    for path in sorted(folder.rglob("config.json")):
        architectures = _fields(path).get("architectures") or [""]
        if path.parent != folder and str(architectures[0]).endswith("ForSequenceClassification"):
            subfolder = path.parent.relative_to(folder).as_posix()
            options = {"subfolder": subfolder, "task": path.parent.name}
            yield Loader(f"classifier {subfolder}", "classifier", _always, OTHER_GRAPH, options=options)


def _has(folder: Path, names: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in names)


def _has_pipeline(folder: Path) -> bool:
    return _TASK in (_fields(folder / "config.json").get("custom_pipelines") or {})


def _always(folder: Path) -> bool:
    return True


def _fields(path: Path) -> dict[str, Any]:
    """Returns the fields of a JSON file; none of one that is damaged, which the inventory tells."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
