"""The stand-in for the Hugging Face Hub, driven by the real client in processes of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest
from hub_stand_in import HubStandIn, hub_env

WEIGHTS_V1 = bytes(range(256)) * 40
WEIGHTS_V2 = WEIGHTS_V1[::-1]

PUSH = """
from huggingface_hub import HfApi

folder, api = Path(sys.argv[1]), HfApi()
url = api.create_repo("versions")
api.create_repo("tester/versions", exist_ok=True)
first = api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="first")
api.create_tag("tester/versions", tag="v1")
(folder / "config.json").write_text('{"version": 2}')
(folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[::-1])
(folder / "sub" / "big.bin").unlink()
second = api.upload_folder(repo_id="versions", folder_path=folder, delete_patterns="sub/*")
unchanged = api.upload_folder(repo_id="tester/versions", folder_path=folder)
api.create_branch("tester/versions", branch="feature/x", revision=first.oid)
api.upload_file(repo_id="tester/versions", path_or_fileobj=b"", path_in_repo="empty.txt", revision="feature/x")
try:
    api.upload_folder(repo_id="tester/versions", folder_path=folder, parent_commit=first.oid, path_in_repo="copy")
except HfHubHTTPError as error:
    stale = error.response.status_code
report(url=str(url), name=api.whoami()["name"], oids=[c.oid for c in (first, second, unchanged)], stale=stale)
"""

DOWNLOAD = """
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

cache, revisions = Path(constants.HF_HUB_CACHE), sys.argv[1:]
api, repo_id = HfApi(), "tester/versions"


def error_of(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__


def fetch(name, **kwargs):
    return Path(hf_hub_download(repo_id, name, **kwargs)).read_bytes()


# The first GET of the weights breaks off: small pieces make the client resume instead of starting again.
constants.DOWNLOAD_CHUNK_SIZE = 1024
weights = [sha256(fetch("model.safetensors", revision=name)).hexdigest() for name in revisions]
# Then more GETs break off than the client is ready to repeat; the test need not sit through its pauses.
constants.DOWNLOAD_CHUNK_SIZE = 10**7
time.sleep = lambda seconds: None
broken = error_of(fetch, "sub/big.bin", revision="v1")
left_over = [str(p) for pattern in ("*.incomplete", "big.bin") for p in cache.rglob(pattern)]
sizes = sorted({p.stat().st_size for p in cache.rglob("*") if p.is_file() and p.stat().st_size > 1000})
snapshots = [Path(snapshot_download(repo_id, revision=name)) for name in revisions]
report(
    weights=weights,
    broken=[broken, left_over, sizes],
    snapshots=[{str(p.relative_to(s)): p.stat().st_size for p in s.rglob("*") if p.is_file()} for s in snapshots],
    configs=[json.loads(fetch("config.json", revision=name))["version"] for name in revisions],
    main=fetch("config.json").decode(),
    errors=[
        error_of(fetch, "config.json", revision="nope"),
        error_of(fetch, "nope.json"),
        error_of(hf_hub_download, "tester/nope", "config.json"),
        error_of(snapshot_download, "tester/nope"),
        error_of(api.upload_file, repo_id=repo_id, path_or_fileobj=b"", path_in_repo="a", revision="nope"),
        error_of(api.create_repo, "stranger/versions"),
    ],
    shas=[api.model_info(repo_id, revision=name).sha for name in revisions],
    top=[e.path for e in api.list_repo_tree("versions", revision="v1")],
    sub=[(e.path, e.size, e.lfs.sha256) for e in api.list_repo_tree(repo_id, "sub", revision="v1")],
)
"""

PUSH_MODEL = """
import torch
from transformers import BertConfig, BertModel

torch.manual_seed(0)
size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 32}
model = BertModel(BertConfig(**size, max_position_embeddings=16)).eval()
model.push_to_hub("tester/tiny-bert", private=True)
report(output=model(torch.tensor([[1, 2, 3]])).last_hidden_state.sum().item())
"""

LOAD_MODEL = """
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("tester/tiny-bert").eval()
report(output=model(torch.tensor([[1, 2, 3]])).last_hidden_state.sum().item(), kind=type(model).__name__)
"""

PRELUDE = """
import json, sys, time
from hashlib import sha256
from pathlib import Path
from huggingface_hub.errors import HfHubHTTPError


