"""Selecting, packing and unpacking weights, exactly and at the speed of memory. Arrays only: numpy in, numpy out.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.

Weights come as their bits (uint16 for bfloat16 and float16, uint32 for float32). With the sign bit cleared the bits of
a floating-point number are ordered as its magnitude, so an integer histogram finds the exact k-th smallest magnitude.
What is compared is a *key*: that magnitude, or 31 random bits. Keys of a row are made first, in a type as narrow as they
allow, so that the loops over them vectorize. The kernels release the GIL and run over blocks of rows in plain threads;
the result does not depend on how many.
"""

import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import config, njit

from lottery.files.home import home
from lottery.kernels import avx512
from lottery.kernels.avx512 import compress, expand

# Compiled once a machine; anew when the intrinsics change, which numba itself does not look at.
INTRINSICS = hashlib.sha256(Path(avx512.__file__).read_bytes()).hexdigest()[:8]
config.CACHE_DIR = str(Path(os.environ.get("NUMBA_CACHE_DIR") or home() / "kernels") / INTRINSICS)
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="lottery-kernels")
MAGNITUDE = {np.dtype(np.uint16): 0x7FFF, np.dtype(np.uint32): 0x7FFFFFFF}  # every bit but the sign
BINS = 1 << 16
SMALL = 1 << 15  # weights: below, one thread is quicker than waking several


def blocks(rows: int, work: Callable[[int, int], None], weights: int = SMALL) -> None:
    """Run work(first, last) over blocks of rows, a block a thread."""
    edges = np.linspace(0, rows, min(THREADS, max(rows, 1)) + 1).astype(np.int64)
    if len(edges) == 2 or weights < SMALL:
        return work(0, rows)
    for done in [POOL.submit(work, int(a), int(b)) for a, b in itertools.pairwise(edges)]:
        done.result()


