"""This file makes the tasks of a hypothesis on one machine. What is on disk is not made again."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path

from lottery.errors import known_failure
from lottery.hypothesis.plan import Segment
from lottery.hypothesis.tasks import Task, by_urgency, followers
from lottery.hypothesis.workers import open_workers
from lottery.progress import Advance
from lottery.training.outputs import Outputs

POLL_S = 1.0
Ended = Callable[[Task, str, str | None], None]  # (task; made, found, failed, missing or not started; reason)


class Runner:
    """Makes the tasks of one hypothesis, as many at a time as there are jobs."""

    def __init__(self, tasks: list[Task], outputs: Outputs, ended: Ended) -> None:
        self.tasks, self.outputs, self.ended = tasks, outputs, ended
        self.waiting = {task.name: task for task in by_urgency(tasks)}
        self.done: set[str] = set()

    def run(self, corpus: Path, jobs: int, advance: Advance) -> None:
        """Makes every task. One that fails is reported, and so is each that cannot be made without it."""
        for task in self.tasks:
            if task.name in self.waiting and task.is_done(self.outputs):
                advance(task.steps)
                self.end(task, "found")
        if not self.waiting:
            return
        running: dict[Future[None], Task] = {}
        with open_workers(self.outputs, corpus, min(jobs, len(self.waiting))) as workers:
            shown = 0
            while self.waiting or running:
                for task in self.ready()[: jobs - len(running)]:
                    running[workers.submit(task)] = self.waiting.pop(task.name)
                for future in wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                    self.collect(running.pop(future), future)
                made = workers.steps()
                advance(made - shown)
                shown = made

    def ready(self) -> list[Task]:
        """Returns the tasks that can begin, the most urgent first."""
        return [task for task in self.waiting.values() if self.done >= set(task.needs)]

    def collect(self, task: Task, future: "Future[None]") -> None:
        """Takes the end of a task. Raises an error that is a defect, not the failure of this one task."""
        error = future.exception()
        if error is None:
            self.end(task, "made")
            return
        known = known_failure(error) if isinstance(error, Exception) else None
        if known is None:
            raise error
        self.ended(task, "failed", known[0])
        self.drop_followers(task, "missing", f"it starts from a training that failed ({known[0]})")

    def end(self, task: Task, state: str) -> None:
        """Counts a task as done. A training that diverged has no weights for others to start from."""
        self.waiting.pop(task.name, None)
        self.done.add(task.name)
        self.ended(task, state, None)
        if isinstance(task.what, Segment) or task.kind == "states":
            return
        if self.outputs.has_diverged(task.what):
            self.drop_followers(task, "not started", "it starts from a training that diverged")

    def drop_followers(self, task: Task, state: str, reason: str) -> None:
        """Reports what cannot be made without this task."""
        for name in sorted(followers(self.tasks, task.name)):
            if name in self.waiting:
                self.ended(self.waiting.pop(name), state, reason)
