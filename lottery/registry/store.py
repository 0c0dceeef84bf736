"""This file connects to the tracking store and names it."""

import contextlib
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlparse

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lottery.errors import InputError, MachineError, hide_password
from lottery.files.locks import process_lock
from lottery.progress import say
from lottery.registry.logged_models import local_path
from lottery.spec import json_sha256

Client: TypeAlias = MlflowClient
STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)  # the errors of the package requests are OSErrors

LOG_LEVELS = {
    "alembic": logging.WARNING,
    "mlflow": logging.WARNING,
    "mlflow.store.db.utils": logging.CRITICAL,  # it logs each error of a database with a traceback, and raises it too
    "urllib3": logging.ERROR,
}


def connect(read_only: bool = False) -> MlflowClient:
    """Returns a client of the tracking store that MLflow's environment variables name.

    Raises MachineError if the store does not answer. With `read_only` a missing SQLite file is not created; InputError
    is raised instead.
    """
    for name, level in LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    move_password()
    uri = mlflow.get_tracking_uri()
    path = sqlite_path(uri)
    if read_only and path is not None and not os.path.exists(path):
        raise InputError(
            f"there is no tracking store {path}; run this in the folder of the project's mlflow.db, "
            f"or set MLFLOW_TRACKING_URI"
        )
    if not read_only and path is not None:
        check_writable(path)
    try:
        with schema_lock(uri), few_retries():
            client = MlflowClient()  # this already reaches the store
            experiments = client.search_experiments(max_results=1)
    except ImportError as e:
        raise InputError(
            f"MLFLOW_TRACKING_URI={hide_password(uri)}: its driver is not installed ({e}); install it into this environment, "
            f"or name another one in the URI (mysql+pymysql://..., postgresql+psycopg2://...)"
        ) from e
    except STORE_ERRORS as e:
        if "Invalid Host header" in str(e):
            raise MachineError(
                f"the tracking server {uri} answers only to the host names that it was started with (HTTP 403, Invalid Host "
                f"header); start it with --allowed-hosts {urlparse(uri).netloc}, or set MLFLOW_TRACKING_URI to such a name"
            ) from e
        if isinstance(e, MlflowException) and e.get_http_status_code() in (401, 403):
            raise MachineError(
                f"the tracking server {uri} refuses access (HTTP {e.get_http_status_code()}); set MLFLOW_TRACKING_USERNAME "
                f"and MLFLOW_TRACKING_PASSWORD to a user and a password that it knows"
            ) from e
        raise MachineError(
            f"the tracking store {hide_password(uri)} is not usable: {first_line(e)}; "
            f"set MLFLOW_TRACKING_URI, or start the server that it names"
        ) from e
    if path is not None:
        warn_if_moved(path, [e.artifact_location for e in experiments])
    return client


def warn_if_moved(path: str, locations: list[str]) -> None:
    """Warns if the artifacts of an SQLite store lie beside it, but not where MLflow looks for them.

    MLflow records absolute paths, and makes a folder that is missing: new tickets would lie apart from the old ones.
    """
    beside = Path(path).absolute().parent / "mlruns"
    for place in [here.parent for location in locations if (here := local_path(location)) is not None]:
        if beside.is_dir() and not place.exists():
            say(
                f"warning: the tracking store {path} was moved: MLflow looks for its artifacts in {place}, which is not "
                f"there; move it back, or make that path a link to {beside}"
            )


