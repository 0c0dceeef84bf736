"""Runs: opened, written, found again. With registry.py, fetching.py and serve.py all that says mlflow."""

import contextlib
import json
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import unquote

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from lottery import views
from lottery.home import alive, alone
from lottery.progress import say
from lottery.spec import InputError, MachineError, Spec, digest

if TYPE_CHECKING:  # it brings torch and transformers, which a report of runs does not need
    from lottery.text import Protocol

Client: TypeAlias = MlflowClient
STORE_ERRORS = (MlflowException, OSError, SQLAlchemyError)  # requests' own are OSErrors
LONGEST_NAME = 250  # characters of a run's name that the stores' tables take
JUDGED = ("perplexity", "perplexity_ratio", "sparsity_model", "sparsity_target", "disk_ratio", "control_ratio")
LABELS = ("coherent", "note")  # a person's judgement of a ticket's text
LASTING = ("perplexity", "bits_per_byte", "repetition", "distinct_2", "disk_")  # of a dense baseline found again


def connect(reading: bool = False) -> MlflowClient:
    """A client of the tracking store that MLflow's own environment variables name. Raises MachineError where it is away.

    Only to read, none is made: InputError where there is none yet.
    """
    for name, level in (("alembic", logging.WARNING), ("mlflow", logging.WARNING), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    move_password()
    uri = mlflow.get_tracking_uri()
    path = uri.removeprefix("sqlite:///")
    if reading and path != uri and not os.path.exists(path):
        raise InputError(
            f"there is no tracking store {path}; run this in the folder of the project's mlflow.db, "
            f"or set MLFLOW_TRACKING_URI"
        )
    try:
        with first_touch(uri), few_retries():
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


def hide_password(text: str) -> str:
    """A URI, or a text with URIs in it, without user and password: up to the last @, as a password may hold one."""
    text = re.sub(r"\b(?!sqlite:|file:)([a-z][a-z0-9+.-]*)://\S*@", r"\1://***@", text)
    return re.sub(r"\b(password|passwd|pwd|token)=[^&\s]+", r"\1=***", text, flags=re.IGNORECASE)


@contextlib.contextmanager
def first_touch(uri: str) -> Iterator[None]:
    """Processes that meet on a fresh SQLite file crash in each other's schema migration: let one go first, and the others
    wait until it is through. The file has its first tables long before that, so that they alone say nothing."""
    path = uri.removeprefix("sqlite:///")
    if path == uri:
        yield
        return
    with alone(digest(os.path.abspath(path))[:16]):
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


class Run:
    """One MLflow run that is being written."""

    def __init__(self, client: MlflowClient, run_id: str, end: Callable[[str], None]) -> None:
        self.client, self.id, self.end = client, run_id, end
        self.page: str | None = None  # where a browser shows it among the others; None without a server
        self.ending = self.ended = False

    def finish(self, status: str = "FINISHED") -> None:
        """Its last word. Raises one of STORE_ERRORS where the store is away."""
        self.ending = True
        self.end(status)
        self.ended = True

    def forget(self, tags: Mapping[str, str]) -> None:
        """What was said of an earlier try that failed."""
        for name in {"outcome", "reason"} & tags.keys():
            self.client.delete_tag(self.id, name)

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

    def log_metrics(
        self, metrics: Mapping[str, float], protocol: "Protocol | None", model_id: str | None, time_ms: int
    ) -> None:
        """Tied to the data set they were measured on and to the logged model, where there are such. The same ones at the
        same time a second time change nothing."""
        on = {"dataset_name": dataset_name(protocol), "dataset_digest": protocol.dataset_digest} if protocol else {}
        about = {"model_id": model_id, "run_id": self.id, **on}
        # MLflow shows them in the order in which they came: what a ticket is judged by first, what was only timed last.
        order = sorted(metrics, key=lambda k: (k not in JUDGED, JUDGED.index(k) if k in JUDGED else k.endswith("_s")))
        self.client.log_batch(self.id, [Metric(k, float(metrics[k]), time_ms, 0, **about) for k in order])

    def log_dataset(self, protocol: "Protocol") -> None:
        dataset = Dataset(
            name=dataset_name(protocol),
            digest=protocol.dataset_digest,
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
                elif isinstance(content, str):
                    path.write_text(content, encoding="utf-8")
                else:
                    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            self.client.log_artifacts(self.id, folder)


def dataset_name(protocol: "Protocol") -> str:
    limited = "" if protocol.limit == "none" else f"-first{protocol.windows}"
    return f"{protocol.dataset}-w{protocol.window}{limited}"


@contextlib.contextmanager
def open_run(
    client: MlflowClient,
    id: str,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    spec: Spec | None = None,
    resume: str | None = None,
    adopt: bool = True,
) -> Iterator[Run]:
    """The run of the measuring `id`: `resume`, the one that `mlflow run` opened for this process (`adopt`), or a new one; in
    the end FINISHED (where the block has not said so itself), FAILED with the reason, or KILLED."""
    adopted = None if adopt else os.environ.pop("MLFLOW_RUN_ID", None)
    about = {"store": store_digest(), "run": resume or os.environ.get("MLFLOW_RUN_ID")}
    with alive(id, about) as life:
        if resume:
            run = Run(client, resume, lambda status: client.set_terminated(resume, status))
        else:
            outer = mlflow.active_run()
            study = {k: v for k, v in outer.data.tags.items() if k == "study"} if outer else {}
            # Takes MLFLOW_RUN_ID out of the environment; inside a run of the caller's own it is nested in that one.
            active = mlflow.start_run(
                run_name=name[:LONGEST_NAME], nested=outer is not None, tags={**study, **tags, "measurement": id}
            )
            run = Run(client, active.info.run_id, mlflow.end_run)
        if adopted:
            os.environ["MLFLOW_RUN_ID"] = adopted
        status = "FAILED"
        try:
            if resume:
                client.update_run(resume, status="RUNNING")
                run.tag({**tags, "measurement": id})
            found = client.get_run(run.id)
            uri = mlflow.get_tracking_uri()
            run.page = views.runs_url(uri, found.info.experiment_id) if uri.startswith("http") else None
            views.prepare_experiment(client, found.info.experiment_id)
            run.forget(found.data.tags)
            run.log_params(params, spec)
            yield run
            if not run.ending:
                run.finish()
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        except BaseException as e:
            with few_retries(), contextlib.suppress(*STORE_ERRORS):
                run.tag({"outcome": "failed", "reason": first_line(e)})
            raise
        finally:
            # A store that is away must not hide what went wrong; a run that stays RUNNING is closed by the next one of this
            # home, which finds the file.
            if not run.ending:
                with few_retries(), contextlib.suppress(*STORE_ERRORS):
                    run.end(status)
                    run.ended = True
            if run.ended:
                life.unlink()


def store_digest() -> str:
    """Names the store. A server that is a job of a cluster (slurm/server.sbatch) has another address each time it starts:
    it goes by its folder."""
    uri = mlflow.get_tracking_uri().rstrip("/")
    with contextlib.suppress(OSError, KeyError):
        folder = Path(os.environ["LOTTERY_SERVER"]).expanduser().resolve()
        if (folder / "address").read_text().strip().rstrip("/") == uri:
            return digest(str(folder))[:16]
    return digest(uri)[:16]


def every_page(search: Callable[..., Any]) -> list[Any]:
    found, token = [], None
    while True:
        page = search(page_token=token)
        found += page
        if not (token := page.token):
            return found


def find_run(client: MlflowClient, measurement: str, run_id: str | None = None) -> Any | None:
    """The run of a measuring, by its id where that is known, else over all experiments; None where the store has none."""
    if run_id:
        try:
            run = client.get_run(run_id)
        except MlflowException as e:
            if e.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None  # a person has deleted it
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.measurement = '{measurement}'", max_results=1)
    return found[0] if found else None


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
def beside(run: Run, id: str, name: str, tags: Mapping[str, str]) -> Iterator[Run | None]:
    """A run of its own for the measuring `id`, in the same experiment, by the same user, while `run` is the process's open
    one; None where the store has it already."""
    before = find_run(run.client, id)
    if before is not None and before.info.status == "FINISHED":
        yield None
        return
    with alive(id, {"store": store_digest(), "run": before.info.run_id if before is not None else None}) as life:
        if before is None:
            opened = run.client.get_run(run.id)
            by = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "study")
            carried = {k: v for k, v in opened.data.tags.items() if k in by}
            before = run.client.create_run(
                opened.info.experiment_id, run_name=name[:LONGEST_NAME], tags={**carried, **tags, "measurement": id}
            )
        own = Run(run.client, before.info.run_id, partial(run.client.set_terminated, before.info.run_id))
        own.forget(before.data.tags)
        yield own
        own.finish()
        life.unlink()


@dataclass(frozen=True)
class Found:
    """A dense baseline measured before: its metrics, NLL per window and samples, as its run holds them."""

    metrics: dict[str, float]
    nll_N: np.ndarray | None
    samples: list[dict[str, str]]
    outcome: str | None


def find_dense(client: MlflowClient, ticket: str, protocol: str, wants: frozenset[str]) -> Found | None:
    """What the newest dense run (`find_dense_run`) holds. None, with a warning, where the store is away."""
    try:
        with few_retries():
            run = find_dense_run(client, ticket, protocol, wants)
    except STORE_ERRORS as e:
        say(f"warning: {store_name()} does not answer ({first_line(e)}); the dense base is measured here")
        return None
    if run is None:
        return None
    # What it was measured with beside these (its speed, its memory) belongs to another hour, maybe another machine.
    metrics = {k: v for k, v in run.data.metrics.items() if k.startswith(LASTING)}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError, ValueError):
        local = Path(client.download_artifacts(run.info.run_id, "", folder))
        nll_N = np.load(local / "nll_per_window.npy", allow_pickle=False) if "perplexity" in wants else None
        samples = json.loads((local / "samples.json").read_text()) if "samples" in wants else []
        return Found(metrics, nll_N, samples, run.data.tags.get("outcome"))
    return None


