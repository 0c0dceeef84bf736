"""Real servers for the tests: PostgreSQL, and MLflow's own in front of a database and a folder of artifacts."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.store import new_store

IN_CI = bool(os.environ.get("LOTTERY_CI"))  # set by .ci/run, which installs all of it


def needed(what: str, *places: str) -> str:
    """The path of a program; without it the test is skipped, and in CI fails."""
    for place in places:
        for path in sorted(Path("/").glob(place.lstrip("/"))):
            if os.access(path, os.X_OK):
                return str(path)
    if (found := shutil.which(what)) is not None:
        return found
    if IN_CI:
        pytest.fail(f"{what} is not installed")
    pytest.skip(f"needs {what}")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL of its own; the URL of its database, as MLflow takes it."""
    binaries = Path(needed("initdb", "/usr/lib/postgresql/*/bin/initdb")).parent
    port = free_port()
    as_user: dict[str, Any] = {}
    data = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's folders are its own user's alone
    if os.geteuid() == 0:  # it refuses to be root
        user = pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def call(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **as_user)
        assert done.returncode == 0, done.stderr + done.stdout

    control = (str(binaries / "pg_ctl"), "-D", str(data / "data"), "-w")
    try:
        call(str(binaries / "initdb"), "--no-sync", "-A", "trust", "-U", "mlflow", "-D", str(data / "data"))
        options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
        call(*control, "-l", str(data / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
        finally:
            call(*control, "-m", "immediate", "stop")
    finally:
        shutil.rmtree(data, ignore_errors=True)


class Server:
    """`mlflow server` over a database, by default a SQLite file of its own; artifacts go through it into a folder
    (`served`), or lie at a place that clients reach."""

    def __init__(
        self, folder: Path, database: str | None = None, *, served: bool = True, more: tuple[str, ...] = ()
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.artifacts = folder / "artifacts"
        self.log = folder / f"server-{self.port}.log"
        where = ["--artifacts-destination", str(self.artifacts)]
        if not served:
            where = ["--no-serve-artifacts", "--default-artifact-root", str(self.artifacts)]
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        if database is None:
            database = new_store(folder / "server.db", "mlflow-artifacts:" if served else str(self.artifacts))
        self.command += ["--workers", "1", "--backend-store-uri", database, *where, *more]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.log.parent,
                # without the eight processes beside it that judge traces it is there, and gone, in a fraction of the time
                env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.2)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        """As if the machine had gone."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(
    folder: Path, database: str | None = None, *, served: bool = True, more: tuple[str, ...] = ()
) -> Iterator[Server]:
    server = Server(folder, database, served=served, more=more)
    try:
        yield server
    finally:
        server.kill()
