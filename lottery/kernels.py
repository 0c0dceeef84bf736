"""Selecting, packing and unpacking weights, exactly and at the speed of memory. Arrays only: numpy in, numpy out.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.

Weights come as their bits (uint16 for bfloat16 and float16, uint32 for float32). With the sign bit cleared the bits of
a floating-point number are ordered as its magnitude, so an integer histogram finds the exact k-th smallest magnitude.
The kernels release the GIL and run over blocks of rows in plain threads; the result does not depend on how many.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numba import config, njit

from lottery.home import home

config.CACHE_DIR = os.environ.get("NUMBA_CACHE_DIR") or str(home() / "kernels")  # compiled once a machine
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="lottery-kernels")
MAGNITUDE = {np.dtype(np.uint16): 0x7FFF, np.dtype(np.uint32): 0x7FFFFFFF}  # every bit but the sign
HIGH_BINS = 1 << 16


def blocks(rows: int, work: Callable[[int, int], None]) -> None:
    """Run work(first, last) over blocks of rows, a block a thread."""
    edges = np.linspace(0, rows, min(THREADS, max(rows, 1)) + 1).astype(np.int64)
    if len(edges) == 2:
        return work(0, rows)
    for done in [POOL.submit(work, int(a), int(b)) for a, b in itertools.pairwise(edges)]:
        done.result()


@njit(nogil=True, cache=True, inline="always")
def _key(bits, magnitude, draw, seed, index):
    """What is compared: the magnitude, or where `draw` is set 32 random bits of (seed, index). A zero always goes first.

    The generator is splitmix64 (Steele, Lea and Flood, OOPSLA 2014) as a hash of a counter.
    """
    low = np.uint64(bits) & np.uint64(magnitude)
    if not draw or low == np.uint64(0):
        return low
    z = seed + np.uint64(index + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(32)) | np.uint64(1)


@njit(nogil=True, cache=True)
def _scan(flat, magnitude, infinity, out):
    zeros, broken = 0, 0
    for i in range(flat.size):
        low = flat[i] & magnitude
        zeros += low == 0
        broken += low >= infinity
    out[0], out[1] = zeros, broken


@njit(nogil=True, cache=True)
def _histogram_high(bits_OI, first, last, magnitude, draw, seed, shift, out):
    shift = np.uint64(shift)
    for r in range(first, last):
        for c in range(bits_OI.shape[1]):
            out[_key(bits_OI[r, c], magnitude, draw, seed, r * bits_OI.shape[1] + c) >> shift] += 1


@njit(nogil=True, cache=True)
def _histogram_low(bits_OI, first, last, magnitude, draw, seed, high, out):
    high = np.uint64(high)
    for r in range(first, last):
        for c in range(bits_OI.shape[1]):
            key = _key(bits_OI[r, c], magnitude, draw, seed, r * bits_OI.shape[1] + c)
            if key >> np.uint64(16) == high:
                out[key & np.uint64(0xFFFF)] += 1


@njit(nogil=True, cache=True)
def _count(bits_OI, first, last, magnitude, draw, seed, threshold, less_O, equal_O):
    threshold = np.uint64(threshold)
    for r in range(first, last):
        less, equal = 0, 0
        for c in range(bits_OI.shape[1]):
            key = _key(bits_OI[r, c], magnitude, draw, seed, r * bits_OI.shape[1] + c)
            less += key < threshold
            equal += key == threshold
        less_O[r], equal_O[r] = less, equal


@njit(nogil=True, cache=True)
def _pack(bits_OI, first, last, magnitude, draw, seed, threshold, ties_O, start_O, bitmask_OB, values_K):
    threshold = np.uint64(threshold)
    columns = bits_OI.shape[1]
    row = np.empty(columns + 1, bits_OI.dtype)
    for r in range(first, last):
        at, ties = 0, ties_O[r]
        for b in range(bitmask_OB.shape[1]):
            byte = 0
            for c in range(8 * b, min(8 * b + 8, columns)):
                key = _key(bits_OI[r, c], magnitude, draw, seed, r * columns + c)
                tie = (key == threshold) & (ties > 0)
                ties -= tie
                lives = (key >= threshold) & (not tie)
                byte |= lives << (c & 7)
                row[at] = bits_OI[r, c]  # written always, kept only where the weight lives: no branch to mispredict
                at += lives
            bitmask_OB[r, b] = byte
        values_K[start_O[r] : start_O[r] + at] = row[:at]


@njit(nogil=True, cache=True)
def _row_counts(bitmask_OB, first, last, kept_O):
    for r in range(first, last):
        kept = 0
        for b in range(bitmask_OB.shape[1]):
            byte = bitmask_OB[r, b]
            while byte:
                byte &= byte - 1
                kept += 1
        kept_O[r] = kept


@njit(nogil=True, cache=True)
def _unpack(bitmask_OB, first, last, start_O, values_K, out_OI):
    columns, end = out_OI.shape[1], values_K.size - 1
    for r in range(first, last):
        at = start_O[r]
        for b in range(bitmask_OB.shape[1]):
            byte = bitmask_OB[r, b]
            for c in range(8 * b, min(8 * b + 8, columns)):
                lives = (byte >> (c & 7)) & 1
                out_OI[r, c] = values_K[min(at, end)] * lives
                at += lives


def warm(dtype: np.dtype) -> None:
    """Compile, or fetch the compiled kernels, for bits of this type: work on a real matrix can then be timed."""
    tiny = np.arange(16, dtype=dtype).reshape(2, 8)
    scan(tiny, 100)
    unpack(*pack(tiny, 3), 8)


def scan(bits: np.ndarray, infinity: int) -> tuple[int, int]:
    """(zeros, NaN or infinite) among the weights with these bits; `infinity` is the type's own bit pattern of it."""
    flat = bits.reshape(-1)
    magnitude = flat.dtype.type(MAGNITUDE[flat.dtype])
    edges = np.linspace(0, flat.size, THREADS + 1).astype(np.int64)
    out = np.zeros((THREADS, 2), np.int64)

    def work(first: int, last: int) -> None:
        for t in range(first, last):
            _scan(flat[edges[t] : edges[t + 1]], magnitude, flat.dtype.type(infinity), out[t])

    blocks(THREADS, work)
    zeros, broken = out.sum(0)
    return int(zeros), int(broken)