def judgements(client: MlflowClient) -> dict[tuple[str, str], dict[str, str]]:
    """(ticket, protocol) -> what a person has said of its text: a label is about the ticket, so it outlives a newer run
    that has none. Whoever labels one run labels all that are there, so that the newest labelled run has the newest label."""
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    order = ["attributes.start_time DESC"]
    search = partial(client.search_runs, experiments, "tags.coherent LIKE '%'", max_results=1000, order_by=order)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for tags in (run.data.tags for run in every_page(search)):
        if "ticket" in tags:
            found.setdefault(
                (tags["ticket"], tags.get("protocol", "")), {name: tags[name] for name in LABELS if name in tags}
            )
    return found


def find_dense_run(client: MlflowClient, ticket: str, protocol: str, wants: frozenset[str]) -> Any | None:
    """The newest finished dense run of this base and protocol that carries what is wanted; over all experiments."""
    query = (
        f"attributes.status = 'FINISHED' and tags.kind = 'dense' "
        f"and tags.ticket = '{ticket}' and tags.protocol = '{protocol}'"
    )
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, query, max_results=20)
    return next((r for r in runs if wants <= set(r.data.tags.get("measured", "").split(","))), None)


CARRIED = {"perplexity": "perplexity", "speed": "decode_tok_s", "memory": "weights_bytes", "samples": "distinct_2"}