def report(**values):
    print(json.dumps(values))
"""


def run_client(hub: HubStandIn, home: Path, script: str, *args: str) -> dict[str, Any]:
    """Run a script in a fresh process whose client talks to the stand-in, and return what it reports."""
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *args]
    env = hub_env(hub.endpoint, home)
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    reported: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return reported


def ask(hub: HubStandIn, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    """Send one request without the client."""
    connection = HTTPConnection(hub.endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, {"Authorization": "Bearer hf_dummy", **headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    """A running stand-in without repositories."""
    with HubStandIn() as running:
        yield running


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubStandIn, dict[str, Any]]]:
    """A stand-in with two versions of a repository, and what the pushing client reported."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "config.json").write_text('{"version": 1}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Versions\n")
    (folder / "model.safetensors").write_bytes(WEIGHTS_V1)
    (folder / "sub").mkdir()
    (folder / "sub" / "big.bin").write_bytes(b"x" * 5000)
    with HubStandIn() as running:
        report = run_client(running, tmp_path_factory.mktemp("pusher"), PUSH, str(folder))
        # The log is copied here because another test clears it, and tests may run in any order.
        yield running, report | {"requests": list(running.requests)}


def test_push_keeps_history(pushed: tuple[HubStandIn, dict[str, Any]]) -> None:
    hub, report = pushed
    first, second, unchanged = report["oids"]
    assert report["url"] == f"{hub.endpoint}/tester/versions"
    assert report["name"] == "tester"
    assert report["stale"] == 412
    assert hub.commits("tester/versions")[1:] == [first, second]
    assert unchanged == second
    assert all(len(oid) == 40 for oid in hub.commits("versions"))
    assert hub.files("tester/versions", first)["model.safetensors"] == WEIGHTS_V1
    assert hub.files("tester/versions") == {
        **{name: hub.files("versions", "v1")[name] for name in (".gitattributes", "README.md")},
        "config.json": b'{"version": 2}',
        "model.safetensors": WEIGHTS_V2,
    }
    assert hub.files("tester/versions", "v1") | {"empty.txt": b""} == hub.files("tester/versions", "feature/x")
    puts = [path for method, path in report["requests"] if method == "PUT"]
    digests = [hashlib.sha256(data).hexdigest() for data in (WEIGHTS_V1, b"x" * 5000, WEIGHTS_V2)]
    assert sorted(puts) == sorted(f"/lfs/{digest}" for digest in digests)
    assert sum(path.endswith("/verify") for _, path in report["requests"]) == 3


def test_download_in_another_process(pushed: tuple[HubStandIn, dict[str, Any]], tmp_path: Path) -> None:
    hub, pusher = pushed
    first, second, _ = pusher["oids"]
    del hub.requests[:]
    hub.truncate_next_download("model.safetensors", times=1)
    hub.truncate_next_download("sub/big.bin", times=6)
    report = run_client(hub, tmp_path, DOWNLOAD, first, second)
    assert report["weights"] == [hashlib.sha256(data).hexdigest() for data in (WEIGHTS_V1, WEIGHTS_V2)]
    assert report["broken"] == ["RemoteProtocolError", [], [len(WEIGHTS_V1)]]
    assert report["snapshots"] == [
        {path: len(data) for path, data in hub.files("tester/versions", oid).items()} for oid in (first, second)
    ]
    assert "sub/big.bin" in report["snapshots"][0]
    assert report["configs"] == [1, 2]
    assert report["main"] == '{"version": 2}'
    assert report["shas"] == [first, second]
    assert report["top"] == [".gitattributes", "README.md", "config.json", "model.safetensors", "sub"]
    assert report["sub"] == [["sub/big.bin", 5000, hashlib.sha256(b"x" * 5000).hexdigest()]]
    assert report["errors"] == [
        "RevisionNotFoundError",
        "RemoteEntryNotFoundError",
        "RepositoryNotFoundError",
        "RepositoryNotFoundError",
        "RevisionNotFoundError",
        "HfHubHTTPError",
    ]
    # Two GETs for the download that was resumed, six for the one that was given up and one that went well later.
    gets = [path.partition("/resolve/")[2] for method, path in hub.requests if method == "GET"]
    assert gets.count(f"{first}/model.safetensors") == 2
    assert gets.count("v1/sub/big.bin") == 6
    assert gets.count(f"{first}/sub/big.bin") == 1


