"""A model as code beside its weights: without the package, what its files import, and a backbone that is code."""

import ast
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeBackbone
from fresh_process import offline_env, run_fresh
from saved_folders import HUB_FILES, ROOT, SAVED_FILES, SENTENCES, assert_loads_as, names
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_imports

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.publishing import publish

# transformers itself requires numpy; the files name it in annotations only.
LIBRARIES = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy"}

LOAD_WITHOUT_PACKAGE = """
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

first, second, *sentences = sys.argv[1:]
refused = [error_of(auto.from_pretrained, first) for auto in (AutoConfig, AutoModel)]
assert not any("modeling_mtl" in name for name in sys.modules), "code ran without trust"
config = AutoConfig.from_pretrained(first, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(first, trust_remote_code=True)
model = AutoModel.from_pretrained(first, trust_remote_code=True)
model.save_pretrained(second)
again = AutoModel.from_pretrained(second, trust_remote_code=True)
weights = again.state_dict()
report(
    refused=refused,
    kinds=[type(model).__module__, type(config).__module__, type(model.tokenizer).__name__],
    tasks=[config.task_names, model.config.task_names],
    ids=[tokenizer(sentences)["input_ids"], model.tokenizer(sentences)["input_ids"]],
    embeddings=[loaded.encode(sentences).tolist() for loaded in (model, again)],
    predictions=[loaded.predict(sentences) for loaded in (model, again)],
    same_weights=all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items()),
    training=model.training,
)
"""


