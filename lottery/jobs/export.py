"""A ticket, exported as an ordinary model's folder, with the card of what was measured of it."""

from pathlib import Path
from typing import Any

from lottery.errors import InputError
from lottery.jobs.resolve import find_ticket
from lottery.measuring.measurement import read_measurement
from lottery.registry import cards
from lottery.runtime.load import check_loadable
from lottery.ticket.export import check_destination, export
from lottery.ticket.opening import open_ticket


def export_ticket(ticket: str, to: str | Path, format: str = "dense", base: str = "auto") -> dict[str, Any]:
    """Write a ticket (a folder, or models:/NAME/VERSION) into the new folder `to`; what was written, as `--json` says it.

    Raises InputError and MachineError as `lottery.ticket.export.export` does, and InputError for a ticket whose files
    make no model, or whose measurements.json is another ticket's.
    """
    stored = open_ticket(find_ticket(ticket).folder, base)
    measured = read_measurement(stored.folder)
    if measured and measured.ticket != stored.id:
        raise InputError(
            f"ticket={stored.folder}: its measurements.json is of the ticket {measured.ticket}, not of {stored.id}; "
            f"take it away"
        )
    check_destination(stored, to)
    check_loadable(stored, stored.tensors)
    return export(stored, to, format, cards.export_readme(measured, stored.record, format) if measured else None)
