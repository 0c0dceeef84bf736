"""Removes the weights of a block of columns one after the other, and corrects the weights to the right of each.

Legend: O outputs (rows), C columns of the block.

The rows do not depend on each other, so each is swept alone, in the cache. Numba does not fuse a product and a sum into
one instruction, so every processor gets the same bits.
"""

import numpy as np
from numba import njit

from lottery.kernels.parallel import CAN_CACHE, parallel_for


@njit(nogil=True, cache=CAN_CACHE)
def _choose(row_C, zero_C, factor_CC, first, last, keep, score_C, stays_C):
    """Keeps the `keep` highest scores |w| / U_jj of the columns from `first` to `last`, of equal ones the later, and never
    a zero."""
    for i in range(first, last):
        score_C[i] = -1 if zero_C[i] else abs(row_C[i]) / factor_CC[i, i]
    for i in range(first, last):
        better = 0
        for j in range(first, i):
            better += score_C[j] > score_C[i]
        for j in range(i + 1, last):
            better += score_C[j] >= score_C[i]
        stays_C[i] = better < keep and not zero_C[i]


@njit(nogil=True, cache=CAN_CACHE)
def _sweep(block_OC, first, last, zero_OC, factor_CC, keep, group, stays_OC, error_OC):
    columns = block_OC.shape[1]
    gone_C, score_C = np.empty(columns, np.int64), np.empty(columns, block_OC.dtype)
    for r in range(first, last):
        row_C, stays_C, error_C = block_OC[r], stays_OC[r], error_OC[r]
        for begin in range(0, columns, group):
            end = min(begin + group, columns)
            if keep >= 0:
                _choose(row_C, zero_OC[r], factor_CC, begin, end, keep, score_C, stays_C)
            count = 0
            for j in range(begin, end):  # without a branch, which would be mispredicted at every other weight
                error_C[j] = 0
                gone_C[count] = j
                count += 1 - stays_C[j]
            for j in gone_C[:count]:
                error = row_C[j] / factor_CC[j, j]
                right_C, factor_C = row_C[j + 1 :], factor_CC[j, j + 1 :]
                for c in range(right_C.size):
                    right_C[c] -= error * factor_C[c]
                row_C[j], error_C[j] = 0, error


def sweep(
    block_OC: np.ndarray,
    zero_OC: np.ndarray,
    factor_CC: np.ndarray,
    stays_OC: np.ndarray,
    groups: tuple[int, int] | None,
) -> np.ndarray:
    """Removes weights of a block, in place, and returns their errors [O, C]: each weight, as it was when its turn came,
    divided by U_jj (0 where a weight stays). `factor_CC` is the block of U on the diagonal.

    With `groups` (keep, size) the sweep chooses the weights of each group when it arrives there, and writes `stays_OC`;
    without, `stays_OC` says which weights stay. Weights that were zero (`zero_OC`) never stay in a group.
    """
    rows, columns = block_OC.shape
    keep, group = groups or (-1, columns)
    error_OC = np.empty_like(block_OC)
    parallel_for(
        rows,
        lambda a, b: _sweep(block_OC, a, b, zero_OC, factor_CC, keep, group, stays_OC, error_OC),
        block_OC.size,
    )
    return error_OC
