"""This file opens, writes and ends MLflow runs."""

import contextlib
import json
import os
import re
import shlex
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.errors import InputError
from lottery.files.locks import run_lock
from lottery.measuring.protocol import EvalProtocol
from lottery.registry import views
from lottery.registry.conflicts import repeat_on_conflict
from lottery.registry.lookup import find_run
from lottery.registry.store import STORE_ERRORS, few_retries, first_line, store_digest
from lottery.spec import Spec, json_sha256

LONGEST_NAME = 250  # the stores' columns for a run's name hold at most so many characters
JUDGED = ("perplexity", "perplexity_ratio", "sparsity_model", "sparsity_target", "disk_ratio", "control_ratio")


class Run:
    """One MLflow run that is being written."""

    def __init__(self, client: MlflowClient, run_id: str, end: Callable[[str], None]) -> None:
        self.client, self.id, self.end = client, run_id, end
        self.page: str | None = None  # the address of the page that lists this run; None without a server
        self.ending = self.ended = False

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run. Raises one of STORE_ERRORS if the store does not answer."""
        self.ending = True
        self.end(status)
        self.ended = True

    def clear_outcome(self, tags: Mapping[str, str]) -> None:
        """Deletes the tags that an earlier, failed try of this run left. `tags` are the run's present tags."""
        for name in {"outcome", "reason"} & tags.keys():
            self.client.delete_tag(self.id, name)

    def log_params(self, params: Mapping[str, str], spec: Spec | None = None) -> None:
        """Logs the params that `mlflow run` has not logged yet.

        Those that it logged stay as the user typed them: `0.50` stays and equals 0.5. Raises InputError if the run was
        opened with other values than `spec` has.
        """
        have = {k: as_typed(v) for k, v in self.client.get_run(self.id).data.params.items()}
        if spec and (name := spec.first_difference(have)):
            raise InputError(
                f"{name}={params[name]}: the run {self.id}, which MLFLOW_RUN_ID names, was opened with "
                f"{have[name]!r}; unset MLFLOW_RUN_ID"
            )
        self.client.log_batch(self.id, params=[Param(k, v) for k, v in params.items() if k not in have])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.id, tags=[RunTag(k, v) for k, v in tags.items()])

    def log_metrics(
        self, metrics: Mapping[str, float], protocol: "EvalProtocol | None", model_id: str | None, time_ms: int
    ) -> None:
        """Logs metrics and links them to their data set and their logged model, if given.

        `time_ms` is in milliseconds since 1970. Metrics that are logged again with the same time change nothing.
        """
        on = {"dataset_name": dataset_name(protocol), "dataset_digest": protocol.dataset_digest} if protocol else {}
        about = {"model_id": model_id, "run_id": self.id, **on}
        # MLflow shows metrics in the order in which they came: first those that judge a ticket, last the durations.
        order = sorted(metrics, key=lambda k: (k not in JUDGED, JUDGED.index(k) if k in JUDGED else k.endswith("_s")))
        self.client.log_batch(self.id, [Metric(k, float(metrics[k]), time_ms, 0, **about) for k in order])

    def log_dataset(self, protocol: "EvalProtocol") -> None:
        dataset = Dataset(
            name=dataset_name(protocol),
            digest=protocol.dataset_digest,
            source_type="code",
            source=json.dumps({"tags": {"dataset": protocol.dataset}}),
            profile=json.dumps({k: v for k, v in protocol.record().items() if k not in ("dataset", "text_sha256")}),
        )
        used = [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])]
        repeat_on_conflict(lambda: self.client.log_inputs(self.id, used))

    def log_files(self, files: Mapping[str, Any]) -> None:
        """Logs small artifacts: an array as .npy, a text as it is, anything else as JSON."""
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


def as_typed(value: str) -> str:
    """Returns a param as it was typed: `mlflow run` logs it as it quotes it for the shell, so a space or a ~ in a path
    brings quotes with it."""
    try:
        words = shlex.split(value)
    except ValueError:  # a quote that does not end
        return value
    return words[0] if len(words) == 1 and shlex.quote(words[0]) == value else value


