"""A person's judgement of a ticket's text: set on runs, logged models and versions, and found again. MLflow alone, no torch."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import mlflow
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.errors import InputError, hide_password
from lottery.progress import say
from lottery.registry.logged_models import find_model
from lottery.registry.store import every_page
from lottery.registry.views import NOTE_TAG

LABEL_TAGS = ("coherent", "note")  # a person's judgement of a ticket's text


def labels_by_ticket(client: MlflowClient) -> dict[tuple[str, str], dict[str, str]]:
    """(ticket, protocol) -> what a person has said of its text: a label is about the ticket, so it outlives a newer run
    that has none. Whoever labels one run labels all that are there, so that the newest labelled run has the newest label."""
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    order = ["attributes.start_time DESC"]
    search = partial(client.search_runs, experiments, "tags.coherent LIKE '%'", max_results=1000, order_by=order)
    found: dict[tuple[str, str], dict[str, str]] = {}
    for tags in (run.data.tags for run in every_page(search)):
        if "ticket" in tags:
            found.setdefault(
                (tags["ticket"], tags.get("protocol", "")), {name: tags[name] for name in LABEL_TAGS if name in tags}
            )
    return found


def find_labels(client: MlflowClient, tags: Mapping[str, str], model_id: str | None) -> dict[str, str]:
    """What a person has said of a ticket's text under the protocol of a run (`tags`: that run's), else of its logged
    model's."""
    found = labels_by_ticket(client).get((tags["ticket"], tags.get("protocol", "")))
    if found is None and model_id:
        found = {k: v for k, v in client.get_logged_model(model_id).tags.items() if k in LABEL_TAGS}
    return found or {}


def label_run(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> list[str]:
    """A person's judgement as tags, and in the descriptions, of a run, of the others of its ticket and protocol, of the
    logged models that they made or measured, and of every version of those. What was tagged, by name; aloud where there
    is no text to judge. Raises InputError where there is no such run."""
    from lottery.registry import cards  # it brings torch, and reads of a table what this file is read for

    try:
        run = client.get_run(run_id)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"run={run_id}: there is no such run in {hide_password(mlflow.get_tracking_uri())}; give a run's id"
        ) from e
    if run.data.tags.get("kind") == "dense":
        say(f"warning: run={run_id}: it is the dense base's, no ticket is judged by this; give a ticket's run")
    elif "distinct_2" not in run.data.metrics:
        say(f"warning: run={run_id}: it has no samples to judge by; give one that was made with measure=all or samples")
    tagged, models = [], []
    for each in runs_of_same_text(client, run):
        told = cards.with_label(each.data.tags.get(NOTE_TAG, ""), tags)[: cards.LONGEST_TAG]
        about = {**tags, NOTE_TAG: told} if NOTE_TAG in each.data.tags else tags
        client.log_batch(each.info.run_id, tags=[RunTag(k, v) for k, v in about.items()])
        tagged.append(f"run {each.info.run_id}")
        made, used = each.outputs, each.inputs
        models += [m.model_id for m in [*(made.model_outputs if made else []), *(used.model_inputs if used else [])]]
    for model_id in dict.fromkeys(models):
        if find_model(client, model_id) is None:
            continue
        client.set_logged_model_tags(model_id, dict(tags))
        tagged.append(f"models:/{model_id}")
        for version in every_page(partial(client.search_model_versions, f"source_path = 'models:/{model_id}'")):
            for key, value in tags.items():
                client.set_model_version_tag(version.name, version.version, key, value)
            if version.description:
                told = cards.with_label(version.description, tags)[: cards.LONGEST_DESCRIPTION]
                client.update_model_version(version.name, version.version, told)
            tagged.append(f"models:/{version.name}/{version.version}")
    return tagged


def runs_of_same_text(client: MlflowClient, run: Any) -> list[Any]:
    """The run, and the others of its ticket under its protocol: they have the same text."""
    ticket, protocol = run.data.tags.get("ticket"), run.data.tags.get("protocol")
    if not ticket or not protocol:
        return [run]
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    query = f"tags.ticket = '{ticket}' and tags.protocol = '{protocol}'"
    found = every_page(partial(client.search_runs, experiments, query, max_results=1000))
    return [run, *(other for other in found if other.info.run_id != run.info.run_id)]
