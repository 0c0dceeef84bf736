"""Locks that die with the process that holds them: one process at a time, and which of them were killed."""

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
    """One process of this home at a time does `what`; the lock dies with its owner."""
    with open(make_folder(home() / "locks", "LOTTERY_HOME") / what, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@contextmanager
def locked_file(path: Path) -> Iterator[IO[str]]:
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
def run_lock(id: str, about: Mapping[str, Any]) -> Iterator[Path]:
    """Holds a file of this home, with `about` in it, as long as this process lives. Who ends well takes it away himself:
    one that is there and that nobody holds is of a process that was killed (`killed_runs`)."""
    path = make_folder(home() / "locks", "LOTTERY_HOME") / f"run-{id}"
    with locked_file(path) as f:
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


def killed_runs() -> Iterator[tuple[str, Path, dict[str, Any]]]:
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
