"""What `lottery study` does in each mode: run here, print the plan, make one part, or submit to a cluster."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lottery.errors import InputError
from lottery.files.atomic import atomic_write
from lottery.files.home import make_folder
from lottery.measuring.cache import Cache
from lottery.progress import say
from lottery.study import console
from lottery.study.design import Study
from lottery.study.planning import Plan, read_plan
from lottery.study.preparation import prepare_study
from lottery.study.slurm import SlurmOptions, check_options, reachability_warnings, submit

if TYPE_CHECKING:  # importing MLflow takes a second, and --dry-run does not need it
    from lottery.study.result import StudyResult


def run_study(
    name: str, asked: Study | None, *, dry_run: bool, fresh: bool, yes: bool, part: str | None,
    slurm: SlurmOptions | None, out: str | None, command_line: str, as_json: bool,
) -> None:  # fmt: skip
    """Runs, prints or submits the study. `asked` is None if `name` is a plan that was written for a cluster. `out` is
    the report's folder, `none` for no report, or None for a folder in LOTTERY_HOME. `command_line` is recorded with the
    run."""
    if out not in (None, "none"):
        from lottery.report.writing import check_folder

        check_folder(Path(out).expanduser().resolve(), out)  # a study takes hours, so this is checked first
    read_texts = not dry_run and part in (None, "report")  # a task of a cluster reads those of its own ticket
    plan, cache = (read_plan(Path(name)), Cache()) if asked is None else prepare_study(asked, fresh, read_texts)
    if slurm is not None:
        submit_study(plan, slurm, dry_run, yes, command_line, as_json)
    elif dry_run:
        click.echo(json.dumps(plan.json()) if as_json else console.parts_table(plan))
    elif part is not None and part != "report":
        make_part(plan, part, as_json)
    else:
        from lottery.study.run import finalize_study, run

        result = finalize_study(plan) if part == "report" else run(plan, cache, yes, {"command": command_line})
        print_study(result, out, as_json)


def make_part(plan: Plan, part: str, as_json: bool) -> None:
    """Makes one part of a study, as a task of a cluster does, and prints its tickets."""
    from lottery.study.result import check_failed
    from lottery.study.run import run_part

    rows = run_part(plan, part)
    click.echo(
        json.dumps({"tickets": [row.__dict__ for row in rows]})
        if as_json
        else console.rows_table(rows, len({row.base for row in rows}) > 1)
    )
    check_failed(rows)


def submit_study(plan: Plan, options: SlurmOptions, dry_run: bool, yes: bool, command_line: str, as_json: bool) -> None:
    """Submits the parts as jobs, each of which reads the plan from LOTTERY_HOME. If Slurm refuses, the study's run is
    put back as it was."""
    from lottery.study import start

    for line in reachability_warnings():
        say(f"warning: {line}")
    parts_of_kind = {"dense": plan.baselines, "ticket": plan.tickets, "refine": plan.refined}
    parts = {what: [int(part.part.split("-")[1]) for part in chosen] for what, chosen in parts_of_kind.items()}
    file, begun = start.study_folder(plan) / "plan.json", False
    before = None
    if not dry_run:
        check_options(file, parts, options, plan.study.name)
        make_folder(file.parent, "LOTTERY_HOME")
        plan, before = start.schedule_run(plan, yes, {"command": command_line})
        begun = True
    try:
        if not dry_run:
            atomic_write(file, json.dumps(plan.json()).encode())
        jobs = submit(file, parts, options, plan.study.name, dry_run)
    except BaseException as e:
        if begun:
            start.unschedule_run(plan, before, f"it was not submitted: {e}")
        raise
    if as_json:
        found = [{"id": job.id, "what": job.what, "command": list(job.command)} for job in jobs]
        click.echo(json.dumps({"study": plan.study.name, "study_id": plan.id, "run_id": plan.run, "jobs": found}))
        return
    for job in jobs:
        click.echo(str(job) if dry_run else f"job {job.id}: {job.what}")
    if not dry_run:
        click.echo(f"logs: {file.parent / 'logs'}; the report will be in {file.parent / 'report'}")


def print_study(result: "StudyResult", out: str | None, as_json: bool) -> None:
    """Prints the study's table, its answers, and where its report is."""
    if not as_json:
        click.echo(console.study_table(result))
    found = None
    from lottery.study.result import check_failed
    from lottery.study.start import study_folder

    if out != "none":
        from lottery.report import writing  # imports matplotlib and pandas, which the other modes do not need

        try:
            found = writing.write_report(result.run_id, out or study_folder(result.plan) / "report")
        except InputError as e:
            if any(row.metrics for row in result.rows if row.title != "dense"):
                raise
            say(f"no report: {e}")
    if as_json:
        about = {name: found[name] if found else None for name in ("index", "answers")}
        click.echo(json.dumps(result.json() | {"report": about["index"], "answers": about["answers"]}))
    elif found:
        click.echo(f"\n{writing.answers_text(found)}\nreport: {found['index']}")
    if result.page and not as_json:
        click.echo(f"browse: {result.page}")
    check_failed(result.rows, result.plan.fresh)
