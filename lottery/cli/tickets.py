"""The commands of one ticket: prune, evaluate, generate, plan, verify, export."""

import json
from typing import Any

import click

from lottery.cli.options import base_option, json_option, spec_options, ticket_argument, ticket_or_base_argument
from lottery.errors import InputError
from lottery.progress import say
from lottery.spec import FIXING, Spec

PLANNED = ("model", "target", "sparsity", "method", *FIXING)  # the parameters that fix a ticket's bytes


@click.command()
@spec_options()
@click.option("--out", type=click.Path(), default=None, help="Also keep the ticket's folder here.")
@json_option
def prune(out: str | None, as_json: bool, **parameters: str) -> None:
    """Prune a model, measure the ticket, register it.

    Example: lottery prune --target late --sparsity 0.5

    By a method that looks at a text: lottery prune --method wanda --calibration my-text.txt
    """
    Spec.parse(**parameters)  # reports a typo before the libraries load, which takes seconds
    from lottery.jobs import run

    print_ticket(run.prune(out, **parameters), as_json)


@click.command()
@ticket_or_base_argument
@base_option
@spec_options("dataset", "window", "limit", "measure", "runtime", "dtype", "device")
@json_option
def evaluate(ticket: str, base: str, as_json: bool, **parameters: Any) -> None:
    """Measure a ticket again, with other settings, or a dense base.

    Example: lottery evaluate models:/ticket-builtin/1 --window 256
    """
    Spec.parse(**parameters)
    from lottery.jobs.evaluate import evaluate as evaluate_ticket

    print_ticket(evaluate_ticket(ticket, base, **parameters), as_json)


@click.command()
@ticket_or_base_argument
@click.option("--prompt", default="The meaning of life is", show_default=True)
@click.option(
    "--tokens", default=50, show_default=True, type=click.IntRange(1), help="The maximum number of new tokens."
)
@click.option("--temperature", default=0.0, show_default=True, help="0: greedy decoding.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1))
@click.option(
    "--top_p",
    default=1.0,
    show_default=True,
    help="Sample from the likeliest tokens whose probabilities add up to this.",
)
@click.option(
    "--top_k", default=0, show_default=True, help="Sample from this many of the likeliest tokens; 0: from all."
)
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
    """Let a ticket, or a dense base, continue a text.

    Example: lottery generate models:/ticket-builtin/1 --prompt "Once upon a time"

    The dense model's own text: lottery generate builtin --prompt "Once upon a time"
    """
    Spec.parse(runtime=runtime)
    from lottery.jobs import load
    from lottery.runtime import decoding

    decoding.check_sampling(temperature, top_p, top_k)
    model, tokenizer = load.load(ticket, runtime=runtime, base=base)
    if tokenizer is None:
        raise InputError(f"ticket={ticket}: it has no tokenizer, so it cannot read a prompt")
    text = decoding.generate(model, tokenizer, [prompt], tokens, temperature, seed, top_p, top_k)[0]
    if text.strip() == prompt.strip():
        say("the model ended the text at once; the prompt is given as it is, without a chat template")
    click.echo(json.dumps({"ticket": ticket, "prompt": prompt, "text": text}) if as_json else text)


@click.command()
@spec_options(*PLANNED)
@json_option
def plan(as_json: bool, **parameters: str) -> None:
    """Show what would be pruned, and what it takes; write nothing.

    Example: lottery plan --target attention+mlp@late --sparsity 0.7
    """
    Spec.parse(**parameters)
    from lottery.cli import console
    from lottery.jobs import plan

    found = plan.plan(**parameters)
    click.echo(json.dumps(found) if as_json else console.plan_table(found))


@click.command()
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


@click.command()
@ticket_argument
@click.option("--to", required=True, type=click.Path(), help="The new folder to write.")
@click.option(
    "--format",
    default="dense",
    show_default=True,
    type=click.Choice(["dense", "fp8", "int8"]),
    help="dense: an ordinary model; fp8, int8: the 8-bit formats of compressed-tensors.",
)
@base_option
@json_option
def export(ticket: str, to: str, format: str, base: str, as_json: bool) -> None:
    """Write a ticket as a model folder that other tools load.

    Example: lottery export models:/ticket-builtin/1 --to my-model
    """
    from lottery.cli import console
    from lottery.jobs.export import export_ticket

    found = export_ticket(ticket, to, format, base)
    click.echo(json.dumps(found) if as_json else console.export_text(found))


def print_ticket(ticket: Any, as_json: bool) -> None:
    from lottery.measuring.console import ticket_table

    shown = ticket_table(ticket.measurement, ticket.model_uri, ticket.path, ticket.page)
    click.echo(json.dumps(ticket.json()) if as_json else shown)
