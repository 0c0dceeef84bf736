"""This file stores a ticket as a logged model and registers it as a model version; fetching.py gets it back."""

import contextlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelInput, LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

from lottery.errors import InputError
from lottery.files.hashes import file_sha256
from lottery.registry import views
from lottery.registry.conflicts import repeat_on_conflict
from lottery.registry.logged_models import TICKET, delete_model, find_model, local_path, logged_model_id
from lottery.registry.runs import Run
from lottery.spec import short_base
from lottery.ticket.folder import TicketFolder
from lottery.ticket.record import MEASUREMENTS, RECORD

# A served ticket needs these packages, in the versions that are installed here. The suffix of a local build (+cpu) is
# removed, because no package index has such versions.
PIP_PACKAGES = (
    "mlflow",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "numba",
    "numpy",
    "accelerate",
    "bitsandbytes",
)
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),
    outputs=Schema([ColSpec("string")]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", "long", 50),
            ParamSpec("temperature", "double", 0.0),
            ParamSpec("seed", "long", 0),
            ParamSpec("top_p", "double", 1.0),
            ParamSpec("top_k", "long", 0),
        ]
    ),
)
LONGEST_NAME = 250  # the stores' columns for a model's name hold at most so many characters
FORBIDDEN = r"[/:@'\"\s]"


def check_name(name: str) -> str:
    """Returns the name. Raises InputError if a registered model cannot have it."""
    if re.search(FORBIDDEN, name) or not name.isprintable() or len(name) > LONGEST_NAME:
        raise InputError(
            f"register={name}: a model's name has no space, slash, colon, @ or quote, and at most {LONGEST_NAME} "
            f"characters; give another name, or none"
        )
    return name


def model_name(register: str, base: str) -> str:
    """Returns the registered model's name. For `auto` it is made of the base's name without a hub id's organization.

    Raises InputError if a registered model cannot have that name.
    """
    return check_name("ticket-" + re.sub(FORBIDDEN, "-", short_base(base)) if register == "auto" else register)


def find_version(client: MlflowClient, name: str, ticket: str) -> tuple[str, str] | None:
    """Returns (models:/NAME/VERSION, logged-model id) of the version that holds this ticket, or None.

    In a local store the ticket's files are checked; a version that lost them does not count.
    """
    versions = client.search_model_versions(f"name = '{name}' and tags.ticket = '{ticket}'")
    for version in sorted(versions, key=lambda v: int(v.version)):
        uri, model_id = f"models:/{name}/{version.version}", logged_model_id(version.source)
        model = find_model(client, model_id) if model_id else None
        if model_id is None or model is None:
            continue
        here, sha256 = local_path(model.artifact_location), model.tags.get("sha256")
        if sha256 and (here is None or holds_ticket(here / TICKET, ticket, sha256)):
            return uri, model_id
    return None


def holds_ticket(folder: Path, ticket: str, sha256: str) -> bool:
    """Returns whether a folder holds the ticket as it was registered. Of its tensors only the headers are checked."""
    try:
        return TicketFolder(folder).id == ticket and file_sha256(folder / RECORD) == sha256
    except InputError:
        return False


def is_registered_as(client: MlflowClient, model_id: str, folder: Path) -> bool:
    """Returns whether the folder holds the very bytes of a registered ticket."""
    return bool(client.get_logged_model(model_id).tags.get("sha256") == file_sha256(folder / RECORD))


def link_or_copy(source: Path, dest: Path) -> None:
    """Makes `dest` a hard link to `source`, or a copy if the disk cannot link them."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, dest)
    except OSError:
        shutil.copyfile(source, dest)


def plain_name(name: str) -> str:
    """Returns a run's name as MLflow allows it for a logged model: `builtin late 33.5%` becomes `builtin late 33_5`."""
    return re.sub(r"[/:.'\"]", "_", name.replace("%", ""))


