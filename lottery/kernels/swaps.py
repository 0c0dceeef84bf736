"""Exchanges pruned weights for kept ones in each row of a matrix, wherever that lowers the error of the row's output.

Legend: O rows (outputs), I columns (inputs).
"""

import numpy as np
from numba import njit

from lottery.kernels.parallel import CAN_CACHE, parallel_for

CANDIDATES = 8  # pruned weights of which each is compared with every kept one


@njit(nogil=True, cache=CAN_CACHE)
def _best_pruned(gain_I, stays_I, best_C):
    """Finds the pruned weights whose return would lower the error most. Returns how many there are."""
    count = 0
    for c in range(gain_I.size):
        if stays_I[c]:
            continue
        at = count
        while at > 0 and gain_I[best_C[at - 1]] > gain_I[c]:
            at -= 1
        if at < best_C.size:
            for k in range(min(count, best_C.size - 1), at, -1):
                best_C[k] = best_C[k - 1]
            best_C[at] = c
            count = min(count + 1, best_C.size)
    return count


@njit(nogil=True, cache=CAN_CACHE)
def _swap_rows(weight_OI, gram_II, image_OI, fixed_OI, first, last, most, group, stays_OI):
    """`image_OI` is the Gram matrix times what was removed; it follows each swap. With e what is removed of a row, its
    error is e G e^T: to remove i and to return j changes it by 2 w_i (Ge)_i + w_i^2 G_ii - 2 w_j (Ge)_j + w_j^2 G_jj
    - 2 w_i w_j G_ij."""
    columns = weight_OI.shape[1]
    gain_I, best_C = np.empty(columns, weight_OI.dtype), np.empty(CANDIDATES, np.int64)
    for r in range(first, last):
        w_I, image_I, stays_I, fixed_I = weight_OI[r], image_OI[r], stays_OI[r], fixed_OI[r]
        for _ in range(most):
            for c in range(columns):
                sign = 2 if stays_I[c] else -2
                gain_I[c] = np.inf if fixed_I[c] else sign * w_I[c] * image_I[c] + w_I[c] * w_I[c] * gram_II[c, c]
            least, kept, pruned = 0.0, -1, -1
            for k in range(_best_pruned(gain_I, stays_I, best_C)):
                j = best_C[k]
                begin, end = (j // group * group, j // group * group + group) if group else (0, columns)
                for i in range(begin, end):
                    if stays_I[i]:
                        change = gain_I[i] + gain_I[j] - 2 * w_I[i] * w_I[j] * gram_II[j, i]
                        if change < least:
                            least, kept, pruned = change, i, j
            if kept < 0:
                break
            stays_I[kept], stays_I[pruned] = False, True
            for c in range(columns):
                image_I[c] += w_I[kept] * gram_II[kept, c] - w_I[pruned] * gram_II[pruned, c]


def swap(
    weight_OI: np.ndarray, gram_II: np.ndarray, image_OI: np.ndarray, stays_OI: np.ndarray, most: int, group: int = 0
) -> None:
    """Swaps at most `most` times in each row, or within groups of `group` neighbours, in place. Zeros stay zeros.

    All are float32 or float64, and C-contiguous; `stays_OI` is bool.
    """
    fixed_OI = weight_OI == 0
    parallel_for(
        len(weight_OI),
        lambda a, b: _swap_rows(weight_OI, gram_II, image_OI, fixed_OI, a, b, most, group, stays_OI),
        weight_OI.size * 100,
    )
