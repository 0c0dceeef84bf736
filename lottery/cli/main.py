"""The command line: parses, calls, prints. Everything heavy is imported inside the commands."""

import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import Field, asdict, fields
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from lottery import __version__
from lottery.errors import InputError, MachineError, known_failure
from lottery.progress import quiet_libraries
from lottery.spec import Spec
from lottery.study.slurm import SlurmOptions

LONGEST_NOTE = 500  # characters


def spec_options(
    *names: str, but: tuple[str, ...] = (), of: type = Spec
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """One option for each of these parameters of Spec (all: none named) with its default and help; or for all `but` some,
    with None for what the file of a study says."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        chosen: list[Field[Any]] = [f for f in fields(of) if (f.name in names or not names) and f.name not in but]
        for f in reversed(chosen):
            values = f.metadata["values"]
            text = f"{f.metadata['help']}  [{values}]"
            default = None if but else str(f.default)
            command = click.option(f"--{f.name}", default=default, show_default=not but, help=text)(command)
        return command

    return decorate


def ticket_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """The ticket as the first word, or by --ticket."""

    @click.argument("where", metavar="TICKET", required=False)
    @click.option("--ticket", default=None, help="A ticket's folder, models:/NAME/VERSION, or models:/NAME@winner.")
    @functools.wraps(command)
    def with_ticket(where: str | None, ticket: str | None, **others: Any) -> Any:
        if where is None and ticket is None:
            raise InputError("ticket: none is given; give a ticket's folder, or models:/NAME/VERSION")
        if where is not None and ticket is not None:
            raise InputError(f"ticket={ticket}: {where} is given too; give one of them")
        return command(ticket=where if ticket is None else ticket, **others)

    return with_ticket


base_option = click.option(
    "--base",
    default="auto",
    show_default=True,
    help="Where the dense base lies, if not where it lay (tickets of masks).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")


class Lottery(click.Group):
    """Every error ends here: one line on stderr, exit code 2 for bad input, 1 for a machine that failed."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        quiet_libraries()
        try:
            result: Any = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]  # *args: any overload
        except click.exceptions.NoArgsIsHelpError as e:
            click.echo(e.format_message())
            sys.exit(2)
        except (click.Abort, KeyboardInterrupt):
            stop("interrupted", 130)
        except Exception as e:  # a defect of ours is raised again, with its traceback
            if (known := known_failure(e)) is None:
                raise
            stop(*known)
        if standalone_mode:
            sys.exit(result if isinstance(result, int) else 0)
        return result


def stop(reason: str, code: int) -> NoReturn:
    if "MLFLOW_RUN_ID" in os.environ:  # `mlflow run` has opened a run that nothing has adopted yet: it gets the reason
        from lottery.registry import runs

        runs.fail_adopted(reason)
    click.echo(f"Error: {reason}", err=True)
    sys.exit(code)


