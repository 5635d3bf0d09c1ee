"""A stand-in for the Hugging Face Hub on 127.0.0.1, so that the real client runs end to end without internet.

The client reads its settings when it is imported, so it has to run in a fresh process. To push in one process and load
in another one, with an empty cache::

    with HubStandIn() as hub:
        subprocess.run([sys.executable, "-c", push_code], env=hub_env(hub.endpoint, tmp_path / "pusher"), check=True)
        subprocess.run([sys.executable, "-c", load_code], env=hub_env(hub.endpoint, tmp_path / "loader"), check=True)

Only model repositories are served, all of them under the user ``tester``; a bare name means ``tester/name``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import sys
import threading
from dataclasses import dataclass
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_metadata import metadata_errors

USER = "tester"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".onnx", ".model", ".h5", ".npz", ".pkl", ".parquet", ".zip")
LFS_MIN_BYTES = 10 * 1024 * 1024  # the Hub takes no larger file as a regular one, whatever its name
_API = "/api/models/{repo}"
_PIECES = {"repo": "[^/]+(?:/[^/]+)?", "revision": "[^/]+", "name": "[^/]+", "path": ".+", "oid": "[0-9a-f]{64}"}
_ROUTES = [
    (method, re.compile(re.sub(r"{(\w+)}", lambda piece: f"(?P<{piece[1]}>{_PIECES[piece[1]]})", path)), endpoint)
    for method, path, endpoint in (
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("POST", "/api/repos/create", "create_repo"),
        ("POST", f"{_API}/branch/{{name}}", "create_branch"),
        ("POST", f"{_API}/tag/{{revision}}", "create_tag"),
        ("POST", f"{_API}/preupload/{{revision}}", "preupload"),
        ("POST", f"{_API}/commit/{{revision}}", "commit"),
        ("GET", f"{_API}/tree/{{revision}}(?:/{{path}})?", "tree"),
        ("GET", f"{_API}(?:/revision/{{revision}})?", "info"),
        ("POST", r"/{repo}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", "/lfs/{oid}", "lfs_upload"),
        ("POST", "/lfs/{oid}/verify", "lfs_verify"),
        ("GET", "/{repo}/resolve/{revision}/{path}", "resolve"),
    )
]
_Reply = tuple[object, int, dict[str, str]]  # the payload (anything but bytes as JSON), the status, further headers


class HubError(Exception):
    """A refusal: the status and the ``X-Error-Code`` from which the client makes its typed errors."""

    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None) -> None:
        """Keep what the reply needs."""
        super().__init__(message)
        self.status = status
        self.headers = (headers or {}) | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class _Blob:
    data: bytes
    lfs: bool = False

    @cached_property
    def etag(self) -> str:
        """The sha256 of an LFS file, the git id of a regular one: what the Hub gives, and the client compares."""
        git_object = b"blob %d\0" % len(self.data) + self.data
        return hashlib.sha256(self.data).hexdigest() if self.lfs else hashlib.sha1(git_object).hexdigest()

    def lfs_info(self, digest_key: str) -> dict[str, Any]:
        """The ``lfs`` entry of a listing, in which the endpoints name the digest differently."""
        info = {digest_key: self.etag, "size": len(self.data), "pointerSize": 125 + len(str(len(self.data)))}
        return {"lfs": info} if self.lfs else {}


class _Repo:
    def __init__(self, repo_id: str, private: bool) -> None:
        self.repo_id, self.private = repo_id, private
        self.trees: dict[str, dict[str, _Blob]] = {}
        self.branches: dict[str, list[str]] = {"main": []}
        self.tags: dict[str, list[str]] = {}
        # The Hub starts every repository with such a commit, so that "main" exists before the first push.
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.add_commit("main", {".gitattributes": _Blob(attributes.encode())}, "initial commit")

    def history(self, revision: str) -> list[str]:
        """The commits up to a branch, a tag or a commit, oldest first."""
        refs = self.branches | self.tags
        if revision in refs:
            return refs[revision]
        for history in refs.values():
            if revision in history:
                return history[: history.index(revision) + 1]
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def add_commit(self, branch: str, tree: dict[str, _Blob], title: str) -> str:
        parents = self.branches[branch]
        content = [self.repo_id, title, *parents, *sorted([path, blob.etag] for path, blob in tree.items())]
        oid = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        self.trees[oid] = tree
        parents.append(oid)
        return oid


class HubStandIn:
    """An in-memory Hub behind a local HTTP server, to be used as a context manager.

    Attributes:
        endpoint: The value for ``HF_ENDPOINT``.
        requests: What the clients asked for, as (method, decoded path without the query), oldest first.
    """

    def __init__(self) -> None:
        """Bind a free port; requests are answered inside the ``with`` block."""
        self.requests: list[tuple[str, str]] = []
        self._repos: dict[str, _Repo] = {}
        self._lfs: dict[str, bytes] = {}
        self._cuts: dict[str, int] = {}
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubStandIn:
        """Start answering."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file at a revision (the initial ``.gitattributes`` included)."""
        with self._lock:
            repo = self._repo(repo_id)
            return {path: blob.data for path, blob in repo.trees[repo.history(revision)[-1]].items()}

    def commits(self, repo_id: str, revision: str = "main") -> list[str]:
        """Return the ids of the commits that lead to a revision, oldest first (the initial commit included)."""
        with self._lock:
            return list(self._repo(repo_id).history(revision))

    def truncate_next_download(self, path_suffix: str, times: int = 1) -> None:
        """Break off the next GETs of a file: full Content-Length, half of the bytes, then the connection closes.

        Args:
            path_suffix: End of the path of the file, such as ``model.safetensors``.
            times: How many GETs to break off, on top of those still due for this suffix.
        """
        with self._lock:
            self._cuts[path_suffix] = self._cuts.get(path_suffix, 0) + times

    def _take_cut(self, path: str) -> bool:
        suffix = next((suffix for suffix, left in self._cuts.items() if left and path.endswith(suffix)), None)
        if suffix is not None:
            self._cuts[suffix] -= 1
        return suffix is not None

    def _repo(self, repo_id: str) -> _Repo:
        full_id = repo_id if "/" in repo_id else f"{USER}/{repo_id}"
        if full_id not in self._repos:
            raise HubError(404, "Repository not found", "RepoNotFound")
        return self._repos[full_id]

    def _lfs_blob(self, oid: str, size: int) -> _Blob:
        if len(self._lfs.get(oid, b"")) != size:
            raise HubError(400, f"LFS object {oid} is missing or has another size")
        return _Blob(self._lfs[oid], lfs=True)


