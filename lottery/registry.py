"""Logged models and registered versions: a ticket goes in (it comes out in fetching.py). With that, tracking.py and
serve.py all that says mlflow."""

import contextlib
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from mlflow.entities import LoggedModelInput, LoggedModelOutput, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

from lottery.hashes import file_sha256
from lottery.record import MEASUREMENTS, RECORD
from lottery.spec import InputError, MachineError, Spec
from lottery.ticket import Stored
from lottery.tracking import Run, hide_password

# What a served ticket needs, pinned to what is installed; a local build's suffix (+cpu) is on no index.
SERVING = (
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


VERDICT = ("winner", "beats_control", "outcome", "limited")  # tags that one measuring gives
FORBIDDEN = r"[/:@'\"\s]"


def check_name(name: str) -> str:
    if re.search(FORBIDDEN, name) or not name.isprintable():
        raise InputError(
            f"register={name}: a model's name has no space, slash, colon, @ or quote; give another, or none"
        )
    return name


def model_name(register: str, base: str) -> str:
    """The registered model's name; `auto` is made of the base's, without the organization of a hub id."""
    return check_name("ticket-" + re.sub(FORBIDDEN, "-", base.split("/")[-1]) if register == "auto" else register)


def registered_before(client: MlflowClient, name: str, ticket: str) -> tuple[str, str] | None:
    """(models:/NAME/VERSION, logged-model id) of the version that holds this very ticket; in a local store, still holds it."""
    versions = client.search_model_versions(f"name = '{name}' and tags.ticket = '{ticket}'")
    for version in sorted(versions, key=lambda v: int(v.version)):
        uri, model_id = f"models:/{name}/{version.version}", logged_model_id(version.source)
        if model_id is None:
            continue
        model = client.get_logged_model(model_id)
        here, sha256 = local_path(model.artifact_location), model.tags.get("sha256")
        if sha256 and (here is None or holds(here / "data" / "ticket", ticket, sha256)):
            return uri, model_id
    return None


def holds(folder: Path, ticket: str, sha256: str) -> bool:
    """Whether the ticket lies there as it was registered; of its tensors the headers are checked."""
    try:
        return Stored(folder).id == ticket and file_sha256(folder / RECORD) == sha256
    except InputError:
        return False


def tag_version(client: MlflowClient, uri: str, model_id: str, tags: Mapping[str, str]) -> None:
    """The version and its logged model say what the newest full measuring found."""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    client.set_logged_model_tags(model_id, dict(tags))
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    for key in set(VERDICT) - tags.keys():  # of an earlier measuring
        with contextlib.suppress(MlflowException):
            client.delete_logged_model_tag(model_id, key)
        with contextlib.suppress(MlflowException):
            client.delete_model_version_tag(name, version, key)


def logged_model_id(source: str | None) -> str | None:
    match = re.fullmatch(r"models:/(m-[0-9a-f]+)", source or "")
    return match[1] if match else None


def local_path(location: str) -> Path | None:
    """An artifact location as a path of this machine, None where it is behind a server."""
    parsed = urlparse(location)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path) if parsed.scheme else location)
    return None


def link_or_copy(source: Path, dest: Path) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, dest)
    except OSError:
        shutil.copyfile(source, dest)


def log_model(run: Run, stored: Stored, params: Mapping[str, str], tags: Mapping[str, str]) -> str:
    """The ticket as a logged model of the run, without a second copy on a local disk: its id. Nothing is pickled.

    The package's own code travels with it (without the embedded model), so `mlflow.pyfunc` needs no installed lottery.
    """
    client = run.client
    pinned = dict(tags) | {"sha256": file_sha256(stored.folder / RECORD)}  # what `fetch` compares with
    model = mlflow.initialize_logged_model(name="ticket", source_run_id=run.id, params=dict(params), tags=pinned)
    try:
        here = local_path(model.artifact_location)
        with tempfile.TemporaryDirectory() as temporary:
            top = Path(temporary)
            code = top / "code" / "lottery"
            package = Path(__file__).parent
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
                pip_requirements=[f"{name}=={metadata.version(name).split('+')[0]}" for name in SERVING],
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


def register(client: MlflowClient, model_id: str, name: str, tags: Mapping[str, str]) -> str:
    """A new version of the registered model `name`; its URI."""
    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    run_id = client.get_logged_model(model_id).source_run_id
    version = client.create_model_version(name, f"models:/{model_id}", run_id, tags=dict(tags), model_id=model_id)
    return f"models:/{name}/{version.version}"


