"""Keeps stored weights in huge pages, one array behind the other.

Memory otherwise comes in pages of 4 KiB, wherever the system has some. A small model, whose matrices have a megabyte
each, then decodes up to a tenth slower in one process than in another.
"""

import mmap
import threading

import numpy as np

BLOCK_BYTES = 32 << 20  # of address space; memory is taken as arrays are written
ALIGNMENT = 64


class Newest:
    """The block from which the next arrays are cut. A block is given back when no array of it is used any more."""

    lock = threading.Lock()
    free = np.empty(0, np.uint8)


def new_block(nbytes: int) -> np.ndarray:
    """Returns fresh memory, all zeros."""
    try:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):  # a system without huge pages
        return np.zeros(nbytes, np.uint8)
    return np.frombuffer(memory, np.uint8)


def copy(array: np.ndarray, spare_bytes: int = 0) -> np.ndarray:
    """Returns a copy of an array, behind which so many bytes may be read."""
    nbytes = -(-(array.nbytes + spare_bytes) // ALIGNMENT) * ALIGNMENT
    with Newest.lock:
        if nbytes > len(Newest.free):
            Newest.free = new_block(max(BLOCK_BYTES, nbytes))
        memory, Newest.free = Newest.free[:nbytes], Newest.free[nbytes:]
    held = memory[: array.nbytes].view(array.dtype).reshape(array.shape)
    held[...] = array
    return held
