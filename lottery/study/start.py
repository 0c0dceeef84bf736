"""This file starts a study: it checks names and disk space and opens the study's run in MLflow, new or continued."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lottery.errors import InputError
from lottery.files.home import home
from lottery.registry import parts, recovery, runs, store, versions
from lottery.spec import json_sha256
from lottery.study.planning import Plan
from lottery.study.preparation import check_datasets, check_disk_space


def study_folder(plan: Plan) -> Path:
    """Returns the folder of a study's plan, logs and report. Each tracking store has its own."""
    return home() / "studies" / f"{plan.id}-{store.store_digest()[:8]}"


def schedule_run(plan: Plan, yes: bool = False, tags: Mapping[str, str] | None = None) -> tuple[Plan, str | None]:
    """Opens the study's run for the tasks of a cluster and leaves it SCHEDULED.

    Returns the plan with that run, and the status that the run had before (None: the run is new). Raises InputError if
    a cluster is working on the study already, or if the disk has no room, unless a person said `yes`.
    """
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
    """Raises InputError for names and data sets that every task would refuse, before any task starts."""
    for part in plan.tickets:
        if part.spec.register != "none":
            versions.model_name(part.spec.register, part.base_id)
    check_datasets(plan)


def unschedule_run(plan: Plan, before: str | None, reason: str) -> None:
    """Undoes `schedule_run` after Slurm refused the study: a new run is deleted, an old one gets its status back."""
    client = store.connect()
    assert plan.run is not None
    if before is None:
        client.delete_run(plan.run)
        return
    client.set_terminated(plan.run, before)
    if before == "FAILED":
        client.set_tag(plan.run, "reason", reason)


def resume_plan(client: store.Client, plan: Plan, yes: bool) -> Plan:
    """Returns the plan with the run that it continues, or without a run if a new one must be opened.

    The plan continues the newest run of the same study, unless it is `fresh` (every ticket is made again). A fresh run
    that did not finish is continued as a fresh one; but if it failed and the plan is fresh too, a new run begins.

    Raises InputError if tasks of a cluster are working on the study, unless a person said `yes`, because tickets would be
    made twice.
    """
    before = parts.find_study_run(client, plan.id)
    if before is None:
        return plan
    if before.info.status == "SCHEDULED" and not yes:
        raise InputError(
            f"study={plan.study.name}: it was submitted before, and its last job, the report, has not ended (run "
            f"{before.info.run_id}); wait for it, or give --yes if its jobs no longer exist"
        )
    status = before.info.status
    if "fresh" in before.data.tags and status != "FINISHED" and not (plan.fresh and status == "FAILED"):
        return replace(plan, run=before.info.run_id, fresh=True)
    return plan if plan.fresh else replace(plan, run=before.info.run_id)


@contextmanager
def open_study(client: store.Client, plan: Plan, more: Mapping[str, str] | None = None) -> Iterator[runs.Run]:
    """Opens the study's run: the one that `mlflow run` opened for this process, else the plan's, else a new one."""
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
