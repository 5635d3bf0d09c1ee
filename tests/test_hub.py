"""Pushing to and loading from the Hub, by the real client against the stand-in, in two fresh processes."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeBackbone
from fresh_process import run_fresh
from hub_stand_in import HubStandIn, hub_env
from saved_folders import HUB_FILES
from transformers import PreTrainedTokenizerFast

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel

pytestmark = pytest.mark.slow  # Two processes, each of which imports everything and serves all tests of this file.

ROOT = Path(__file__).resolve().parent.parent
CODE = set(HUB_FILES)
REST = {".gitattributes", "README.md", "config.json", "tokenizer.json", "tokenizer_config.json"}
SENTENCES = ["match team goal now", "price", "a quokka"]

PUSH = """
from pathlib import Path
from huggingface_hub import HfApi

root, *folders = sys.argv[1:]
sys.path.insert(0, root)
from modeling_mtl import MTLModel

api, oids = HfApi(), []


def note_commit():
    oids.append(api.model_info("tester/shared").sha)


first, second = (MTLModel.from_pretrained(folder) for folder in folders)
url = first.push_to_hub("shared", private=True)
note_commit()
api.upload_file(repo_id="tester/shared", path_or_fileobj=b"# Written by hand", path_in_repo="README.md")
changed = Path("modeling_mtl.py")
changed.write_text(Path(root, "modeling_mtl.py").read_text() + "\\nMARK = 'new'\\n")
note_commit()
second.save_pretrained("out", push_to_hub=True, repo_id="tester/shared", max_shard_size="20KB", commit_message="Two")
api.upload_file(repo_id="tester/shared", path_or_fileobj=str(changed), path_in_repo="modeling_mtl.py")
note_commit()
Path("carded").mkdir()
Path("carded/README.md").write_text("# Of the folder")
second.save_pretrained("carded", push_to_hub=True, private=True)
first.push_to_hub("tester/carded", revision="experiment", commit_message="Try")
infos = [api.model_info(f"tester/{name}") for name in ("shared", "carded")]
report(url=url, oids=oids, private=[info.private for info in infos], out=sorted(os.listdir("out")))
"""

LOAD = """
import time
from pathlib import Path
from huggingface_hub import constants
from transformers import AutoConfig, AutoModel, AutoTokenizer

oids, sentences = sys.argv[1].split(), sys.argv[2:]
trust = {"trust_remote_code": True}
time.sleep = lambda seconds: None  # The client pauses before it asks again; the test need not.


def numbers(model):
    module = sys.modules[type(model).__module__]
    return {
        "embeddings": model.encode(sentences).tolist(),
        "predictions": model.predict(sentences),
        "ids": model.tokenizer(sentences)["input_ids"],
        "module": module.__name__,
        "mark": getattr(module, "MARK", None),
    }


