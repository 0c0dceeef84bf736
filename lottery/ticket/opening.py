"""Opens a ticket's folder, together with its base where one is needed."""

from pathlib import Path

from lottery.errors import InputError, MachineError, without_subject
from lottery.files.reading import read_json
from lottery.models.checkpoint import Base
from lottery.models.sources import local_folder, open_base
from lottery.progress import say
from lottery.ticket.record import MEASUREMENTS, RECORD
from lottery.ticket.stored import StoredTicket


def is_ticket(model: str) -> bool:
    """Returns whether `model` is the path of a ticket's folder."""
    folder = None if model == "builtin" or model.startswith("models:/") else local_folder(model)
    return folder is not None and (folder / RECORD).exists()


def open_ticket(folder: Path, base: str = "auto", *, need_base: bool = False) -> StoredTicket:
    """Opens the ticket in a folder; together with its dense base if it holds masks alone, or if `need_base` is set.

    `base` says where the base lies, as in `find_base`.
    """
    stored = StoredTicket(folder)
    if stored.is_mask_only or need_base:
        return StoredTicket(folder, find_base(stored, base))
    if base != "auto":
        say(f"warning: base={base} is ignored: the ticket {stored.id} holds all of its tensors itself")
    return stored


def find_base(stored: StoredTicket, base: str = "auto", *, local_only: bool = False) -> Base:
    """Returns the dense base of a ticket, checked to be the same to the byte.

    `base` says where it lies. `auto` tries the places of `candidates`; with `local_only` nothing is downloaded. Raises
    InputError where no base is found, or where it has changed.
    """
    reasons = []
    for candidate in [base] if base != "auto" else candidates(stored):
        try:
            candidate_base = open_base(candidate, local_only=local_only)
            stored.check_base(candidate_base)
            return candidate_base
        except (InputError, MachineError, OSError) as e:
            reasons.append(without_subject(e))
    if base != "auto":
        raise InputError(f"base={base}: {reasons[0]}")
    raise InputError(
        f"ticket={stored.folder}: its base {stored.base_record['id']} could not be opened "
        f"({reasons[0] if reasons else 'its place is unknown'}); give its folder as base"
    )


def candidates(stored: StoredTicket) -> list[str]:
    """Returns where the base of a ticket may lie, the most likely place first: the hub, then a folder."""
    about = stored.base_record
    measured = read_json(stored.folder / MEASUREMENTS) if (stored.folder / MEASUREMENTS).is_file() else {}
    places = []
    if about["id"] == "builtin":
        places.append("builtin")
    elif about["revision"]:
        places.append(f"{about['id']}@{about['revision']}")
    # measurements.json is not hashed, so anybody can have written it: only a folder is taken, never an id to download.
    if isinstance(place := measured.get("base"), str) and Path(place).is_absolute():
        places.append(place)
    return list(dict.fromkeys(places))
