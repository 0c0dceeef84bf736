"""Runs, metrics, logged models and registered versions. The only file that says mlflow (beside serve.py, which it loads)."""

import contextlib
import json
import logging
import os
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelInput, LoggedModelOutput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

from lottery.home import alone, home, new_folder
from lottery.spec import InputError, MachineError, Spec, digest, nearest
from lottery.text import Protocol
from lottery.ticket import MEASUREMENTS, RECORD, Stored

# What a served ticket needs, pinned to what is installed; a local build's suffix (+cpu) is on no index.
SERVING = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numba", "numpy", "accelerate")
LASTING = ("perplexity", "bits_per_byte", "repetition", "distinct_2", "disk_")  # of a dense baseline found again
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),
    outputs=Schema([ColSpec("string")]),
    params=ParamSchema(
        [
            ParamSpec("max_new_tokens", "long", 50),
            ParamSpec("temperature", "double", 0.0),
            ParamSpec("seed", "long", 0),
        ]
    ),
)


def connect() -> MlflowClient:
    """A client of the tracking store that MLflow's own environment variables name. Raises MachineError where it is away."""
    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    uri = mlflow.get_tracking_uri()
    try:
        client = MlflowClient()
        with first_touch(uri), few_retries():
            client.search_experiments(max_results=1)
    except (MlflowException, OSError) as e:
        raise MachineError(
            f"the tracking store {hide_password(uri)} is not usable: {first_line(e)}; "
            f"set MLFLOW_TRACKING_URI, or start the server that it names"
        ) from e
    return client


@contextlib.contextmanager
def few_retries() -> Iterator[None]:
    """To see whether a server is there at all, MLflow's own minutes of patience are too long."""
    few = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
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
    return (str(e).strip() or type(e).__name__).splitlines()[0][:300]


def hide_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)


@contextlib.contextmanager
def first_touch(uri: str) -> Iterator[None]:
    """Processes that meet on a fresh SQLite file crash in each other's schema migration: let one go first."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or has_schema(path):
        yield
        return
    with alone(digest(os.path.abspath(path))[:16]):
        yield


def has_schema(path: str) -> bool:
    if not os.path.exists(path):
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
            return bool(db.execute("select 1 from sqlite_master where name = 'alembic_version'").fetchone())
    except sqlite3.Error:
        return False


class Run:
    """One MLflow run that is being written."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.id = client, run_id

    def log_params(self, params: Mapping[str, str], spec: Spec | None = None) -> None:
        """Those that `mlflow run` has not logged already, as typed: `0.50` stays, and is 0.5.

        Raises InputError where the run was opened with other values than `spec` has.
        """
        have = self.client.get_run(self.id).data.params
        if spec and (name := spec.agrees_with(have)):
            raise InputError(
                f"{name}={params[name]}: the run {self.id}, which MLFLOW_RUN_ID names, was opened with "
                f"{have[name]!r}; unset MLFLOW_RUN_ID"
            )
        self.client.log_batch(self.id, params=[Param(k, v) for k, v in params.items() if k not in have])

    def tag(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.id, tags=[RunTag(k, v) for k, v in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], protocol: Protocol | None, model_id: str | None) -> None:
        """Tied to the data set they were measured on and to the logged model, where there are such."""
        now = int(time.time() * 1000)
        on = {"dataset_name": dataset_name(protocol), "dataset_digest": protocol.text_sha256[:12]} if protocol else {}
        about = {"model_id": model_id, "run_id": self.id, **on}
        self.client.log_batch(self.id, [Metric(k, float(v), now, 0, **about) for k, v in metrics.items()])

    def log_dataset(self, protocol: Protocol) -> None:
        dataset = Dataset(
            name=dataset_name(protocol),
            digest=protocol.text_sha256[:12],
            source_type="code",
            source=json.dumps({"tags": {"dataset": protocol.dataset}}),
            profile=json.dumps({k: v for k, v in protocol.record().items() if k not in ("dataset", "text_sha256")}),
        )
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])

    def log_files(self, files: Mapping[str, Any]) -> None:
        """Small artifacts: an array as .npy, text as it is, anything else as JSON."""
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder) / name
                if isinstance(content, np.ndarray):
                    np.save(path, content, allow_pickle=False)
                else:
                    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            self.client.log_artifacts(self.id, folder)


def dataset_name(protocol: Protocol) -> str:
    limited = "" if protocol.limit == "none" else f"-first{protocol.windows}"
    return f"{protocol.dataset}-w{protocol.window}{limited}"


@contextlib.contextmanager
def open_run(
    client: MlflowClient, name: str, params: Mapping[str, str], tags: Mapping[str, str], spec: Spec | None = None
) -> Iterator[Run]:
    """The run that `mlflow run` opened for this process, else a new one; FINISHED, FAILED with the reason, or KILLED."""
    # Takes MLFLOW_RUN_ID out of the environment; inside a run of the caller's own it is nested in that one.
    active = mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None)
    run = Run(client, active.info.run_id)
    status = "FAILED"
    try:
        run.log_params(params, spec)
        run.tag(tags)
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except BaseException as e:
        with contextlib.suppress(MlflowException):
            run.tag({"outcome": "failed", "reason": first_line(e)})
        raise
    finally:
        mlflow.end_run(status)