def dataset_name(protocol: "EvalProtocol") -> str:
    """Returns the data set's name in MLflow, which also holds the window's length and a limit of windows."""
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
    """Opens the run of the measurement `id` for the block, and ends it afterwards.

    It is the run `resume` if given, else the run that `mlflow run` opened for this process (only with `adopt`), else a
    new one. It ends as FINISHED (unless the block has ended it itself), as FAILED with the reason, or as KILLED. Raises
    InputError if an adopted run was opened with other values than `spec` has.
    """
    adopted = None if adopt else os.environ.pop("MLFLOW_RUN_ID", None)
    about = {"store": store_digest(), "run": resume or os.environ.get("MLFLOW_RUN_ID")}
    with run_lock(id, about) as life:
        tags = {**tags, "measurement": id}
        if resume:
            run = Run(client, resume, lambda status: client.set_terminated(resume, status))
        else:
            run = start_run(client, name, tags)
        if adopted:
            os.environ["MLFLOW_RUN_ID"] = adopted
        with end_with_block(run, life):
            if resume:
                client.update_run(resume, status="RUNNING")
                run.set_tags(tags)
            prepare_run(run, params, spec)
            yield run


def start_run(client: MlflowClient, name: str, tags: Mapping[str, str]) -> Run:
    """Starts a run, or continues the one that MLFLOW_RUN_ID names; MLflow then removes that variable.

    Inside an active run of the caller the new run is nested in it and has its tag `study`.
    """
    outer = mlflow.active_run()
    study = {k: v for k, v in outer.data.tags.items() if k == "study"} if outer else {}
    start = partial(mlflow.start_run, run_name=name[:LONGEST_NAME], nested=outer is not None, tags={**study, **tags})
    active = repeat_on_conflict(start)  # the first run of an experiment that MLFLOW_EXPERIMENT_NAME names makes it
    return Run(client, active.info.run_id, mlflow.end_run)


def prepare_run(run: Run, params: Mapping[str, str], spec: Spec | None) -> None:
    """Finds the run's page, prepares its experiment, removes the outcome of an earlier try and logs the params."""
    opened = run.client.get_run(run.id)
    uri = mlflow.get_tracking_uri()
    run.page = views.runs_url(uri, opened.info.experiment_id) if uri.startswith("http") else None
    views.prepare_experiment(run.client, opened.info.experiment_id)
    run.clear_outcome(opened.data.tags)
    run.log_params(params, spec)


@contextlib.contextmanager
def end_with_block(run: Run, life: Path) -> Iterator[None]:
    """Ends the run as the block ends, and deletes the file `life`, which shows that this process is in the run."""
    status = "FAILED"
    try:
        yield
        if not run.ending:
            run.finish()
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except BaseException as e:
        with few_retries(), contextlib.suppress(*STORE_ERRORS):
            run.set_tags({"outcome": "failed", "reason": first_line(e)})
        raise
    finally:
        # A store that does not answer must not hide the first error. A run that stays RUNNING is closed by the next run
        # of this LOTTERY_HOME, which finds the file.
        if not run.ending:
            with few_retries(), contextlib.suppress(*STORE_ERRORS):
                run.end(status)
                run.ended = True
        if run.ended:
            life.unlink()


def fail_adopted(reason: str) -> None:
    """Marks the run that `mlflow run` has opened as failed, if the input is refused before `open_run`."""
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if run_id is None:
        return
    with contextlib.suppress(MlflowException):
        client = MlflowClient()
        client.log_batch(run_id, tags=[RunTag("outcome", "failed"), RunTag("reason", reason[:5000])])
        client.set_terminated(run_id, "FAILED")


@contextlib.contextmanager
def open_sibling_run(run: Run, id: str, name: str, tags: Mapping[str, str]) -> Iterator[Run | None]:
    """Opens a second run, for the measurement `id`, while `run` is the open run of this process.

    It is in the same experiment and has the same user. Yields None if the store already has a finished run of `id`.
    """
    before = find_run(run.client, id)
    if before is not None and before.info.status == "FINISHED":
        yield None
        return
    with run_lock(id, {"store": store_digest(), "run": before.info.run_id if before is not None else None}) as life:
        if before is None:
            opened = run.client.get_run(run.id)
            by = ("mlflow.user", "mlflow.source.name", "mlflow.source.type", "study")
            carried = {k: v for k, v in opened.data.tags.items() if k in by}
            before = run.client.create_run(
                opened.info.experiment_id, run_name=name[:LONGEST_NAME], tags={**carried, **tags, "measurement": id}
            )
        own = Run(run.client, before.info.run_id, partial(run.client.set_terminated, before.info.run_id))
        own.clear_outcome(before.data.tags)
        yield own
        own.finish()
        life.unlink()


def pop_run_id() -> str | None:
    """Returns the id of the run that `mlflow run` opened for this process and forgets it; None if there is none."""
    return os.environ.pop("MLFLOW_RUN_ID", None)


def metric_name(text: str) -> str:
    """Returns a text as MLflow allows it for a metric's name."""
    name = re.sub(r"[^\w.\- /]", "-", text)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 13]}-{json_sha256(text)[:12]}"
