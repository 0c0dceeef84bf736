"""Runs of earlier work, found again in the tracking store."""

import contextlib
import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.measuring.measurement import ModelResult
from lottery.progress import say
from lottery.registry.store import STORE_ERRORS, every_page, few_retries, first_line, store_name
from lottery.spec import Spec

REUSABLE_METRICS = (
    "perplexity",
    "bits_per_byte",
    "repetition",
    "distinct_2",
    "disk_",
)  # of a dense baseline found again


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


def load_dense_run(client: MlflowClient, ticket: str, protocol: str, wants: frozenset[str]) -> ModelResult | None:
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
    metrics = {k: v for k, v in run.data.metrics.items() if k.startswith(REUSABLE_METRICS)}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError, ValueError):
        local = Path(client.download_artifacts(run.info.run_id, "", folder))
        nll_N = np.load(local / "nll_per_window.npy", allow_pickle=False) if "perplexity" in wants else None
        samples = json.loads((local / "samples.json").read_text()) if "samples" in wants else []
        return ModelResult(metrics, nll_N, samples, run.data.tags.get("outcome"))
    return None


def find_dense_run(client: MlflowClient, ticket: str, protocol: str, wants: frozenset[str]) -> Any | None:
    """The newest finished dense run of this base and protocol that carries what is wanted; over all experiments."""
    query = (
        f"attributes.status = 'FINISHED' and tags.kind = 'dense' "
        f"and tags.ticket = '{ticket}' and tags.protocol = '{protocol}'"
    )
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, query, max_results=20)
    return next((r for r in runs if wants <= set(r.data.tags.get("measured", "").split(","))), None)


METRIC_OF_MEASURE = {
    "perplexity": "perplexity",
    "speed": "decode_tok_s",
    "memory": "weights_bytes",
    "samples": "distinct_2",
}


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
    return next((run for run in found if answers_spec(run, tags, spec, has_base)), None)


def answers_spec(run: Any, tags: Mapping[str, str], spec: Spec, has_base: bool) -> bool:
    params, measures = run.data.params, set(spec.measures)
    overflowed = run.data.tags.get("outcome") == "overflow"
    needed = {METRIC_OF_MEASURE[name] for name in measures} | (
        {"perplexity_ratio"} if has_base and "perplexity" in measures else set()
    )
    needed -= {"perplexity", "perplexity_ratio"} if overflowed else set()
    same = ["tolerance"] if "perplexity" in measures else []
    if spec.control:
        same += ["control", "seed"]
    if measures & {"speed", "memory"} and run.data.tags.get("hardware") != tags.get("hardware"):
        return False
    asked = {name: params[name] for name in same if name in params}
    return len(asked) == len(same) and spec.first_difference(asked) is None and needed <= run.data.metrics.keys()
