"""A file or folder is created whole or not at all: it is written under a temporary name and then renamed."""

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
    """Forces a file or folder onto the disk, for the caller that is about to rely on it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def atomic_write(path: Path, content: bytes) -> None:
    """Replaces a file. A process that is killed meanwhile leaves either the old file or the new one."""
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
    """Yields a folder to fill. It becomes `dest` when the block succeeds and is deleted when the block fails.

    Yields None when `dest` exists and is not empty. Two processes that make the same folder take turns, so the second
    one may get None because the first one has just made it. Raises InputError, naming the parameter `name`, when the
    place cannot be written, and MachineError when the disk is full.
    """
    make_folder(dest.parent, name)
    partial, lock = (dest.with_name(f".{dest.name}.{what}") for what in ("partial", "lock"))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked_file(lock))
            stack.callback(lock.unlink, missing_ok=True)  # runs before the lock is released
            exists = dest.exists() and (not dest.is_dir() or any(dest.iterdir()))
            if not exists:
                shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
                partial.mkdir()
        except OSError as e:
            raise path_error(e, f"{name}={dest}: {e.strerror}; give a folder that can be written") from e
        if exists:
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
