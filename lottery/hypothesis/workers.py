"""Where the tasks of a hypothesis are made: in this process, or side by side in others."""

import multiprocessing
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from lottery.errors import MachineError
from lottery.hypothesis.plan import Segment
from lottery.hypothesis.tasks import Task
from lottery.training.outputs import Outputs
from lottery.training.recipe import Training


class Workers(Protocol):
    """Begins tasks, and knows how many steps they have made so far."""

    def submit(self, task: Task) -> "Future[None]": ...

    def steps(self) -> int: ...


class ThisProcess:
    """Makes each task at once, with one thread."""

    def __init__(self, outputs: Outputs, corpus: Path) -> None:
        from lottery.training import worker  # imports torch and transformers

        self.worker, self.made = worker, 0
        worker.open_laboratory(outputs.setup, corpus, outputs.folder, self.count)

    def count(self, steps: int) -> None:
        self.made += steps

    def submit(self, task: Task) -> "Future[None]":
        future: Future[None] = Future()
        try:
            self.worker.make(*call_of(task))
        except Exception as e:  # as a process hands it over
            future.set_exception(e)
        else:
            future.set_result(None)
        return future

    def steps(self) -> int:
        return self.made


class Processes:
    """Hands tasks to processes, one thread each."""

    def __init__(self, pool: ProcessPoolExecutor, counter: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
        self.pool, self.counter = pool, counter

    def submit(self, task: Task) -> "Future[None]":
        from lottery.training import worker

        with interrupts_held():
            return self.pool.submit(worker.make, *call_of(task))

    def steps(self) -> int:
        return self.counter.value


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Holds Ctrl-C back within the block. A process that starts in it holds it back for good.

    A terminal sends Ctrl-C to every process. Only the one that the user started answers it, and tells its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def open_workers(outputs: Outputs, corpus: Path, jobs: int) -> Iterator[Workers]:
    """Yields what makes tasks, `jobs` at a time. If the block fails, the workers stop at their next point of a curve."""
    if jobs <= 1:
        import torch

        threads = torch.get_num_threads()
        try:
            yield ThisProcess(outputs, corpus)
        finally:
            torch.set_num_threads(threads)
        return
    from lottery.training import worker

    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    counter, stop = context.Value("q", 0), context.Event()
    about = (outputs.setup, corpus, outputs.folder, counter, stop)
    with ProcessPoolExecutor(jobs, context, worker.open_in_worker, about) as pool:
        try:
            yield Processes(pool, counter)
        except BaseException as e:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(e, BrokenProcessPool):
                raise MachineError(
                    "a process that trains was killed, as happens where memory runs out; give fewer --jobs, and the same "
                    "command goes on"
                ) from e
            raise


def call_of(task: Task) -> tuple[str, Training, Training | None, tuple[int, ...]]:
    """Returns the arguments with which a worker makes a task."""
    if isinstance(task.what, Segment):
        return "line", task.what.a, task.what.b, ()
    return task.kind, task.what, None, task.keep
