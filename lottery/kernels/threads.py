"""Threads that run compiled functions without Python's lock, for work of microseconds.

A thread that waits sleeps in a semaphore of the C library; it does not spin. The caller wakes two threads, and each of
these wakes two others, so that many are awake soon.

Where all processors of the job are used, each has a thread of its own that stays on it, and a caller leaves out the one
on whose processor it runs. Otherwise Linux often wakes a thread on the caller's own processor, on small machines every
time, so that both take turns while another processor is idle.
"""

import os
import threading
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from lottery.kernels.parallel import CAN_CACHE
from lottery.kernels.simd import I64, word

SEMAPHORE_BYTES = 64  # the C library's takes 32 at most; in a cache line of its own no thread slows another
NO_THREAD = 1 << 30
SPIN = 200  # how often the caller looks whether the others are done before it sleeps: ten microseconds
# The 64-bit words that describe a job. Of the threads, that number J_LEFT_OUT does not work.
J_PARTS, J_PART_BYTES, J_FIRSTS, J_CALL, J_RANKS, J_LEFT_OUT = range(6)

_wait = types.ExternalFunction("sem_wait", types.int32(types.uint64))
_try = types.ExternalFunction("sem_trywait", types.int32(types.uint64))
_post = types.ExternalFunction("sem_post", types.int32(types.uint64))
_init = types.ExternalFunction("sem_init", types.int32(types.uint64, types.int32, types.uint32))


_getcpu = types.ExternalFunction("sched_getcpu", types.int32())


@intrinsic
def invoke(typingctx, function, first, second):
    """Calls the compiled function at an address with two integers."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64]).as_pointer()
        builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@njit(nogil=True, inline="always")
def _run_parts(job, rank):
    """Runs the parts of a job that belong to a rank. The first word of a part is the function to call."""
    first, last = word(word(job, J_FIRSTS), rank), word(word(job, J_FIRSTS), rank + np.uint64(1))
    for p in range(first, last):
        part = word(job, J_PARTS) + np.uint64(p) * word(job, J_PART_BYTES)
        invoke(word(part, 0), part, word(job, J_CALL))


@njit(nogil=True, inline="always")
def _wake_two(semaphores, job, rank):
    """Wakes the threads of ranks 2 * rank + 1 and 2 * rank + 2. Rank 0 is the caller."""
    for other in range(2 * rank + np.uint64(1), 2 * rank + np.uint64(3)):
        if np.uint64(other) < word(job, J_RANKS):
            thread = np.uint64(other) - np.uint64(1)
            if thread >= word(job, J_LEFT_OUT):
                thread += np.uint64(1)
            _post(semaphores + np.uint64(SEMAPHORE_BYTES) * (thread + np.uint64(1)))


@njit(nogil=True, cache=CAN_CACHE)
def _serve(semaphores, job, thread):
    """Waits for jobs for ever, and runs the parts of this thread."""
    while True:
        while _wait(semaphores + np.uint64(SEMAPHORE_BYTES) * (thread + np.uint64(1))) != 0:  # a signal interrupts it
            pass
        rank = thread + np.uint64(1) if thread < word(job, J_LEFT_OUT) else thread
        _wake_two(semaphores, job, rank)
        _run_parts(job, rank)
        _post(semaphores)


@njit(nogil=True, inline="always")
def run_job(semaphores, job, thread_of_cpu, parts, firsts, call):
    """Runs all parts of a team's job, and returns when they are done. The caller must hold the team's lock.

    The rows of `parts` are 64-bit words, of which the first is the address of a compiled function. It is called with the
    addresses of the row and of `call`. The rows up to `firsts[1]` run here, those from `firsts[r]` to `firsts[r + 1]` in
    a thread; there may be fewer of them than the team has threads. The arrays are uint64.
    """
    ranks = firsts.size - 1
    job[J_PARTS], job[J_PART_BYTES], job[J_FIRSTS] = parts.ctypes.data, parts.strides[0], firsts.ctypes.data
    job[J_CALL], job[J_RANKS], job[J_LEFT_OUT] = call.ctypes.data, ranks, NO_THREAD
    if ranks > 1:
        cpu = _getcpu()
        if 0 <= cpu < thread_of_cpu.size:
            job[J_LEFT_OUT] = thread_of_cpu[cpu]
    at, job_at = np.uint64(semaphores.ctypes.data), np.uint64(job.ctypes.data)
    _wake_two(at, job_at, np.uint64(0))
    _run_parts(job_at, np.uint64(0))
    for _ in range(1, ranks):
        tries = 0
        while _try(at) != 0:
            tries += 1
            if tries > SPIN and _wait(at) == 0:
                break


@njit(nogil=True, cache=CAN_CACHE)
def _init_semaphores(semaphores, count):
    for s in range(count):
        _init(semaphores + np.uint64(SEMAPHORE_BYTES) * np.uint64(s), 0, 0)


class Team:
    """The caller and some sleeping threads, which run the parts of a job together."""

    def __init__(self, ranks: int) -> None:
        self.lock = threading.Lock()
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.cpus = cpus if len(cpus) == ranks > 1 else []
        threads = len(self.cpus) or ranks - 1
        self.thread_of_cpu = np.full(max(self.cpus, default=-1) + 1, NO_THREAD, np.uint64)
        self.thread_of_cpu[self.cpus] = np.arange(len(self.cpus))
        self.semaphores = np.zeros((threads + 1) * SEMAPHORE_BYTES, np.uint8)  # the first tells that a thread is done
        self.job = np.zeros(8, np.uint64)
        self.buffer, self.buffer_at = np.zeros(0, np.uint8), 0
        _init_semaphores(np.uint64(self.semaphores.ctypes.data), np.uint64(threads + 1))
        _serve.compile((types.uint64,) * 3)  # now, and not in each thread
        for thread in range(threads):
            threading.Thread(target=self.serve, args=(thread,), name=f"lottery-product-{thread}", daemon=True).start()

    def serve(self, thread: int) -> None:
        if self.cpus:
            os.sched_setaffinity(threading.get_native_id(), {self.cpus[thread]})
        _serve(np.uint64(self.semaphores.ctypes.data), np.uint64(self.job.ctypes.data), np.uint64(thread))

    def scratch(self, nbytes: int) -> int:
        """Returns the address of a buffer of at least so many bytes, a multiple of 64. The caller must hold the lock."""
        if self.buffer.nbytes < nbytes + 64:
            self.buffer = np.zeros(nbytes + 64, np.uint8)
            self.buffer_at = self.buffer.ctypes.data + -self.buffer.ctypes.data % 64
        return self.buffer_at


TEAMS: dict[int, Team] = {}
MAKING = threading.Lock()


def team(ranks: int) -> Team:
    """Returns the process's team of so many threads, the caller among them."""
    found = TEAMS.get(ranks)
    if found is None:
        with MAKING:
            found = TEAMS.get(ranks) or TEAMS.setdefault(ranks, Team(ranks))
    return found


def forget_teams() -> None:
    """Makes a forked process begin anew: it has none of its parent's threads."""
    global MAKING
    MAKING = threading.Lock()
    TEAMS.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_teams)
