"""A stand-in for the Hugging Face Hub on 127.0.0.1, as far as pushing and reading back go.

It speaks the Hub's HTTP interface as huggingface_hub 2.4 uses it: whoami, creation of repositories and branches, the
upload's modes, git LFS, commits (one JSON object per line), descriptions, trees and files. What it holds is in `repos`.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_token_of_the_tests"
READER = "hf_token_that_reads"
BIG = (".safetensors", ".parquet", ".bin")  # stored by git LFS
PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
API = rf"/api/(?P<kind>model|dataset|space)s/{NAME}"


@dataclass
class Repo:
    """A repository: commit -> path -> content, and where each branch is."""

    private: bool
    sdk: str | None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        names = json.dumps([[path, hashlib.sha256(data).hexdigest()] for path, data in sorted(files.items())])
        sha = hashlib.sha1(f"{len(self.commits)}{names}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        """What is on main."""
        return self.commits[self.branches["main"]]


@dataclass
class Failure:
    """What happens to a request instead: a status, or None for a connection that is cut, so many times."""

    method: str
    path: str
    status: int | None
    times: int = 1_000_000


class StandIn(ThreadingHTTPServer):
    """The server, with what it holds and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fail(self, method: str, path: str, status: int | None, times: int = 1_000_000) -> None:
        self.failures.append(Failure(method, path, status, times))

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, Any]:
        """For a process that is to take it for the Hub; xet, which has a server of its own, is left out."""
        values = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        values |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0", "TRANSFORMERS_OFFLINE": "0"}
        return values | {"HF_TOKEN": token or ""}


