"""A hub on this machine: the HTTP that huggingface_hub and datasets speak, over folders, with faults to switch on."""

import hashlib
import json
import re
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

REPO = r"(?P<repo>[^/]+/[^/]+)"
INFO = re.compile(rf"/api/(?P<kind>models|datasets)/{REPO}(/revision/(?P<revision>[^/]+))?")
TREE = re.compile(rf"/api/(?P<kind>models|datasets)/{REPO}/tree/(?P<revision>[^/]+)(/(?P<path>.*))?")
FILE = re.compile(rf"/((?P<kind>datasets)/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Fault:
    """What goes wrong with a request whose path holds some word: an answer, a silence, or a cut in the middle."""

    status: int = 0
    code: str = ""  # the hub's word beside the status
    hang_s: float = 0
    drop_after: int = 0  # bytes of the answer's body
    times: int = 1_000_000
    method: str = "HEAD GET"


@cache
def etag(path: Path) -> str:
    """As the hub has it: the sha256 of a large file, git's own hash of a small one."""
    content = path.read_bytes()
    if path.suffix in (".safetensors", ".parquet"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_of(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return hashlib.sha1("".join(f"{p.relative_to(folder)} {etag(p)}\n" for p in files).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """`repos`: (models or datasets, ORG/NAME) -> branch -> folder. `faults`: part of a path -> Fault."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[tuple[str, str], dict[str, Path]] = {}
        self.faults: dict[str, Fault] = {}
        self.gated: set[str] = set()
        self.asked: list[str] = []  # "GET /path", and " bytes=N-" where a range was asked for
        self.served: Counter[str] = Counter()  # bytes sent, by the file's name
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def add(self, repo: str, folder: Path, branch: str = "main", kind: str = "models") -> str:
        """Serve a folder as a branch of a repository. Returns its commit."""
        self.repos.setdefault((kind, repo), {})[branch] = folder
        return commit_of(folder)

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def send(self, body: bytes, status: int = 200, **headers: str) -> None:
        """The answer; where self.cut is not 0, only so many bytes of its body, and the end of the connection."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: self.cut] if self.cut else body)
        if self.cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        self.send(b"", status, X_Error_Code=code, **headers)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, hub = urlsplit(self.path).path, self.server
        asked_range = self.headers.get("Range", "")
        hub.asked.append(f"{self.command} {path} {asked_range}".strip())
        self.cut = 0
        for word, fault in hub.faults.items():
            if word in path and self.command in fault.method and fault.times > 0:
                fault.times -= 1
                self.cut = fault.drop_after
                if fault.status:
                    return self.refuse(fault.status, fault.code)
                if fault.hang_s:
                    hub.closing.wait(fault.hang_s)
                    self.close_connection = True
                    return None
        found = FILE.fullmatch(path) or TREE.fullmatch(path) or INFO.fullmatch(path)
        if not found:
            return self.refuse(404)
        kind, repo = found["kind"] or "models", found["repo"]
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", "good-token", "other-token"):
            return self.refuse(401, X_Error_Message="Invalid credentials in Authorization header")
        if (kind, repo) not in hub.repos:
            return self.refuse(404 if token else 401, "RepoNotFound")  # as the hub: 401 until one is logged in
        if repo in hub.gated and found.re is FILE and token != "good-token":
            return self.refuse(403 if token else 401, "GatedRepo")
        commits = {name: (commit_of(folder), folder) for name, folder in hub.repos[kind, repo].items()}
        commits |= {commit: (commit, folder) for commit, folder in commits.values()}
        revision = unquote(found["revision"] or "main")
        if revision not in commits:
            return self.refuse(404, "RevisionNotFound")
        commit, folder = commits[revision]
        if found.re is FILE:
            return self.file(folder / unquote(found["path"]), commit, asked_range)
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        if found.re is INFO:
            return self.json({"id": repo, "sha": commit, "tags": [], "siblings": [{"rfilename": n} for n in names]})
        below = unquote(found["path"] or "")
        names = [n for n in names if n.startswith(below)]
        files = [{"type": "file", "path": n, "size": (folder / n).stat().st_size, "oid": commit} for n in names]
        folders = sorted({n.rpartition("/")[0] for n in names} - {"", below})
        return self.json([*({"type": "directory", "path": f, "size": 0, "oid": commit} for f in folders), *files])

    def json(self, content: Any) -> None:
        self.send(json.dumps(content).encode(), Content_Type="application/json")

    def file(self, path: Path, commit: str, asked_range: str) -> None:
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", X_Repo_Commit=commit)
        body = path.read_bytes()
        headers = {"ETag": f'"{etag(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        status = 200
        if asked_range:
            start = int(asked_range.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        if self.command == "GET":  # counted first: once the last byte is out, the client's test goes on
            self.server.served[path.name] += len(body[: self.cut] if self.cut else body)
        self.send(body, status, **headers)
        return None


def use(monkeypatch: pytest.MonkeyPatch, url: str, home: Path, offline: bool = False, seconds: int = 10) -> None:
    """This process as if huggingface_hub and datasets were imported with HF_ENDPOINT=url and HF_HOME=home."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", seconds)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", seconds)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
