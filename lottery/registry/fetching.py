"""A registered ticket as a folder on this machine, if it is what was registered. With tracking.py, registry.py and serve.py
all that says mlflow.

A logged model's folder holds code beside the ticket, which `mlflow.pyfunc` runs. Here nothing of it is read or downloaded.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.errors import InputError, did_you_mean, hide_password
from lottery.files.atomic import atomic_folder, atomic_write
from lottery.files.hashes import file_fingerprint, file_sha256
from lottery.files.home import home
from lottery.files.locks import process_lock
from lottery.progress import progress_bar
from lottery.registry.logged_models import local_path, logged_model_id
from lottery.ticket.folder import LocalTicket, TicketFolder
from lottery.ticket.record import RECORD

TICKET = "data/ticket"  # where it lies in a logged model
# What lottery, and MLflow for it, writes there. Without an ending: MLflow's description, and its note at loading.
TOP = ("MLmodel", "registered_model_meta")
KINDS = (".json", ".yaml", ".txt")
TICKET_KINDS = (".json", ".safetensors", ".txt", ".jinja", ".model")


def fetch(client: MlflowClient, uri: str) -> LocalTicket:
    """models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID -> its ticket folder, in place in a local store, else
    downloaded once. Raises InputError where the registry holds no such ticket, or its store another than was registered."""
    model = resolve_uri(client, uri)
    if "sha256" not in model.tags:
        raise InputError(
            f"ticket={uri}: it was registered without the hash of its {RECORD}, by an earlier lottery; prune it again"
        )
    here = local_path(model.artifact_location)
    if here is not None and not here.is_dir():
        raise InputError(f"ticket={uri}: its files should lie in {here}, where this machine has none")
    for path in list_local_files(here) if here is not None else list_remote_files(client, model.model_id):
        if not is_expected_file(path):
            raise altered_error(model, uri, f"{path!r} is no part of a registered ticket")
    if here is not None:
        folder = here / TICKET
        check_record(folder, model, uri)
    else:
        folder = download_ticket(model, uri)
    return LocalTicket(folder, model.model_id, dict(model.params or {}))


def resolve_uri(client: MlflowClient, uri: str) -> Any:
    """The logged model that a URI means. Raises InputError where there is none, or one that was exchanged."""
    where = uri.removeprefix("models:/")
    ticket = None
    try:
        if re.fullmatch(r"m-[0-9a-f]+", where):
            model_id: str | None = where
        else:
            if match := re.fullmatch(r"([^/@]+)@([^/@]+)", where):
                version = client.get_model_version_by_alias(match[1], match[2])
            elif match := re.fullmatch(r"([^/@]+)/(\d+)", where):
                version = client.get_model_version(match[1], match[2])
            else:
                raise InputError(f"ticket={uri}: give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID")
            model_id, ticket = logged_model_id(version.source), version.tags.get("ticket")
        if model_id is None:
            raise InputError(f"ticket={uri}: that version is no ticket; it was not registered by lottery")
        model = client.get_logged_model(model_id)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        store = hide_password(mlflow.get_registry_uri())
        raise InputError(f"ticket={uri}: not in the registry {store}; {suggest_known(client, where)}") from e
    if ticket is not None and ticket != model.tags.get("ticket"):
        raise InputError(
            f"ticket={uri}: that version was the ticket {ticket}, its source models:/{model_id} is another one "
            f"({model.tags.get('ticket', 'none')}); delete that version and prune again"
        )
    return model


def suggest_known(client: MlflowClient, where: str) -> str:
    """What there is, for who named what there is not."""
    name, names = re.split("[/@]", where)[0], [m.name for m in client.search_registered_models(max_results=50)]
    if name in names:
        has = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
        return f"it has the versions {', '.join(map(str, has))}"
    return did_you_mean(name, names) if names else "no model is registered there"


def list_local_files(folder: Path) -> Iterator[str]:
    """Every file below a folder, by its path from there. Links, and what is no file, say so: they belong to no ticket."""
    for entry in os.scandir(folder):
        if entry.is_symlink():
            yield f"{entry.name} (a link)"
        elif entry.is_dir():
            yield from (f"{entry.name}/{below}" for below in list_local_files(Path(entry.path)))
        else:
            yield entry.name if entry.is_file() else f"{entry.name} (no file)"


def list_remote_files(client: MlflowClient, model_id: str, below: str | None = None) -> Iterator[str]:
    """The same of a logged model behind a server."""
    for entry in client.list_logged_model_artifacts(model_id, below):
        if entry.is_dir:
            yield from list_remote_files(client, model_id, entry.path)
        else:
            yield entry.path


def is_expected_file(path: str) -> bool:
    """Whether lottery writes such a file there. (The names in the ticket's own folder are checked against its record.)"""
    folder, _, name = path.rpartition("/")
    ending = PurePosixPath(name).suffix
    if name.startswith(".") or ".." in path.split("/") or path.startswith("/"):
        return False
    if folder == TICKET:
        return ending in TICKET_KINDS
    if folder.startswith("code/"):  # Python itself caches there what it compiles
        return ending == ".py" or (ending == ".pyc" and folder.endswith("/__pycache__"))
    return not folder and (name in TOP or ending in KINDS)


def check_record(folder: Path, model: Any, uri: str) -> None:
    """Raises InputError where ticket.json, which holds the hashes of all else, is not the one that was registered."""
    record = folder / RECORD
    if not record.is_file() or file_sha256(record) != model.tags["sha256"]:
        raise altered_error(model, uri, f"its {RECORD} is not the one that was registered")


def altered_error(model: Any, uri: str, what: str) -> InputError:
    return InputError(
        f"ticket={uri}: {what}; somebody has altered {hide_password(model.artifact_location)}: restore it, or delete that "
        f"version and prune again"
    )


def download_ticket(model: Any, uri: str) -> Path:
    """A copy of the ticket under LOTTERY_HOME, every hash checked when it came. One that was touched since is checked
    again, and where it is damaged fetched anew."""
    if not re.fullmatch(r"m-[0-9a-f]+", model.model_id):  # it becomes a path, and a server said it
        raise InputError(
            f"ticket={uri}: the store calls its model {model.model_id!r}, which is no id; register it again"
        )
    folder = home() / "fetched" / model.model_id
    ticket, marks = folder / "ticket", folder.with_suffix(".json")
    with process_lock(f"fetched-{model.model_id}"):
        if folder.exists() and not (is_untouched(ticket, marks) or is_intact(ticket, model, uri)):
            shutil.rmtree(folder)
        with atomic_folder(folder, "LOTTERY_HOME") as partial:
            if partial is not None:
                source = f"{model.artifact_location}/{TICKET}"
                with progress_bar(f"fetch {uri}"):
                    mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(partial))
                verify_copy(partial / "ticket", model, uri)
        atomic_write(marks, json.dumps(file_stamps(ticket), indent=1).encode())
    return ticket


def verify_copy(ticket: Path, model: Any, uri: str) -> None:
    """Raises InputError where a copy differs in anything from what was registered. (Masks lie over a base that may not be
    at hand: their bits are checked with it, at loading.)"""
    check_record(ticket, model, uri)
    try:
        stored = TicketFolder(ticket)
        if not stored.is_mask_only:
            stored.verify_hashes()
    except InputError as e:
        raise altered_error(model, uri, str(e).removeprefix(f"ticket={ticket}: ").split(";")[0]) from e


def is_intact(ticket: Path, model: Any, uri: str) -> bool:
    try:
        verify_copy(ticket, model, uri)
    except InputError:
        return False
    return True


def file_stamps(ticket: Path) -> dict[str, str]:
    """Size, times and inode of every file: what changes when somebody writes to one."""
    return {path.name: file_fingerprint(path) for path in sorted(ticket.iterdir())}


def is_untouched(ticket: Path, marks: Path) -> bool:
    try:
        found: Iterable[Any] = json.loads(marks.read_text(encoding="utf-8"))
        return found == file_stamps(ticket)
    except (OSError, ValueError):
        return False
