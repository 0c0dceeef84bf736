"""A file or folder comes into being whole, or not at all: under a temporary name first, then renamed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lottery.errors import path_error
from lottery.files.home import make_folder
from lottery.files.locks import locked_file


def sync(path: Path) -> None:
    """Have a file or folder on the disk before anything relies on it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, content: bytes) -> None:
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
def atomic_folder(dest: Path, name: str) -> Iterator[Path | None]:
    """A folder to fill, which becomes `dest` when the block ends well and vanishes when it does not.

    Yields None where `dest` is there with something in it, also when another process has just put it there: two that
    make the same folder take turns. `name` is the parameter to name where the place cannot be written.
    """
    make_folder(dest.parent, name)
    partial, lock = (dest.with_name(f".{dest.name}.{what}") for what in ("partial", "lock"))
    with contextlib.ExitStack() as open_to_the_end:
        try:
            open_to_the_end.enter_context(locked_file(lock))
            open_to_the_end.callback(lock.unlink, missing_ok=True)  # before it is let go
            there = dest.exists() and (not dest.is_dir() or any(dest.iterdir()))
            if not there:
                shutil.rmtree(partial, ignore_errors=True)  # by a process that was killed
                partial.mkdir()
        except OSError as e:
            raise path_error(e, f"{name}={dest}: {e.strerror}; give a folder that can be written") from e
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