@click.group(cls=Lottery, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="lottery")
def main() -> None:
    """Prune a causal language model, keep the ticket in MLflow, and measure what is left of it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a run is closed and nothing half-written stays


@main.command()
@spec_options()
@click.option("--out", type=click.Path(), default=None, help="Keep the ticket directory here too.")
@json_option
def prune(out: str | None, as_json: bool, **parameters: str) -> None:
    """Prune a model, measure the ticket, register it.

    Example: lottery prune --target late --sparsity 0.5
    """
    Spec.parse(**parameters)  # a typo is answered before the seconds that the libraries take
    from lottery.jobs import run as job

    print_ticket(job.prune(out, **parameters), as_json)


@main.command()
@ticket_argument
@base_option
@spec_options("dataset", "window", "limit", "measure", "runtime", "dtype", "device")
@json_option
def evaluate(ticket: str, base: str, as_json: bool, **parameters: Any) -> None:
    """Measure a ticket again, otherwise.

    Example: lottery evaluate models:/ticket-builtin/1 --window 256
    """
    Spec.parse(**parameters)
    from lottery.jobs import evaluate as again

    print_ticket(again.evaluate(ticket, base, **parameters), as_json)


@main.command()
@ticket_argument
@click.option("--prompt", default="The meaning of life is", show_default=True)
@click.option("--tokens", default=50, show_default=True, type=click.IntRange(1), help="New tokens at most.")
@click.option("--temperature", default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
@click.option(
    "--top_p", default=1.0, show_default=True, help="Draw from the likeliest tokens of this total probability."
)
@click.option("--top_k", default=0, show_default=True, help="Draw from this many of the likeliest tokens; 0: from all.")
@base_option
@spec_options("runtime")
@json_option
def generate(
    ticket: str,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    top_p: float,
    top_k: int,
    base: str,
    runtime: str,
    as_json: bool,
) -> None:
    """Let a ticket continue a text.

    Example: lottery generate models:/ticket-builtin/1 --prompt "Once upon a time"
    """
    Spec.parse(runtime=runtime)
    from lottery.jobs import load
    from lottery.runtime import decoding

    decoding.check_sampling(temperature, top_p, top_k)
    model, tokenizer = load.load(ticket, runtime=runtime, base=base)
    if tokenizer is None:
        raise InputError(f"ticket={ticket}: it has no tokenizer, so it cannot read a prompt")
    text = decoding.generate(model, tokenizer, [prompt], tokens, temperature, seed, top_p, top_k)[0]
    click.echo(json.dumps({"ticket": ticket, "prompt": prompt, "text": text}) if as_json else text)


@main.command()
@spec_options("model", "target", "sparsity", "method", "scope", "pattern", "quantize", "storage", "seed")
@json_option
def plan(as_json: bool, **parameters: str) -> None:
    """Show what would be pruned; write nothing.

    Example: lottery plan --target attention+mlp@late --sparsity 0.7
    """
    Spec.parse(**parameters)
    from lottery.cli import console
    from lottery.jobs import plan

    found = plan.plan(**parameters)
    click.echo(json.dumps(found) if as_json else console.plan_table(found))


@main.command()
@ticket_argument
@base_option
@json_option
def verify(ticket: str, base: str, as_json: bool) -> None:
    """Read a whole ticket and check every hash.

    Example: lottery verify models:/ticket-builtin/1
    """
    from lottery.jobs import resolve
    from lottery.ticket.opening import open_ticket

    stored = open_ticket(resolve.find_ticket(ticket).folder, base)
    stored.verify()
    found = {"ticket": stored.id, "path": str(stored.folder), "tensors": len(stored.tensors), "verified": True}
    click.echo(
        json.dumps(found) if as_json else f"ticket {stored.id}: {len(stored.tensors)} tensors, every hash is right"
    )


@main.command()
@ticket_argument
@click.option("--to", required=True, type=click.Path(), help="The folder to write, a new one.")
@click.option(
    "--format",
    default="dense",
    show_default=True,
    type=click.Choice(["dense", "fp8", "int8"]),
    help="An ordinary model, or 8 bits as compressed-tensors has them.",
)
@base_option
@json_option
def export(ticket: str, to: str, format: str, base: str, as_json: bool) -> None:
    """Write a ticket as an ordinary model's folder.

    Example: lottery export models:/ticket-builtin/1 --to my-model
    """
    from lottery.cli import console
    from lottery.jobs.export import export_ticket

    found = export_ticket(ticket, to, format, base)
    click.echo(json.dumps(found) if as_json else console.export_text(found))


@main.command()
@click.argument("run")
@click.option("--coherent", required=True, type=click.Choice(["yes", "no"]), help="Whether its text reads as language.")
@click.option("--note", default=None, help="Why, in a few words.")
@json_option
def label(run: str, coherent: str, note: str | None, as_json: bool) -> None:
    """Record a person's judgement of a run's samples, on the run, its model and its versions.

    Example: lottery label 0653abf06bee492e9bc89cd452d11387 --coherent yes --note "reads well"
    """
    from lottery.registry import labels, store

    if note and len(note) > LONGEST_NOTE:
        raise InputError(f"note: it has {len(note)} characters; give at most {LONGEST_NOTE}")
    tags = {"coherent": coherent, "note": note or ""}  # a new judgement does not keep the old one's reason
    tagged = labels.label_run(store.connect(read_only=True), run, tags)
    click.echo(json.dumps({"tags": tags, "tagged": tagged}) if as_json else f"coherent={coherent}: {', '.join(tagged)}")


@main.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path())
@json_option
def publish(folders: tuple[str, ...], as_json: bool) -> None:
    """Record in MLflow what a run has kept on disk because its tracking store was away. Once, however often it is called.

    Example: lottery publish ~/.cache/lottery/unfinished/b8e18a35979a-1f0c2d3e
    """
    from lottery.files.home import resolve_path
    from lottery.registry import publishing, recovery, store

    client = store.connect()
    done, failed = [], []
    for folder in folders:
        try:
            run_id, uri, sent = publishing.publish(client, resolve_path(folder, "dir"))
        except (InputError, MachineError) as e:  # the others are published all the same
            failed.append(e)
            click.echo(f"Error: {e}", err=True)
            continue
        done.append({"dir": folder, "run_id": run_id, "model_uri": uri, "sent": sent})
        if not as_json:
            click.echo(
                f"{folder}: {'recorded' if sent else 'recorded already'} as run {run_id}{f', {uri}' if uri else ''}"
            )
    if as_json:
        click.echo(json.dumps({"published": done}))
    if failed:
        sys.exit(2 if all(isinstance(e, InputError) for e in failed) else 1)
    recovery.close_killed_runs(client)


@main.command()
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
    from lottery.cli import study as commands

    commands.run_study(
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


@main.command(name="list")
@click.option("--filter", "query", default="", help='As in MLflow\'s searches: "metrics.perplexity_ratio < 1.1".')
@click.option("--name", default=None, help="Of this registered model alone.")
@click.option(
    "--order",
    default="version",
    show_default=True,
    type=click.Choice(["version", "sparsity", "perplexity", "ratio", "size"]),
    help="The least first.",
)
@json_option
def list_tickets(query: str, name: str | None, order: str, as_json: bool) -> None:
    """The registered tickets, one line each.

    Example: lottery list --filter "params.target = 'late' and metrics.perplexity_ratio < 1.1" --order ratio
    """
    from lottery.registry import listing, store

    found = listing.search_versions(store.connect(read_only=True), query, name, order)
    click.echo(json.dumps({"tickets": [asdict(row) for row in found]}) if as_json else listing.list_table(found))


@main.command()
@click.option(
    "--study", default="newest", show_default=True, help="A name, a study's id, a run's id; several by commas."
)
@click.option(
    "--filter", "query", default="", help="Tickets instead, as in MLflow's searches: \"params.target = 'late'\"."
)
@click.option(
    "--out", type=click.Path(), default="report", show_default=True, help="A folder, new or an earlier report's."
)
@json_option
def report(study: str, query: str, out: str, as_json: bool) -> None:
    """Write a study's report: a page that stands alone, figures, tables.

    Example: lottery report --study locate --out report
    """
    from lottery.report import writing

    found = writing.write_report("" if study == "newest" else study, out, query)
    click.echo(json.dumps(found) if as_json else writing.summary_text(found))


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check this machine: torch, GPU, store, disk.

    Example: lottery doctor
    """
    from lottery.cli import console, doctor

    checks = doctor.checks()
    click.echo(json.dumps({"checks": [asdict(c) for c in checks]}) if as_json else console.doctor_table(checks))
    if not all(c.fine for c in checks):
        sys.exit(1)


def print_ticket(ticket: Any, as_json: bool) -> None:
    from lottery.measuring.console import ticket_table

    shown = ticket_table(ticket.measurement, ticket.model_uri, ticket.path, ticket.page)
    click.echo(json.dumps(ticket.json()) if as_json else shown)
