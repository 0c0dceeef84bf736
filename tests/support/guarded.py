"""A real `mlflow server` behind a door that asks for a user and a password, as a reverse proxy of a team's server does."""

import base64
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

USER, PASSWORD = "ada", "open/sesame@7"  # with what a URI would take for its own


class Door(ThreadingHTTPServer):
    """Lets through who says `user:password`, answers others 401; those named in `barred` 403."""

    daemon_threads = True

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Visitor)
        self.behind, self.folder = port, folder
        self.barred: set[str] = set()
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Visitor(BaseHTTPRequestHandler):
    server: Door
    protocol_version = "HTTP/1.1"

    def serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(self.path)
        kind, _, said = (self.headers.get("Authorization") or "").partition(" ")
        user, _, password = base64.b64decode(said).decode().partition(":") if kind == "Basic" else ("", "", "")
        if user in self.server.barred:
            self.answer(403, b"Permission denied")
        elif (user, password) != (USER, PASSWORD):
            self.answer(401, b"You are not authenticated.", {"WWW-Authenticate": 'Basic realm="mlflow"'})
        else:
            behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=120)
            behind.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k != "Host"})
            answer = behind.getresponse()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "content-length")}
            self.answer(answer.status, answer.read(), headers)
            behind.close()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = serve

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def guarded(folder: Path) -> Iterator[Door]:
    """Its artifacts lie in `folder/artifacts`, and go through it to clients."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{folder}/server.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    with open(folder / "server.log", "wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, cwd=folder,
            env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true"},
        )  # fmt: skip
    door = Door(port, folder)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert server.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        else:
            raise AssertionError((folder / "server.log").read_text())
        threading.Thread(target=door.serve_forever, daemon=True).start()
        yield door
    finally:
        door.shutdown()
        door.server_close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
