"""Measures how fast memory is read by the same threads that multiply. torch's sum of a large tensor is no faster."""

import itertools
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lottery.kernels.parallel import CAN_CACHE
from lottery.kernels.product_rows import SIGNATURE
from lottery.kernels.simd import I32, load, store_32, word
from lottery.kernels.threads import run_job, team

PIECE = ir.VectorType(I32, 64)
PIECE_BYTES = 256


@intrinsic
def _sum_of_piece(typingctx, at):
    """Returns the sum of 64 32-bit words. Numba would read single ones, which takes seven times as long."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(I32, [PIECE])
        add = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.add.v64i32")
        return builder.call(add, [load(builder, arguments[0], PIECE)])

    return types.uint32(types.uint64), codegen


@cfunc(SIGNATURE, cache=CAN_CACHE)
def _add_words(part, call):
    """Adds up a part of the block, and writes the sum, so that the compiler leaves no reading out.

    A part's words are the addresses of this function and of its piece, the piece's bytes, and the address of its sum.
    """
    total, at = np.uint32(0), word(part, 1)
    for i in range(word(part, 2) // np.uint64(PIECE_BYTES)):
        total += _sum_of_piece(at + np.uint64(PIECE_BYTES) * np.uint64(i))
    store_32(word(part, 3), total)


@njit(nogil=True, cache=CAN_CACHE)
def _run(semaphores, job, thread_of_cpu, parts, firsts, call):
    run_job(semaphores, job, thread_of_cpu, parts, firsts, call)


class Reader:
    """Reads a block of memory that is larger than any cache, with the threads of a `Product`."""

    def __init__(self, nbytes: int, threads: int) -> None:
        self.team = team(threads)
        self.block = np.full(nbytes // 4, 1, np.uint32)  # memory that was never written would come from the cache
        self.sums = np.zeros(threads, np.uint32)
        pieces = np.linspace(0, self.block.nbytes // PIECE_BYTES, threads + 1).astype(int)
        at, sum_at = self.block.ctypes.data, self.sums.ctypes.data
        parts = [
            [_add_words.address, at + PIECE_BYTES * first, PIECE_BYTES * (last - first), sum_at + 4 * rank]
            for rank, (first, last) in enumerate(itertools.pairwise(pieces))
        ]
        self.parts, self.firsts = np.array(parts, np.uint64), np.arange(threads + 1, dtype=np.uint64)
        self.call = np.zeros(1, np.uint64)

    def __call__(self) -> float:
        """Reads the block, which also drives everything else out of the cache, and returns bytes per second."""
        begin = time.perf_counter()
        with self.team.lock:
            _run(self.team.semaphores, self.team.job, self.team.thread_of_cpu, self.parts, self.firsts, self.call)
        seconds = time.perf_counter() - begin
        assert int(self.sums.sum()) == len(self.block)
        return self.block.nbytes / seconds
