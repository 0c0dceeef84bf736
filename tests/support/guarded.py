"""A real `mlflow server` behind a door that asks for a user and a password, as a reverse proxy of a team's server does."""

import base64
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.servers import mlflow_server

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
    with mlflow_server(folder) as server:
        door = Door(server.port, folder)
        threading.Thread(target=door.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield door
        finally:
            door.shutdown()
            door.server_close()
