"""A ticket's folder, opened with its base where it needs one."""

from pathlib import Path

from lottery.errors import InputError, MachineError
from lottery.files.reading import read_json
from lottery.models.checkpoint import Base
from lottery.models.sources import local_folder, open_base
from lottery.progress import say
from lottery.ticket.record import MEASUREMENTS, RECORD
from lottery.ticket.stored import StoredTicket


def is_ticket(model: str) -> bool:
    """Whether a local path is a ticket's folder."""
    folder = None if model == "builtin" or model.startswith("models:/") else local_folder(model)
    return folder is not None and (folder / RECORD).exists()


def open_ticket(folder: Path, base: str = "auto", *, need_base: bool = False) -> StoredTicket:
    """The ticket in a folder; of one that holds masks alone (or with `need_base`) together with its dense base.

    `base` says where that lies, as in `find_base`.
    """
    stored = StoredTicket(folder)
    if stored.is_mask_only or need_base:
        return StoredTicket(folder, find_base(stored, base))
    if base != "auto":
        say(f"warning: base={base} is not looked at: the ticket {stored.id} holds all of its tensors itself")
    return stored


def find_base(stored: StoredTicket, base: str = "auto", *, local_only: bool = False) -> Base:
    """The dense base of a ticket, the same to the byte.

    `base` says where it lies; `auto` looks where it lay when the ticket was made, then in the hub's cache and, unless
    `local_only`, at the hub. Raises InputError where it is not to be found or has changed.
    """
    reasons = []
    for candidate in [base] if base != "auto" else candidates(stored):
        try:
            found = open_base(candidate, local_only=local_only)
            stored.check_base(found)
            return found
        except (InputError, MachineError, OSError) as e:
            reasons.append(str(e))
    if base != "auto":
        raise InputError(f"base={base}: {reasons[0]}")
    raise InputError(
        f"ticket={stored.folder}: its base {stored.base_record['id']} is not at hand "
        f"({reasons[0] if reasons else 'its place is unknown'}); give its folder as base"
    )


def candidates(stored: StoredTicket) -> list[str]:
    """Where the base of a ticket may lie, the likeliest first."""
    about = stored.base_record
    beside = read_json(stored.folder / MEASUREMENTS) if (stored.folder / MEASUREMENTS).is_file() else {}
    places = []
    if about["id"] == "builtin":
        places.append("builtin")
    elif about["revision"]:
        places.append(f"{about['id']}@{about['revision']}")
    # Not hashed, so that anybody can have written it: a folder of this machine, and nothing that would be fetched.
    if isinstance(place := beside.get("base"), str) and Path(place).is_absolute():
        places.append(place)
    return list(dict.fromkeys(places))
