"""Where lottery keeps files of its own, and how a file or folder comes into being there: whole, or not at all."""

import os
from pathlib import Path

from lottery.errors import InputError, path_error


def home() -> Path:
    """LOTTERY_HOME, else the user's cache folder: unfinished tickets, fetched tickets, compiled kernels."""
    if given := os.environ.get("LOTTERY_HOME"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lottery"


def resolve_path(path: str | Path, name: str) -> Path:
    """The path that a user gave, absolute and without links. Raises InputError, naming the parameter, where links loop."""
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as e:
        raise InputError(f"{name}={path}: not a path that can be followed ({e}); give another one") from e


def make_folder(folder: Path, name: str) -> Path:
    """Raises InputError (a full disk: MachineError), naming the parameter, where the folder cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(None, "no permission to write there")
    except OSError as e:
        raise path_error(
            e, f"{name}={folder}: {(e.strerror or str(e)).lower()}; give a folder that can be written"
        ) from e
    return folder
