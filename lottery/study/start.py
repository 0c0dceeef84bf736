"""How a study starts: room on the disk, names that can be, and its run in MLflow, new or gone on in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lottery.errors import InputError
from lottery.files.home import home
from lottery.measuring.setup import resolve_dataset
from lottery.measuring.text import read_dataset
from lottery.registry import parts, recovery, runs, store, versions
from lottery.spec import json_sha256
from lottery.study.planning import Plan
from lottery.study.preparation import check_disk_space


def study_folder(plan: Plan) -> Path:
    """For a study's plan, logs and report: one for each tracking store that it is in."""
    return home() / "studies" / f"{plan.id}-{store.store_digest()[:8]}"


def schedule_run(plan: Plan, yes: bool = False, tags: Mapping[str, str] | None = None) -> tuple[Plan, str | None]:
    """The study's run, begun for the tasks of a cluster to come, and the state that it was in before (None: it is new).
    Raises InputError where a cluster is at it already, or there is no room, unless a person has said `yes`."""
    client = store.connect()
    recovery.close_killed_runs(client)
    plan = resume_plan(client, plan, yes)
    check_disk_space(plan, yes)
    before = client.get_run(plan.run).info.status if plan.run else None
    check_texts_and_names(plan)
    with open_study(client, plan, tags) as run:
        run.finish("SCHEDULED")
        return replace(plan, run=run.id), before


def check_texts_and_names(plan: Plan) -> None:
    """What every task would refuse is refused once, and at once. Raises InputError."""
    for part in plan.tickets:
        if part.spec.register != "none":
            versions.model_name(part.spec.register, part.base_id)
    for dataset in {resolve_dataset(p.spec, p.base_id) for p in plan.baselines if "perplexity" in p.spec.measures}:
        read_dataset(dataset)


def unschedule_run(plan: Plan, before: str | None, reason: str) -> None:
    """The run of a study that no cluster took is what it was; a new one goes."""
    client = store.connect()
    assert plan.run is not None
    if before is None:
        client.delete_run(plan.run)
        return
    client.set_terminated(plan.run, before)
    if before == "FAILED":
        client.set_tag(plan.run, "reason", reason)


def resume_plan(client: store.Client, plan: Plan, yes: bool) -> Plan:
    """The plan with the run that it goes on in: the newest of the same study, unless every ticket is to be made again; one
    that was begun so and has not come to its end (killed, or a ticket failed and it is not to begin again) goes on so.
    Without a run: a new one is to be opened.

    Raises InputError where tasks of a cluster are at it, unless a person has said `yes`: they would make tickets twice.
    """
    before = parts.find_study_run(client, plan.id)
    if before is None:
        return plan
    if before.info.status == "SCHEDULED" and not yes:
        raise InputError(
            f"study={plan.study.name}: it was submitted before, and its last job has not ended it (run {before.info.run_id}); "
            f"wait for it, or say --yes if its jobs are gone"
        )
    status = before.info.status
    if "fresh" in before.data.tags and status != "FINISHED" and not (plan.fresh and status == "FAILED"):
        return replace(plan, run=before.info.run_id, fresh=True)
    return plan if plan.fresh else replace(plan, run=before.info.run_id)


@contextmanager
def open_study(client: store.Client, plan: Plan, more: Mapping[str, str] | None = None) -> Iterator[runs.Run]:
    """The study's run: the one that `mlflow run` has opened, or that of the plan, or a new one."""
    tags = {"kind": "study", "study": plan.study.name, "study_id": plan.id, **(more or {})}
    tags |= {"fresh": "yes"} if plan.fresh else {}
    params = {"name": plan.study.name, "models": ",".join(plan.study.models)} | {
        name: ",".join(values) for name, values in plan.study.parameters.items()
    }
    params |= {"budget": ",".join(f"{b:g}" for b in plan.study.budget) or "none"}
    resume, id = runs.pop_run_id() or plan.run, json_sha256([plan.id, store.store_digest()])[:16]
    with runs.open_run(client, id, plan.title, params, tags, resume=resume, adopt=False) as run:
        run.log_files({"plan.json": replace(plan, run=run.id).json(), "study.yaml": plan.study.yaml()})
        yield run
