"""Where lottery keeps files of its own, and how a file or folder comes into being there: whole, or not at all."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lottery.errors import InputError, blame
from lottery.progress import say


def home() -> Path:
    """LOTTERY_HOME, else the user's cache folder: unfinished tickets, fetched tickets, compiled kernels."""
    if given := os.environ.get("LOTTERY_HOME"):
        return Path(given).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lottery"


def resolved(path: str | Path, name: str) -> Path:
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
        raise blame(e, f"{name}={folder}: {(e.strerror or str(e)).lower()}; give a folder that can be written") from e
    return folder


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything relies on it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def alone(what: str) -> Iterator[None]:
    """One process of this home at a time does `what`; the lock dies with its owner."""
    with open(make_folder(home() / "locks", "LOTTERY_HOME") / what, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def held(path: Path) -> Iterator[IO[str]]:
    """A file that one process at a time holds, and that its owner may take away: who waited for it then makes a new one.

    Open for writing: on NFS, where flock is a lock of the bytes, no other file can be held.
    """
    told = False
    while True:
        with open(path, "a+") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not told:
                    say(f"another process is at the same work; this one waits for it ({path})")
                told = True
                fcntl.flock(f, fcntl.LOCK_EX)
            if same_file(f, path):
                yield f
                return


@contextmanager
def alive(id: str, about: Mapping[str, Any]) -> Iterator[Path]:
    """Holds a file of this home, with `about` in it, as long as this process lives. Who ends well takes it away himself:
    one that is there and that nobody holds is of a process that was killed (`left_behind`)."""
    path = make_folder(home() / "locks", "LOTTERY_HOME") / f"run-{id}"
    with held(path) as f:
        f.truncate(0)
        json.dump({**about, "host": platform.node()}, f)
        f.flush()
        yield path


def same_file(f: IO[str], path: Path) -> bool:
    """Whether an open file is the one of that name still: another process may have taken it away, or made a new one."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def left_behind() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(id, file, about) of processes of this home that were killed, each held while it is looked at.

    Those of other nodes are left to them: not every file system tells one node what another holds.
    """
    for path in sorted((home() / "locks").glob("run-*")):
        try:
            with open(path, "r+") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                about = json.loads(f.read() or "null")
                ours = isinstance(about, dict) and about.get("host", platform.node()) == platform.node()
                if ours and same_file(f, path):
                    yield path.name.removeprefix("run-"), path, about
        except (BlockingIOError, FileNotFoundError, ValueError):
            continue  # alive, or gone by now, or killed before it had written anything


def write_file(path: Path, content: bytes) -> None:
    """Under a temporary name first: a kill leaves the old file or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(fresh, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def new_folder(dest: Path, name: str) -> Iterator[Path | None]:
    """A folder to fill, which becomes `dest` when the block ends well and vanishes when it does not.

    Yields None where `dest` is there with something in it, also when another process has just put it there: two that
    make the same folder take turns. `name` is the parameter to name where the place cannot be written.
    """
    make_folder(dest.parent, name)
    partial, lock = (dest.with_name(f".{dest.name}.{what}") for what in ("partial", "lock"))
    with contextlib.ExitStack() as open_to_the_end:
        try:
            open_to_the_end.enter_context(held(lock))
            open_to_the_end.callback(lock.unlink, missing_ok=True)  # before it is let go
            there = dest.exists() and (not dest.is_dir() or any(dest.iterdir()))
            if not there:
                shutil.rmtree(partial, ignore_errors=True)  # by a process that was killed
                partial.mkdir()
        except OSError as e:
            raise blame(e, f"{name}={dest}: {e.strerror}; give a folder that can be written") from e
        if there:
            yield None
            return
        try:
            yield partial
            for path in partial.rglob("*"):
                sync(path)
            sync(partial)
            os.rename(partial, dest)
            sync(dest.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
