"""Keys rank the weights of a matrix: those with the smallest keys are removed first.

Legend: O outputs (rows), I inputs (columns).

Weights come as their bits (uint16 for bfloat16 and float16, uint32 for float32, uint64 for float64). Without the sign
bit, the bits of floating-point numbers have the order of their magnitudes. A key is that magnitude, or 31 random bits.
"""

from collections.abc import Callable

import numpy as np
from numba import njit

from lottery.kernels.parallel import CAN_CACHE, parallel_for

MAGNITUDE = {np.dtype(f"u{size}"): (1 << 8 * size - 1) - 1 for size in (2, 4, 8)}  # every bit but the sign


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def row_keys(row_I, index, magnitude, draw, seed, keys_I):
    """Writes the keys of one row: magnitudes, or with `draw` 31 random bits that depend on the seed and the weight's
    index.

    A zero weight has the key 0 and is removed first. The random bits come from splitmix64 (Steele, Lea and Flood,
    OOPSLA 2014), used as a hash of a counter.
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


class Keys:
    """The keys of one matrix: magnitudes when `seed` is None, or else random bits drawn from `seed`."""

    def __init__(self, bits_OI: np.ndarray, seed: int | None) -> None:
        self.bits_OI, self.size = bits_OI, bits_OI.size
        self.draw = seed is not None
        self.dtype = np.dtype(np.uint32) if self.draw else bits_OI.dtype
        magnitude = bits_OI.dtype.type(MAGNITUDE[bits_OI.dtype])
        self.arguments = (magnitude, self.draw, np.uint64(seed or 0))

    def run(self, kernel: Callable[..., None], *more: object) -> None:
        """Runs a kernel over blocks of rows."""
        columns = self.bits_OI.shape[1]
        parallel_for(
            len(self.bits_OI),
            lambda a, b: kernel(self.bits_OI, a, b, *self.arguments, np.empty(columns, self.dtype), *more),
            self.size,
        )
