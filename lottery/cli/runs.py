"""The commands that read or change what MLflow holds: list, label, publish, report."""

import json
import sys
from dataclasses import asdict

import click

from lottery.cli.options import json_option
from lottery.errors import InputError, MachineError

LONGEST_NOTE = 500  # characters


@click.command()
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


@click.command()
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=click.Path())
@json_option
def publish(folders: tuple[str, ...], as_json: bool) -> None:
    """Record in MLflow what a run kept on disk while its tracking store could not be reached.

    A folder is recorded once, however often the command is called.

    Example: lottery publish ~/.cache/lottery/unfinished/b8e18a35979a-1f0c2d3e
    """
    from lottery.files.home import resolve_path
    from lottery.registry import publishing, recovery, store

    client = store.connect()
    done, failed = [], []
    for folder in folders:
        try:
            run_id, uri, sent = publishing.publish(client, resolve_path(folder, "dir"))
        except (InputError, MachineError) as e:  # the other folders are still published
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


@click.command(name="list")
@click.option("--filter", "query", default="", help='A filter in MLflow\'s syntax: "metrics.perplexity_ratio < 1.1".')
@click.option("--name", default=None, help="List only this registered model.")
@click.option(
    "--order",
    default="version",
    show_default=True,
    type=click.Choice(["version", "sparsity", "perplexity", "ratio", "size"]),
    help="What to sort by; the smallest comes first.",
)
@json_option
def list_tickets(query: str, name: str | None, order: str, as_json: bool) -> None:
    """List the registered tickets, one line each, grouped by base and protocol.

    Example: lottery list --filter "params.target = 'late' and metrics.perplexity_ratio < 1.1" --order ratio
    """
    from lottery.registry import listing, store

    client = store.connect(read_only=True)
    found = listing.search_versions(client, query, name, order)
    if as_json:
        click.echo(json.dumps({"tickets": [asdict(row) for row in found]}))
    else:
        click.echo(listing.list_tables(found, listing.describe_protocols(client, found)))


@click.command()
@click.option(
    "--study",
    default="newest",
    show_default=True,
    help="A study's name or id, its run's id, or a file of analysis/results; several with commas.",
)
@click.option(
    "--filter", "query", default="", help="Report these tickets instead; MLflow's syntax: \"params.target = 'late'\"."
)
@click.option(
    "--out",
    type=click.Path(),
    default="report",
    show_default=True,
    help="The folder to write: new, or an earlier report's.",
)
@json_option
def report(study: str, query: str, out: str, as_json: bool) -> None:
    """Write a study's report: a page that stands alone, figures, tables.

    Example: lottery report --study locate --out report
    """
    from lottery.report import writing

    found = writing.write_report("" if study == "newest" else study, out, query)
    click.echo(json.dumps(found) if as_json else writing.summary_text(found))
