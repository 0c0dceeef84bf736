"""Logged models and registered versions: a ticket goes in (it comes out in fetching.py). With that, tracking.py and
serve.py all that says mlflow."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

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
from lottery.registry.logged_models import delete_model, find_model, local_path, logged_model_id
from lottery.registry.runs import Run
from lottery.ticket.folder import TicketFolder
from lottery.ticket.record import MEASUREMENTS, RECORD

# What a served ticket needs, pinned to what is installed; a local build's suffix (+cpu) is on no index.
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


LONGEST_NAME = 250  # characters that the stores' tables take
FORBIDDEN = r"[/:@'\"\s]"


def check_name(name: str) -> str:
    if re.search(FORBIDDEN, name) or not name.isprintable() or len(name) > LONGEST_NAME:
        raise InputError(
            f"register={name}: a model's name has no space, slash, colon, @ or quote, and at most {LONGEST_NAME} characters; "
            f"give another, or none"
        )
    return name


def model_name(register: str, base: str) -> str:
    """The registered model's name; `auto` is made of the base's, without the organization of a hub id."""
    return check_name("ticket-" + re.sub(FORBIDDEN, "-", base.split("/")[-1]) if register == "auto" else register)


def find_version(client: MlflowClient, name: str, ticket: str) -> tuple[str, str] | None:
    """(models:/NAME/VERSION, logged-model id) of the version that holds this very ticket; in a local store, still holds it."""
    versions = client.search_model_versions(f"name = '{name}' and tags.ticket = '{ticket}'")
    for version in sorted(versions, key=lambda v: int(v.version)):
        uri, model_id = f"models:/{name}/{version.version}", logged_model_id(version.source)
        model = find_model(client, model_id) if model_id else None
        if model_id is None or model is None:
            continue
        here, sha256 = local_path(model.artifact_location), model.tags.get("sha256")
        if sha256 and (here is None or holds_ticket(here / "data" / "ticket", ticket, sha256)):
            return uri, model_id
    return None


def holds_ticket(folder: Path, ticket: str, sha256: str) -> bool:
    """Whether the ticket lies there as it was registered; of its tensors the headers are checked."""
    try:
        return TicketFolder(folder).id == ticket and file_sha256(folder / RECORD) == sha256
    except InputError:
        return False


def link_or_copy(source: Path, dest: Path) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, dest)
    except OSError:
        shutil.copyfile(source, dest)


def plain_name(title: str) -> str:
    """As MLflow allows it for a logged model: `late 33.5%` is `late 33_5`."""
    return re.sub(r"[/:.'\"]", "_", title.replace("%", ""))


def log_model(run: Run, stored: TicketFolder, title: str, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    """The ticket as a logged model of the run, named as its row in a table is, without a second copy on a local disk: its id. Nothing is pickled.

    The package's own code travels with it (without the embedded model), so `mlflow.pyfunc` needs no installed lottery.
    """
    client = run.client
    pinned = dict(tags) | {"sha256": file_sha256(stored.folder / RECORD)}  # what `fetch` compares with
    model = mlflow.initialize_logged_model(
        name=plain_name(title), source_run_id=run.id, params=dict(params), tags=pinned
    )
    try:
        here = local_path(model.artifact_location)
        with tempfile.TemporaryDirectory() as temporary:
            top = Path(temporary)
            code = top / "code" / "lottery"
            package = Path(__file__).parent.parent
            shutil.copytree(package, code, ignore=shutil.ignore_patterns("assets", "__pycache__"))
            small = top / "ticket"
            small.mkdir()
            for file in (RECORD, MEASUREMENTS, *stored.record["files"]):
                shutil.copyfile(stored.folder / file, small / file)
            record = Model(
                artifact_path=model.artifact_location, run_id=run.id, model_uuid=model.model_id, model_id=model.model_id
            )
            mlflow.pyfunc.save_model(
                str(top / "model"),
                mlflow_model=record,
                loader_module="lottery.serve",
                data_path=str(small),
                code_paths=[str(code)],
                pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in PIP_PACKAGES],
                signature=SIGNATURE,
                input_example=(["The meaning of life is"], {"max_new_tokens": 50}),
            )
            record.model_size_bytes = stored.disk_bytes
            record.save(str(top / "model" / "MLmodel"))
            data = top / "model" / "data" / "ticket" if here is None else here / "data" / "ticket"
            if here is None:
                for shard in stored.shards:  # uploaded from where they lie
                    (data / shard.name).symlink_to(shard)
            else:
                for shard in stored.shards:
                    link_or_copy(shard, data / shard.name)
            client.log_model_artifacts(model.model_id, str(top / "model"))
        client.log_outputs(run.id, [LoggedModelOutput(model.model_id, step=0)])
        mlflow.finalize_logged_model(model.model_id, "READY")
    except BaseException:
        with contextlib.suppress(MlflowException):
            mlflow.finalize_logged_model(model.model_id, "FAILED")
        raise
    return model.model_id


def register(
    client: MlflowClient, model_id: str, name: str, about: str, tags: Mapping[str, str], description: str
) -> tuple[str, str]:
    """(URI, logged-model id) of the version of `name` that holds this ticket: a new one, or, where another machine has
    registered the same ticket at the same moment, that one. `about`: the description of a name that is new."""
    try:
        client.create_registered_model(name, description=about)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run_id = client.get_logged_model(model_id).source_run_id
    version = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=dict(tags), model_id=model_id, description=description
    )
    views.link_version(client, model_id, name, version.version)
    uri = f"models:/{name}/{version.version}"
    # Numbers are given in order, so of two the later one sees the earlier, which stays.
    first = find_version(client, name, tags["ticket"])
    if first is None or first[0] == uri:
        return uri, model_id
    client.delete_model_version(name, version.version)
    if first[1] != model_id:  # the same one twice: a request that was answered too late, and sent again
        delete_model(client, model_id)
    return first


def log_input_model(run: Run, model_id: str) -> None:
    run.client.log_inputs(run.id, models=[LoggedModelInput(model_id)])
