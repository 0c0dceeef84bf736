"""Where models come from: a word, a path or a hub id -> the base or the ticket on this machine."""

import re
from pathlib import Path

from lottery import hub, models
from lottery.checkpoint import BUILTIN, SMALL_FILES, Base, read_json, shard_names
from lottery.families import family
from lottery.home import resolved
from lottery.hub import INDEX, WHOLE
from lottery.progress import say
from lottery.record import MEASUREMENTS, RECORD
from lottery.spec import InputError, MachineError
from lottery.ticket import Stored


def open_base(model: str, *, local_only: bool = False, outline: bool = False) -> Base:
    """The dense model that `builtin`, a local folder or a hub id means, fetched where it is not here yet.

    `local_only`: do not ask the hub. `outline`: config.json alone will do, and nothing larger is fetched. Raises
    InputError where there is no such model, or one that cannot be used; MachineError where the hub fails.
    """
    revision = None
    folder = BUILTIN if model == "builtin" else local_folder(model)
    if folder is None:
        if not hub.is_id(model):
            raise InputError(
                f"model={model}: there is no such folder; give builtin, a local folder or a hub id (ORG/NAME)"
            )
        small = (*SMALL_FILES, hub.CARD, *hub.LICENCES)
        found = hub.fetch(model, small, check_config, local_only, weights=not outline)
        folder, name, revision = found.folder, found.id, found.revision
    elif match := re.fullmatch(r"models--(.+?)--(.+)/snapshots/([0-9a-f]{40})", "/".join(folder.parts[-3:])):
        name, revision = f"{match[1]}/{match[2]}", match[3]
    else:
        name = "builtin" if model == "builtin" else folder.name
    if not (folder / "config.json").exists():
        raise InputError(f"model={model}: it has no config.json; give a folder in Hugging Face layout")
    check_config(read_json(folder / "config.json"))
    tied = models.is_tied(folder)
    bare = outline and not has_weights(folder, partly=revision is None)
    return Base(folder, name, tied=tied, revision=revision, outline=models.outline(folder) if bare else None)


def has_weights(folder: Path, partly: bool) -> bool:
    """Whether all files of the weights are there, or `partly` some: of a local folder, what is missing is an error then.

    Pickled ones count, so that they are refused as such.
    """
    if (folder / WHOLE).exists() or any(folder.glob("*.bin")):
        return True
    if not (folder / INDEX).exists():
        return partly and any(folder.glob("*.safetensors"))
    return partly or all((folder / name).exists() for name in shard_names(folder, f"model={folder}"))


def local_folder(model: str) -> Path | None:
    """The folder that a path names, None where there is none."""
    folder = resolved(model, "model")
    return folder if folder.is_dir() else None


def check_config(config: dict[str, object]) -> None:
    """Raises InputError for an architecture that is not known, before anything large is fetched."""
    family(str(config.get("model_type", "")))


def is_ticket(model: str) -> bool:
    """Whether a local path is a ticket's folder."""
    folder = None if model == "builtin" or model.startswith("models:/") else local_folder(model)
    return folder is not None and (folder / RECORD).exists()


def open_ticket(folder: Path, base: str = "auto", *, need_base: bool = False) -> Stored:
    """The ticket in a folder; of one that holds masks alone (or with `need_base`) together with its dense base.

    `base` says where that lies, as in `find_base`.
    """
    stored = Stored(folder)
    if stored.is_mask or need_base:
        return Stored(folder, find_base(stored, base))
    if base != "auto":
        say(f"warning: base={base} is not looked at: the ticket {stored.id} holds all of its tensors itself")
    return stored


def find_base(stored: Stored, base: str = "auto", *, local_only: bool = False) -> Base:
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
        f"ticket={stored.folder}: its base {stored.origin['id']} is not at hand "
        f"({reasons[0] if reasons else 'its place is unknown'}); give its folder as base"
    )


def candidates(stored: Stored) -> list[str]:
    """Where the base of a ticket may lie, the likeliest first."""
    about = stored.origin
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
