"""Which runs are the parts of a study, as their tags say."""

from collections.abc import Collection, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow.entities import Param
from mlflow.tracking import MlflowClient

from lottery.files.locks import process_lock
from lottery.registry.runs import LONGEST_NAME
from lottery.registry.store import every_page

if TYPE_CHECKING:  # it brings torch and transformers, which a report of runs does not need
    pass


def find_study_run(client: MlflowClient, id: str) -> Any | None:
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


def set_part_runs(client: MlflowClient, key: str, part: str, run_ids: Collection[str]) -> None:
    """These runs, and no earlier ones, are what a study has of a part: one, or of a search several."""
    for run_id in dict.fromkeys([*run_ids, *(run.info.run_id for run in find_parts(client, key, part))]):
        with process_lock(f"parts-{run_id}"):  # tasks that have found the same ticket say so one after the other
            parts = parts_of(client.get_run(run_id), key)
            said = [p for p in parts if p != part] + ([part] if run_id in run_ids else [])
            if said and sorted(said) != sorted(parts):
                client.set_tag(run_id, key, ",".join(sorted(said)))
            elif parts and not said:
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
