"""The sweep through a block of columns against its slow, obvious twin, to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.kernels import parallel
from lottery.kernels.sweep import sweep

Groups = tuple[int, int] | None


def twin(
    block_OC: np.ndarray, zero_OC: np.ndarray, factor_CC: np.ndarray, stays_OC: np.ndarray, groups: Groups
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One number after the other. Returns the block, which weights stay, and the errors."""
    block_OC, stays_OC, error_OC = block_OC.copy(), stays_OC.copy(), np.zeros_like(block_OC)
    for row_C, zero_C, stays_C, error_C in zip(block_OC, zero_OC, stays_OC, error_OC, strict=True):
        for j in range(len(row_C)):
            if groups and j % groups[1] == 0:
                group = range(j, min(j + groups[1], len(row_C)))
                best = sorted(group, key=lambda i: (not zero_C[i], abs(row_C[i]) / factor_CC[i, i], i))[-groups[0] :]
                for i in group:
                    stays_C[i] = i in best and not zero_C[i]
            if stays_C[j]:
                continue
            error_C[j] = row_C[j] / factor_CC[j, j]
            for c in range(j + 1, len(row_C)):
                row_C[c] -= error_C[j] * factor_CC[j, c]
            row_C[j] = 0
    return block_OC, stays_OC, error_OC


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    dtype=st.sampled_from([np.float32, np.float64]),
    groups=st.sampled_from([None, (2, 4), (4, 8), (1, 4)]),
    zeros=st.sampled_from([0, 0.3, 0.9]),
    seed=st.integers(0, 999),
)
def test_a_sweep_equals_its_twin(shape: tuple[int, int], dtype: type, groups: Groups, zeros: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = shape[1]
    block_OC: np.ndarray = random.integers(-3, 4, shape).astype(dtype)  # with ties
    zero_OC, stays_OC = random.random(shape) < zeros, random.random(shape) < 0.5
    factor_CC: np.ndarray = np.triu(random.standard_normal((columns, columns))).astype(dtype)
    np.fill_diagonal(factor_CC, random.choice([1, 2, np.inf], columns, p=[0.5, 0.4, 0.1]))
    want = twin(block_OC, zero_OC, factor_CC, stays_OC, groups)
    error_OC = sweep(block_OC, zero_OC, factor_CC, stays_OC, groups)
    for got, wanted in zip((block_OC, stays_OC, error_OC), want, strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("groups", [None, (2, 4)])
def test_the_number_of_threads_changes_nothing(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    block_OC, factor_CC = random.standard_normal((50, 64)), np.eye(64) + np.triu(random.random((64, 64)))
    stays_OC = random.random((50, 64)) < 0.5
    results = []
    for threads in (1, 4):
        monkeypatch.setattr(parallel, "THREADS", threads)
        monkeypatch.setattr(parallel, "GRAIN_SIZE", 0)
        block, stays = block_OC.copy(), stays_OC.copy()
        results.append((sweep(block, np.zeros((50, 64), bool), factor_CC, stays, groups), block, stays))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