@contextmanager
def running() -> Iterator[StandIn]:
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: StandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with self.server.lock:
            self.server.asked.append(f"{self.command} {path}")
            failure = next(
                (f for f in self.server.failures if f.times and f.method == self.command and re.search(f.path, path)),
                None,
            )
            if failure is not None:
                failure.times -= 1
                if failure.status is None:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                return self.error(failure.status)
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if method == self.command.replace("HEAD", "GET") and match:
                    return action(self, body, **match.groupdict())
            self.server.unknown.append(f"{self.command} {path}")
            self.error(404, "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode())

    def error(self, status: int, code: str = "") -> None:
        headers = {"X_Error_Code": code} if code else {}
        self.send(status, json.dumps({"error": f"stand-in says {status}"}).encode(), **headers)

    # --- who asks

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def repo(self, kind: str, name: str) -> Repo | None:
        """The repository, unless it is hidden from who asks: then the request is answered."""
        repo = self.server.repos.get((kind, name))
        if repo is None or (repo.private and self.token not in (TOKEN, READER)):
            self.error(404 if self.token in (TOKEN, READER) else 401, "RepoNotFound")
            return None
        return repo

    def may_write(self) -> bool:
        if self.token != TOKEN:
            self.error(403 if self.token == READER else 401)
        return self.token == TOKEN

    # --- actions

    def whoami(self, body: bytes) -> None:
        roles = {TOKEN: "write", READER: "read"}
        if self.token not in roles:
            return self.error(401)
        auth = {"type": "access_token", "accessToken": {"role": roles[self.token], "displayName": "tests"}}
        self.json({"type": "user", "name": "me", "orgs": [{"name": "lab", "type": "org"}], "auth": auth})

    def harnesses(self, body: bytes) -> None:
        """What the library asks aside, to name the program in its requests."""
        self.json({"standardEnvVars": [], "harnesses": {}})

    def create(self, body: bytes) -> None:
        if not self.may_write():
            return
        asked = json.loads(body)
        kind, name = asked.get("type", "model"), f"{asked['organization'] or 'me'}/{asked['name']}"
        if name.partition("/")[0] not in ("me", "lab"):
            return self.error(403)
        url = {"url": f"{self.server.url}/{PREFIXES[kind]}{name}"}
        if (kind, name) in self.server.repos:
            return self.json(url | {"error": "You already created this repo"}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = self.server.repos[kind, name] = Repo(private, asked.get("sdk"))
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.json(url)

    def branch(self, body: bytes, kind: str, name: str, branch: str) -> None:
        repo = self.repo(kind, name)
        if repo is None or not self.may_write():
            return
        if branch in repo.branches:
            return self.error(409)
        repo.branches[branch] = repo.branches["main"]
        self.json({})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---")[1])
            assert isinstance(metadata, dict)
        except Exception as error:
            return self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
        self.json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name)
        if repo is None or not self.may_write():
            return
        files = repo.commits[repo.sha(revision) or ""]
        answers = []
        for file in json.loads(body)["files"]:
            path, known = file["path"], files.get(file["path"])
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(BIG) else "regular", "shouldIgnore": False}
            answers.append(answer | ({} if known is None else {"oid": oid(path, known)}))
        self.json({"files": answers})

    def batch(self, body: bytes, prefix: str | None, name: str) -> None:
        if not self.may_write():
            return
        objects = []
        for each in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}
            objects.append(each | ({} if each["oid"] in self.server.lfs else {"actions": upload}))
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            return self.error(400)
        self.server.lfs[oid] = body
        self.json({})

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name)
        if repo is None or not self.may_write():
            return
        files = dict(repo.commits[repo.sha(revision) or ""])
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
            else:
                assert entry["key"] == "header" and value["summary"]
        sha = repo.commit(revision, files)
        url = f"{self.server.url}/{PREFIXES[kind]}{name}/commit/{sha}"
        self.json({"commitUrl": url, "commitOid": sha, "success": True})

    def info(self, body: bytes, kind: str, name: str, revision: str | None) -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return
        sha = repo.sha(revision or "main")
        if sha is None:
            return self.error(404, "RevisionNotFound")
        files = repo.commits[sha]
        card = files.get("README.md", b"").decode()
        metadata = yaml.safe_load(card.split("---")[1]) if card.startswith("---") else {}
        about = {"id": name, "sha": sha, "private": repo.private, "tags": metadata.get("tags", [])}
        self.json(about | {"cardData": metadata, "siblings": [{"rfilename": path} for path in sorted(files)]})

    def tree(self, body: bytes, kind: str, name: str, revision: str, folder: str | None) -> None:
        repo = self.repo(kind, name)
        files = {} if repo is None else repo.commits[repo.sha(revision) or ""]
        start = f"{folder}/" if folder else ""
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", [""])[0].lower() in ("true", "1")
        inside = {path: data for path, data in files.items() if path.startswith(start)}
        if repo is None or (folder and not inside):
            return None if repo is None else self.error(404, "EntryNotFound")
        entries = {}
        for path, data in inside.items():
            below = path.removeprefix(start)
            for parent in list(Path(below).parents)[:-1]:
                entries[start + parent.as_posix()] = {"type": "directory", "oid": "0" * 40, "size": 0}
            entries[path] = described(path, data)
        shown = {path: entry for path, entry in entries.items() if recursive or "/" not in path.removeprefix(start)}
        self.json([entry | {"path": path} for path, entry in shown.items()])

    def paths(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repo = self.repo(kind, name)
        if repo is None:
            return
        files = repo.commits[repo.sha(revision) or ""]
        kinds = self.headers.get("Content-Type", "")
        asked = json.loads(body)["paths"] if "json" in kinds else parse_qs(body.decode())["paths"]
        self.json([described(path, files[path]) | {"path": path} for path in asked if path in files])

    def resolve(self, body: bytes, prefix: str | None, name: str, revision: str, path: str) -> None:
        kind = {value: key for key, value in PREFIXES.items()}[prefix or ""]
        repo = self.repo(kind, name)
        if repo is None:
            return
        sha = repo.sha(revision)
        if sha is None:
            return self.error(404, "RevisionNotFound")
        if path not in repo.commits[sha]:
            return self.error(404, "EntryNotFound")
        data = repo.commits[sha][path]
        headers = {"X_Repo_Commit": sha, "ETag": f'"{oid(path, data)}"', "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self.send(200, data, "application/octet-stream", **headers)
        begin, end = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        headers["Content_Range"] = f"bytes {begin}-{end}/{len(data)}"
        self.send(206, data[begin : end + 1], "application/octet-stream", **headers)


def oid(path: str, data: bytes) -> str:
    """As the Hub names a file's content: its sha256 under LFS, else git's own hash of it."""
    if path.endswith(BIG):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def described(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": oid(path, data), "size": len(data)}
    if path.endswith(BIG):
        entry["lfs"] = {"oid": oid(path, data), "size": len(data), "pointerSize": 130}
    return entry


Action = Callable[..., None]
ROUTES: list[tuple[str, str, Action]] = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("GET", "/api/agent-harnesses", Handler.harnesses),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate),
    ("POST", rf"{API}/branch/(?P<branch>.+)", Handler.branch),
    ("POST", rf"{API}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"{API}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"{API}/paths-info/(?P<revision>.+)", Handler.paths),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", Handler.tree),
    ("GET", rf"{API}(?:/revision/(?P<revision>.+))?", Handler.info),
    ("POST", rf"/(?P<prefix>datasets/|spaces/)?{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.upload),
    (
        "GET",
        rf"/(?P<prefix>datasets/|spaces/)?{NAME}/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        Handler.resolve,
    ),
]