# The download of the weights breaks off more often than the client asks again.
broken = error_of(AutoModel.from_pretrained, "tester/shared", revision=oids[0], **trust)
blobs = [str(path) for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.name == "model.safetensors"]
old = AutoModel.from_pretrained("tester/shared", revision=oids[0], **trust)
refused = error_of(AutoModel.from_pretrained, "tester/shared")
# One shard breaks off once, which the client mends by itself.
new = AutoModel.from_pretrained("tester/shared", **trust)
pinned = {
    "tasks": [AutoConfig.from_pretrained("tester/shared", revision=oid, **trust).task_names for oid in oids],
    "ids": [
        AutoTokenizer.from_pretrained("tester/shared", revision=oid, **trust)(sentences)["input_ids"] for oid in oids
    ],
}
try_out = AutoModel.from_pretrained("tester/carded", revision="experiment", **trust)
again = error_of(AutoModel.from_pretrained, "tester/shared", revision="nope", **trust)
url = new.push_to_hub("tester/shared", commit_message="Three")
third = AutoModel.from_pretrained("tester/shared", **trust)
report(
    broken=broken, blobs=blobs, refused=refused, nope=again, url=url, pinned=pinned,
    old=numbers(old), new=numbers(new), try_out=numbers(try_out), third=numbers(third),
)
"""


@dataclass(frozen=True)
class Story:
    """What two models are, what the Hub holds at the end, and what the two processes reported."""

    hub: HubStandIn
    models: tuple[MTLModel, MTLModel]
    push: dict[str, Any]
    load: dict[str, Any]


@pytest.fixture(scope="module")
def story(
    tiny_backbone: MakeBackbone,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tasks: tuple[TaskConfig, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """Pushes two versions of a model in one process, and loads and pushes again in another, without the package."""
    folder = tmp_path_factory.mktemp("hub")
    models = []
    for seed in (0, 1):
        tiny_backbone(seed=seed).save_pretrained(folder / f"backbone{seed}")
        tiny_tokenizer.save_pretrained(folder / f"backbone{seed}")
        torch.manual_seed(seed)
        model = MTLModel.from_backbone(folder / f"backbone{seed}", tasks=tasks[: 2 + seed])
        if seed:
            model.tokenizer.add_tokens(["quokka"])
            model.resize_token_embeddings(len(model.tokenizer))
        model.save_pretrained(folder / f"model{seed}")
        models.append(model)
    with HubStandIn() as hub:
        env = hub_env(hub.endpoint, folder / "pusher")
        folders = [folder / "model0", folder / "model1"]
        push = run_fresh(PUSH, ROOT, *folders, env=env, cwd=folder / "pushing", package=True)
        hub.truncate_next_download("model.safetensors", times=6)
        hub.truncate_next_download("model-00002-of-00006.safetensors", times=1)
        env = hub_env(hub.endpoint, folder / "loader")
        load = run_fresh(LOAD, " ".join(push["oids"]), *SENTENCES, env=env, cwd=folder / "loading")
        yield Story(hub, (models[0], models[1]), push, load)


def assert_numbers_of(model: MTLModel, numbers: dict[str, Any]) -> None:
    """Asserts that a process got the numbers of a model; bit for bit, for JSON gives every float back as it was."""
    assert numbers["ids"] == model.tokenizer(SENTENCES)["input_ids"]
    assert numbers["embeddings"] == model.encode(SENTENCES).tolist()
    assert numbers["predictions"] == model.predict(SENTENCES)


def test_first_push_has_all_it_takes(story: Story) -> None:
    first, hub = story.push["oids"][0], story.hub
    assert story.push["url"] == f"{hub.endpoint}/tester/shared/commit/{first}"
    assert story.push["private"] == [True, True]
    files = hub.files("tester/shared", first)
    assert set(files) == CODE | REST | {"model.safetensors"}
    assert all(files[name] == (ROOT / name).read_bytes() for name in CODE)
    assert b"library_name: transformers" in files["README.md"]
    # The repository's own first commit, then code, weights, tokenizer and card in one.
    assert hub.commits("tester/shared").index(first) == 1


def test_push_while_saving_replaces_the_weights_and_keeps_the_card(story: Story) -> None:
    files = story.hub.files("tester/shared", story.push["oids"][2])
    assert files["README.md"] == b"# Written by hand"
    # The weights in one file had to go: a loader prefers them to newer ones in several.
    assert "model.safetensors" not in files
    shards = {name for name in files if re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", name)}
    assert len(shards) == 6
    assert set(files) == CODE | REST | shards | {"model.safetensors.index.json"}
    assert set(story.push["out"]) == set(files) - {".gitattributes"}


def test_card_of_the_folder_is_pushed_where_there_is_none(story: Story) -> None:
    assert story.hub.files("tester/carded")["README.md"] == b"# Of the folder"
    # A branch starts as a copy, so its card is there already.
    assert story.hub.files("tester/carded", "experiment")["README.md"] == b"# Of the folder"
    assert len(story.hub.commits("tester/carded", "experiment")) == len(story.hub.commits("tester/carded")) + 1


def test_loads_without_the_package_from_an_empty_cache(story: Story) -> None:
    assert_numbers_of(story.models[1], story.load["new"])
    oid = story.push["oids"][2]
    module = story.load["new"]["module"]
    assert module == f"transformers_modules.tester.shared.{oid}.modeling_mtl"
    kind, message = story.load["refused"]
    assert kind == "ValueError"
    assert "trust_remote_code=True" in message


def test_pinned_revision_gives_its_weights_tokenizer_and_code(story: Story) -> None:
    old, new = story.models
    assert_numbers_of(old, story.load["old"])
    assert story.load["old"]["ids"] != story.load["new"]["ids"]
    assert (story.load["old"]["mark"], story.load["new"]["mark"]) == (None, "new")
    assert story.load["pinned"]["tasks"] == [old.config.task_names] * 2 + [new.config.task_names]
    ids = [model.tokenizer(SENTENCES)["input_ids"] for model in story.models]
    assert story.load["pinned"]["ids"] == [ids[0], ids[0], ids[1]]
    assert_numbers_of(old, story.load["try_out"])
    assert story.load["nope"][0] == "OSError"
    assert "nope" in story.load["nope"][1]


def test_interrupted_download_fails_cleanly_and_a_later_one_works(story: Story) -> None:
    kind, message = story.load["broken"]
    assert kind == "OSError"
    assert "Can't load the model for 'tester/shared'" in message
    assert story.load["blobs"] == [], "a half-downloaded file stands in the cache as if it were whole"
    assert story.load["old"]["embeddings"]
    gets = [path for method, path in story.hub.requests if method == "GET" and "/resolve/" in path]
    first = story.push["oids"][0]
    assert gets.count(f"/tester/shared/resolve/{first}/model.safetensors") == 7
    assert sum(path.endswith("model-00002-of-00006.safetensors") for path in gets) == 2


def test_reloaded_model_pushes_itself_again(story: Story) -> None:
    hub = story.hub
    files, before = hub.files("tester/shared"), hub.files("tester/shared", story.push["oids"][2])
    assert story.load["url"].endswith(hub.commits("tester/shared")[-1])
    assert set(files) == CODE | REST | {"model.safetensors"}
    assert files["README.md"] == b"# Written by hand"
    # The code goes on as it was loaded, the changed file included.
    assert all(files[name] == before[name] for name in CODE)
    assert b"MARK" in files["modeling_mtl.py"]
    assert_numbers_of(story.models[1], story.load["third"])
