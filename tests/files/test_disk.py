"""Reading and writing past the page cache gives the same bytes as reading and writing do."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lottery.files import disk
from tests.support.models import tiny_model

ANYWHERE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[True, False], ids=["direct", "cached"])
def direct(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Requests so small that a test file takes many, on a file system with and without direct access."""
    monkeypatch.setattr(disk, "CHUNK", 2 * disk.PAGE)
    if not request.param:
        monkeypatch.setattr(disk, "DIRECT", 0)
    return bool(request.param)


def drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@ANYWHERE
@given(parts=st.lists(st.tuples(st.integers(0, 90_000), st.integers(0, 40_000)), max_size=12), cold=st.booleans())
def test_parts_are_read_as_they_lie(direct: bool, tmp_path: Path, parts: list[tuple[int, int]], cold: bool) -> None:
    path, content = tmp_path / "f", bytes(range(256)) * 511  # no whole number of pages
    path.write_bytes(content)
    if cold:
        drop_from_cache(path)
    wanted = [disk.Part(path, offset, nbytes) for offset, nbytes in parts]
    held = []
    for part, (data, give_back) in zip(wanted, disk.stream(wanted, 2 * disk.space_for(40_000)), strict=True):
        assert data == content[part.offset : part.offset + part.nbytes]
        held.append(give_back)
        if len(held) > 1:  # as its callers do: what is worked on, and one before
            held.pop(0)()


@ANYWHERE
@given(pieces=st.lists(st.binary(max_size=30_000), max_size=8), kept=st.integers(0, 10_000), large=st.booleans())
def test_pieces_are_written_one_behind_the_other(
    direct: bool, tmp_path: Path, pieces: list[bytes], kept: int, large: bool
) -> None:
    path = tmp_path / "w"
    path.unlink(missing_ok=True)
    appender = disk.Appender(path, kept, large, 2 * disk.PAGE)
    for piece in pieces:
        appender.write(memoryview(piece))
    appender.close(b"x" * kept)
    assert path.read_bytes() == b"x" * kept + b"".join(pieces)


def test_a_file_that_ends_early_is_an_error(direct: bool, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(20_000))
    with pytest.raises(OSError, match="ends before its tensors do"):
        list(disk.stream([disk.Part(path, 10_000, 50_000)], 0))
    with pytest.raises(FileNotFoundError):
        list(disk.stream([disk.Part(tmp_path / "none", 0, 1)], 0))


def test_memory_is_bounded_and_its_owner_may_leave(direct: bool, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(400_000))
    pool = disk.Pool(100_000)
    one = pool.take(60_000)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(pool.take, 60_000)
        assert not waiting.done()
        assert one is not None
        pool.give_back(one)
        assert waiting.result() is not None
        waiting = thread.submit(pool.take, 90_000)
        pool.close()
        assert waiting.result() is None
    stream = disk.stream([disk.Part(path, 0, 100_000)] * 4, 200_000)
    next(stream)  # never given back: the reader waits for memory
    del stream


def test_a_large_ticket_is_the_small_one_to_the_byte(
    direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of large files, taken by a small model."""
    import lottery
    from lottery.ticket.stored import Stored

    model = tiny_model(tmp_path / "m")
    given = {"model": str(model), "measure": "none", "register": "none", "target": "late+embeddings"}
    lottery.prune(out=tmp_path / "small", **given)
    monkeypatch.setattr(disk, "LARGE", 1)
    lottery.prune(out=tmp_path / "large", **given)
    names = sorted(p.name for p in (tmp_path / "small").iterdir() if p.name != "measurements.json")
    assert names == sorted(p.name for p in (tmp_path / "large").iterdir() if p.name != "measurements.json")
    for name in names:
        assert (tmp_path / "small" / name).read_bytes() == (tmp_path / "large" / name).read_bytes(), name
        drop_from_cache(tmp_path / "large" / name)
    stored = Stored(tmp_path / "large")
    stored.verify()
    with ThreadPoolExecutor(4) as pool:  # each thread has its own memory to read into
        twins = Stored(tmp_path / "small")
        for name, tensor in zip(stored.tensors, pool.map(stored.tensor, stored.tensors), strict=True):
            assert tensor.equal(twins.tensor(name))