def fail_adopted(reason: str) -> None:
    """Bad input before `open_run`: say so on the run that `mlflow run` has opened already."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return
    with contextlib.suppress(MlflowException):
        client = MlflowClient()
        client.log_batch(run_id, tags=[RunTag("outcome", "failed"), RunTag("reason", reason[:5000])])
        client.set_terminated(run_id, "FAILED")


@contextlib.contextmanager
def beside(run: Run, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """A run of its own in the same experiment, by the same user, while `run` is the process's open one."""
    opened = run.client.get_run(run.id)
    carried = {
        k: v for k, v in opened.data.tags.items() if k in ("mlflow.user", "mlflow.source.name", "mlflow.source.type")
    }
    new = run.client.create_run(opened.info.experiment_id, run_name=name, tags={**carried, **tags})
    status = "FAILED"
    try:
        yield Run(run.client, new.info.run_id)
        status = "FINISHED"
    finally:
        run.client.set_terminated(new.info.run_id, status)


@dataclass(frozen=True)
class Found:
    """A dense baseline measured before: its metrics, NLL per window and samples, as its run holds them."""

    metrics: dict[str, float]
    nll_N: np.ndarray | None
    samples: list[dict[str, str]]
    outcome: str | None


def find_dense(client: MlflowClient, ticket: str, protocol: str, wants: frozenset[str]) -> Found | None:
    """The newest finished dense run of this base and protocol that carries what is wanted; over all experiments."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = (
        f"attributes.status = 'FINISHED' and tags.kind = 'dense' "
        f"and tags.ticket = '{ticket}' and tags.protocol = '{protocol}'"
    )
    for run in client.search_runs(experiments, query, max_results=20):
        tags, metrics = run.data.tags, run.data.metrics
        if not wants <= set(tags.get("measured", "").split(",")):
            continue
        # What it was measured with beside these (its speed, its memory) belongs to another hour, maybe another machine.
        metrics = {k: v for k, v in metrics.items() if k.startswith(LASTING)}
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError, ValueError):
            local = Path(client.download_artifacts(run.info.run_id, "", folder))
            nll_N = np.load(local / "nll_per_window.npy", allow_pickle=False) if "perplexity" in wants else None
            samples = json.loads((local / "samples.json").read_text()) if "samples" in wants else []
            return Found(metrics, nll_N, samples, tags.get("outcome"))
    return None


FORBIDDEN = r"[/:@'\"\s]"


def check_name(name: str) -> str:
    if re.search(FORBIDDEN, name) or not name.isprintable():
        raise InputError(
            f"register={name}: a model's name has no space, slash, colon, @ or quote; give another, or none"
        )
    return name


def model_name(register: str, base: str) -> str:
    """The registered model's name; `auto` is made of the base's."""
    return check_name("ticket-" + re.sub(FORBIDDEN, "-", base) if register == "auto" else register)


def registered_before(client: MlflowClient, name: str, ticket: str) -> tuple[str, str] | None:
    """(models:/NAME/VERSION, logged-model id) of the version that holds this very ticket, and still has its files."""
    versions = client.search_model_versions(f"name = '{name}' and tags.ticket = '{ticket}'")
    for version in sorted(versions, key=lambda v: int(v.version)):
        uri, model_id = f"models:/{name}/{version.version}", logged_model_id(version.source)
        if model_id is None:
            continue
        try:
            found = Stored(fetch(client, uri).folder)
        except (InputError, MlflowException, OSError):
            continue
        if found.id == ticket:
            return uri, model_id
    return None


def tag_version(client: MlflowClient, uri: str, model_id: str, tags: Mapping[str, str]) -> None:
    """The version and its logged model say what the newest full measuring found."""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    client.set_logged_model_tags(model_id, dict(tags))
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


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
    model = mlflow.initialize_logged_model(name="ticket", source_run_id=run.id, params=dict(params), tags=dict(tags))
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


def use_model(run: Run, model_id: str) -> None:
    run.client.log_inputs(run.id, models=[LoggedModelInput(model_id)])


@dataclass(frozen=True)
class Fetched:
    """A ticket on this machine: its folder, the logged model it is registered as, the parameters it was made with."""

    folder: Path
    model_id: str | None
    params: dict[str, str]


def fetch(client: MlflowClient, uri: str) -> Fetched:
    """models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID -> its ticket folder, in place in a local store, else
    downloaded once. Raises InputError where the registry holds no such ticket."""
    where = uri.removeprefix("models:/")
    store = hide_password(mlflow.get_registry_uri())
    try:
        if re.fullmatch(r"m-[0-9a-f]+", where):
            model_id: str | None = where
        elif match := re.fullmatch(r"([^/@]+)@([^/@]+)", where):
            model_id = logged_model_id(client.get_model_version_by_alias(match[1], match[2]).source)
        elif match := re.fullmatch(r"([^/@]+)/(\d+)", where):
            model_id = logged_model_id(client.get_model_version(match[1], match[2]).source)
        else:
            raise InputError(f"ticket={uri}: give models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID")
        if model_id is None:
            raise InputError(f"ticket={uri}: that version is no ticket; it was not registered by lottery")
        model = client.get_logged_model(model_id)
    except MlflowException as e:
        name, names = re.split("[/@]", where)[0], [m.name for m in client.search_registered_models(max_results=50)]
        if name in names:
            has = sorted(int(v.version) for v in client.search_model_versions(f"name = '{name}'"))
            known = f"it has the versions {', '.join(map(str, has))}"
        else:
            known = nearest(name, names) if names else "no model is registered there"
        raise InputError(f"ticket={uri}: not in the registry {store}; {known}") from e
    here = local_path(model.artifact_location)
    if here is not None:
        return Fetched(here / "data" / "ticket", model_id, dict(model.params or {}))
    with new_folder(home() / "fetched" / model_id, "LOTTERY_HOME") as partial:
        if partial is not None:
            mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=str(partial))
    return Fetched(home() / "fetched" / model_id / "data" / "ticket", model_id, dict(model.params or {}))