def test_model_pushed_and_loaded_in_fresh_processes(hub: HubStandIn, tmp_path: Path) -> None:
    pushed = run_client(hub, tmp_path / "pusher", PUSH_MODEL)
    assert set(hub.files("tester/tiny-bert")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    del hub.requests[:]
    hub.truncate_next_download("model.safetensors")
    loaded = run_client(hub, tmp_path / "loader", LOAD_MODEL)
    assert loaded["kind"] == "BertModel"
    assert loaded["output"] == pytest.approx(pushed["output"], abs=1e-6)
    weights = [path for method, path in hub.requests if method == "GET" and path.endswith("/model.safetensors")]
    assert len(weights) == 2
    assert json.loads(ask(hub, "GET", "/api/models/tiny-bert")[1])["private"] is True


def test_raw_requests(hub: HubStandIn) -> None:
    assert ask(hub, "POST", "/api/repos/create", b'{"name": "raw"}')[0] == 200
    assert ask(hub, "POST", "/api/repos/create", b'{"name": "raw"}')[0] == 409
    assert ask(hub, "POST", "/api/repos/create", b"{}")[0] == 400
    assert ask(hub, "GET", "/api/nothing")[0] == 404
    digest = hashlib.sha256(b"right").hexdigest()
    assert ask(hub, "PUT", f"/lfs/{digest}", b"wrong")[0] == 400
    assert ask(hub, "PUT", f"/lfs/{digest}", b"right")[0] == 200
    assert ask(hub, "POST", f"/lfs/{digest}/verify", b'{"size": 4}')[0] == 400
    assert ask(hub, "POST", f"/lfs/{digest}/verify", b'{"size": 5}')[0] == 200
    pointer = {"path": "a.bin", "algo": "sha256", "oid": digest, "size": 5}
    lines = [{"key": "header", "value": {"summary": "add"}}, {"key": "lfsFile", "value": pointer}]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    assert ask(hub, "POST", "/api/models/raw/commit/main?create_pr=1", body)[0] == 400
    assert ask(hub, "POST", "/api/models/raw/commit/main", body)[0] == 200
    assert len(hub.commits("raw")) == 2
    address = "/tester/raw/resolve/main/a.bin"
    assert ask(hub, "GET", address, Range="bytes=2-") == (206, b"ght")
    assert ask(hub, "GET", address, Range="bytes=0-1") == (206, b"ri")
    assert ask(hub, "GET", address, Range="bytes=5-")[0] == 416
    hub.truncate_next_download("a.bin", times=2)
    for _ in range(2):
        with pytest.raises(IncompleteRead):
            ask(hub, "GET", address)
    assert ask(hub, "GET", address) == (200, b"right")
    assert hub.requests[-1] == ("GET", address)


def test_environment_of_a_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "1")
    env = hub_env("http://127.0.0.1:1", tmp_path)
    assert env["HF_ENDPOINT"] == "http://127.0.0.1:1"
    assert env["HF_HOME"] == str(tmp_path)
    assert env["HF_HUB_OFFLINE"] == "0"
    assert {"TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "https_proxy", "ALL_PROXY"}.isdisjoint(env)
    assert env["PATH"]
