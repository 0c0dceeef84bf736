"""Bitmasks and survivors: count, compact, unpack and mask weights. The functions take and return numpy arrays.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.
"""

import numpy as np
from numba import njit

from lottery.kernels import avx512
from lottery.kernels.avx512 import compress, expand
from lottery.kernels.parallel import CAN_CACHE, parallel_for


@njit(nogil=True, cache=CAN_CACHE)
def _survivors_per_row(bitmask_OB, first, last, kept_O):
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


@njit(nogil=True, cache=CAN_CACHE)
def _compact(bits_OI, bitmask_OB, first, last, start_O, row_I, values_K):
    # Every weight is written, and the position moves on only after a survivor: there is no branch to mispredict. The
    # eight steps are written out, because an inner loop takes twice as long.
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


@njit(nogil=True, cache=CAN_CACHE)
def _compact_wide(bits_OI, bitmask_OB, first, last, start_O, flat):
    # This works in place: a vector is written whole, beyond its survivors too, but it ends before the first weight that
    # is not read yet.
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


@njit(nogil=True, cache=CAN_CACHE)
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


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def unpack_row(mask_B, values_K, start, out_I):
    """Unpacks one row without a branch: every weight is written, multiplied by its bit."""
    columns, one = out_I.size, values_K.dtype.type
    at = np.uint64(start)
    whole = columns >> 3 if start + columns < values_K.size else 0  # else a read could pass the last survivor
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


@njit(nogil=True, cache=CAN_CACHE)
def _unpack(bitmask_OB, first, last, start_O, values_K, out_OI):
    for r in range(first, last):
        unpack_row(bitmask_OB[r], values_K, start_O[r], out_OI[r])


@njit(nogil=True, cache=CAN_CACHE)
def _apply_mask(bits_OI, bitmask_OB, first, last, out_OI):
    columns, one = bits_OI.shape[1], bits_OI.dtype.type
    for r in range(first, last):
        bits_I, mask_B, out_I = bits_OI[r], bitmask_OB[r], out_OI[r]
        for b in range(columns >> 3):
            byte = np.uint32(mask_B[b])
            for j in range(8):
                out_I[8 * b + j] = bits_I[8 * b + j] * one((byte >> np.uint32(j)) & np.uint32(1))
        for c in range(columns & ~7, columns):
            out_I[c] = bits_I[c] * one(_bit(mask_B[c >> 3], c & 7))


def survivors_per_row(bitmask_OB: np.ndarray) -> np.ndarray:
    """Returns how many weights of each row survive, int64 [O]."""
    kept_O = np.empty(len(bitmask_OB), np.int64)
    parallel_for(len(bitmask_OB), lambda a, b: _survivors_per_row(bitmask_OB, a, b, kept_O), 8 * bitmask_OB.size)
    return kept_O


def compact(bits_OI: np.ndarray, bitmask_OB: np.ndarray, wide: bool = avx512.AVAILABLE) -> list[np.ndarray]:
    """Returns the survivors in row order, as 1-D pieces that follow each other.

    The pieces lie in the memory of `bits_OI`, which is overwritten, because fresh memory would take longer than the
    work itself. `wide` uses AVX-512.
    """
    columns, flat = bits_OI.shape[1], bits_OI.reshape(-1)
    kept_O = survivors_per_row(bitmask_OB)
    pieces: dict[int, np.ndarray] = {}

    def work(first: int, last: int) -> None:
        start_O = first * columns + np.cumsum(kept_O[first:last]) - kept_O[first:last]
        if wide:
            _compact_wide(bits_OI, bitmask_OB, first, last, start_O, flat)
        else:
            _compact(bits_OI, bitmask_OB, first, last, start_O, np.empty(columns + 1, bits_OI.dtype), flat)
        pieces[first] = flat[first * columns : first * columns + int(kept_O[first:last].sum())]

    parallel_for(len(bits_OI), work, bits_OI.size)
    return [pieces[first] for first in sorted(pieces)]


def unpack(bitmask_OB: np.ndarray, values_K: np.ndarray, columns: int, wide: bool = avx512.AVAILABLE) -> np.ndarray:
    """Returns the dense bits, with zeros for the weights that the mask removes.

    `wide` uses AVX-512. Raises ValueError when mask and values do not belong together.
    """
    rows = len(bitmask_OB)
    kept_O = survivors_per_row(bitmask_OB)
    if bitmask_OB.shape[1] != -(-columns // 8) or int(kept_O.sum()) != len(values_K):
        raise ValueError("bitmask and values do not belong together")
    if not len(values_K):
        return np.zeros((rows, columns), values_K.dtype)
    start_O = np.cumsum(kept_O) - kept_O
    out_OI = np.empty((rows, columns), values_K.dtype)
    parallel_for(rows, lambda a, b: unpack_rows(bitmask_OB, a, b, start_O, values_K, out_OI, wide), out_OI.size)
    return out_OI


def unpack_rows(
    bitmask_OB: np.ndarray,
    first: int,
    last: int,
    start_O: np.ndarray,
    values_K: np.ndarray,
    out_OI: np.ndarray,
    wide: bool = avx512.AVAILABLE,
) -> None:
    """Writes the rows from `first` to `last` of the dense bits into `out_OI`. `start_O` says where the survivors of
    each row begin. Nothing is checked."""
    kernel = _unpack_wide if wide else _unpack
    kernel(bitmask_OB, first, last, start_O, values_K, out_OI)


def apply_mask(bits_OI: np.ndarray, bitmask_OB: np.ndarray, out_OI: np.ndarray | None = None) -> np.ndarray:
    """Returns the bits with zeros for the weights that the mask removes, in `out_OI` or in a new array.

    `out_OI` may be `bits_OI`. Raises ValueError when mask and matrix do not belong together.
    """
    rows, columns = bits_OI.shape
    if bitmask_OB.shape != (rows, -(-columns // 8)):
        raise ValueError("bitmask and matrix do not belong together")
    out = np.empty_like(bits_OI) if out_OI is None else out_OI
    parallel_for(rows, lambda a, b: _apply_mask(bits_OI, bitmask_OB, a, b, out), out.size)
    return out