def _histogram(kernel, bits_OI: np.ndarray, *arguments) -> np.ndarray:
    total = np.zeros(HIGH_BINS, np.int64)

    def work(first: int, last: int) -> None:
        counts = np.zeros(HIGH_BINS, np.int64)
        kernel(bits_OI, first, last, *arguments, counts)
        parts.append(counts)

    parts: list[np.ndarray] = []
    blocks(len(bits_OI), work)
    for counts in parts:
        total += counts
    return total


def threshold(bits_OI: np.ndarray, k: int, seed: int | None = None) -> tuple[int, int]:
    """(threshold, ties): the k weights to remove are those whose key is below, and the first `ties` that are equal.

    `seed` None compares magnitudes; a number compares random keys drawn from it.
    """
    key = (MAGNITUDE[bits_OI.dtype], seed is not None, np.uint64(seed or 0))
    wide = bits_OI.dtype == np.uint32 or seed is not None
    if k <= 0:
        return 0, 0
    upto = np.cumsum(_histogram(_histogram_high, bits_OI, *key, 16 if wide else 0))
    high = int(np.searchsorted(upto, k))
    before = int(upto[high - 1]) if high else 0
    if not wide:
        return high, k - before
    upto = before + np.cumsum(_histogram(_histogram_low, bits_OI, *key, high))
    low = int(np.searchsorted(upto, k))
    return high << 16 | low, k - (int(upto[low - 1]) if low else before)


def pack(bits_OI: np.ndarray, k: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Remove k weights; (bitmask_OB uint8, values_K in row order). Equal keys: the earlier in row-major order goes."""
    rows, columns = bits_OI.shape
    key = (MAGNITUDE[bits_OI.dtype], seed is not None, np.uint64(seed or 0))
    limit, ties = threshold(bits_OI, k, seed)
    less_O, equal_O = np.empty(rows, np.int64), np.empty(rows, np.int64)
    blocks(rows, lambda a, b: _count(bits_OI, a, b, *key, limit, less_O, equal_O))
    ties_O = np.clip(ties - (np.cumsum(equal_O) - equal_O), 0, equal_O)
    kept_O = columns - less_O - ties_O
    start_O = np.cumsum(kept_O) - kept_O
    bitmask_OB = np.empty((rows, -(-columns // 8)), np.uint8)
    values_K = np.empty(int(kept_O.sum()), bits_OI.dtype)
    blocks(rows, lambda a, b: _pack(bits_OI, a, b, *key, limit, ties_O, start_O, bitmask_OB, values_K))
    return bitmask_OB, values_K


def unpack(bitmask_OB: np.ndarray, values_K: np.ndarray, columns: int) -> np.ndarray:
    """The dense bits again, zeros where the mask says so. Raises ValueError where mask and values do not belong together."""
    rows = len(bitmask_OB)
    kept_O = np.empty(rows, np.int64)
    blocks(rows, lambda a, b: _row_counts(bitmask_OB, a, b, kept_O))
    if bitmask_OB.shape[1] != -(-columns // 8) or int(kept_O.sum()) != len(values_K):
        raise ValueError("bitmask and values do not belong together")
    if not len(values_K):
        return np.zeros((rows, columns), values_K.dtype)
    start_O = np.cumsum(kept_O) - kept_O
    out_OI = np.empty((rows, columns), values_K.dtype)
    blocks(rows, lambda a, b: _unpack(bitmask_OB, a, b, start_O, values_K, out_OI))
    return out_OI