def crown(client: MlflowClient, name: str) -> None:
    """Set the alias `winner` of a registered model: of the winning tickets, measured under the default data set, window
    and tolerance, on all windows, and not random, the one with the most zeros; of equal ones that of the lower ratio.

    Of many runs that finish at once each does so, and looks again until what it reads is what it set: the last is right.
    """
    for attempt in range(20):
        versions = every_page(partial(client.search_model_versions, f"name = '{name}'"))
        best = winner(client, versions)
        now = client.get_registered_model(name).aliases.get("winner")
        if str(now or "") == (best or ""):  # the stores disagree whether a version is a number
            return
        try:
            if best:
                client.set_registered_model_alias(name, "winner", best)
            else:
                client.delete_registered_model_alias(name, "winner")
        except MlflowException:  # somebody set it at this very moment
            time.sleep(0.1 * random.random() * (attempt + 1))
    raise MachineError(f"register={name}: its alias `winner` would not be set; run the same command again")


def winner(client: MlflowClient, versions: Sequence[Any]) -> str | None:
    """The version that the alias `winner` belongs to, judged by the newest run of each ticket that counts."""
    # of several versions of one ticket the last: the files of those before it were gone
    by_ticket = {v.tags["ticket"]: str(v.version) for v in sorted(versions, key=version_number) if "ticket" in v.tags}
    experiments = [e.experiment_id for e in client.search_experiments()]
    judged: dict[str, tuple[float, float] | None] = {}
    for base in {v.tags["base"] for v in versions if "base" in v.tags}:
        quote = '"' if "'" in base else "'"
        query = (
            f"tags.kind = 'ticket' and tags.base = {quote}{base}{quote} "
            f"and attributes.status != 'FAILED' and attributes.status != 'KILLED'"
        )
        for run in every_page(partial(client.search_runs, experiments, query, max_results=1000)):
            ticket, metrics = run.data.tags.get("ticket", ""), run.data.metrics
            if ticket in judged or ticket not in by_ticket or not counts(run.data.tags, run.data.params):
                continue
            wins = run.data.tags["winner"] == "yes" and {"sparsity_model", "perplexity_ratio"} <= metrics.keys()
            judged[ticket] = (metrics["sparsity_model"], -metrics["perplexity_ratio"]) if wins else None
    best = (
        max((ranks, by_ticket[ticket]) for ticket, ranks in judged.items() if ranks) if any(judged.values()) else None
    )
    return best[1] if best else None


def version_number(version: Any) -> int:
    return int(version.version)


def counts(tags: Mapping[str, str], params: Mapping[str, str]) -> bool:
    """Whether a run's verdict is one about the default data set, window and tolerance."""
    names = ("dataset", "window", "tolerance", "limit", "method")
    if "winner" not in tags or "limited" in tags or any(name not in params for name in names):
        return False
    try:
        spec = Spec.parse(**{name: params[name] for name in names})
    except InputError:
        return False
    default = Spec()
    usual = ("auto", "builtin" if tags.get("base") == "builtin" else "wikitext2")
    same = (spec.window, spec.tolerance, spec.limit) == (default.window, default.tolerance, default.limit)
    return same and spec.dataset in usual and spec.method != "random"


LABELS = ("coherent", "note")  # a person's judgement


def labels(client: MlflowClient, model_id: str) -> dict[str, str]:
    """What a person has said of a logged model's text."""
    return {k: v for k, v in client.get_logged_model(model_id).tags.items() if k in LABELS}


def label(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> list[str]:
    """A person's judgement as tags of a run, of the logged model that it made or measured, and of every version of that.
    What was tagged, by name. Raises InputError where there is no such run."""
    try:
        run = client.get_run(run_id)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"run={run_id}: there is no such run in {hide_password(mlflow.get_tracking_uri())}; give a run's id"
        ) from e
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in tags.items()])
    tagged = [f"run {run_id}"]
    made, used = run.outputs, run.inputs
    models = [m.model_id for m in [*(made.model_outputs if made else []), *(used.model_inputs if used else [])]]
    for model_id in dict.fromkeys(models):
        client.set_logged_model_tags(model_id, dict(tags))
        tagged.append(f"models:/{model_id}")
        for version in every_page(partial(client.search_model_versions, f"source_path = 'models:/{model_id}'")):
            for key, value in tags.items():
                client.set_model_version_tag(version.name, version.version, key, value)
            tagged.append(f"models:/{version.name}/{version.version}")
    return tagged


def every_page(search: Callable[..., Any]) -> list[Any]:
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        if not (token := page.token):
            return found


def use_model(run: Run, model_id: str) -> None:
    run.client.log_inputs(run.id, models=[LoggedModelInput(model_id)])
