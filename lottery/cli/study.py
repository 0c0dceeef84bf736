"""The command `lottery study`, in its forms: here, as a plan alone, one part of it, or on a cluster."""

import json
from pathlib import Path

import click

from lottery.errors import InputError
from lottery.files.home import make_folder, write_file
from lottery.measuring.shared import Shared
from lottery.progress import say
from lottery.study import console
from lottery.study import run as studies
from lottery.study.design import Study
from lottery.study.planning import Plan, read_plan
from lottery.study.slurm import Options, check, submit, warnings


def study(
    name: str, asked: Study | None, *, dry_run: bool, fresh: bool, yes: bool, part: str | None,
    slurm: Options | None, out: str | None, said: str, as_json: bool,
) -> None:  # fmt: skip
    """`asked`: None where `name` is a plan that was written for a cluster. `out`: the report's folder, `none` for no report,
    None for one of its own. `said`: the command line."""
    if out not in (None, "none"):
        from lottery.report.page import check_folder

        check_folder(Path(out).expanduser().resolve(), out)  # before the hours that a study takes
    plan, shared = (read_plan(Path(name)), Shared()) if asked is None else studies.prepare(asked, fresh)
    if slurm is not None:
        on_cluster(plan, slurm, dry_run, yes, said, as_json)
    elif dry_run:
        click.echo(json.dumps(plan.json()) if as_json else console.parts_table(plan))
    elif part == "report":
        show(studies.close(plan), out, as_json)
    elif part is not None:
        rows = studies.run_part(plan, part)
        click.echo(
            json.dumps({"tickets": [row.__dict__ for row in rows]})
            if as_json
            else console.rows_table(rows, len({row.base for row in rows}) > 1)
        )
        studies.check_failed(rows)
    else:
        show(studies.run(plan, shared, yes, {"command": said}), out, as_json)


def on_cluster(plan: Plan, options: Options, dry_run: bool, yes: bool, said: str, as_json: bool) -> None:
    """Its parts as jobs, each of which reads the plan from LOTTERY_HOME. Nothing is begun where Slurm refuses."""
    for line in warnings():
        say(f"warning: {line}")
    which = {"dense": plan.baselines, "ticket": plan.tickets, "refine": plan.refined}
    parts = {what: [int(part.part.split("-")[1]) for part in chosen] for what, chosen in which.items()}
    file, begun = studies.folder_of(plan) / "plan.json", False
    before = None
    if not dry_run:
        check(file, parts, options, plan.study.name)
        make_folder(file.parent, "LOTTERY_HOME")
        plan, before = studies.begin(plan, yes, {"command": said})
        begun = True
    try:
        if not dry_run:
            write_file(file, json.dumps(plan.json()).encode())
        jobs = submit(file, parts, options, plan.study.name, dry_run)
    except BaseException as e:
        if begun:
            studies.give_up(plan, before, f"it was not submitted: {e}")
        raise
    if as_json:
        found = [{"id": job.id, "what": job.what, "command": list(job.command)} for job in jobs]
        click.echo(json.dumps({"study": plan.study.name, "study_id": plan.id, "run_id": plan.run, "jobs": found}))
        return
    for job in jobs:
        click.echo(str(job) if dry_run else f"job {job.id}: {job.what}")
    if not dry_run:
        click.echo(f"logs: {file.parent / 'logs'}; the report will be in {file.parent / 'report'}")


def show(result: studies.Result, out: str | None, as_json: bool) -> None:
    """Its table, what it answers, and where its report is."""
    if not as_json:
        click.echo(console.study_table(result))
    found = None
    if out != "none":
        from lottery.report import page  # matplotlib and pandas: not before they are needed

        try:
            found = page.report(result.run_id, out or studies.folder_of(result.plan) / "report")
        except InputError as e:
            if any(row.metrics for row in result.rows if row.title != "dense"):
                raise
            say(f"no report: {e}")
    if as_json:
        about = {name: found[name] if found else None for name in ("index", "answers")}
        click.echo(json.dumps(result.json() | {"report": about["index"], "answers": about["answers"]}))
    elif found:
        click.echo(f"\n{page.answers_text(found)}\nreport: {found['index']}")
    if result.page and not as_json:
        click.echo(f"browse: {result.page}")
    studies.check_failed(result.rows, result.plan.fresh)
