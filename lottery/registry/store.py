"""The tracking store: how it is reached, and what it is called."""

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from lottery.errors import InputError, MachineError, hide_password
from lottery.files.locks import process_lock
from lottery.spec import json_sha256

if TYPE_CHECKING:  # it brings torch and transformers, which a report of runs does not need
    pass

Client: TypeAlias = MlflowClient
STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)  # requests' own are OSErrors


def connect(read_only: bool = False) -> MlflowClient:
    """A client of the tracking store that MLflow's own environment variables name. Raises MachineError where it is away.

    Only to read, none is made: InputError where there is none yet.
    """
    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    move_password()
    uri = mlflow.get_tracking_uri()
    path = uri.removeprefix("sqlite:///")
    if read_only and path != uri and not os.path.exists(path):
        raise InputError(
            f"there is no tracking store {path}; run this in the folder of the project's mlflow.db, "
            f"or set MLFLOW_TRACKING_URI"
        )
    try:
        with schema_lock(uri), few_retries():
            client = MlflowClient()  # touches it already
            client.search_experiments(max_results=1)
    except STORE_ERRORS as e:
        if isinstance(e, MlflowException) and e.get_http_status_code() in (401, 403):
            raise MachineError(
                f"the tracking server {uri} refuses access (HTTP {e.get_http_status_code()}); set MLFLOW_TRACKING_USERNAME "
                f"and MLFLOW_TRACKING_PASSWORD to a user and a password that it knows"
            ) from e
        raise MachineError(
            f"the tracking store {hide_password(uri)} is not usable: {first_line(e)}; "
            f"set MLFLOW_TRACKING_URI, or start the server that it names"
        ) from e
    return client


def move_password() -> None:
    """A user and password in the URI of a server go where MLflow looks for them too: its errors print the URI.

    Raises InputError for a password that is no part of a URI as it stands.
    """
    uri = mlflow.get_tracking_uri()
    if match := re.fullmatch(r"(https?://)([^/@:]+):([^/]+)@([^/@]+.*)", uri):
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(match[2])
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(match[3])
        uri = match[1] + match[4]
        if os.environ.get("MLFLOW_TRACKING_URI") == match[0]:
            os.environ["MLFLOW_TRACKING_URI"] = uri
        if mlflow.get_tracking_uri() == match[0]:  # by mlflow.set_tracking_uri
            mlflow.set_tracking_uri(uri)
    if uri.startswith("http") and hide_password(uri) != uri:
        raise InputError(
            f"MLFLOW_TRACKING_URI={hide_password(uri)}: its user or password is not usable there; set "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """To see whether a server is there at all, MLflow's own minutes of patience are too long."""
    few = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    ours = {k: v for k, v in few.items() if k not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def store_name() -> str:
    return hide_password(mlflow.get_tracking_uri())


def first_line(e: BaseException) -> str:
    return hide_password((str(e).strip() or type(e).__name__).splitlines()[0])[:300]


@contextlib.contextmanager
def schema_lock(uri: str) -> Iterator[None]:
    """Processes that meet on a fresh SQLite file crash in each other's schema migration: let one go first, and the others
    wait until it is through. The file has its first tables long before that, so that they alone say nothing."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        yield
        return
    with process_lock(json_sha256(os.path.abspath(path))[:16]):
        if not has_schema(path):
            yield
            return
    yield


def has_schema(path: str) -> bool:
    if not os.path.exists(path):
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return bool(db.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchone())
    except sqlite3.Error:
        return False


def store_digest() -> str:
    """Names the store. A server that is a job of a cluster (slurm/server.sbatch) has another address each time it starts:
    it goes by its folder."""
    uri = mlflow.get_tracking_uri().rstrip("/")
    with contextlib.suppress(OSError, KeyError):
        folder = Path(os.environ["LOTTERY_SERVER"]).expanduser().resolve()
        if (folder / "address").read_text().strip().rstrip("/") == uri:
            return json_sha256(str(folder))[:16]
    return json_sha256(uri)[:16]


def every_page(search: Callable[..., Any]) -> list[Any]:
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        if not (token := page.token):
            return found
