"""This file writes the runs of trainings, each nested under the run of its hypothesis, and finds them again."""

import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from lottery.registry.runs import LONGEST_NAME
from lottery.registry.store import every_page

MOST_METRICS = 1000  # in one batch
FEW = 20  # trainings that are searched one by one; of more, all that the store has are read
OLD_S = 600  # seconds after which a run that is being written belongs to a process that was killed
CURVES = ("train_loss", "validation_loss")


def find_hypothesis_run(client: MlflowClient, id: str) -> Any | None:
    """Returns the newest run of a hypothesis, or None if the store has none."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.kind = 'hypothesis' and tags.study_id = '{id}'"
    found = client.search_runs(experiments, query, max_results=1, order_by=["attributes.start_time DESC"])
    return found[0] if found else None


def find_training_runs(client: MlflowClient, ids: Iterable[str]) -> dict[str, str]:
    """Returns the finished run of each training that the store has one of, by the training's id."""
    wanted = set(ids)
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = "tags.kind = 'training' and attributes.status = 'FINISHED'"
    queries = [f"{query} and tags.training = '{id}'" for id in wanted] if len(wanted) < FEW else [query]
    pages = (every_page(partial(client.search_runs, experiments, each, max_results=1000)) for each in queries)
    found = [run for page in pages for run in page]
    return {r.data.tags["training"]: r.info.run_id for r in found if r.data.tags.get("training") in wanted}


def delete_unfinished(client: MlflowClient, parent: str) -> None:
    """Deletes the runs of trainings that a killed process left half-written. To write one takes a second, so younger ones
    may be another process's."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.kind = 'training' and tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"
    for run in every_page(partial(client.search_runs, experiments, query, max_results=1000)):
        if time.time() - run.info.start_time / 1000 > OLD_S:
            client.delete_run(run.info.run_id)


def log_training(
    client: MlflowClient,
    parent: str,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    metrics: Mapping[str, float],
    curve: Iterable[tuple[int, float, float]],
    status: str = "FINISHED",
) -> str:
    """Writes the run of one training and returns its id.

    `curve` holds (step, training loss, loss of the search text). The run is FINISHED last, so a run that a killed process
    left half-written does not count.
    """
    opened = client.get_run(parent)
    carried = {k: v for k, v in opened.data.tags.items() if k in ("mlflow.user", "mlflow.source.name", "study")}
    about = {**carried, **tags, "kind": "training", "mlflow.parentRunId": parent}
    run = client.create_run(opened.info.experiment_id, run_name=name[:LONGEST_NAME], tags=about)
    now = int(time.time() * 1000)
    points = [Metric(k, v, now, step) for step, *losses in curve for k, v in zip(CURVES, losses, strict=True)]
    points += [Metric(k, v, now, 0) for k, v in metrics.items()]
    client.log_batch(run.info.run_id, points[:MOST_METRICS], [Param(k, v) for k, v in params.items()])
    for first in range(MOST_METRICS, len(points), MOST_METRICS):
        client.log_batch(run.info.run_id, points[first : first + MOST_METRICS])
    client.set_terminated(run.info.run_id, status)
    return str(run.info.run_id)


def add_part(client: MlflowClient, run_id: str, key: str, part: str) -> None:
    """Marks a run as that of a part of another hypothesis: presets share their trainings."""
    if client.get_run(run_id).data.tags.get(key) != part:
        client.log_batch(run_id, tags=[RunTag(key, part)])
