"""A stand-in for the Hugging Face Hub on the loopback: repositories with commits, private and gated ones, ranges, faults."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from polar_rm.common import sources

TOKEN = "hf_secretTokenOfTheTests"


@dataclass
class Repository:
    """commits: commit -> path -> content. branches: name -> commit. access: open, private (401 without token) or gated (403)."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    access: str = "open"

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files and move the branch to it."""
        content = b"".join(name.encode() + files[name] for name in sorted(files))
        commit = hashlib.sha1(content + str(len(self.commits)).encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Hub:
    """url: the endpoint. requests: (method, path, headers). cut_after: bytes after which the next download breaks off, once.
    hold: the next large download waits for it in the middle, once. status: of every answer, where it is not None.
    uploads: (repo, operations) of every commit that was sent."""

    url: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    cut_after: int | None = None
    hold: threading.Event | None = None
    status: int | None = None
    uploads: list[tuple[str, list[dict[str, Any]]]] = field(default_factory=list)

    def repository(self, name: str, kind: str = "model") -> Repository:
        """The repository, a new one if there is none."""
        return self.repositories.setdefault((kind, name), Repository())

    def add_folder(self, name: str, folder: Path, kind: str = "model", **further: bytes) -> str:
        """Commit a folder's files; returns the commit."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.repository(name, kind).commit(files | further)

    def downloads(self) -> list[str]:
        """Paths of the files whose contents were requested."""
        return [
            path.partition("/resolve/")[2].partition("/")[2]
            for verb, path, _ in self.requests
            if verb == "GET" and "/resolve/" in path
        ]


@contextmanager
def served() -> Iterator[Hub]:
    """A running stand-in."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use(hub: Hub, folder: Path, monkeypatch: Any) -> None:
    """Make this process, and those that it starts, ask the stand-in, with empty caches in ``folder`` and without a token."""
    from huggingface_hub import constants

    variables = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": folder / "cache", "HF_HUB_OFFLINE": "0", "POLAR_CACHE": folder / "polar"}
    for name, value in (variables | {"HF_TOKEN_PATH": folder / "no-token"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in {"HF_TOKEN_PATH": "no-token", "HF_HUB_CACHE": "cache"}.items():
        monkeypatch.setattr(constants, name, str(folder / value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(folder)
    forget(monkeypatch)


def environment(variables: dict[str, str]) -> dict[str, str]:
    """Of a process that a test starts."""
    return {**os.environ, **variables}


def forget(monkeypatch: Any) -> None:
    """Empty the memory of names, as a new process has it."""
    for name in ("_MODELS", "_DATA", "_FETCHED"):
        monkeypatch.setattr(sources, name, {})


def is_large(path: str) -> bool:
    """Whether a file is one of LFS, whose etag is its SHA-256."""
    return path.endswith((".safetensors", ".parquet", ".model"))


def _etag(path: str, content: bytes) -> str:
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def do_GET(self) -> None:
        self._get()

    def do_HEAD(self) -> None:
        self._get()

    def _get(self) -> None:
        self.state.requests.append((self.command, self.path, dict(self.headers)))
        if self.state.status:
            return self._fail(self.state.status, "", "the Hub is down")
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/(.+?))?", path):
            kind, name, part, revision = found.groups()
            if repository := self._allowed(name, kind[:-1]):
                self._describe(name, repository, part, revision or "main")
            return None
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            if repository := self._allowed(name, "dataset" if kind else "model", is_file=True):
                self._file(repository, revision, file)
            return None
        if path == "/api/whoami-v2":
            return self._json({"name": "tester", "type": "user", "orgs": []})
        return self._fail(404, "", "no such page")

    def _allowed(self, name: str, kind: str, *, is_file: bool = False) -> Repository | None:
        repository = self.state.repositories.get((kind, name))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token != TOKEN:
            self._fail(
                401,
                "",
                f"Invalid credentials in Authorization header {token}"
                if name == "echo/token"
                else "Invalid credentials in Authorization header",
            )
        elif repository is None:
            self._fail(404 if token else 401, "RepoNotFound", "Repository not found")
        elif repository.access == "private" and not token:
            self._fail(401, "RepoNotFound", "Repository not found")
        elif repository.access == "gated" and is_file:
            self._fail(403, "GatedRepo", f"Access to {name} is restricted")
        else:
            return repository
        return None

    def _describe(self, name: str, repository: Repository, part: str | None, revision: str) -> None:
        commit = repository.resolve(revision)
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = repository.commits[commit]
        if part == "tree":
            entries = [self._entry(path, content) for path, content in sorted(files.items())]
            return self._json(entries)
        siblings = [{"rfilename": path, "size": len(files[path])} for path in sorted(files)]
        facts = {
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": repository.access == "private",
            "tags": [],
            "downloads": 0,
            "likes": 0,
        }
        return self._json(facts | {"siblings": siblings, "gated": "auto" if repository.access == "gated" else False})

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry | ({"lfs": lfs} if is_large(path) else {})

    def _file(self, repository: Repository, revision: str, file: str) -> None:
        commit = repository.resolve(revision)
        if commit is None:
            return self._fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repository.commits[commit]:
            return self._fail(404, "EntryNotFound", "Entry not found")
        content = repository.commits[commit][file]
        headers = {"ETag": f'"{_etag(file, content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        start = 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if start else 200)
        for key, value in (headers | {"Content-Length": str(len(content) - start)}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        cut = self.state.cut_after
        if cut is not None and len(content) - start > cut:
            self.state.cut_after = None
            self.wfile.write(content[start : start + cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return None
        if (hold := self.state.hold) and is_large(file):
            self.state.hold = None
            self.wfile.write(content[start : len(content) // 2])
            self.wfile.flush()
            hold.wait(30)
            start = len(content) // 2
        self.wfile.write(content[start:])
        return None

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.state.requests.append(("POST", self.path, dict(self.headers)))
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._fail(401, "", "Invalid credentials in Authorization header")
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/(.+)", path):
            kind, name, action, revision = found.groups()
            if action == "preupload":
                files = json.loads(body)["files"]
                return self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
            return self._commit(name, kind[:-1], [json.loads(line) for line in body.splitlines()], revision)
        return self._fail(404, "", f"no such page {parse_qs(path)}")

    def _create(self, body: dict[str, Any]) -> None:
        name = f"{body.get('organization') or 'tester'}/{body['name']}"
        kind = body.get("type", "model")
        if (kind, name) in self.state.repositories:
            return self._fail(409, "", "You already created this repo")
        repository = self.state.repository(name, kind)
        repository.access = "private" if body.get("private") or body.get("visibility") == "private" else "open"
        return self._json({"url": f"{self.state.url}/{name}", "id": name, "name": name})

    def _commit(self, name: str, kind: str, operations: list[dict[str, Any]], revision: str) -> None:
        repository = self.state.repository(name, kind)
        files = dict(repository.commits.get(repository.branches.get(revision, ""), {}))
        for operation in operations:
            if operation["key"] == "file":
                files[operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        self.state.uploads.append((name, operations))
        commit = repository.commit(files, revision)
        return self._json(
            {"success": True, "commitOid": commit, "commitUrl": f"{self.state.url}/{name}/commit/{commit}", "hookOutput": ""}
        )

    def _json(self, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fail(self, status: int, code: str, message: str) -> None:
        content = json.dumps({"error": message}).encode()
        self.send_response(status)
        for key, value in {"X-Error-Code": code, "X-Error-Message": message, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
