"""The command `lottery study`: its options, and which of them can be combined."""

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
@click.option("--models", "--model", default=None, help="The models to prune; several with commas.")
@click.option(
    "--budget", default=None, help="Remove this share of all parameters from every target, e.g. 0.05; or none."
)
@spec_options(but=("model", "target", "sparsity"))
@click.option(
    "--show", is_flag=True, help="Print the study's YAML file, with the options above in it, and do nothing else."
)
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do nothing else.")
@click.option("--fresh", is_flag=True, help="Make every ticket again; the dense baseline is kept.")
@click.option(
    "--yes",
    is_flag=True,
    help="Go on even if the tickets take over 100 GB or more than is free, or a cluster already makes them.",
)
@click.option("--part", default=None, help="Make only this part of the study, as one task of a cluster does.")
@click.option(
    "--out", type=click.Path(), default=None, help="The report's folder; none: no report.  [default: in LOTTERY_HOME]"
)
@click.option("--slurm", "on_slurm", is_flag=True, help="Run the study on a Slurm cluster, one task per ticket.")
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
    """Answer a question with many tickets: cliff, locate, map, methods, compare, size, or your own YAML file. Writes a report.

    Tickets that exist already are not made again: the same command continues a study that was killed.

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
    """Returns the options of this command that were typed, as words that could be typed again."""
    context, words = click.get_current_context(), []
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if context.get_parameter_source(option.name or "") != ParameterSource.COMMANDLINE or option.name == "name":
            continue
        words += [option.opts[0]] if value is True else [option.opts[0], str(value)]
    return words


def check_together(name: str, given: list[str]) -> None:
    """Raises InputError for options that would have no effect."""
    words = [word for word in given if word.startswith("--")]
    if name.endswith(".json") and (others := set(words) - {"--part", "--out", "--json", "--yes"}):
        raise InputError(
            f"study={name}: a plan cannot be changed; leave {', '.join(sorted(others))} out, or give the YAML file"
        )
    if "--part" in words and (others := {"--slurm", "--dry-run", "--fresh"} & set(words)):
        raise InputError(f"{', '.join(sorted(others))}: with --part it has no effect; leave one of them out")
    no_report = {"--slurm", "--dry-run"} & set(words)
    if "--out" in words and given[given.index("--out") + 1] != "none" and no_report:
        raise InputError(
            f"{min(no_report)}: no report is written with it; leave out --out, `lottery report --out` writes one"
        )
    slurm_options = {f"--{f.name}" for f in fields(SlurmOptions)} & set(words)
    if slurm_options and "--slurm" not in words:
        raise InputError(f"{', '.join(sorted(slurm_options))}: only with --slurm; add --slurm, or leave this out")
