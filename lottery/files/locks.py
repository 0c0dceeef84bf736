"""File locks that end with the process that holds them: they let one process work at a time, and show which processes
were killed."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lottery.files.home import home, make_folder
from lottery.progress import say


@contextmanager
def process_lock(what: str) -> Iterator[None]:
    """Lets one process of this home at a time do `what`. The lock ends when its process ends."""
    with open(make_folder(home() / "locks", "LOTTERY_HOME") / what, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def try_process_lock(what: str) -> Iterator[bool]:
    """Yields whether this process got the lock; it does not wait for another one that holds it."""
    with open(make_folder(home() / "locks", "LOTTERY_HOME") / what, "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def locked_file(path: Path) -> Iterator[IO[str]]:
    """Yields a file that one process at a time holds. The owner may delete it; a process that waited then makes a new
    one.

    The file is open for writing, because NFS implements flock as a lock of byte ranges, which needs write access.
    """
    waiting = False
    while True:
        with open(path, "a+") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    say(f"another process does the same work; this one waits for it to end ({path})")
                waiting = True
                fcntl.flock(f, fcntl.LOCK_EX)
            if same_file(f, path):
                yield f
                return


@contextmanager
def run_lock(id: str, about: Mapping[str, Any]) -> Iterator[Path]:
    """Holds the lock file of a run, and writes `about` into it. Yields its path, for the caller to delete at the end.

    A lock file that exists and that nobody holds belongs to a process that was killed; see `killed_runs`.
    """
    path = make_folder(home() / "locks", "LOTTERY_HOME") / f"run-{id}"
    with locked_file(path) as f:
        f.truncate(0)
        json.dump({**about, "host": platform.node()}, f)
        f.flush()
        yield path


def same_file(f: IO[str], path: Path) -> bool:
    """Returns whether an open file still has that name: another process may have deleted it, or made a new one."""
    try:
        return os.path.samestat(os.fstat(f.fileno()), path.stat())
    except FileNotFoundError:
        return False


def killed_runs() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Yields (id, path, about) of each run of this home whose process was killed, and holds its lock meanwhile.

    Runs of other nodes are skipped, because not every file system shows one node which locks another holds.
    """
    for path in sorted((home() / "locks").glob("run-*")):
        try:
            with open(path, "r+") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                about = json.loads(f.read() or "null")
                is_ours = isinstance(about, dict) and about.get("host", platform.node()) == platform.node()
                if is_ours and same_file(f, path):
                    yield path.name.removeprefix("run-"), path, about
        except (BlockingIOError, FileNotFoundError, ValueError):
            continue  # the process lives, or the file is gone, or the process was killed before it wrote anything
