"""Blocks of rows in plain threads, and the folder in which numba keeps what it has compiled."""

import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import config

from lottery.files.home import home

# Kernels are compiled once a machine, and anew when the code changes that is inlined into them: numba itself does not
# look at it. The folder must be set before the first kernel is declared.
INLINED = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("avx512.py", "bitmask.py"))
config.CACHE_DIR = str(
    Path(os.environ.get("NUMBA_CACHE_DIR") or home() / "kernels") / hashlib.sha256(INLINED).hexdigest()[:8]
)


THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="lottery-kernels")
GRAIN_SIZE = 1 << 15  # weights: below, one thread is quicker than waking several


def parallel_for(rows: int, work: Callable[[int, int], None], weights: int = GRAIN_SIZE) -> None:
    """Run work(first, last) over blocks of rows, a block a thread."""
    edges = np.linspace(0, rows, min(THREADS, max(rows, 1)) + 1).astype(np.int64)
    if len(edges) == 2 or weights < GRAIN_SIZE:
        return work(0, rows)
    for done in [POOL.submit(work, int(a), int(b)) for a, b in itertools.pairwise(edges)]:
        done.result()