@njit(nogil=True, cache=True, inline="always")
def _row_keys(row_I, index, magnitude, draw, seed, keys_I):
    """What is compared of one row: the magnitude, or where `draw` is set 31 random bits of (seed, index of the weight).

    A zero weight has the key 0 and goes first. The generator is splitmix64 (Steele, Lea and Flood, OOPSLA 2014) as a
    hash of a counter.
    """
    if not draw:
        for c in range(row_I.size):
            keys_I[c] = row_I[c] & magnitude
        return
    for c in range(row_I.size):
        z = seed + np.uint64(index + c + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        keys_I[c] = 0 if (row_I[c] & magnitude) == 0 else (z >> np.uint64(33)) | np.uint64(1)


@njit(nogil=True, cache=True)
def _scan(flat, magnitude, infinity, out):
    zeros, broken = 0, 0
    for i in range(flat.size):
        low = flat[i] & magnitude
        zeros += low == 0
        broken += low >= infinity
    out[0], out[1] = zeros, broken


@njit(nogil=True, cache=True)
def _histogram_high(bits_OI, first, last, magnitude, draw, seed, keys_I, shift, out):
    shift = np.uint32(shift)
    for r in range(first, last):
        _row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        for c in range(keys_I.size):
            out[np.uint32(keys_I[c]) >> shift] += 1


@njit(nogil=True, cache=True)
def _histogram_low(bits_OI, first, last, magnitude, draw, seed, keys_I, high, out):
    high = np.uint32(high)
    for r in range(first, last):
        _row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        for c in range(keys_I.size):
            key = np.uint32(keys_I[c])
            if key >> np.uint32(16) == high:
                out[key & np.uint32(0xFFFF)] += 1


@njit(nogil=True, cache=True)
def _count_ties(bits_OI, first, last, magnitude, draw, seed, keys_I, limit, equal_O):
    limit = keys_I.dtype.type(limit)
    for r in range(first, last):
        _row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        equal = np.uint32(0)
        for c in range(keys_I.size):
            equal += np.uint32(keys_I[c] == limit)
        equal_O[r] = equal


@njit(nogil=True, cache=True)
def _select(bits_OI, first, last, magnitude, draw, seed, keys_I, limit, ties_O, equal_O, flags_J, bitmask_OB):
    """Of each row all keys below the limit go, and the first `ties_O` of its `equal_O` keys that equal it."""
    limit = keys_I.dtype.type(limit)
    above = keys_I.dtype.type(limit + 1)
    flags_B = flags_J.view(np.uint64)  # eight flags at once; those beyond the last column stay 0
    for r in range(first, last):
        _row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        least = limit if ties_O[r] == 0 else above
        for c in range(keys_I.size):
            flags_J[c] = keys_I[c] >= least
        if 0 < ties_O[r] < equal_O[r]:  # the one row in which the ties run out
            ties = ties_O[r]
            for c in range(keys_I.size):
                if keys_I[c] == limit:
                    flags_J[c] = ties <= 0
                    ties -= 1
        for b in range(bitmask_OB.shape[1]):  # byte j of the word becomes bit j
            bitmask_OB[r, b] = (flags_B[b] * np.uint64(0x0102040810204080)) >> np.uint64(56)


@njit(nogil=True, cache=True)
def _select_groups(bits_OI, first, last, magnitude, draw, seed, keys_I, keep, group, flags_J, bitmask_OB):
    """Of every `group` weights of a row the `keep` of largest keys live, but never a zero; of equal ones the later."""
    flags_B = flags_J.view(np.uint64)
    groups = keys_I.size // group
    lanes = np.empty((group, groups), keys_I.dtype)  # member by member, so that all groups are compared at once
    losses = np.empty((group, groups), np.uint8)
    for r in range(first, last):
        _row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
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


@njit(nogil=True, cache=True)
def _row_counts(bitmask_OB, first, last, kept_O):
    for r in range(first, last):
        kept = 0
        for b in range(bitmask_OB.shape[1]):
            byte = bitmask_OB[r, b]
            byte = byte - ((byte >> 1) & 0x55)
            byte = (byte & 0x33) + ((byte >> 2) & 0x33)
            kept += (byte + (byte >> 4)) & 0x0F
        kept_O[r] = kept


@njit(nogil=True, inline="always")
def _bit(byte, j):
    return np.uint64((byte >> np.uint8(j)) & np.uint8(1))


avx512_lanes = njit(inline="always")(avx512.lanes)


@njit(nogil=True, cache=True)
def _compact(bits_OI, bitmask_OB, first, last, start_O, row_I, values_K):
    # Written always, kept only where the weight lives: no branch to mispredict. By hand eight at a time: as an inner
    # loop it takes twice as long.
    columns = bits_OI.shape[1]
    for r in range(first, last):
        at = np.uint64(0)
        bits_I, mask_B = bits_OI[r], bitmask_OB[r]
        for b in range(columns >> 3):
            byte, eight = mask_B[b], bits_I[8 * b : 8 * b + 8]
            row_I[at] = eight[0]
            at += _bit(byte, 0)
            row_I[at] = eight[1]
            at += _bit(byte, 1)
            row_I[at] = eight[2]
            at += _bit(byte, 2)
            row_I[at] = eight[3]
            at += _bit(byte, 3)
            row_I[at] = eight[4]
            at += _bit(byte, 4)
            row_I[at] = eight[5]
            at += _bit(byte, 5)
            row_I[at] = eight[6]
            at += _bit(byte, 6)
            row_I[at] = eight[7]
            at += _bit(byte, 7)
        for c in range(columns & ~7, columns):
            row_I[at] = bits_I[c]
            at += _bit(mask_B[c >> 3], c & 7)
        kept = np.int64(at)
        start = start_O[r - first]
        values_K[start : start + kept] = row_I[:kept]


@njit(nogil=True, cache=True)
def _compact_wide(bits_OI, bitmask_OB, first, last, start_O, flat):
    # In place. A vector is written whole, its end beyond the survivors: that ends before the first weight not yet read.
    columns = bits_OI.shape[1]
    step = avx512_lanes(bits_OI.itemsize)
    for r in range(first, last):
        at = np.uint64(start_O[r - first])
        bits_I, mask_B = bits_OI[r], bitmask_OB[r]
        for c in range(0, columns - step + 1, step):
            at += compress(bits_I, np.uint64(c), mask_B, np.uint64(c >> 3), flat, at)
        for c in range(columns - columns % step, columns):
            if _bit(mask_B[c >> 3], c & 7):
                flat[at] = bits_I[c]
                at += np.uint64(1)


@njit(nogil=True, cache=True)
def _unpack_wide(bitmask_OB, first, last, start_O, values_K, out_OI):
    columns = out_OI.shape[1]
    step = avx512_lanes(out_OI.itemsize)
    for r in range(first, last):
        at = np.uint64(start_O[r])
        mask_B, out_I = bitmask_OB[r], out_OI[r]
        for c in range(0, columns - step + 1, step):
            at += expand(values_K, at, mask_B, np.uint64(c >> 3), out_I, np.uint64(c))
        for c in range(columns - columns % step, columns):
            out_I[c] = 0
            if _bit(mask_B[c >> 3], c & 7):
                out_I[c] = values_K[at]
                at += np.uint64(1)


@njit(nogil=True, cache=True, inline="always")
def unpack_row(mask_B, values_K, start, out_I):
    """One row, without a branch: every weight is written, times its bit."""
    columns, one = out_I.size, values_K.dtype.type
    at = np.uint64(start)
    whole = columns >> 3 if start + columns < values_K.size else 0  # else a read might pass the last survivor
    for b in range(whole):
        byte, eight = mask_B[b], out_I[8 * b : 8 * b + 8]
        eight[0] = values_K[at] * one(_bit(byte, 0))
        at += _bit(byte, 0)
        eight[1] = values_K[at] * one(_bit(byte, 1))
        at += _bit(byte, 1)
        eight[2] = values_K[at] * one(_bit(byte, 2))
        at += _bit(byte, 2)
        eight[3] = values_K[at] * one(_bit(byte, 3))
        at += _bit(byte, 3)
        eight[4] = values_K[at] * one(_bit(byte, 4))
        at += _bit(byte, 4)
        eight[5] = values_K[at] * one(_bit(byte, 5))
        at += _bit(byte, 5)
        eight[6] = values_K[at] * one(_bit(byte, 6))
        at += _bit(byte, 6)
        eight[7] = values_K[at] * one(_bit(byte, 7))
        at += _bit(byte, 7)
    for c in range(8 * whole, columns):
        out_I[c] = 0
        if _bit(mask_B[c >> 3], c & 7):
            out_I[c] = values_K[at]
            at += np.uint64(1)


@njit(nogil=True, cache=True)
def _unpack(bitmask_OB, first, last, start_O, values_K, out_OI):
    for r in range(first, last):
        unpack_row(bitmask_OB[r], values_K, start_O[r], out_OI[r])


@njit(nogil=True, cache=True)
def _masked(bits_OI, bitmask_OB, first, last, out_OI):
    columns, one = bits_OI.shape[1], bits_OI.dtype.type
    for r in range(first, last):
        bits_I, mask_B, out_I = bits_OI[r], bitmask_OB[r], out_OI[r]
        for b in range(columns >> 3):
            byte = np.uint32(mask_B[b])
            for j in range(8):
                out_I[8 * b + j] = bits_I[8 * b + j] * one((byte >> np.uint32(j)) & np.uint32(1))
        for c in range(columns & ~7, columns):
            out_I[c] = bits_I[c] * one(_bit(mask_B[c >> 3], c & 7))


def warm(dtype: np.dtype) -> None:
    """Compile, or fetch the compiled kernels, for bits of this type: work on a real matrix can then be timed."""
    tiny = np.arange(16, dtype=dtype).reshape(2, 8)
    scan(tiny, 100)
    for bitmask_OB in (select(tiny, 3), select(tiny, 3, 1), select_groups(tiny, 2, 4)):
        unpack(bitmask_OB, np.concatenate(compact(tiny, bitmask_OB)), 8)
        masked(tiny, bitmask_OB)


def scan(bits: np.ndarray, infinity: int) -> tuple[int, int]:
    """(zeros, NaN or infinite) among the weights with these bits; `infinity` is the type's own bit pattern of it."""
    flat = bits.reshape(-1)
    magnitude = flat.dtype.type(MAGNITUDE[flat.dtype])
    edges = np.linspace(0, flat.size, THREADS + 1).astype(np.int64)
    out = np.zeros((THREADS, 2), np.int64)

    def work(first: int, last: int) -> None:
        for t in range(first, last):
            _scan(flat[edges[t] : edges[t + 1]], magnitude, flat.dtype.type(infinity), out[t])

    blocks(THREADS, work, flat.size)
    zeros, broken = out.sum(0)
    return int(zeros), int(broken)


class Keys:
    """What is compared of one matrix: magnitudes (`seed` None), or random bits drawn from `seed`."""

    def __init__(self, bits_OI: np.ndarray, seed: int | None) -> None:
        self.bits_OI, self.size = bits_OI, bits_OI.size
        self.draw = seed is not None
        self.dtype = np.dtype(np.uint32) if self.draw else bits_OI.dtype
        self.wide = self.dtype == np.uint32
        magnitude = bits_OI.dtype.type(MAGNITUDE[bits_OI.dtype])
        self.arguments = (magnitude, self.draw, np.uint64(seed or 0))

    def run(self, kernel: Callable[..., None], *more: object) -> None:
        columns = self.bits_OI.shape[1]
        blocks(
            len(self.bits_OI),
            lambda a, b: kernel(self.bits_OI, a, b, *self.arguments, np.empty(columns, self.dtype), *more),
            self.size,
        )

    def histogram(self, kernel: Callable[..., None], which: int) -> np.ndarray:
        parts: list[np.ndarray] = []

        def work(first: int, last: int) -> None:
            counts = np.zeros(BINS, np.uint32 if self.size < 2**32 else np.int64)
            columns = self.bits_OI.shape[1]
            kernel(self.bits_OI, first, last, *self.arguments, np.empty(columns, self.dtype), which, counts)
            parts.append(counts)

        blocks(len(self.bits_OI), work, self.size)
        return np.stack(parts).sum(0, dtype=np.int64)


class Search:
    """The exact threshold of the k smallest keys among any number of matrices, of which one at a time is in memory.

    Histograms add: call `add` for every matrix, then `step`, and all of it again while `step` says so (keys of more
    than 16 bits need a second, refining pass). `limit` and `ties` then say which weights go: those whose key is below
    the limit, and the first `ties` of those that equal it.
    """

    def __init__(self, k: int) -> None:
        self.k, self.limit, self.ties = k, 0, 0
        self.high: int | None = None
        self.counts = np.zeros(BINS, np.int64)
        self.wide = False

    def add(self, bits_OI: np.ndarray, seed: int | None = None) -> None:
        keys = Keys(bits_OI, seed)
        self.wide = keys.wide
        if self.high is None:
            self.counts += keys.histogram(_histogram_high, 16 if keys.wide else 0)
        else:
            self.counts += keys.histogram(_histogram_low, self.high)

    def step(self) -> bool:
        """After every matrix was added once. True where all have to be added once more."""
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


def count_ties(bits_OI: np.ndarray, limit: int, seed: int | None = None) -> np.ndarray:
    """How many keys of each row equal the limit; int64 [O]."""
    equal_O = np.empty(len(bits_OI), np.int64)
    Keys(bits_OI, seed).run(_count_ties, limit, equal_O)
    return equal_O


def flags(columns: int) -> np.ndarray:
    return np.zeros(-(-columns // 8) * 8, np.uint8)


def select_below(bits_OI: np.ndarray, limit: int, ties: int, seed: int | None = None) -> np.ndarray:
    """bitmask_OB of what lives when keys below the limit go, and the first `ties` in row-major order that equal it."""
    keys = Keys(bits_OI, seed)
    equal_O = count_ties(bits_OI, limit, seed)
    ties_O = np.clip(ties - (np.cumsum(equal_O) - equal_O), 0, equal_O)
    rows, columns = bits_OI.shape
    bitmask_OB = np.empty((rows, -(-columns // 8)), np.uint8)

    def kernel(*arguments: object) -> None:
        _select(*arguments, limit, ties_O, equal_O, flags(columns), bitmask_OB)

    keys.run(kernel)
    return bitmask_OB


def select(bits_OI: np.ndarray, k: int, seed: int | None = None) -> np.ndarray:
    """bitmask_OB of what lives when the k smallest keys go. Of equal keys the earlier in row-major order goes."""
    search = Search(k)
    if k > 0:
        search.add(bits_OI, seed)
        if search.step():
            search.add(bits_OI, seed)
            search.step()
    return select_below(bits_OI, search.limit, search.ties, seed)


def select_groups(bits_OI: np.ndarray, keep: int, group: int, seed: int | None = None) -> np.ndarray:
    """bitmask_OB of what lives when of every `group` weights along a row only the `keep` of largest keys stay.

    Of equal keys the earlier goes; zeros always go. The number of columns is a multiple of `group`.
    """
    rows, columns = bits_OI.shape
    bitmask_OB = np.empty((rows, -(-columns // 8)), np.uint8)

    def kernel(*arguments: object) -> None:
        _select_groups(*arguments, keep, group, flags(columns), bitmask_OB)

    Keys(bits_OI, seed).run(kernel)
    return bitmask_OB


def row_counts(bitmask_OB: np.ndarray) -> np.ndarray:
    """How many weights of each row live; int64 [O]."""
    kept_O = np.empty(len(bitmask_OB), np.int64)
    blocks(len(bitmask_OB), lambda a, b: _row_counts(bitmask_OB, a, b, kept_O), 8 * bitmask_OB.size)
    return kept_O


def compact(bits_OI: np.ndarray, bitmask_OB: np.ndarray, wide: bool = avx512.AVAILABLE) -> list[np.ndarray]:
    """The survivors in row order, 1-D pieces to be put one behind the other. They lie in the memory of `bits_OI`, which
    is overwritten: fresh memory would take longer than the work itself."""
    columns, flat = bits_OI.shape[1], bits_OI.reshape(-1)
    kept_O = row_counts(bitmask_OB)
    pieces: dict[int, np.ndarray] = {}

    def work(first: int, last: int) -> None:
        start_O = first * columns + np.cumsum(kept_O[first:last]) - kept_O[first:last]
        if wide:
            _compact_wide(bits_OI, bitmask_OB, first, last, start_O, flat)
        else:
            _compact(bits_OI, bitmask_OB, first, last, start_O, np.empty(columns + 1, bits_OI.dtype), flat)
        pieces[first] = flat[first * columns : first * columns + int(kept_O[first:last].sum())]

    blocks(len(bits_OI), work, bits_OI.size)
    return [pieces[first] for first in sorted(pieces)]


def unpack(bitmask_OB: np.ndarray, values_K: np.ndarray, columns: int, wide: bool = avx512.AVAILABLE) -> np.ndarray:
    """The dense bits again, zeros where the mask says so. Raises ValueError where mask and values do not belong together."""
    rows = len(bitmask_OB)
    kept_O = row_counts(bitmask_OB)
    if bitmask_OB.shape[1] != -(-columns // 8) or int(kept_O.sum()) != len(values_K):
        raise ValueError("bitmask and values do not belong together")
    if not len(values_K):
        return np.zeros((rows, columns), values_K.dtype)
    start_O = np.cumsum(kept_O) - kept_O
    out_OI = np.empty((rows, columns), values_K.dtype)
    kernel = _unpack_wide if wide else _unpack
    blocks(rows, lambda a, b: kernel(bitmask_OB, a, b, start_O, values_K, out_OI), out_OI.size)
    return out_OI


def masked(bits_OI: np.ndarray, bitmask_OB: np.ndarray, out_OI: np.ndarray | None = None) -> np.ndarray:
    """The bits with zeros where the mask says so, in `out_OI` (the bits themselves will do) or a new array. Raises ValueError where mask and matrix do not belong together."""
    rows, columns = bits_OI.shape
    if bitmask_OB.shape != (rows, -(-columns // 8)):
        raise ValueError("bitmask and matrix do not belong together")
    out = np.empty_like(bits_OI) if out_OI is None else out_OI
    blocks(rows, lambda a, b: _masked(bits_OI, bitmask_OB, a, b, out), out.size)
    return out
