"""This file sets the alias `winner` of a registered model and the tags that hold the verdict on a version."""

import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from lottery.errors import InputError, MachineError
from lottery.measuring.verdict import is_judged
from lottery.registry.store import every_page
from lottery.spec import Spec


def set_winner_alias(client: MlflowClient, name: str) -> None:
    """Sets the alias `winner` of the registered model `name`, or deletes it if no ticket wins.

    A ticket counts if it was measured under the default data set, window and tolerance, on all windows, and if its
    method is not random. Of those that win, the alias goes to the one with the most zeros, and of equal ones to the one
    with the lower ratio.

    When many runs finish at once, each sets the alias and reads it again until it is right, so the last one leaves it
    right. Raises MachineError if that does not succeed in 20 attempts.
    """
    for attempt in range(20):
        versions = every_page(partial(client.search_model_versions, f"name = '{name}'"))
        best = find_winner(client, versions)
        now = client.get_registered_model(name).aliases.get("winner")
        if str(now or "") == (best or ""):  # some stores return a version as a number, others as a text
            return
        try:
            if best:
                client.set_registered_model_alias(name, "winner", best)
            else:
                client.delete_registered_model_alias(name, "winner")
        except MlflowException:  # another process changed it at this very moment
            time.sleep(0.1 * random.random() * (attempt + 1))
    raise MachineError(f"register={name}: its alias `winner` could not be set; run the same command again")


def find_winner(client: MlflowClient, versions: Sequence[Any]) -> str | None:
    """Returns the version that deserves the alias `winner`, or None. The newest run that counts judges each ticket."""
    # Of several versions of one ticket the last one counts, because the files of the earlier ones were lost.
    by_ticket = {v.tags["ticket"]: str(v.version) for v in sorted(versions, key=version_number) if "ticket" in v.tags}
    experiments = [e.experiment_id for e in client.search_experiments()]
    judged: dict[str, tuple[float, float] | None] = {}
    for base in {v.tags["base"] for v in versions if "base" in v.tags}:
        quote = '"' if "'" in base else "'"
        query = "tags.kind = 'ticket' and attributes.status != 'FAILED' and attributes.status != 'KILLED'"
        if (
            quote not in base
        ):  # MLflow cannot filter for a text with both kinds of quotes; the loop checks the tickets' ids
            query += f" and tags.base = {quote}{base}{quote}"
        for run in every_page(partial(client.search_runs, experiments, query, max_results=1000)):
            ticket, metrics = run.data.tags.get("ticket", ""), run.data.metrics
            if ticket in judged or ticket not in by_ticket or not is_eligible(run.data.tags, run.data.params):
                continue
            wins = run.data.tags["winner"] == "yes" and {"sparsity_model", "perplexity_ratio"} <= metrics.keys()
            judged[ticket] = (metrics["sparsity_model"], -metrics["perplexity_ratio"]) if wins else None
    best = (
        max((ranks, by_ticket[ticket]) for ticket, ranks in judged.items() if ranks) if any(judged.values()) else None
    )
    return best[1] if best else None


def version_number(version: Any) -> int:
    return int(version.version)


def is_eligible(tags: Mapping[str, str], params: Mapping[str, str]) -> bool:
    """Returns whether a run's verdict counts for the alias `winner` (see `set_winner_alias`)."""
    names = ("dataset", "window", "tolerance", "method")
    if not is_judged(tags) or any(name not in params for name in names):
        return False
    try:
        spec = Spec.parse(**{name: params[name] for name in names})
    except InputError:
        return False
    default = Spec()
    usual = ("auto", "builtin" if tags.get("base") == "builtin" else "wikitext2")
    same = (spec.window, spec.tolerance) == (default.window, default.tolerance)
    return same and spec.dataset in usual and spec.method != "random"


VERDICT = ("winner", "beats_control", "outcome", "limited")  # the tags that a measurement may set
JUDGED_BY = "judged_by"  # this tag of a version names the run whose verdict it has


def tag_version(client: MlflowClient, uri: str, model_id: str, tags: Mapping[str, str], description: str) -> None:
    """Writes the verdict and the description of the newest full measurement to a version and its logged model."""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    client.set_logged_model_tags(model_id, dict(tags))
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    for key in set(VERDICT) - tags.keys():  # these may come from an earlier measurement
        with contextlib.suppress(MlflowException):
            client.delete_logged_model_tag(model_id, key)
        with contextlib.suppress(MlflowException):
            client.delete_model_version_tag(name, version, key)
    client.update_model_version(name, version, description)
