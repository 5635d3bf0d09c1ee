"""Saving and loading: what a folder holds, who can load it, and what an interrupted or damaged save leaves."""

import ast
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeBackbone, SaveBackbone
from fresh_process import offline_env, run_fresh
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from transformers.dynamic_module_utils import get_imports

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel

ROOT = Path(__file__).resolve().parent.parent
HUB_FILES = ("configuration_mtl.py", "inference_mtl.py", "modeling_mtl.py", "sharing_mtl.py")
SAVED_FILES = {
    *HUB_FILES, "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"
}  # fmt: skip
# transformers itself requires numpy; the files name it in annotations only.
LIBRARIES = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy"}
SENTENCES = ["match team goal now", "price", "", "a plain usual average scene, actor plot and a website"]

MakeModel = Callable[..., MTLModel]


@pytest.fixture
def make_model(backbone_dir: SaveBackbone, tasks: tuple[TaskConfig, ...]) -> MakeModel:
    """Gives a function that makes a tiny model; another seed gives other weights."""

    def make(seed: int = 0, **overrides: Any) -> MTLModel:
        torch.manual_seed(seed)
        return MTLModel.from_backbone(backbone_dir(seed=seed, **overrides), tasks=tasks)

    return make


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Gives an empty folder."""
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved"


@pytest.fixture
def model(make_model: MakeModel) -> MTLModel:
    """Gives a tiny model."""
    return make_model()


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


def test_folder_holds_what_it_takes_and_nothing_else(model: MTLModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "deep" / "saved")
    assert names(tmp_path / "deep" / "saved") == SAVED_FILES
    for name in HUB_FILES:
        assert (tmp_path / "deep" / "saved" / name).read_bytes() == (ROOT / name).read_bytes()
    assert_loads_as(tmp_path / "deep" / "saved", model)


def test_card_says_what_the_model_is(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved)
    card = ModelCard.load(saved / "README.md")
    assert card.data.library_name == "transformers"
    assert "sentence-similarity" in card.data.tags
    assert "- `topic`: single_label_classification (sport, film, shop)" in card.text
    assert "- `valence`: regression\n" in card.text
    assert "trust_remote_code=True" in card.text


def test_card_that_is_there_is_kept(model: MTLModel, saved: Path) -> None:
    (saved / "README.md").write_text("# Mine\n")
    model.save_pretrained(saved)
    model.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "# Mine\n"


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


def test_save_that_fails_halfway_leaves_the_earlier_one(
    make_model: MakeModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = make_model(seed=0), make_model(seed=1)
    earlier.save_pretrained(saved)

    def fail(tensors: dict[str, torch.Tensor], filename: str, **_: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.modeling_utils.safe_save_file", fail)
        with pytest.raises(OSError, match="No space left"):
            later.save_pretrained(saved)
    assert names(saved) == SAVED_FILES
    assert_loads_as(saved, earlier)
    later.save_pretrained(saved)
    assert_loads_as(saved, later)


def test_failure_after_the_weights_leaves_the_earlier_one(
    make_model: MakeModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = make_model(seed=0), make_model(seed=1)
    earlier.save_pretrained(saved)

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(later.tokenizer), "save_pretrained", fail)
        with pytest.raises(KeyboardInterrupt):
            later.save_pretrained(saved)
    assert names(saved) == SAVED_FILES
    assert_loads_as(saved, earlier)


KILLED_WHILE_SAVING = """
import signal, transformers.modeling_utils
from transformers import AutoModel

model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
for weight in model.parameters():
    weight.data.add_(1.0)
save_file = transformers.modeling_utils.safe_save_file


