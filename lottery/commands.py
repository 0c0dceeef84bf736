"""The command `lottery study`, in its forms: here, as a plan alone, one part of it, or on a cluster."""

import json
from pathlib import Path

import click

from lottery import study as studies
from lottery import tables
from lottery.design import Study
from lottery.planning import read_plan
from lottery.shared import Shared


def study(
    name: str, asked: Study | None, *, dry_run: bool, fresh: bool, yes: bool, part: str | None, as_json: bool
) -> None:
    """`asked`: None where `name` is a plan that was written for a cluster."""
    plan, shared = (read_plan(Path(name)), Shared()) if asked is None else studies.prepare(asked, fresh, yes or dry_run)
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


def show(result: studies.Result, as_json: bool) -> None:
    click.echo(json.dumps(result.json()) if as_json else tables.study_table(result))
    studies.check_failed(result.rows)
