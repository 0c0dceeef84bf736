"""Selects the weights that survive in rows: up to a limit that each row has, or as many in each row as in the others.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, J = 8B flags of a row, one for each
bit of its bitmask.
"""

import numpy as np
from numba import njit

from lottery.kernels.keys import Keys, row_keys
from lottery.kernels.parallel import CAN_CACHE


@njit(nogil=True, cache=CAN_CACHE)
def _count_ties(bits_OI, first, last, magnitude, draw, seed, keys_I, limit, equal_O):
    limit = keys_I.dtype.type(limit)
    for r in range(first, last):
        row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        equal = np.uint32(0)
        for c in range(keys_I.size):
            equal += np.uint32(keys_I[c] == limit)
        equal_O[r] = equal


@njit(nogil=True, cache=CAN_CACHE)
def _select(bits_OI, first, last, magnitude, draw, seed, keys_I, limit_O, ties_O, equal_O, flags_J, bitmask_OB):
    """Removes, in each row, all keys below its limit and the first `ties_O` of the `equal_O` keys that equal it."""
    flags_B = flags_J.view(np.uint64)  # eight flags at once; flags beyond the last column stay 0
    for r in range(first, last):
        row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        limit = keys_I.dtype.type(limit_O[r])
        least = limit if ties_O[r] == 0 else keys_I.dtype.type(limit + 1)
        for c in range(keys_I.size):
            flags_J[c] = keys_I[c] >= least
        if 0 < ties_O[r] < equal_O[r]:  # only part of the ties of this row is removed
            ties = ties_O[r]
            for c in range(keys_I.size):
                if keys_I[c] == limit:
                    flags_J[c] = ties <= 0
                    ties -= 1
        for b in range(bitmask_OB.shape[1]):  # byte j of the word becomes bit j
            bitmask_OB[r, b] = (flags_B[b] * np.uint64(0x0102040810204080)) >> np.uint64(56)


@njit(nogil=True, cache=CAN_CACHE)
def _count_up_to(keys_I, limit):
    limit = keys_I.dtype.type(limit)
    count = np.uint32(0)
    for c in range(keys_I.size):
        count += np.uint32(keys_I[c] <= limit)
    return np.int64(count)


@njit(nogil=True, cache=CAN_CACHE)
def _find_limits(bits_OI, first, last, magnitude, draw, seed, keys_I, rank_O, limit_O, ties_O, equal_O, next_O):
    """Finds, for the `rank_O` smallest keys of each row, the largest of them (the limit, 0 for none), how many of them
    equal it, how many keys of the row equal it, and the key that comes next.

    The limit is bisected: a row lies in the cache, and counting its keys vectorizes.
    """
    for r in range(first, last):
        row_keys(bits_OI[r], r * bits_OI.shape[1], magnitude, draw, seed, keys_I)
        rank, low, high = rank_O[r], np.uint64(0), np.uint64(np.max(keys_I))
        while low < high:
            middle = low + ((high - low) >> np.uint64(1))
            if _count_up_to(keys_I, middle) >= rank:
                high = middle
            else:
                low = middle + np.uint64(1)
        upto = _count_up_to(keys_I, low)
        below = _count_up_to(keys_I, low - np.uint64(1)) if low else 0
        limit_O[r], ties_O[r], equal_O[r] = low, rank - below, upto - below
        limit, after = keys_I.dtype.type(low), ~keys_I.dtype.type(0)
        if upto == rank:
            for c in range(keys_I.size):
                after = min(after, keys_I[c] if keys_I[c] > limit else ~keys_I.dtype.type(0))
        next_O[r] = limit if upto > rank else after


def count_ties(bits_OI: np.ndarray, limit: int, seed: int | None = None) -> np.ndarray:
    """Returns how many keys of each row equal the limit, int64 [O]."""
    equal_O = np.empty(len(bits_OI), np.int64)
    Keys(bits_OI, seed).run(_count_ties, limit, equal_O)
    return equal_O


def flags(columns: int) -> np.ndarray:
    """Returns the flags of one row, all 0, uint8 [J]."""
    return np.zeros(-(-columns // 8) * 8, np.uint8)


def select_up_to(
    bits_OI: np.ndarray, limit_O: np.ndarray, ties_O: np.ndarray, equal_O: np.ndarray, seed: int | None
) -> np.ndarray:
    """Returns bitmask_OB of the weights that survive when each row loses all keys below its limit, and the first
    `ties_O` of the `equal_O` keys that equal it."""
    rows, columns = bits_OI.shape
    bitmask_OB = np.empty((rows, -(-columns // 8)), np.uint8)

    def kernel(*arguments: object) -> None:
        _select(*arguments, limit_O, ties_O, equal_O, flags(columns), bitmask_OB)

    Keys(bits_OI, seed).run(kernel)
    return bitmask_OB


def select_rows(bits_OI: np.ndarray, k: int, seed: int | None = None) -> np.ndarray:
    """Returns bitmask_OB of the weights that survive when k of the smallest keys are removed, as many in each row as in
    the others.

    Where k does not divide evenly, one more goes from the rows whose next key is the smallest (of equal ones from the
    earlier rows). Zeros are always removed: a row that has more of them than its share loses them all, and the other
    rows lose fewer. Of equal keys of a row the earlier ones are removed.
    """
    rows, columns = bits_OI.shape
    keys = Keys(bits_OI, seed)
    zero_O = count_ties(bits_OI, 0)
    asked = max(k, int(zero_O.sum()))
    share = largest_share(zero_O, columns, asked)
    lost_O = np.maximum(zero_O, share)
    limit_O, next_O = np.empty(rows, keys.dtype), np.empty(rows, keys.dtype)
    ties_O, equal_O = np.empty(rows, np.int64), np.empty(rows, np.int64)
    keys.run(_find_limits, lost_O, limit_O, ties_O, equal_O, next_O)
    open_rows = np.flatnonzero((zero_O <= share) & (share < columns))
    more = open_rows[np.argsort(next_O[open_rows], kind="stable")][: asked - int(lost_O.sum())]
    ties_O[more] = np.where(next_O[more] == limit_O[more], ties_O[more] + 1, 1)
    limit_O[more], equal_O[more] = next_O[more], columns  # how many equal the new limit is not known
    return select_up_to(bits_OI, limit_O, ties_O, equal_O, seed)


def largest_share(zero_O: np.ndarray, columns: int, asked: int) -> int:
    """Returns the largest number of keys that every row can lose, or all its zeros if it has more of them, so that at
    most `asked` go in all."""
    low, high = 0, columns
    while low < high:
        middle = (low + high + 1) // 2
        if int(np.maximum(zero_O, middle).sum()) <= asked:
            low = middle
        else:
            high = middle - 1
    return low
