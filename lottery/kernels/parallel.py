"""Plain threads that work on blocks of rows, and the folder in which numba keeps compiled kernels."""

import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numba import config

from lottery.errors import InputError, MachineError
from lottery.files.home import home, make_folder
from lottery.progress import say

# The name of the folder depends on the files whose code is inlined into kernels of other files, because numba does not
# notice when these change.
INLINED = b"".join(
    Path(__file__).with_name(name).read_bytes()
    for name in (
        "avx512.py", "bitmask.py", "half.py", "keys.py", "product_avx2.py", "product_avx512.py", "product_plain.py",
        "product_rows.py", "simd.py", "threads.py",
    )
)  # fmt: skip


def can_cache() -> bool:
    """Returns whether numba can keep compiled kernels, so that a machine compiles them once, and says it where not.

    This must run before the first kernel is declared: numba then looks for a folder that it can write.
    """
    given = os.environ.get("NUMBA_CACHE_DIR")
    name = "NUMBA_CACHE_DIR" if given else "LOTTERY_HOME"
    try:
        folder = (
            make_folder(Path(given) if given else home() / "kernels", name) / hashlib.sha256(INLINED).hexdigest()[:8]
        )
        config.CACHE_DIR = str(make_folder(folder, name))
    except (InputError, MachineError) as e:
        say(f"warning: {e}; until then each process compiles the kernels anew (about ten seconds)")
        return False
    return True


CAN_CACHE = can_cache()

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="lottery-kernels")
GRAIN_SIZE = 1 << 15  # weights; with fewer, one thread is faster than waking several


def parallel_for(rows: int, work: Callable[[int, int], None], weights: int = GRAIN_SIZE) -> None:
    """Runs work(first, last) over blocks of rows, one block for each thread. `weights` is the size of the work."""
    edges = np.linspace(0, rows, min(THREADS, max(rows, 1)) + 1).astype(np.int64)
    if len(edges) == 2 or weights < GRAIN_SIZE:
        return work(0, rows)
    for done in [POOL.submit(work, int(a), int(b)) for a, b in itertools.pairwise(edges)]:
        done.result()
