"""This file sets and finds labels. A label is a person's judgement of a ticket's text, kept as tags in MLflow.

It imports no torch.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import mlflow
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.errors import InputError, hide_password
from lottery.progress import say
from lottery.registry import cards
from lottery.registry.logged_models import find_model
from lottery.registry.store import every_page
from lottery.registry.views import NOTE_TAG

LABEL_TAGS = ("coherent", "note")


def labels_by_ticket(client: MlflowClient) -> dict[tuple[str, str], dict[str, str]]:
    """Returns (ticket, protocol) -> the label of the ticket's text.

    A label is about the ticket, so a newer run without a label does not remove it. `label_run` labels all runs of the
    ticket that exist, so the newest labelled run has the newest label.
    """
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
    """Returns the label of a ticket under the protocol of a run, else the label of its logged model.

    `tags` are the tags of that run. Returns {} if a person labelled neither.
    """
    found = labels_by_ticket(client).get((tags["ticket"], tags.get("protocol", "")))
    if found is None and model_id:
        found = {k: v for k, v in client.get_logged_model(model_id).tags.items() if k in LABEL_TAGS}
    return found or {}


def label_run(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> list[str]:
    """Writes a person's label as tags and into the descriptions; returns the names of all that was tagged.

    The label goes to the run, to the other runs of its ticket and protocol, to the logged models that these runs made
    or measured, and to every version of those. A warning is printed if the run has no text to judge. Raises InputError
    if the store has no such run.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"run={run_id}: there is no such run in {hide_password(mlflow.get_tracking_uri())}; give the id of a run"
        ) from e
    if run.data.tags.get("kind") == "dense":
        say(f"warning: run={run_id}: it is a run of the dense base, so the label judges no ticket; give a ticket's run")
    elif "distinct_2" not in run.data.metrics:
        say(f"warning: run={run_id}: it has no samples to judge; give a run that was made with measure=all or samples")
    tagged, models = [], []
    for each in runs_of_same_text(client, run):
        description = cards.with_label(each.data.tags.get(NOTE_TAG, ""), tags)[: cards.LONGEST_TAG]
        about = {**tags, NOTE_TAG: description} if NOTE_TAG in each.data.tags else tags
        client.log_batch(each.info.run_id, tags=[RunTag(k, v) for k, v in about.items()])
        tagged.append(f"run {each.info.run_id}")
        made, used = each.outputs, each.inputs
        models += [m.model_id for m in [*(made.model_outputs if made else []), *(used.model_inputs if used else [])]]
    for model_id in dict.fromkeys(models):
        if find_model(client, model_id) is not None:
            tagged += label_model(client, model_id, tags)
    return tagged


def label_model(client: MlflowClient, model_id: str, tags: Mapping[str, str]) -> list[str]:
    """Writes a label to a logged model and to its versions; returns their URIs."""
    client.set_logged_model_tags(model_id, dict(tags))
    tagged = [f"models:/{model_id}"]
    for version in every_page(partial(client.search_model_versions, f"source_path = 'models:/{model_id}'")):
        for key, value in tags.items():
            client.set_model_version_tag(version.name, version.version, key, value)
        if version.description:
            description = cards.with_label(version.description, tags)[: cards.LONGEST_DESCRIPTION]
            client.update_model_version(version.name, version.version, description)
        tagged.append(f"models:/{version.name}/{version.version}")
    return tagged


def runs_of_same_text(client: MlflowClient, run: Any) -> list[Any]:
    """Returns the run and the other runs of its ticket and protocol, which have the same text."""
    ticket, protocol = run.data.tags.get("ticket"), run.data.tags.get("protocol")
    if not ticket or not protocol:
        return [run]
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    query = f"tags.ticket = '{ticket}' and tags.protocol = '{protocol}'"
    found = every_page(partial(client.search_runs, experiments, query, max_results=1000))
    return [run, *(other for other in found if other.info.run_id != run.info.run_id)]
