"""The command `lottery study`: its options, and which of them go together."""

import shlex
from dataclasses import fields
from typing import Any

import click
from click.core import ParameterSource

from lottery.cli.options import json_option, spec_options
from lottery.errors import InputError
from lottery.study.slurm import SlurmOptions


@click.command()
@click.argument("name", metavar="NAME|FILE.yaml", required=False)
@click.option("--models", "--model", default=None, help="The models to ask, several between commas.")
@click.option(
    "--budget", default=None, help="Remove this share of all parameters from every target, e.g. 0.05; or none."
)
@spec_options(but=("model", "target", "sparsity"))
@click.option("--show", is_flag=True, help="Print the study's YAML file, with the options above in it, and do nothing.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing.")
@click.option("--fresh", is_flag=True, help="Make every ticket again; the dense baseline stays.")
@click.option(
    "--yes", is_flag=True, help="Also where the tickets take over 100 GB or more than is free, or a cluster is at it."
)
@click.option("--part", default=None, help="Only this part of it: what one task of a cluster does.")
@click.option(
    "--out", type=click.Path(), default=None, help="Folder of the report; none: no report.  [default: in LOTTERY_HOME]"
)
@click.option("--slurm", "on_slurm", is_flag=True, help="Have a Slurm cluster make it, one task a ticket.")
@spec_options(of=SlurmOptions)
@json_option
def study(
    name: str | None,
    models: str | None,
    budget: str | None,
    show: bool,
    dry_run: bool,
    fresh: bool,
    yes: bool,
    part: str | None,
    out: str | None,
    on_slurm: bool,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Ask a question of many tickets: cliff, locate, map, compare, size, or a YAML file of yours. Ends in a report.

    What has been made already is found, not made again: a study that was killed goes on with the same command.

    Example: lottery study locate --budget 0.05
    """
    from lottery.study import design

    if name is None:
        raise InputError(f"study: none is given; known: {', '.join(design.presets())}, or a YAML file")
    options = SlurmOptions.parse(**{f.name: parameters.pop(f.name) for f in fields(SlurmOptions)})
    given = given_options()
    check_together(name, given)
    asked = None
    if not name.endswith(".json"):
        asked = design.read_study(name).with_options(models, budget, parameters)
        if show:
            click.echo(asked.yaml(), nl=False)
            return
    from lottery.cli.study_modes import run_study

    run_study(
        name,
        asked,
        dry_run=dry_run,
        fresh=fresh,
        yes=yes,
        part=part,
        slurm=options if on_slurm else None,
        out=out,
        command_line=shlex.join(["lottery", "study", name, *given]),
        as_json=as_json,
    )


def given_options() -> list[str]:
    """The options of this command that were typed, as they could be typed again."""
    context, words = click.get_current_context(), []
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if context.get_parameter_source(option.name or "") != ParameterSource.COMMANDLINE or option.name == "name":
            continue
        words += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    return words


def check_together(name: str, given: list[str]) -> None:
    """Raises InputError for options that would be passed over."""
    words = [word for word in given if word.startswith("--")]
    if name.endswith(".json") and (others := set(words) - {"--part", "--out", "--json", "--yes"}):
        raise InputError(f"study={name}: a plan stands; leave {', '.join(sorted(others))} out, or give the YAML file")
    if "--part" in words and (others := {"--slurm", "--dry-run", "--fresh"} & set(words)):
        raise InputError(f"{', '.join(sorted(others))}: with --part it would be passed over; leave one of them out")
    no_report = {"--slurm", "--dry-run"} & set(words)
    if "--out" in words and given[given.index("--out") + 1] != "none" and no_report:
        raise InputError(
            f"{min(no_report)}: no report is written here; leave --out away, `lottery report --out` writes one"
        )
    of_slurm = {f"--{f.name}" for f in fields(SlurmOptions)} & set(words)
    if of_slurm and "--slurm" not in words:
        raise InputError(f"{', '.join(sorted(of_slurm))}: only with --slurm; add it, or leave this out")
