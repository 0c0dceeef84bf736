"""This file records and finds, by tags of runs, which runs belong to which parts of a study."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from lottery.files.locks import process_lock
from lottery.registry.runs import LONGEST_NAME
from lottery.registry.store import every_page


def find_study_run(client: MlflowClient, id: str) -> Any | None:
    """Returns the newest run of a study, or None if the store has none."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.kind = 'study' and tags.study_id = '{id}'"
    runs = client.search_runs(experiments, query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def part_key(study_run: str) -> str:
    """Returns the name of the tag that lists, on a run, the parts of a study that it is the run of."""
    return f"study.{study_run[:12]}"


def parts_of(run: Any, key: str) -> list[str]:
    """Returns the parts that a run belongs to: one, or several if these parts turned out to be the same ticket."""
    return [part for part in run.data.tags.get(key, "").split(",") if part]


def find_parts(client: MlflowClient, key: str, part: str = "") -> list[Any]:
    """Returns the runs of a study's parts, or of `part` alone, the newest first."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query, order = f"tags.`{key}` LIKE '%{part}%'", ["attributes.start_time DESC"]
    found = every_page(partial(client.search_runs, experiments, query, max_results=1000, order_by=order))
    return [run for run in found if not part or part in parts_of(run, key)]


def set_part_runs(client: MlflowClient, key: str, part: str, run_ids: Collection[str]) -> None:
    """Makes `run_ids` the only runs of a part. A search has several runs; any other part has one."""
    for run_id in dict.fromkeys([*run_ids, *(run.info.run_id for run in find_parts(client, key, part))]):
        with process_lock(f"parts-{run_id}"):  # two tasks that found the same ticket must not write this tag at once
            parts = parts_of(client.get_run(run_id), key)
            new_parts = [p for p in parts if p != part] + ([part] if run_id in run_ids else [])
            if new_parts and sorted(new_parts) != sorted(parts):
                client.set_tag(run_id, key, ",".join(sorted(new_parts)))
            elif parts and not new_parts:
                client.delete_tag(run_id, key)


def ensure_failed_run(
    client: MlflowClient,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    key: str,
    part: str,
    since_ms: int,
) -> str:
    """Returns the id of the run of a part that failed since `since_ms` (milliseconds since 1970).

    A failed run is created if the part failed before it opened one.
    """
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
