"""Stored weights in huge pages: copies that do not overlap, with room behind them."""

import itertools
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lottery.kernels import pages


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int64])
@pytest.mark.parametrize("shape", [(0,), (1,), (7, 3), (1000, 77)])
def test_a_copy_has_its_own_memory(shape: tuple[int, ...], dtype: type) -> None:
    array: np.ndarray = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    first, second = pages.copy(array, 64), pages.copy(array[::-1])
    assert first.dtype == dtype and first.flags.writeable and first.flags.c_contiguous
    assert np.array_equal(first, array) and np.array_equal(second, array[::-1])
    first[...] = 1
    assert np.array_equal(second, array[::-1])
    assert not array.size or address(second) >= address(first) + first.nbytes + 64 or address(second) < address(first)


def test_blocks_end_and_threads_copy_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(pages.Newest, "free", np.empty(0, np.uint8))
    sizes = [*np.random.default_rng(1).integers(1, 50_000, 200).tolist(), 1 << 17]  # the last has a block of its own
    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(lambda n: pages.copy(np.full(n, n % 251, np.uint8), 64), sizes))
    for copied, n in zip(held, sizes, strict=True):
        assert len(copied) == n and (copied == n % 251).all()
    spans = sorted((address(a), address(a) + a.nbytes + 64) for a in held)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages")
def test_linux_is_asked_for_huge_pages() -> None:
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("this kernel has no huge pages")
    at = address(pages.copy(np.ones(1 << 20, np.uint8)))
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= at < int(found[2], 16)
        if inside and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    raise AssertionError("the copy lies in no mapping of this process")
