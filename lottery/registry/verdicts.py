"""What is said of tickets once they are registered: the alias `winner`, and a reader's judgement. MLflow alone."""

import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import mlflow
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.errors import InputError, MachineError, hide_password
from lottery.progress import say
from lottery.registry.finding import LABELS, judgements
from lottery.registry.store import every_page
from lottery.registry.versions import find_model
from lottery.registry.views import NOTE
from lottery.spec import Spec


def crown(client: MlflowClient, name: str) -> None:
    """Set the alias `winner` of a registered model: of the winning tickets, measured under the default data set, window
    and tolerance, on all windows, and not random, the one with the most zeros; of equal ones that of the lower ratio.

    Of many runs that finish at once each does so, and looks again until what it reads is what it set: the last is right.
    """
    for attempt in range(20):
        versions = every_page(partial(client.search_model_versions, f"name = '{name}'"))
        best = winner(client, versions)
        now = client.get_registered_model(name).aliases.get("winner")
        if str(now or "") == (best or ""):  # the stores disagree whether a version is a number
            return
        try:
            if best:
                client.set_registered_model_alias(name, "winner", best)
            else:
                client.delete_registered_model_alias(name, "winner")
        except MlflowException:  # somebody set it at this very moment
            time.sleep(0.1 * random.random() * (attempt + 1))
    raise MachineError(f"register={name}: its alias `winner` would not be set; run the same command again")


def winner(client: MlflowClient, versions: Sequence[Any]) -> str | None:
    """The version that the alias `winner` belongs to, judged by the newest run of each ticket that counts."""
    # of several versions of one ticket the last: the files of those before it were gone
    by_ticket = {v.tags["ticket"]: str(v.version) for v in sorted(versions, key=version_number) if "ticket" in v.tags}
    experiments = [e.experiment_id for e in client.search_experiments()]
    judged: dict[str, tuple[float, float] | None] = {}
    for base in {v.tags["base"] for v in versions if "base" in v.tags}:
        quote = '"' if "'" in base else "'"
        query = "tags.kind = 'ticket' and attributes.status != 'FAILED' and attributes.status != 'KILLED'"
        if quote not in base:  # MLflow has no way to say both quotes; tickets are told apart by their ids below
            query += f" and tags.base = {quote}{base}{quote}"
        for run in every_page(partial(client.search_runs, experiments, query, max_results=1000)):
            ticket, metrics = run.data.tags.get("ticket", ""), run.data.metrics
            if ticket in judged or ticket not in by_ticket or not counts(run.data.tags, run.data.params):
                continue
            wins = run.data.tags["winner"] == "yes" and {"sparsity_model", "perplexity_ratio"} <= metrics.keys()
            judged[ticket] = (metrics["sparsity_model"], -metrics["perplexity_ratio"]) if wins else None
    best = (
        max((ranks, by_ticket[ticket]) for ticket, ranks in judged.items() if ranks) if any(judged.values()) else None
    )
    return best[1] if best else None


def version_number(version: Any) -> int:
    return int(version.version)


def counts(tags: Mapping[str, str], params: Mapping[str, str]) -> bool:
    """Whether a run's verdict is one about the default data set, window and tolerance."""
    names = ("dataset", "window", "tolerance", "limit", "method")
    if "winner" not in tags or "limited" in tags or any(name not in params for name in names):
        return False
    try:
        spec = Spec.parse(**{name: params[name] for name in names})
    except InputError:
        return False
    default = Spec()
    usual = ("auto", "builtin" if tags.get("base") == "builtin" else "wikitext2")
    same = (spec.window, spec.tolerance, spec.limit) == (default.window, default.tolerance, default.limit)
    return same and spec.dataset in usual and spec.method != "random"


def labels(client: MlflowClient, tags: Mapping[str, str], model_id: str | None) -> dict[str, str]:
    """What a person has said of a ticket's text under the protocol of a run (`tags`: that run's), else of its logged
    model's."""
    found = judgements(client).get((tags["ticket"], tags.get("protocol", "")))
    if found is None and model_id:
        found = {k: v for k, v in client.get_logged_model(model_id).tags.items() if k in LABELS}
    return found or {}


def label(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> list[str]:
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
    for each in same_text(client, run):
        told = cards.with_label(each.data.tags.get(NOTE, ""), tags)[: cards.LONGEST_TAG]
        about = {**tags, NOTE: told} if NOTE in each.data.tags else tags
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


def same_text(client: MlflowClient, run: Any) -> list[Any]:
    """The run, and the others of its ticket under its protocol: they have the same text."""
    ticket, protocol = run.data.tags.get("ticket"), run.data.tags.get("protocol")
    if not ticket or not protocol:
        return [run]
    experiments = [e.experiment_id for e in every_page(client.search_experiments)]
    query = f"tags.ticket = '{ticket}' and tags.protocol = '{protocol}'"
    found = every_page(partial(client.search_runs, experiments, query, max_results=1000))
    return [run, *(other for other in found if other.info.run_id != run.info.run_id)]
