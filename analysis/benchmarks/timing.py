"""Measures time and memory, and prints a time as a ratio to a floor or a peer."""

import mmap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

HUGE_PAGE = 2**21  # bytes


def touch_memory(nbytes: int) -> float:
    """Makes the machine hand out `nbytes` of memory, gives them back, and returns the speed in GB per second.

    A virtual machine fetches memory that lay idle from its host page by page, and slower than any disk. Those seconds
    are not what is compared here, so they pass before the clock starts.
    """
    begin = time.perf_counter()
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, nbytes, HUGE_PAGE):
        memory[at] = 1
    memory.close()
    return nbytes / (time.perf_counter() - begin) / 1e9


def free_memory() -> int:
    """Returns the free memory in bytes."""
    return 1024 * int(Path("/proc/meminfo").read_text().split("MemFree:")[1].split()[0])


@contextmanager
def peak_anonymous() -> Iterator[Callable[[], float]]:
    """Yields a function that returns the peak of the process's anonymous memory (MB) so far."""
    most, stop = 0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not stop.wait(0.01):
            status = Path("/proc/self/status").read_text()
            most = max(most, sum(int(status.split(f"{kind}:")[1].split()[0]) for kind in ("RssAnon", "RssShmem")))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield lambda: most * 1024 / 1e6
    finally:
        stop.set()
        watcher.join()


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    """Returns the seconds of the quickest repeat: the one that other work on the machine disturbed least."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def print_ratio(name: str, seconds: float, floor: float, what: str) -> None:
    """Prints a time, and its ratio to the time `floor` of `what`."""
    amount = f"{seconds:10.2f} s " if seconds >= 10 else f"{1000 * seconds:10.1f} ms"
    click.echo(f"  {name:<48} {amount}   {seconds / floor:7.3f} x {what}")
