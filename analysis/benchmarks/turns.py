"""Times several ways of doing one thing in turn, since the machine's speed changes by the second, and compares them
within each turn."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from benchmarks.bandwidth import Reader

Way = Callable[[], float]  # does its work once, and returns the seconds of one token (or layer)
BLOCK_BYTES = 1 << 28
PAUSE_S = 0.02  # torch's threads spin for some milliseconds after their work, on the processors of whoever comes next


class Conditions(NamedTuple):
    """Under which everything is timed."""

    rounds: int
    threads: int
    kernel: str
    kinds: Sequence[str]  # of weights, as in quantize=


@dataclass
class Turns:
    """The seconds of each way, and the bytes per second at which memory was read just before it, in each turn."""

    seconds: dict[str, np.ndarray]
    bandwidth: dict[str, np.ndarray]

    def ratio(self, slow: str, fast: str) -> list[float]:
        """Returns how many times as long the way `slow` takes as `fast`: the median and the quartiles."""
        return spread(self.seconds[slow] / self.seconds[fast])

    def of_floor(self, name: str, nbytes: float) -> list[float]:
        """Returns the time in which `nbytes` are read, as a share of the way's own time: the median and the quartiles."""
        return spread(nbytes / self.bandwidth[name] / self.seconds[name])

    def milliseconds(self, name: str) -> float:
        return 1000 * float(np.median(self.seconds[name]))

    def per_second(self, name: str) -> list[float]:
        return spread(1 / self.seconds[name])

    def read_gb_s(self) -> list[float]:
        return spread(np.concatenate(list(self.bandwidth.values())) / 1e9)


def take_turns(ways: Mapping[str, Way], reader: Reader, rounds: int) -> Turns:
    """Times each way once a round, after a round that warms up. The block is read before each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    bandwidth: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            time.sleep(PAUSE_S)
            read = reader()
            taken = way()
            if number:
                seconds[name].append(taken)
                bandwidth[name].append(read)
    return Turns(
        {name: np.array(several) for name, several in seconds.items()},
        {name: np.array(several) for name, several in bandwidth.items()},
    )


def stopwatch(work: Callable[[], Any], share: int = 1, before: Callable[[], Any] = lambda: None) -> Way:
    """Returns a way that takes the time of `work`, divided by `share`. `before` is not timed."""

    def way() -> float:
        before()
        begin = time.perf_counter()
        work()
        return (time.perf_counter() - begin) / share

    return way


def spread(samples: np.ndarray) -> list[float]:
    """Returns the median and the quartiles."""
    return [float(q) for q in np.quantile(samples, [0.5, 0.25, 0.75])]


def show(found: list[float] | None) -> str:
    return "" if found is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found)
