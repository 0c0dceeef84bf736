"""Options that several commands share: one for each parameter of Spec, the ticket, its base and --json."""

import functools
from collections.abc import Callable
from dataclasses import Field, fields
from typing import Any

import click

from lottery.errors import InputError
from lottery.spec import Spec


def spec_options(
    *names: str, but: tuple[str, ...] = (), of: type = Spec
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds one option for each named parameter of the dataclass `of` (for all of them, if no name is given), with its
    default and help. With `but`, every parameter except those is added, and its default is None: the study's file
    decides."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        chosen: list[Field[Any]] = [f for f in fields(of) if (f.name in names or not names) and f.name not in but]
        for f in reversed(chosen):
            values = f.metadata["values"]
            text = f"{f.metadata['help']}  [{values}]"
            default = None if but else str(f.default)
            command = click.option(f"--{f.name}", default=default, show_default=not but, help=text)(command)
        return command

    return decorate


TICKET = "A ticket's folder, models:/NAME/VERSION, or models:/NAME@winner"


def ticket_argument(command: Callable[..., Any], help: str = f"{TICKET}.") -> Callable[..., Any]:
    """Adds the ticket, which is the first argument or the option --ticket."""

    @click.argument("where", metavar="TICKET", required=False)
    @click.option("--ticket", default=None, help=help)
    @functools.wraps(command)
    def with_ticket(where: str | None, ticket: str | None, **others: Any) -> Any:
        if where is None and ticket is None:
            raise InputError("ticket: none is given; give a ticket's folder, or models:/NAME/VERSION")
        if where is not None and ticket is not None:
            raise InputError(f"ticket={ticket}: {where} is given too; give one of them")
        return command(ticket=where if ticket is None else ticket, **others)

    return with_ticket


def ticket_or_base_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the ticket, or in its place a dense base."""
    return ticket_argument(command, f"{TICKET}; or a dense base: builtin, a local folder, a hub id.")


base_option = click.option(
    "--base",
    default="auto",
    show_default=True,
    help="The folder or hub id of the dense base, if it has moved (for tickets that store masks only).",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
