"""The folder where lottery keeps files of its own, and the checks of a path that a user gave."""

import os
from pathlib import Path

from lottery.errors import InputError, path_error


def home() -> Path:
    """Returns the folder of unfinished tickets, fetched tickets and compiled kernels: LOTTERY_HOME, or else `lottery`
    in the user's cache folder."""
    if given := os.environ.get("LOTTERY_HOME"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lottery"


def resolve_path(path: str | Path, name: str) -> Path:
    """Returns the path that a user gave, absolute and with its links resolved.

    Raises InputError, naming the parameter `name`, when the links form a loop, and for a path that is not UTF-8, which
    no tracking store takes.
    """
    if not is_utf8(str(path)):
        raise InputError(f"{name}={printable(str(path))}: this path is not UTF-8; rename it")
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as e:
        raise InputError(f"{name}={path}: this path cannot be resolved ({e}); give another one") from e


def is_utf8(text: str) -> bool:
    """Returns whether a text can be written as UTF-8. Bytes of a path that are not UTF-8 come as lone surrogates."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def printable(name: str) -> str:
    """Returns a name with a space for each character that cannot be printed, such as a line break or a no-break space."""
    return "".join(c if c.isprintable() else " " for c in name)


def make_folder(folder: Path, name: str) -> Path:
    """Makes the folder and its parents, and returns it.

    Raises InputError, naming the parameter `name`, when the folder cannot be made or written, and MachineError when the
    disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "no permission to write there")
    except OSError as e:
        raise path_error(
            e, f"{name}={folder}: {(e.strerror or str(e)).lower()}; give a folder that can be written"
        ) from e
    return folder
