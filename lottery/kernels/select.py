"""Selects the weights that survive, exactly and at the speed of memory. The functions take and return numpy arrays.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.

Keys (keys.py) are integers, so an integer histogram finds the exact k-th smallest one. The kernels first make the keys
of a row, in the narrowest type that holds them, so that the loops over the keys vectorize. They release the GIL and run
over blocks of rows in plain threads; the result does not depend on the number of threads.

Further letters: J = 8B flags of a row, one for each bit of its bitmask.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from lottery.kernels.bitmask import apply_mask, compact, unpack
from lottery.kernels.keys import MAGNITUDE, Keys, row_keys
from lottery.kernels.parallel import CAN_CACHE, THREADS, parallel_for
from lottery.kernels.rows import count_ties, flags, select_up_to

BINS = 1 << 16


@njit(nogil=True, cache=CAN_CACHE)
def _count_zeros_and_nonfinite(flat, magnitude, infinity, out):
    zeros, broken = 0, 0
    for i in range(flat.size):
        low = flat[i] & magnitude
        zeros += low == 0
        broken += low >= infinity
    out[0], out[1] = zeros, broken


@njit(nogil=True, cache=CAN_CACHE)
def _histogram_high(bits_OI, first, last, magnitude, draw, seed, keys_I, shift, out):
    shift = np.uint32(shift)
    for r in range(first, last):
        row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        for c in range(keys_I.size):
            out[np.uint32(keys_I[c]) >> shift] += 1


@njit(nogil=True, cache=CAN_CACHE)
def _histogram_low(bits_OI, first, last, magnitude, draw, seed, keys_I, high, out):
    high = np.uint32(high)
    for r in range(first, last):
        row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        for c in range(keys_I.size):
            key = np.uint32(keys_I[c])
            if key >> np.uint32(16) == high:
                out[key & np.uint32(0xFFFF)] += 1


@njit(nogil=True, cache=CAN_CACHE)
def _select_groups(bits_OI, first, last, magnitude, draw, seed, keys_I, keep, group, flags_J, bitmask_OB):
    """Keeps, of every `group` weights of a row, the `keep` with the largest keys; of equal keys the later; never a
    zero."""
    flags_B = flags_J.view(np.uint64)
    groups = keys_I.size // group
    lanes = np.empty(
        (group, groups), keys_I.dtype
    )  # first members, second members, ...: all groups are compared at once
    losses = np.empty((group, groups), np.uint8)
    for r in range(first, last):
        row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        for i in range(group):
            for g in range(groups):
                lanes[i, g] = keys_I[g * group + i]
                losses[i, g] = 0
        for i in range(group):
            for j in range(i + 1, group):
                for g in range(groups):
                    later = np.uint8(lanes[j, g] >= lanes[i, g])
                    losses[i, g] += later
                    losses[j, g] += np.uint8(1) - later
        for i in range(group):
            for g in range(groups):
                flags_J[g * group + i] = (losses[i, g] < keep) & (lanes[i, g] != 0)
        for b in range(bitmask_OB.shape[1]):
            bitmask_OB[r, b] = (flags_B[b] * np.uint64(0x0102040810204080)) >> np.uint64(56)


def histogram(keys: Keys, kernel: Callable[..., None], which: int) -> np.ndarray:
    """Returns the sum of the histograms of blocks of rows, int64 [BINS]. `which` is the last argument of the kernel."""
    parts: list[np.ndarray] = []

    def work(first: int, last: int) -> None:
        counts = np.zeros(BINS, np.uint32 if keys.size < 2**32 else np.int64)
        columns = keys.bits_OI.shape[1]
        kernel(keys.bits_OI, first, last, *keys.arguments, np.empty(columns, keys.dtype), which, counts)
        parts.append(counts)

    parallel_for(len(keys.bits_OI), work, keys.size)
    return np.stack(parts).sum(0, dtype=np.int64)


def compile_kernels(dtype: np.dtype) -> None:
    """Compiles the kernels for bits of this type, or loads the compiled ones, so that later work can be timed."""
    tiny = np.arange(16, dtype=dtype).reshape(2, 8)
    count_zeros_and_nonfinite(tiny, 100)
    for bitmask_OB in (select(tiny, 3), select(tiny, 3, 1), select_groups(tiny, 2, 4)):
        unpack(bitmask_OB, np.concatenate(compact(tiny, bitmask_OB)), 8)
        apply_mask(tiny, bitmask_OB)


def count_zeros_and_nonfinite(bits: np.ndarray, infinity: int) -> tuple[int, int]:
    """Returns (number of zeros, number of NaN and infinite weights). `infinity`: the bits of the type's infinity."""
    flat = bits.reshape(-1)
    magnitude = flat.dtype.type(MAGNITUDE[flat.dtype])
    edges = np.linspace(0, flat.size, THREADS + 1).astype(np.int64)
    out = np.zeros((THREADS, 2), np.int64)

    def work(first: int, last: int) -> None:
        for t in range(first, last):
            _count_zeros_and_nonfinite(flat[edges[t] : edges[t + 1]], magnitude, flat.dtype.type(infinity), out[t])

    parallel_for(THREADS, work, flat.size)
    zeros, broken = out.sum(0)
    return int(zeros), int(broken)