def save_and_die(tensors, filename, **kwargs):
    save_file(tensors, filename, **kwargs)
    with open(filename, "r+b") as file:
        file.truncate(os.path.getsize(filename) // 2)
    os.kill(os.getpid(), signal.SIGKILL)


transformers.modeling_utils.safe_save_file = save_and_die
model.save_pretrained(sys.argv[1])
"""


def test_killed_save_leaves_the_earlier_one_and_the_next_cleans_up(
    model: MTLModel, make_model: MakeModel, saved: Path, tmp_path: Path
) -> None:
    model.save_pretrained(saved)
    env, cwd = offline_env(tmp_path / "home"), tmp_path / "empty"
    run_fresh(KILLED_WHILE_SAVING, saved, env=env, cwd=cwd, returncode=-signal.SIGKILL)
    (leftover,) = names(saved) - SAVED_FILES
    assert leftover.startswith(".saving-")
    assert "model.safetensors" in names(saved / leftover)
    assert_loads_as(saved, model)
    other = make_model(seed=1)
    other.save_pretrained(saved)
    assert names(saved) == SAVED_FILES
    assert_loads_as(saved, other)


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_truncated_weights_are_told(model: MTLModel, size: int, saved: Path) -> None:
    model.save_pretrained(saved)
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    with pytest.raises(OSError, match=r"The weights in '.*' are truncated or corrupt \(.*\)\. .*earlier checkpoint"):
        MTLModel.from_pretrained(saved)


def test_overwritten_weights_are_told(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved)
    (saved / "model.safetensors").write_bytes(b"<html>Not found</html>" * 100)
    with pytest.raises(OSError, match="truncated or corrupt"):
        MTLModel.from_pretrained(saved)


def test_missing_weights_or_shard_are_told(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved, max_shard_size="20KB")
    next(saved.glob("model-00002-of-*.safetensors")).unlink()
    with pytest.raises(OSError, match="model-00002-of-"):
        MTLModel.from_pretrained(saved)
    (saved / "model.safetensors.index.json").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        MTLModel.from_pretrained(saved)


def test_folder_without_tokenizer_loads_and_encode_says_what_to_do(model: MTLModel, saved: Path) -> None:
    tokenizer = model.tokenizer
    expected = model.encode(SENTENCES)
    model.tokenizer = None
    model.save_pretrained(saved)
    assert names(saved) == SAVED_FILES - {"tokenizer.json", "tokenizer_config.json"}
    loaded = MTLModel.from_pretrained(saved)
    with pytest.raises(
        ValueError, match=r"no tokenizer, as none was saved with it\. Set one: `model\.tokenizer = Auto"
    ):
        loaded.encode(SENTENCES)
    loaded.tokenizer = tokenizer
    assert (loaded.encode(SENTENCES) == expected).all()


def test_saving_in_fewer_or_more_files_leaves_no_stale_ones(make_model: MakeModel, saved: Path) -> None:
    first, second, third = (make_model(seed=seed) for seed in range(3))
    (saved / "model_of_a_ship.safetensors").write_bytes(b"not ours")
    first.save_pretrained(saved, max_shard_size="10KB")
    shards = list(saved.glob("model-*-of-*.safetensors"))
    assert len(shards) > 5
    assert_loads_as(saved, first)
    second.save_pretrained(saved, max_shard_size="60KB")
    assert 1 < len(list(saved.glob("model-*-of-*.safetensors"))) < len(shards)
    assert_loads_as(saved, second)
    third.save_pretrained(saved)
    assert names(saved) == SAVED_FILES | {"model_of_a_ship.safetensors"}
    assert_loads_as(saved, third)
    # A loader prefers the one file, so it has to go when there are shards.
    first.save_pretrained(saved, max_shard_size="60KB")
    assert "model.safetensors" not in names(saved)
    assert_loads_as(saved, first)


def test_variants_stand_side_by_side(make_model: MakeModel, saved: Path) -> None:
    first, second = make_model(seed=0), make_model(seed=1)
    first.save_pretrained(saved)
    second.save_pretrained(saved, variant="b", max_shard_size="60KB")
    second.save_pretrained(saved, variant="b")
    assert names(saved) == SAVED_FILES | {"model.b.safetensors"}
    assert_loads_as(saved, first)
    assert (MTLModel.from_pretrained(saved, variant="b").encode(SENTENCES) == second.encode(SENTENCES)).all()


def test_other_ranks_write_nothing(model: MTLModel, saved: Path) -> None:
    model.save_pretrained(saved, is_main_process=False)
    assert names(saved) == set()


def test_folder_moved_or_named_oddly_loads(model: MTLModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = tmp_path / "my model v1.2 (final)"
    model.save_pretrained(str(odd))
    shutil.move(odd, tmp_path / "moved")
    assert_loads_as(tmp_path / "moved", model)
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("relative")
    assert_loads_as(Path("relative"), model)


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