def find_finished(
    client: MlflowClient, tags: Mapping[str, str], spec: Spec, has_base: bool, parent: str | None = None
) -> Any | None:
    """The newest finished run that answers `spec`: of this very ticket, under this protocol, by the same tolerance, with
    every metric that is asked for, controls of the same draws, speeds of the same hardware; of the study's run `parent`
    alone, if given. A ticket that overflowed has no perplexity, and never will. `tags`: its first ones (`job.Ready`);
    `has_base`: the dense base is at hand, so that it can have its ratio."""
    query = f"attributes.status = 'FINISHED' and tags.kind = 'ticket' and tags.ticket = '{tags['ticket']}'"
    query += f" and tags.protocol = '{tags['protocol']}'" if "protocol" in tags else ""
    query += f" and tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = every_page(partial(client.search_runs, experiments, query, max_results=100))
    return next((run for run in found if carries(run, tags, spec, has_base)), None)


def carries(run: Any, tags: Mapping[str, str], spec: Spec, has_base: bool) -> bool:
    params, measures = run.data.params, set(spec.measures)
    overflowed = run.data.tags.get("outcome") == "overflow"
    needed = {CARRIED[name] for name in measures} | (
        {"perplexity_ratio"} if has_base and "perplexity" in measures else set()
    )
    needed -= {"perplexity", "perplexity_ratio"} if overflowed else set()
    same = ["tolerance"] if "perplexity" in measures else []
    if spec.control:
        same += ["control", "seed"]
    if measures & {"speed", "memory"} and run.data.tags.get("hardware") != tags.get("hardware"):
        return False
    asked = {name: params[name] for name in same if name in params}
    return len(asked) == len(same) and spec.agrees_with(asked) is None and needed <= run.data.metrics.keys()


