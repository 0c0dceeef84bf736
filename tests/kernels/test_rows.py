"""Selection in rows against its slow, obvious twin."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lottery.kernels import rows, select
from tests.support.row_twin import twin_rows


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Bits of any type, with ties, zeros of both signs and whole rows of zeros, and how many go."""
    dtype = draw(st.sampled_from([np.uint16, np.uint32, np.uint64]))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 40)))
    sign = 1 << (8 * np.dtype(dtype).itemsize - 1)
    values: Any = st.one_of(st.sampled_from([0, sign, 5, sign | 5, 6, sign - 1]), st.integers(0, 2 * sign - 1))
    bits_OI = draw(hnp.arrays(dtype, shape, elements=values))
    bits_OI[: draw(st.integers(0, shape[0]))] &= dtype(draw(st.sampled_from([0, sign, 2 * sign - 1])))
    return bits_OI, draw(st.integers(0, bits_OI.size))


@settings(max_examples=250, deadline=None)
@given(matrices())
def test_rows_lose_their_smallest_weights_alike(case: tuple[np.ndarray, int]) -> None:
    bits_OI, k = case
    sign = bits_OI.dtype.type(1 << (8 * bits_OI.itemsize - 1))
    want_OI = twin_rows(bits_OI & ~sign, k)
    np.testing.assert_array_equal(rows.select_rows(bits_OI, k), np.packbits(want_OI, axis=1, bitorder="little"))


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(0, 2**64 - 1))
def test_rows_lose_random_weights_alike(case: tuple[np.ndarray, int], seed: int) -> None:
    bits_OI, k = case
    zero_OI = (bits_OI << 1) == 0
    with np.errstate(over="ignore"):  # splitmix64 counts modulo 2^64
        z = np.uint64(seed) + np.arange(1, bits_OI.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    keys_OI = np.where(zero_OI, 0, ((z ^ (z >> np.uint64(31))) >> np.uint64(33) | np.uint64(1)).reshape(bits_OI.shape))
    want_OI = twin_rows(keys_OI, k)
    bitmask_OB = rows.select_rows(bits_OI, k, seed)
    np.testing.assert_array_equal(bitmask_OB, np.packbits(want_OI, axis=1, bitorder="little"))


def test_one_row_is_a_matrix_without_rows() -> None:
    """Then `select_rows` and `select` ask for the same, by two algorithms."""
    bits = np.random.default_rng(0).standard_normal(5001).astype(np.float32).view(np.uint32)
    for k in (0, 1, 2500, 5000, 5001):
        for seed in (None, 7):
            np.testing.assert_array_equal(rows.select_rows(bits[None], k, seed), select.select(bits[None], k, seed))


@pytest.mark.parametrize("seed", [None, 1])
def test_rows_are_selected_in_little_memory(seed: int | None) -> None:
    """The bitmask, an eighth of a byte a weight, and some numbers for each row: never a byte a weight."""
    bits_OI = np.random.default_rng(0).integers(0, 2**16, (512, 4096), dtype=np.uint16)
    rows.select_rows(bits_OI[:2], 100, seed)  # compiled
    tracemalloc.start()
    try:
        rows.select_rows(bits_OI, bits_OI.size // 3, seed)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < bits_OI.size / 8 + 200 * len(bits_OI) + 100_000