def test_loads_in_a_process_without_the_package(model: MTLModel, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    model.save_pretrained(first)
    env = offline_env(tmp_path / "home")
    got = run_fresh(LOAD_WITHOUT_PACKAGE, first, second, *SENTENCES, env=env, cwd=tmp_path / "empty")
    for kind, message in got["refused"]:
        assert kind == "ValueError"
        assert "trust_remote_code=True" in message
    model_module, config_module, tokenizer_class = got["kinds"]
    assert re.fullmatch(r"transformers_modules\.first\..*\.modeling_mtl", model_module)
    assert re.fullmatch(r"transformers_modules\.first\..*\.configuration_mtl", config_module)
    assert tokenizer_class == type(model.tokenizer).__name__
    assert got["tasks"] == [model.config.task_names] * 2
    assert got["ids"] == [model.tokenizer(SENTENCES)["input_ids"]] * 2
    assert not got["training"]
    assert got["same_weights"]
    # Bit for bit: JSON gives every float back as it was.
    assert got["embeddings"] == [model.encode(SENTENCES).tolist()] * 2
    assert got["predictions"] == [model.predict(SENTENCES)] * 2
    # What that process saved has everything, and loads here too.
    assert names(second) == SAVED_FILES
    for name in HUB_FILES:
        assert (second / name).read_bytes() == (ROOT / name).read_bytes()
    assert_loads_as(second, model)


LOAD_TWO = """
from transformers import AutoModel

models = [AutoModel.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:]]
limits = [sys.modules[type(model).max_tokens.__module__]._LONG_WORK_SENTENCES for model in models]
report(limits=limits)
"""


def test_folders_of_one_name_keep_their_own_code(model: MTLModel, tmp_path: Path) -> None:
    folders = [tmp_path / run / "checkpoint-500" for run in ("first", "second")]
    for folder in folders:
        model.save_pretrained(folder)
    code = folders[1] / "passes_mtl.py"
    code.write_text(code.read_text().replace("_LONG_WORK_SENTENCES = 1600", "_LONG_WORK_SENTENCES = 25"))
    got = run_fresh(LOAD_TWO, *folders, env=offline_env(tmp_path / "home"), cwd=tmp_path / "empty")
    assert got["limits"] == [1600, 25]


@pytest.mark.parametrize("name", HUB_FILES)
def test_hub_files_import_only_what_is_there(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    siblings = {file.removesuffix(".py") for file in HUB_FILES}
    absolute: set[str] = set()
    relative: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{name}:{node.lineno}: `from . import x` is not copied with the file"
            assert node.level < 2
            (relative if node.level else absolute).add(node.module if node.level else node.module.partition(".")[0])
    foreign = absolute - siblings - LIBRARIES - sys.stdlib_module_names
    assert not foreign, f"{name} imports {foreign}, which is not there where the model is only loaded"
    # One and the same file serves as an installed module and as code from the Hub.
    assert relative == absolute & siblings
    assert relative <= siblings


@pytest.mark.parametrize("name", HUB_FILES)
def test_library_reads_the_imports_of_hub_files_as_they_are(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    tree = ast.parse(text)
    relative = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    # The library copies what these find, and they read docstrings and comments as well.
    assert re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE) == relative
    assert not re.search(r"^\s*import\s+\.", text, flags=re.MULTILINE)
    assert set(get_imports(ROOT / name)) <= LIBRARIES | sys.stdlib_module_names


CUSTOM_CONFIG = """
from transformers import PretrainedConfig


class TinyConfig(PretrainedConfig):
    model_type = "{model_type}"

    def __init__(self, hidden_size=32, vocab_size=300, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.hidden_size, self.vocab_size, self.scale = hidden_size, vocab_size, scale
"""
CUSTOM_MODEL = """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .configuration_tiny import TinyConfig
from .layers_tiny import Mixer


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.mixer = Mixer(config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def _init_weights(self, module):
        if isinstance(module, (nn.Embedding, nn.Linear)):
            module.weight.data.normal_(std=0.5)

    def forward(self, input_ids, attention_mask=None, return_dict=True, **kwargs):
        states = self.mixer(self.embeddings(input_ids)) * self.config.scale
        return BaseModelOutput(last_hidden_state=states)
"""
CUSTOM_LAYERS = """
from torch import nn


class Mixer(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, states):
        return states + self.linear(states).tanh()
"""
CUSTOM_FILES = {"configuration_tiny.py", "modeling_tiny.py", "layers_tiny.py"}


@pytest.fixture(params=["tiny-custom", "bert"])
def custom_backbone(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """Gives a checkpoint whose classes are code beside it; its type is a new one, or that of a well-known encoder."""
    folder = tmp_path / f"custom_{request.param.replace('-', '_')}"
    folder.mkdir()
    (folder / "configuration_tiny.py").write_text(CUSTOM_CONFIG.format(model_type=request.param))
    (folder / "modeling_tiny.py").write_text(CUSTOM_MODEL)
    (folder / "layers_tiny.py").write_text(CUSTOM_LAYERS)
    auto_map = '{"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}'
    (folder / "config.json").write_text(
        f'{{"model_type": "{request.param}", "hidden_size": 16, "scale": 3.0, "auto_map": {auto_map}}}'
    )
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(0)
    AutoModel.from_config(config, trust_remote_code=True).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_backbone_that_is_code_travels_with_the_model(
    custom_backbone: Path, tasks: tuple[TaskConfig, ...], tmp_path: Path
) -> None:
    is_new_type = custom_backbone.name == "custom_tiny_custom"
    if is_new_type:  # Of a type it knows, the library takes its own class unless told to trust.
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            MTLModel.from_backbone(custom_backbone, tasks=tasks)
    model = MTLModel.from_backbone(custom_backbone, tasks=tasks, trust_remote_code=True)
    assert type(model.backbone).__name__ == "TinyModel"
    assert model.config.text_config.scale == 3.0
    plain = AutoModel.from_pretrained(custom_backbone, trust_remote_code=True)
    inputs = model.tokenizer("price why", return_tensors="pt")
    assert torch.equal(model(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)
    saved = tmp_path / "saved"
    model.save_pretrained(saved)
    shutil.rmtree(custom_backbone)
    assert names(saved) == SAVED_FILES | CUSTOM_FILES
    with pytest.raises(ValueError, match=r"The encoder is code in its repository .*TinyModel.*model.push_to_hub"):
        publish(model, tmp_path / "published")
    with pytest.raises(
        ValueError, match=r"The backbone of .*saved' is code in that repository .*TinyModel.*trust_rem"
    ):
        MTLModel.from_pretrained(saved)
    loaded = MTLModel.from_pretrained(saved, trust_remote_code=True)
    assert (loaded.encode(SENTENCES) == model.encode(SENTENCES)).all()
    assert loaded.predict(SENTENCES) == model.predict(SENTENCES)
    assert loaded.config.text_config.scale == 3.0
    if is_new_type:  # A process takes ten seconds; the other type is the one that could be taken for BERT.
        return
    env = offline_env(tmp_path / "home")
    got = run_fresh(LOAD_WITHOUT_PACKAGE, saved, tmp_path / "again", *SENTENCES, env=env, cwd=tmp_path / "empty")
    assert [kind for kind, _ in got["refused"]] == ["ValueError"] * 2
    assert got["same_weights"]
    assert got["embeddings"] == [model.encode(SENTENCES).tolist()] * 2
    assert names(tmp_path / "again") == SAVED_FILES | CUSTOM_FILES


def test_config_of_a_custom_backbone_runs_none_of_its_code(
    custom_backbone: Path, tasks: tuple[TaskConfig, ...], tmp_path: Path
) -> None:
    import mtl  # noqa: F401  # registers the class

    model = MTLModel.from_backbone(custom_backbone, tasks=tasks, trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "configuration_tiny.py").write_text("raise SystemExit('ran without trust')\n")
    (tmp_path / "saved" / "modeling_tiny.py").write_text("raise SystemExit('ran without trust')\n")
    config = AutoConfig.from_pretrained(tmp_path / "saved")
    assert config.task_names == model.config.task_names
    assert config.hidden_size == 16
    config.save_pretrained(tmp_path / "config")
    text_config = AutoConfig.from_pretrained(tmp_path / "config").text_config
    assert text_config.to_dict() == config.text_config.to_dict()
    assert text_config.model_type == model.config.text_config.model_type
    for load in (AutoModel.from_pretrained, MTLModel.from_pretrained):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            load(tmp_path / "saved")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        MTLModel(config)
    with pytest.raises(SystemExit, match="ran without trust"):
        AutoModel.from_pretrained(tmp_path / "saved", trust_remote_code=True)


def test_code_that_was_not_used_is_not_asked_for(
    tiny_backbone: MakeBackbone, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    # As in repositories that are older than the architecture's place in transformers.
    backbone = tiny_backbone()
    backbone.config.auto_map = {"AutoConfig": "config_x.XConfig", "AutoModel": "model_x.XModel"}
    backbone.save_pretrained(tmp_path / "backbone")
    tiny_tokenizer.save_pretrained(tmp_path / "backbone")
    model = MTLModel.from_backbone(tmp_path / "backbone", tasks=[TaskConfig("a", num_labels=2)])
    model.save_pretrained(tmp_path / "saved")
    assert names(tmp_path / "saved") == SAVED_FILES
    np.testing.assert_array_equal(MTLModel.from_pretrained(tmp_path / "saved").encode("why"), model.encode("why"))
