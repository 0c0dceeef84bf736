"""The folder where lottery keeps files of its own, and the checks of a path that a user gave."""

import getpass
import os
from pathlib import Path

from lottery.errors import InputError, path_error


def home() -> Path:
    """Returns the folder of unfinished tickets, fetched tickets, locks and compiled kernels: LOTTERY_HOME, or else
    `lottery` in the user's cache folder.

    Below a folder that belongs to another user, each user has a folder `user-UID`: nobody waits for a lock that another
    user left, and nobody runs kernels that another user compiled. Raises InputError if there is no such place.
    """
    given = os.environ.get("LOTTERY_HOME")
    try:
        if given:
            folder = Path(given).expanduser().resolve()
        else:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lottery"
    except (OSError, RuntimeError) as e:  # HOME is not set and the system has no entry for the user; a loop of links
        raise InputError(
            f"{f'LOTTERY_HOME={given}' if given else 'LOTTERY_HOME is not set'}: the home folder of this user is not known "
            f"({e}); set LOTTERY_HOME to a folder that can be written"
        ) from e
    return folder if is_own(folder) else folder / f"user-{os.getuid()}"


def ensure_user() -> None:
    """Sets HOME to lottery's folder, and LOGNAME, for a user whom the system does not know, such as one in a container.

    MLflow and other libraries ask for both. Raises InputError if there is no such folder.
    """
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = str(home())
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = f"uid-{os.getuid()}"


def check_working_folder() -> None:
    """Raises InputError if the working folder was removed. Libraries fail then in many ways, some without a reason."""
    try:
        Path.cwd()
    except FileNotFoundError as e:
        raise InputError("the working folder was removed; change to another folder (cd) and run this again") from e


def is_own(folder: Path) -> bool:
    """Returns whether a folder belongs to this user, or is not there yet."""
    try:
        return folder.stat().st_uid == os.getuid() or not folder.is_dir()
    except OSError:
        return True


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