class _Server(ThreadingHTTPServer):
    hub: HubStandIn
    request_queue_size = 64  # a snapshot download opens many connections at once

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client process that ends leaves its kept-alive connections behind, which is no error here.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes: the second would wait for a delayed ACK

    def log_message(self, format: str, *args: object) -> None:
        """Keep the output of the tests clean: the stand-in has a log of its own."""

    def _serve(self) -> None:
        self.hub, self.cut = self.server.hub, False
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        self.hub.requests.append((self.command, unquote(path)))
        verb = "GET" if self.command == "HEAD" else self.command
        found = ((name, regex.fullmatch(path)) for method, regex, name in _ROUTES if method == verb)
        name, match = next(((name, match) for name, match in found if match), ("", None))
        try:
            # The content of LFS files is PUT to what would be a pre-signed address, without the token.
            if (verb == "POST" or name == "whoami") and "Authorization" not in self.headers:
                raise HubError(401, "Invalid username or password.")
            if match is None:
                raise HubError(404, f"The stand-in has no endpoint for {self.command} {path}")
            self.params = {key: unquote(value) for key, value in match.groupdict("").items()}
            with self.hub._lock:
                reply: _Reply = getattr(self, f"_{name}")()
        except HubError as error:
            reply = {"error": str(error)}, error.status, error.headers
        except (LookupError, TypeError, ValueError) as error:
            # A 500 would make the client retry for a long time what can never work.
            reply = {"error": f"Malformed request to {self.command} {path}: {error!r}"}, 400, {}
        self._send(*reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, payload: object, status: int, headers: dict[str, str]) -> None:
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        self.close_connection |= self.cut

    def _find(self) -> tuple[_Repo, str, dict[str, _Blob]]:
        repo = self.hub._repo(self.params["repo"])
        oid = repo.history(self.params["revision"] or "main")[-1]
        return repo, oid, repo.trees[oid]

    def _whoami(self) -> _Reply:
        return {"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": "write"}}}, 200, {}

    def _validate_yaml(self) -> _Reply:
        errors = [{"message": message} for message in metadata_errors(json.loads(self.body)["content"])]
        return {"errors": errors, "warnings": []}, 400 if errors else 200, {}

    def _create_repo(self) -> _Reply:
        request = json.loads(self.body)
        repo_id = f"{request.get('organization') or USER}/{request['name']}"
        if request.get("type", "model") != "model" or not repo_id.startswith(f"{USER}/"):
            raise HubError(403, f"The stand-in serves only models under {USER}/, not {repo_id}")
        known = repo_id in self.hub._repos
        if not known:
            self.hub._repos[repo_id] = _Repo(repo_id, private=request.get("visibility") == "private")
        return {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}, 409 if known else 200, {}

    def _create_branch(self) -> _Reply:
        repo, start = self.hub._repo(self.params["repo"]), json.loads(self.body).get("startingPoint", "main")
        return self._add_ref(repo.branches, self.params["name"], repo.history(start))

    def _create_tag(self) -> _Reply:
        repo, oid, _ = self._find()
        return self._add_ref(repo.tags, json.loads(self.body)["tag"], repo.history(oid))

    def _add_ref(self, refs: dict[str, list[str]], name: str, history: list[str]) -> _Reply:
        if name in refs:
            raise HubError(409, f"Reference already exists: {name}")
        refs[name] = list(history)
        return {}, 200, {}

    def _preupload(self) -> _Reply:
        tree, files = self._find()[2], []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or file["size"] > LFS_MIN_BYTES else "regular"
            # The id of the present content lets the client leave out of the commit what has not changed.
            oid = tree[path].etag if path in tree else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}, 200, {}

    def _lfs_batch(self) -> _Reply:
        self.hub._repo(self.params["repo"])
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub._lfs:  # no actions means that the content is here already
                href = f"{self.hub.endpoint}/lfs/{item['oid']}"
                item["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
        return {"transfer": "basic", "objects": objects}, 200, {}

    def _lfs_upload(self) -> _Reply:
        if hashlib.sha256(self.body).hexdigest() != self.params["oid"]:
            raise HubError(400, "The content does not match its sha256")
        self.hub._lfs[self.params["oid"]] = self.body
        return {}, 200, {}

    def _lfs_verify(self) -> _Reply:
        self.hub._lfs_blob(self.params["oid"], json.loads(self.body)["size"])
        return {}, 200, {}

    def _commit(self) -> _Reply:
        repo, tip, tree = self._find()
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if "create_pr" in self.query:
            raise HubError(400, "The stand-in has no pull requests")
        if self.params["revision"] not in repo.branches:
            raise HubError(404, f"Not a branch: {self.params['revision']}", "RevisionNotFound")
        if not tip.startswith(header["value"].get("parentCommit", "")):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        new_tree = dict(tree)
        for operation in operations:
            self._apply(new_tree, operation["key"], operation["value"])
        oid = repo.add_commit(self.params["revision"], new_tree, header["value"]["summary"])
        return {"commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo.repo_id}/commit/{oid}"}, 200, {}

    def _apply(self, tree: dict[str, _Blob], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = _Blob(base64.b64decode(value["content"], validate=True))
        elif key == "lfsFile":
            tree[path] = self.hub._lfs_blob(value["oid"], value["size"])
        elif key in ("deletedFile", "deletedFolder"):
            folder = path.rstrip("/") + "/"
            doomed = [name for name in tree if (name == path if key == "deletedFile" else name.startswith(folder))]
            if not doomed:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in doomed:
                del tree[name]
        else:
            raise HubError(400, f"Unknown operation: {key}")

    def _info(self) -> _Reply:
        repo, oid, tree = self._find()
        siblings = [{"rfilename": p, "size": len(b.data), **b.lfs_info("sha256")} for p, b in sorted(tree.items())]
        names = {"id": repo.repo_id, "modelId": repo.repo_id, "author": USER, "private": repo.private}
        return {**names, "sha": oid, "gated": False, "tags": [], "siblings": siblings}, 200, {}

    def _tree(self) -> _Reply:
        tree, folder = self._find()[2], self.params["path"]
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path in sorted(path for path in tree if path.startswith(prefix)):
            for slash in re.finditer("/", path[len(prefix) :]):
                parent = path[: len(prefix) + slash.start()]
                oid = hashlib.sha1(parent.encode()).hexdigest()
                entries[parent] = {"type": "directory", "path": parent, "oid": oid, "size": 0}
            ids = {"oid": tree[path].etag, **tree[path].lfs_info("oid")}
            entries[path] = {"type": "file", "path": path, "size": len(tree[path].data), **ids}
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", "").lower() in ("1", "true")
        return [e for path, e in entries.items() if recursive or "/" not in path[len(prefix) :]], 200, {}

    def _resolve(self) -> _Reply:
        (_, oid, tree), path = self._find(), self.params["path"]
        headers, status = {"X-Repo-Commit": oid}, 200
        if path not in tree:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        body, size = tree[path].data, len(tree[path].data)
        headers |= {"ETag": f'"{tree[path].etag}"', "Accept-Ranges": "bytes"}
        if tree[path].lfs:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(size)}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            if first > last:
                raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
            body, status = body[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.cut = self.command == "GET" and self.hub._take_cut(path)
        return body, status, headers


def hub_env(endpoint: str, home: str | os.PathLike[str]) -> dict[str, str]:
    """Return the environment of a fresh process whose Hugging Face client talks to a stand-in.

    Args:
        endpoint: ``HubStandIn.endpoint``.
        home: Folder for the caches of the process; with an empty one, everything has to be downloaded.
    """
    # Inherited settings (offline mode, cache folders, proxies) would make the client bypass the stand-in.
    foreign = re.compile(r"((HF|HUGGINGFACE|HUGGING_FACE|TRANSFORMERS|SENTENCE_TRANSFORMERS)_.*|.*_PROXY)", re.I)
    env = {name: value for name, value in os.environ.items() if not foreign.fullmatch(name)}
    switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
    address = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_dummy", "HF_HOME": os.fspath(home), "HF_HUB_OFFLINE": "0"}
    return env | address | dict.fromkeys(switches, "1") | dict.fromkeys(("no_proxy", "NO_PROXY"), "127.0.0.1")
