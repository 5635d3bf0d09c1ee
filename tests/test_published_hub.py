"""A published folder on the Hub, by the real client against the stand-in: pushed, verified, and started from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeBackbone
from fresh_process import run_fresh
from hub_stand_in import HubStandIn, hub_env
from transformers import PreTrainedTokenizerFast

from configuration_mtl import TaskConfig
from modeling_mtl import MTLModel
from mtl.published_files import read_manifest

pytestmark = pytest.mark.slow  # A process that imports everything, and one for each loader.

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["match team goal now", "price", "a plain usual average scene"]

STORY = """
from pathlib import Path
from huggingface_hub import HfApi

root, folder, *texts = sys.argv[1:]
sys.path.insert(0, root)
import mtl.cli
from modeling_mtl import MTLModel
from mtl.publishing import push
from configuration_mtl import TaskConfig


def code_of(*argv):
    try:
        mtl.cli.main(list(argv))
    except SystemExit as stop:
        return stop.code


api = HfApi()
MTLModel.from_pretrained(folder).push_to_hub("tester/model")  # In the layout of one library.
before = api.model_info("tester/model").sha
published = code_of("publish", "tester/model", "published", "--push", "tester/model", "--replace_card")
after = api.model_info("tester/model").sha
api.upload_file(repo_id="tester/model", path_or_fileobj=b"# Written by hand", path_in_repo="README.md")
kept = code_of("publish", folder, "again", "--push", "tester/model", "--revision", "try")
Path("again/__pycache__").mkdir()
Path("again/__pycache__/modeling_mtl.pyc").write_bytes(b"")
push("again", "tester/model", revision="try")
verified = code_of("verify", "tester/model", "--json", "after.json")
started = MTLModel.from_sentence_transformer("tester/model", tasks=[TaskConfig("new", num_labels=2)], revision=after)
report(
    codes=[published, kept, verified],
    commits=[before, after],
    embeddings=started.encode(texts).tolist(),
)
"""


@dataclass(frozen=True)
class Story:
    """A model, what the Hub holds at the end, and what the process reported and left."""

    hub: HubStandIn
    model: MTLModel
    told: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def story(
    tiny_backbone: MakeBackbone,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tasks: tuple[TaskConfig, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Story]:
    """Pushes a model as it is saved, publishes it into the same repository, and verifies that, in one process."""
    folder = tmp_path_factory.mktemp("published")
    tiny_backbone().save_pretrained(folder / "backbone")
    tiny_tokenizer.save_pretrained(folder / "backbone")
    torch.manual_seed(0)
    model = MTLModel.from_backbone(folder / "backbone", tasks=tasks)
    model.save_pretrained(folder / "model")
    with HubStandIn() as hub:
        env = hub_env(hub.endpoint, folder / "home")
        cwd = folder / "work"
        told = run_fresh(STORY, ROOT, folder / "model", *TEXTS, env=env, cwd=cwd, package=True)
        yield Story(hub, model, told, cwd)


def test_push_makes_the_repository_what_the_folder_is(story: Story) -> None:
    before, after = (story.hub.files("tester/model", commit) for commit in story.told["commits"])
    published = story.folder / "published"
    assert story.told["codes"][0] is None
    assert "model.safetensors" in before
    assert "model.safetensors" not in after, "a loader would prefer it to the index"
    assert after.keys() - {".gitattributes"} == {*(read_manifest(published) or {}), "mtl_published.json"}
    assert b"library_name: sentence-transformers" in after["README.md"]
    assert b'SentenceTransformer("tester/model")' in after["README.md"]


def test_card_that_is_there_is_kept_unless_told(story: Story) -> None:
    assert story.told["codes"][1] is None
    assert story.hub.files("tester/model", "try")["README.md"] == b"# Written by hand"
    assert (story.folder / "again" / "README.md").read_bytes() != b"# Written by hand"


def test_what_an_import_left_in_the_folder_is_not_pushed(story: Story) -> None:
    assert (story.folder / "again" / "__pycache__").is_dir()
    assert not [name for name in story.hub.files("tester/model", "try") if "__pycache__" in name]


def test_repository_is_verified(story: Story) -> None:
    assert story.told["codes"][2] is None
    found = json.loads((story.folder / "after.json").read_text())
    assert (found["source"], found["revision"]) == ("tester/model", story.hub.commits("tester/model")[-1])
    states = {loader["name"]: loader["state"] for loader in found["loaders"]}
    assert states["this package"] == states["sentence-transformers"] == states["transformers, backbone"] == "ok"
    assert states["transformers, trust_remote_code"] == "not run"
    assert found["problems"] == []


def test_model_starts_from_the_repository(story: Story) -> None:
    assert story.told["embeddings"] == story.model.encode(TEXTS).tolist()