def log_model(run: Run, stored: TicketFolder, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    """Stores the ticket as a logged model of the run, named by `name`; returns its id.

    Nothing is pickled, and on a local disk the weights are not copied if they can be linked. The logged model also
    holds the code of this package (without the embedded model), so `mlflow.pyfunc` needs no installed lottery.
    """
    pinned = dict(tags) | {"sha256": file_sha256(stored.folder / RECORD)}  # `fetch` compares with this hash
    model = mlflow.initialize_logged_model(
        name=plain_name(name), source_run_id=run.id, params=dict(params), tags=pinned
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = save_pyfunc(run, stored, model, Path(temporary))
            add_shards(stored, folder, local_path(model.artifact_location))
            run.client.log_model_artifacts(model.model_id, str(folder))
        run.client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
        mlflow.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with contextlib.suppress(MlflowException):
            mlflow.finalize_logged_model(model.model_id, "FAILED")
        raise
    return model.model_id


def pip_requirements(files: Collection[str]) -> list[str]:
    """Returns the packages that a ticket with these small files needs where it is served."""
    names = list(PIP_PACKAGES)
    if "tokenizer.model" in files and "tokenizer.json" not in files and importlib.util.find_spec("sentencepiece"):
        names.append("sentencepiece")  # reads such a tokenizer
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]


def save_pyfunc(run: Run, stored: TicketFolder, model: Any, temporary: Path) -> Path:
    """Writes the folder of the logged model, without the ticket's shards, below `temporary`; returns the folder."""
    folder, code, small = temporary / "model", temporary / "code" / "lottery", temporary / "ticket"
    package = Path(__file__).parent.parent
    shutil.copytree(package, code, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    small.mkdir()
    for file in (RECORD, MEASUREMENTS, *stored.record["files"]):
        shutil.copyfile(stored.folder / file, small / file)
    record = Model(
        artifact_path=model.artifact_location, run_id=run.id, model_uuid=model.model_id, model_id=model.model_id
    )
    mlflow.pyfunc.save_model(
        str(folder),
        mlflow_model=record,
        loader_module="lottery.serve",
        data_path=str(small),
        code_paths=[str(code)],
        pip_requirements=pip_requirements(stored.record["files"]),
        signature=SIGNATURE,
        input_example=(["The meaning of life is"], {"max_new_tokens": 50}),
    )
    record.model_size_bytes = stored.disk_bytes
    record.save(str(folder / "MLmodel"))
    return folder


def add_shards(stored: TicketFolder, folder: Path, here: Path | None) -> None:
    """Links the shards into `here`, the logged model's local folder, or (None) into `folder`, which is then uploaded."""
    for shard in stored.shards:
        if here is None:  # the upload follows the link and reads the shard itself
            (folder / TICKET / shard.name).symlink_to(shard)
        else:
            link_or_copy(shard, here / TICKET / shard.name)


def register(
    client: MlflowClient, model_id: str, name: str, about: str, tags: Mapping[str, str], description: str
) -> tuple[str, str]:
    """Registers a logged model as a version of `name`; returns (URI, logged-model id) of the version.

    If another machine registered the same ticket at the same moment, the version of that machine is returned and this
    one is deleted. `about` is the description of the registered model if it is new, `description` that of the version.
    """
    try:
        client.create_registered_model(name, description=about)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run_id = client.get_logged_model(model_id).source_run_id
    new = {"tags": dict(tags), "model_id": model_id, "description": description}
    version = repeat_on_conflict(lambda: client.create_model_version(name, f"models:/{model_id}", run_id, **new))
    views.link_version(client, model_id, name, version.version)
    uri = f"models:/{name}/{version.version}"
    # MLflow numbers versions in order, so the later of two registrations sees the earlier one, which stays.
    first = find_version(client, name, tags["ticket"])
    if first is None or first[0] == uri:
        return uri, model_id
    client.delete_model_version(name, version.version)
    if first[1] != model_id:  # equal ids: the answer to our own request came too late, and MLflow had sent it again
        delete_model(client, model_id)
    return first


def log_input_model(run: Run, model_id: str) -> None:
    """Records that the run measured this logged model."""
    run.client.log_inputs(run.id, models=[LoggedModelInput(model_id)])
