"""What a saved folder holds, and whether it loads as the model that was saved: for the tests of sharing."""

from pathlib import Path

import torch

from modeling_mtl import MTLModel

ROOT = Path(__file__).resolve().parent.parent
HUB_FILES = (
    "batching_mtl.py",
    "classification_mtl.py",
    "configuration_mtl.py",
    "heads_mtl.py",
    "inference_mtl.py",
    "interop_mtl.py",
    "modeling_mtl.py",
    "passes_mtl.py",
    "pipeline_mtl.py",
    "problem_types_mtl.py",
    "sharing_mtl.py",
    "similarity_mtl.py",
    "tasks_mtl.py",
)
SAVED_FILES = {
    *HUB_FILES, "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
}  # fmt: skip
SENTENCES = ["match team goal now", "price", "", "a plain usual average scene, actor plot and a website"]


def names(folder: Path) -> set[str]:
    """Returns the names of the files and folders in a folder."""
    return {path.name for path in folder.iterdir()}


def assert_loads_as(folder: Path, model: MTLModel) -> None:
    """Asserts that a folder gives the weights, the tasks and the numbers of a model, bit for bit."""
    loaded = MTLModel.from_pretrained(folder)
    weights = loaded.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert loaded.config.tasks == model.config.tasks
    assert (loaded.encode(SENTENCES) == model.encode(SENTENCES)).all()
    assert loaded.predict(SENTENCES) == model.predict(SENTENCES)
