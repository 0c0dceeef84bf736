"""The command `lottery study`, in its forms: here, as a plan alone, one part of it, or on a cluster."""

import json
from pathlib import Path

import click

from lottery import study as studies
from lottery import tables
from lottery.design import Study
from lottery.home import home, make_folder, write_file
from lottery.planning import Plan, read_plan
from lottery.progress import say
from lottery.shared import Shared
from lottery.slurm import Options, check, submit, warnings


def study(
    name: str, asked: Study | None, *, dry_run: bool, fresh: bool, yes: bool, part: str | None,
    slurm: Options | None, as_json: bool,
) -> None:  # fmt: skip
    """`asked`: None where `name` is a plan that was written for a cluster."""
    plan, shared = (read_plan(Path(name)), Shared()) if asked is None else studies.prepare(asked, fresh, yes or dry_run)
    if slurm is not None:
        on_cluster(plan, slurm, dry_run, yes, as_json)
        return
    if dry_run:
        click.echo(json.dumps(plan.json()) if as_json else tables.parts_table(plan))
        return
    if part == "report":
        show(studies.close(plan), as_json)
    elif part is not None:
        rows = studies.run_part(plan, part)
        click.echo(json.dumps({"tickets": [row.__dict__ for row in rows]}) if as_json else tables.rows_table(rows))
        studies.check_failed(rows)
    else:
        show(studies.run(plan, shared), as_json)


def on_cluster(plan: Plan, options: Options, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Its parts as jobs, each of which reads the plan from LOTTERY_HOME. Nothing is begun where Slurm refuses."""
    for line in warnings():
        say(f"warning: {line}")
    which = {"dense": plan.baselines, "ticket": plan.tickets, "refine": plan.refined}
    parts = {what: [int(part.part.split("-")[1]) for part in chosen] for what, chosen in which.items()}
    file = home() / "studies" / plan.id / "plan.json"
    if not dry_run:
        check(file, parts, options, plan.study.name)
        plan = studies.begin(plan, yes)
        make_folder(file.parent, "LOTTERY_HOME")
        write_file(file, json.dumps(plan.json()).encode())
    try:
        jobs = submit(file, parts, options, plan.study.name, dry_run)
    except BaseException:
        if not dry_run:
            studies.give_up(plan)
        raise
    if as_json:
        found = [{"id": job.id, "what": job.what, "command": list(job.command)} for job in jobs]
        click.echo(json.dumps({"study": plan.study.name, "study_id": plan.id, "run_id": plan.run, "jobs": found}))
        return
    for job in jobs:
        click.echo(str(job) if dry_run else f"job {job.id}: {job.what}")
    if not dry_run:
        click.echo(f"logs: {file.parent / 'logs'}")


def show(result: studies.Result, as_json: bool) -> None:
    click.echo(json.dumps(result.json()) if as_json else tables.study_table(result))
    studies.check_failed(result.rows)
