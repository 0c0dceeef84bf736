"""The sha256 of files: a known hash is looked up, an unknown one is computed at the speed of the disk."""

import contextlib
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lottery.errors import InputError, MachineError
from lottery.files.atomic import atomic_write
from lottery.files.home import home, make_folder
from lottery.progress import progress_bar

LARGE = 64 * 2**20  # bytes; the hashes of files of this size and more are remembered
READ_BYTES = 4 * 2**20


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_of_files(paths: Sequence[Path]) -> dict[str, str]:
    """Returns file name -> sha256 (hex).

    A large file in the hub's cache has its sha256 as the name of its blob. The hash of any other large file is
    remembered in LOTTERY_HOME until the file changes (size, times or inode). Raises OSError.
    """
    memory = home() / "hashes.json"
    known = remembered(memory)
    hashes, unknown = {}, []
    for path in paths:
        sha256 = blob_name(path) or known.get(file_fingerprint(path))
        if sha256:
            hashes[path.name] = sha256
        else:
            unknown.append(path)
    before = {path: file_fingerprint(path) for path in unknown}
    hashes |= compute_hashes(unknown)
    fresh = {
        before[path]: hashes[path.name]
        for path in unknown
        if path.stat().st_size >= LARGE and file_fingerprint(path) == before[path]  # the file did not change meanwhile
    }
    if fresh:
        with contextlib.suppress(OSError, InputError, MachineError):  # the hash is then computed again the next time
            make_folder(memory.parent, "LOTTERY_HOME")
            atomic_write(memory, json.dumps(remembered(memory) | fresh, indent=1).encode())
    return {path.name: hashes[path.name] for path in paths}


def blob_name(path: Path) -> str | None:
    """Returns the sha256 of a large file in the hub's cache, which is the name of its blob; None for any other file.

    The blob of a small file has git's hash as its name, which is shorter.
    """
    real = path.resolve()
    is_blob = path.is_symlink() and real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name)
    return real.name if is_blob else None


def file_fingerprint(path: Path) -> str:
    about = path.stat()
    return f"{path.resolve()}:{about.st_size}:{about.st_mtime_ns}:{about.st_ctime_ns}:{about.st_ino}"


def remembered(memory: Path) -> dict[str, str]:
    try:
        content = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def compute_hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Returns file name -> sha256 (hex). Four threads hash, because one core hashes slower than a disk reads."""
    total = sum(path.stat().st_size for path in paths)
    if total < LARGE:
        return {path.name: file_sha256(path) for path in paths}
    with progress_bar("hash the base", total, "bytes") as advance, ThreadPoolExecutor(4) as pool:

        def one(path: Path) -> str:
            sha, block = hashlib.sha256(), bytearray(READ_BYTES)
            with open(path, "rb", buffering=0) as f:
                while size := f.readinto(block):
                    sha.update(memoryview(block)[:size])
                    advance(size)
            return sha.hexdigest()

        return dict(zip([path.name for path in paths], pool.map(one, paths), strict=True))