class ThresholdSearch:
    """Finds the exact threshold of the k smallest keys of any number of matrices, one in memory at a time.

    Histograms of matrices add up. The caller adds every matrix and then calls `step`, and repeats both while `step`
    returns True, because keys of more than 16 bits need a second pass. Then `limit` and `ties` say which weights are
    removed: those with a key below the limit, and the first `ties` of those with a key equal to it.
    """

    def __init__(self, k: int) -> None:
        self.k, self.limit, self.ties = k, 0, 0
        self.high: int | None = None
        self.counts = np.zeros(BINS, np.int64)
        self.wide = False

    def add(self, bits_OI: np.ndarray, seed: int | None = None) -> None:
        """Counts the keys of one matrix."""
        keys = Keys(bits_OI, seed)
        self.wide = keys.dtype == np.uint32
        if self.high is None:
            self.counts += histogram(keys, _histogram_high, 16 if self.wide else 0)
        else:
            self.counts += histogram(keys, _histogram_low, self.high)

    def step(self) -> bool:
        """Ends a pass, in which every matrix was added once. Returns whether another pass is needed."""
        if self.k <= 0:
            return False
        upto = np.cumsum(self.counts)
        if self.high is None:
            at, left = int(np.searchsorted(upto, self.k)), self.k
        else:
            at, left = int(np.searchsorted(upto, self.ties)), self.ties
        self.ties = left - (int(upto[at - 1]) if at else 0)
        if self.wide and self.high is None:
            self.high, self.counts = at, np.zeros(BINS, np.int64)
            return True
        self.limit = at if self.high is None else self.high << 16 | at
        return False


def select_below(bits_OI: np.ndarray, limit: int, ties: int, seed: int | None = None) -> np.ndarray:
    """Returns bitmask_OB of the weights that survive when all keys below the limit are removed, and of the keys that
    equal it the first `ties` in row-major order."""
    equal_O = count_ties(bits_OI, limit, seed)
    ties_O = np.clip(ties - (np.cumsum(equal_O) - equal_O), 0, equal_O)
    limit_O = np.full(len(bits_OI), limit, Keys(bits_OI, seed).dtype)
    return select_up_to(bits_OI, limit_O, ties_O, equal_O, seed)


def select(bits_OI: np.ndarray, k: int, seed: int | None = None) -> np.ndarray:
    """Returns bitmask_OB of the weights that survive when the k smallest keys are removed.

    Of equal keys the earlier ones in row-major order are removed.
    """
    search = ThresholdSearch(k)
    if k > 0:
        search.add(bits_OI, seed)
        if search.step():
            search.add(bits_OI, seed)
            search.step()
    return select_below(bits_OI, search.limit, search.ties, seed)


def select_groups(bits_OI: np.ndarray, keep: int, group: int, seed: int | None = None) -> np.ndarray:
    """Returns bitmask_OB of the weights that survive when every `group` weights of a row keep only the `keep` largest
    keys.

    Of equal keys the earlier ones are removed; zeros are always removed. The number of columns must be a multiple of
    `group`.
    """
    rows, columns = bits_OI.shape
    bitmask_OB = np.empty((rows, -(-columns // 8)), np.uint8)

    def kernel(*arguments: object) -> None:
        _select_groups(*arguments, keep, group, flags(columns), bitmask_OB)

    Keys(bits_OI, seed).run(kernel)
    return bitmask_OB
