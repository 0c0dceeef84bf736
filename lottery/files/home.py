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

    Raises InputError, naming the parameter `name`, when the links form a loop.
    """
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as e:
        raise InputError(f"{name}={path}: this path cannot be resolved ({e}); give another one") from e


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
