"""Exports a ticket as the folder of an ordinary model, with a card that states its measurements."""

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
    """Exports a ticket (a folder, or models:/NAME/VERSION) to the new folder `to`, and returns what `--json` prints.

    Raises InputError and MachineError as `lottery.ticket.export.export` does, and InputError for a ticket whose files
    make no model, or whose measurements.json belongs to another ticket.
    """
    stored = open_ticket(find_ticket(ticket).folder, base)
    measured = read_measurement(stored.folder)
    if measured and measured.ticket != stored.id:
        raise InputError(
            f"ticket={stored.folder}: its measurements.json belongs to the ticket {measured.ticket}, not to "
            f"{stored.id}; remove that file"
        )
    check_destination(stored, to)
    check_loadable(stored, stored.tensors)
    return export(stored, to, format, cards.export_readme(measured, stored.record, format) if measured else None)
