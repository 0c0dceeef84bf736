"""The hash of a file that may have changed."""

import os
from pathlib import Path

import pytest


def test_a_file_that_is_replaced_is_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same size, same time, same inode: as an archive unpacked over another one leaves it."""
    from lottery.files import hashes

    monkeypatch.setattr(hashes, "LARGE", 1)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    about = file.stat()
    first = hashes.sha256_of_files([file])
    assert hashes.sha256_of_files([file]) == first
    with open(file, "r+b") as f:
        f.write(b"two")
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert hashes.sha256_of_files([file]) != first
