"""This file gets a registered ticket as a folder on this machine and checks that it is what was registered.

A logged model's folder also holds code, which `mlflow.pyfunc` runs. This file never reads or downloads that code.
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
from lottery.registry.logged_models import TICKET, local_path, logged_model_id
from lottery.ticket.folder import LocalTicket, TicketFolder
from lottery.ticket.record import RECORD

# These are the files that lottery writes there, or MLflow for lottery. The two of TOP have no suffix: MLflow's
# description of the model, and the note that MLflow writes when it loads the model.
TOP = ("MLmodel", "registered_model_meta")
KINDS = (".json", ".yaml", ".txt")
TICKET_KINDS = (".json", ".safetensors", ".txt", ".jinja", ".model")


def fetch(client: MlflowClient, uri: str) -> LocalTicket:
    """Returns the ticket that models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID names.

    A ticket in a local store is used in place; any other is downloaded once. Raises InputError if the registry does not
    hold the ticket, or if the stored files are not those that were registered.
    """
    model = resolve_uri(client, uri)
    if "sha256" not in model.tags:
        raise InputError(
            f"ticket={uri}: an earlier lottery registered it without the hash of its {RECORD}; prune it again"
        )
    here = local_path(model.artifact_location)
    if here is not None and not here.is_dir():
        raise InputError(
            f"ticket={uri}: its files should be in {here}, but this machine has no such folder; if "
            f"the store was moved, move it back, or make the old path a link to the new one"
        )
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
    """Returns the logged model that a URI names. Raises InputError if there is none, or if another one replaced it."""
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
            f"ticket={uri}: that version was the ticket {ticket}, but its source models:/{model_id} is another ticket "
            f"({model.tags.get('ticket', 'none')}); delete that version and prune again"
        )
    return model


def suggest_known(client: MlflowClient, where: str) -> str:
    """Returns the versions or the similar names that the registry holds, for a person who named something unknown."""
    name, names = re.split("[/@]", where)[0], [m.name for m in client.search_registered_models(max_results=50)]
    if name in names:
        has = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
        versions = f"it has the versions {', '.join(map(str, has))}"
        if where == f"{name}@winner":
            versions += "; none of them won on the whole default text with the default window and tolerance"
        return versions
    return did_you_mean(name, names) if names else "no model is registered there"


def list_local_files(folder: Path) -> Iterator[str]:
    """Yields the relative path of every file below a folder. Links and special files are marked: no ticket has any."""
    for entry in os.scandir(folder):
        if entry.is_symlink():
            yield f"{entry.name} (a link)"
        elif entry.is_dir():
            yield from (f"{entry.name}/{below}" for below in list_local_files(Path(entry.path)))
        else:
            yield entry.name if entry.is_file() else f"{entry.name} (no file)"


def list_remote_files(client: MlflowClient, model_id: str, below: str | None = None) -> Iterator[str]:
    """Yields the relative path of every file of a logged model on a server."""
    for entry in client.list_logged_model_artifacts(model_id, below):
        if entry.is_dir:
            yield from list_remote_files(client, model_id, entry.path)
        else:
            yield entry.path


def is_expected_file(path: str) -> bool:
    """Returns whether lottery writes a file of this kind at this path.

    The names in the ticket's own folder are checked against its record elsewhere.
    """
    folder, _, name = path.rpartition("/")
    ending = PurePosixPath(name).suffix
    if name.startswith(".") or ".." in path.split("/") or path.startswith("/"):
        return False
    if folder == TICKET:
        return ending in TICKET_KINDS
    if folder.startswith("code/"):  # Python itself caches compiled code there
        return ending == ".py" or (ending == ".pyc" and folder.endswith("/__pycache__"))
    return not folder and (name in TOP or ending in KINDS)


def check_record(folder: Path, model: Any, uri: str) -> None:
    """Raises InputError if ticket.json is not the one that was registered. It holds the hashes of all other files."""
    record = folder / RECORD
    if not record.is_file() or file_sha256(record) != model.tags["sha256"]:
        raise altered_error(model, uri, f"its {RECORD} is not the one that was registered")


def altered_error(model: Any, uri: str, what: str) -> InputError:
    """Returns the error for stored files that differ from the registered ones; `what` names the difference."""
    return InputError(
        f"ticket={uri}: {what}; somebody has altered {hide_password(model.artifact_location)}: restore it, or delete that "
        f"version and prune again"
    )


def download_ticket(model: Any, uri: str) -> Path:
    """Returns a copy of the ticket under LOTTERY_HOME. Every hash is checked after the download.

    A copy that was changed since then is checked again; a damaged copy is downloaded again.
    """
    if not re.fullmatch(r"m-[0-9a-f]+", model.model_id):  # the id comes from a server and becomes a part of a path
        raise InputError(
            f"ticket={uri}: the store calls its model {model.model_id!r}, which is no model id; register it again"
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
    """Raises InputError if a copy differs in anything from what was registered.

    The bits of masks are checked when the ticket is loaded: that needs the base, which may not be on this machine.
    """
    check_record(ticket, model, uri)
    try:
        stored = TicketFolder(ticket)
        if not stored.is_mask_only:
            stored.verify()
    except InputError as e:
        raise altered_error(model, uri, str(e).removeprefix(f"ticket={ticket}: ").split(";")[0]) from e


def is_intact(ticket: Path, model: Any, uri: str) -> bool:
    try:
        verify_copy(ticket, model, uri)
    except InputError:
        return False
    return True


def file_stamps(ticket: Path) -> dict[str, str]:
    """Returns the size, the times and the inode of every file. They change when somebody writes to the file."""
    return {path.name: file_fingerprint(path) for path in sorted(ticket.iterdir())}


def is_untouched(ticket: Path, marks: Path) -> bool:
    try:
        found: Iterable[Any] = json.loads(marks.read_text(encoding="utf-8"))
        return found == file_stamps(ticket)
    except (OSError, ValueError):
        return False