def move_password() -> None:
    """Moves user and password from a server's URI to the variables that MLflow also reads, as its errors print the URI.

    Raises InputError if the URI holds a user or password that cannot be read from it.
    """
    uri = mlflow.get_tracking_uri()
    if match := re.fullmatch(r"(https?://)([^/@:]+):([^/]+)@([^/@]+.*)", uri):
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(match[2])
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(match[3])
        uri = match[1] + match[4]
        if os.environ.get("MLFLOW_TRACKING_URI") == match[0]:
            os.environ["MLFLOW_TRACKING_URI"] = uri
        if mlflow.get_tracking_uri() == match[0]:  # a caller set it by mlflow.set_tracking_uri
            mlflow.set_tracking_uri(uri)
    if uri.startswith("http") and hide_password(uri) != uri:
        raise InputError(
            f"MLFLOW_TRACKING_URI={hide_password(uri)}: its user or password cannot be read from a URI; set "
            f"MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """Makes MLflow give up soon: its own retries take minutes, too long to find out whether a server answers at all."""
    few = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
    ours = {k: v for k, v in few.items() if k not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def store_name() -> str:
    """Returns the tracking URI without a password."""
    return hide_password(mlflow.get_tracking_uri())


def first_line(e: BaseException) -> str:
    """Returns the first line of an error without a password, at most 300 characters."""
    return hide_password((str(e).strip() or type(e).__name__).splitlines()[0])[:300]


def sqlite_path(uri: str) -> str | None:
    """Returns the path of the file that a SQLite store's URI names, and None for any other store.

    SQLAlchemy reads the URI here as it does for MLflow: a space is written as %20 in MLflow's default URI.
    """
    try:
        url = make_url(uri)
    except ArgumentError:  # the path of a folder is no URI
        return None
    return url.database if url.get_backend_name() == "sqlite" and url.database != ":memory:" else None


def check_writable(path: str) -> None:
    """Raises InputError for an SQLite file that this user cannot write. SQLite also makes a journal beside the file."""
    for place in (path, Path(path).absolute().parent):
        if os.path.exists(place) and not os.access(place, os.W_OK):
            raise InputError(
                f"MLFLOW_TRACKING_URI: there is no permission to write {place}, which the tracking store {path} needs; "
                f"set it to another store, or to a server (mlflow server), which several users can share"
            )


@contextlib.contextmanager
def schema_lock(uri: str) -> Iterator[None]:
    """Lets one process create the tables of a new SQLite file while the others wait.

    Without this lock the processes would crash in each other's schema migration. The first tables appear long before
    the migration ends, so their existence alone does not show that it is done.
    """
    path = sqlite_path(uri)
    with contextlib.ExitStack() as stack:
        if path is not None:
            try:
                stack.enter_context(process_lock(json_sha256(os.path.abspath(path))[:16]))
            except (InputError, MachineError):  # LOTTERY_HOME cannot be written; what only reads does not need it
                if not has_schema(path):
                    raise
            if not has_schema(path):
                check_default_artifacts()
                if not os.path.exists(path):
                    make_store(uri)
                yield
                say(f"new tracking store: {os.path.abspath(path)}")
                return
    yield


def make_store(uri: str) -> None:
    """Makes a new SQLite file with all of MLflow's tables, or none at all: MLflow cannot go on where it was stopped.

    The tables come in many migrations. A full disk or a signal in the middle leaves a file that no command can use.
    """
    head, _, name = uri.rpartition("/")
    fresh_uri = f"{head}/.{os.getpid()}-{name}"
    path, fresh = sqlite_path(uri), sqlite_path(fresh_uri)
    assert path and fresh
    try:
        MlflowClient(fresh_uri).search_experiments(max_results=1)
        os.rename(fresh, path)
    finally:
        for left in (fresh, f"{fresh}-journal"):
            Path(left).unlink(missing_ok=True)


def check_default_artifacts() -> None:
    """Raises InputError if MLflow cannot make a store here, as its default experiment's artifacts lie in this folder."""
    folder = str(Path.cwd())
    if "'" in folder:
        raise InputError(
            f"folder {folder}: MLflow cannot make a tracking store in a folder whose name has a quote ('); "
            f"run this in another folder"
        )


def has_schema(path: str) -> bool:
    """Returns whether an SQLite file holds MLflow's tables."""
    if not os.path.exists(path):
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(os.path.abspath(path))}?mode=ro", uri=True)) as db:
            return bool(db.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchone())
    except sqlite3.Error:
        return False


def store_digest() -> str:
    """Returns 16 hexadecimal digits that name the store.

    A server that is a cluster's job (slurm/server.sbatch) gets another address at each start, so its folder names it.
    """
    uri = mlflow.get_tracking_uri().rstrip("/")
    with contextlib.suppress(OSError, KeyError):
        folder = Path(os.environ["LOTTERY_SERVER"]).expanduser().resolve()
        if (folder / "address").read_text().strip().rstrip("/") == uri:
            return json_sha256(str(folder))[:16]
    return json_sha256(uri)[:16]


def every_page(search: Callable[..., Any]) -> list[Any]:
    """Returns the results of all pages of one of MLflow's searches."""
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        if not (token := page.token):
            return found
