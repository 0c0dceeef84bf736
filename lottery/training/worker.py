"""The process that makes trainings for another one. It holds one laboratory and works with one thread.

With one thread the sums of a training are made in one order, so it gives the same bits each time; and the processes of
a machine do not disturb one another: two that each want all cores slow one another tenfold.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from lottery.training.recipe import Setup, Training
from lottery.training.work import Laboratory

Count = Callable[[int], None]  # takes the number of steps that were made
_opened: tuple[Laboratory, Count] | None = None


class StoppedError(Exception):
    """The process that asked for the training no longer wants it."""


def open_in_worker(setup: Setup, corpus: Path, outputs: Path, counter: Any, stop: Any) -> None:
    """Prepares a worker process. `counter` is a shared number to which the steps made are added, `stop` an event."""

    def count(steps: int) -> None:
        with counter.get_lock():
            counter.value += steps
        if stop.is_set():
            raise StoppedError

    threading.Thread(target=end_with_parent, daemon=True).start()
    open_laboratory(setup, corpus, outputs, count)


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone: nobody would take what it makes."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def open_laboratory(setup: Setup, corpus: Path, outputs: Path, count: Count) -> None:
    """Prepares this process to make trainings."""
    global _opened
    torch.set_num_threads(1)
    _opened = Laboratory(setup, corpus, outputs), count


def make(kind: str, a: Training, b: Training | None, keep: tuple[int, ...]) -> None:
    """Makes one task: a training, the first steps of one (`states`), or the line between two."""
    assert _opened is not None
    laboratory, count = _opened
    if b is not None:
        laboratory.make_line(a, b)
    elif kind == "states":
        laboratory.make_first_steps(a, keep, lambda steps, loss: count(steps))
    else:
        laboratory.make(a, keep, lambda steps, loss: count(steps))
