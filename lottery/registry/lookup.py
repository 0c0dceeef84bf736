"""This file finds runs of earlier work in the tracking store."""

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
)  # prefixes of the dense metrics that `load_dense_run` takes from an earlier run


def find_run(client: MlflowClient, measurement: str, run_id: str | None = None) -> Any | None:
    """Returns the run of a measurement, or None if the store has none.

    The run is found by `run_id` if that is known, else by its tag over all experiments.
    """
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
    """Returns what the newest dense run (`find_dense_run`) holds, or None if there is none.

    `wants` are measures. If the store does not answer, a warning is printed and the result is None.
    """
    try:
        with few_retries():
            run = find_dense_run(client, ticket, protocol, wants)
    except STORE_ERRORS as e:
        say(f"warning: {store_name()} does not answer ({first_line(e)}); the dense base is measured here")
        return None
    if run is None:
        return None
    # That run's other metrics (speed, memory) were measured at another hour and perhaps on another machine.
    metrics = {k: v for k, v in run.data.metrics.items() if k.startswith(REUSABLE_METRICS)}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(MlflowException, OSError, ValueError):
        local = Path(client.download_artifacts(run.info.run_id, "", folder))
        nll_N = np.load(local / "nll_per_window.npy", allow_pickle=False) if "perplexity" in wants else None
        samples = json.loads((local / "samples.json").read_text()) if "samples" in wants else []
        return ModelResult(metrics, nll_N, samples, run.data.tags.get("outcome"))
    return None


def find_dense_run(client: MlflowClient, ticket: str, protocol: str, wants: frozenset[str]) -> Any | None:
    """Returns the newest finished dense run of this base and protocol that measured all of `wants`, or None.

    The search covers all experiments.
    """
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
    """Returns the newest finished run that answers `spec`, or None.

    Such a run is of the same ticket and protocol, with the same tolerance. It has every metric that `spec` asks for,
    controls of the same random draws, and speeds of the same hardware. If `parent` is given, only runs of that study
    count. A ticket that overflowed never has a perplexity, so none is required of it.

    `tags` are the tags that `jobs.job.Job` has before the run; `has_base` says that the dense base is on this machine,
    so that a ratio to it is possible.
    """
    query = f"attributes.status = 'FINISHED' and tags.kind = 'ticket' and tags.ticket = '{tags['ticket']}'"
    query += f" and tags.protocol = '{tags['protocol']}'" if "protocol" in tags else ""
    query += f" and tags.`mlflow.parentRunId` = '{parent}'" if parent else ""
    experiments = [e.experiment_id for e in client.search_experiments()]
    found = every_page(partial(client.search_runs, experiments, query, max_results=100))
    return next((run for run in found if answers_spec(run, tags, spec, has_base)), None)


def answers_spec(run: Any, tags: Mapping[str, str], spec: Spec, has_base: bool) -> bool:
    """Returns whether a run of the right ticket and protocol answers `spec` (see `find_finished`)."""
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