def adopted() -> str | None:
    """The run that `mlflow run` has opened for this process; asked once."""
    return os.environ.pop("MLFLOW_RUN_ID", None)


def find_study(client: MlflowClient, id: str) -> Any | None:
    """The newest run of a study; None where the store has none."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.kind = 'study' and tags.study_id = '{id}'"
    runs = client.search_runs(experiments, query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def part_key(study_run: str) -> str:
    """The tag by which a run says which parts of a study it is."""
    return f"study.{study_run[:12]}"


def parts_of(run: Any, key: str) -> list[str]:
    """ticket-7; or, of what two parts have found to be the same, ticket-7,ticket-9."""
    return [part for part in run.data.tags.get(key, "").split(",") if part]


def find_parts(client: MlflowClient, key: str, part: str = "") -> list[Any]:
    """The runs that say that they are a part (this one) of the study, the newest first."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query, order = f"tags.`{key}` LIKE '%{part}%'", ["attributes.start_time DESC"]
    found = every_page(partial(client.search_runs, experiments, query, max_results=1000, order_by=order))
    return [run for run in found if not part or part in parts_of(run, key)]


def count_in(client: MlflowClient, key: str, part: str, run_ids: Collection[str]) -> None:
    """These runs, and no earlier ones, are what a study has of a part: one, or of a search several."""
    for run_id in dict.fromkeys([*run_ids, *(run.info.run_id for run in find_parts(client, key, part))]):
        with alone(f"parts-{run_id}"):  # tasks that have found the same ticket say so one after the other
            parts = parts_of(client.get_run(run_id), key)
            said = [p for p in parts if p != part] + ([part] if run_id in run_ids else [])
            if said and sorted(said) != sorted(parts):
                client.set_tag(run_id, key, ",".join(sorted(said)))
            elif parts and not said:
                client.delete_tag(run_id, key)


def failed_run(
    client: MlflowClient,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    key: str,
    part: str,
    since_ms: int,
) -> str:
    """The run of a part that failed since then; one that says so is made where it failed before it had one."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`{key}` = '{part}' and attributes.status = 'FAILED' and attributes.start_time >= {since_ms}"
    if runs := client.search_runs(experiments, query, max_results=1):
        return runs[0].info.run_id
    parent = tags.get("mlflow.parentRunId")
    experiment = client.get_run(parent).info.experiment_id if parent else experiments[0]
    run = client.create_run(experiment, run_name=name[:LONGEST_NAME], tags=dict(tags))
    client.log_batch(run.info.run_id, params=[Param(k, v) for k, v in params.items()])
    client.set_terminated(run.info.run_id, "FAILED")
    return run.info.run_id


def metric_name(text: str) -> str:
    """A text as MLflow takes it for a metric's name."""
    name = re.sub(r"[^\w.\- /]", "-", text)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 13]}-{digest(text)[:12]}"
