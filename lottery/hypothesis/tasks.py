"""This file divides a plan into tasks: a training, the first steps of one, or a line between two. Each task names the
tasks that it waits for, so that processes, or the jobs of a cluster, can make them side by side."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from lottery.hypothesis.plan import Plan, Segment
from lottery.training.arms import first_step, needs
from lottery.training.outputs import Outputs
from lottery.training.recipe import Training

What = TypeVar("What", Training, Segment)


@dataclass(frozen=True)
class Task:
    """One piece of the work. `steps` is how many it makes at most."""

    name: str  # training-2-7 (of stage 2), states-0-0, line-3-1: also the part that one task of a cluster makes
    what: Training | Segment
    keep: tuple[int, ...]  # steps at which others start
    needs: tuple[str, ...]  # names of tasks
    stage: int  # tasks of one stage do not wait for one another
    steps: int

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    def is_done(self, outputs: Outputs) -> bool:
        """Returns whether everything that the task makes is on disk. What diverged has no further weights to give."""
        if isinstance(self.what, Segment):
            return outputs.line_path(self.what.a, self.what.b).exists()
        if outputs.has_diverged(self.what):
            return True
        has_states = all(outputs.has(self.what, step) for step in self.keep)
        return has_states and (self.kind == "states" or outputs.has(self.what))


def divide(plan: Plan) -> list[Task]:
    """Returns the tasks of a plan, each after those that it waits for."""
    whole = numbered("training", plan.trainings, depth)
    starts = numbered("states", [t for t in plan.states if t not in whole], depth)
    lines = numbered("line", plan.segments, lambda s: 1 + max(depth(s.a), depth(s.b)))
    names = whole | starts
    tasks = [
        Task(name, t, tuple(plan.states[t]), (), 0, max(plan.states[t]) - first_step(t)) for t, name in starts.items()
    ]
    for training, name in whole.items():
        waits = dict.fromkeys(names[need.training] for need in needs(training))
        keep, stage = tuple(plan.states.get(training, ())), depth(training)
        tasks.append(Task(name, training, keep, tuple(waits), stage, training.steps - first_step(training)))
    for segment, name in lines.items():
        stage = 1 + max(depth(segment.a), depth(segment.b))
        tasks.append(Task(name, segment, (), (names[segment.a], names[segment.b]), stage, 0))
    return tasks


def numbered(kind: str, things: Iterable[What], stage_of: Callable[[What], int]) -> dict[What, str]:
    """Returns the names of tasks. They are numbered within each stage, because an array of Slurm takes no number above
    1,000 by default, and a hypothesis may have more trainings than that."""
    counts: Counter[int] = Counter()
    names = {}
    for thing in things:
        stage = stage_of(thing)
        names[thing] = f"{kind}-{stage}-{counts[stage]}"
        counts[stage] += 1
    return names


@cache
def depth(training: Training) -> int:
    """Returns how many trainings must end, one after the other, before this one begins."""
    return max((1 + depth(need.training) for need in needs(training)), default=0)


def by_urgency(tasks: Collection[Task]) -> list[Task]:
    """Returns the tasks with those first that begin the longest chain of others."""
    height = {task.name: 0 for task in tasks}
    for task in sorted(tasks, key=lambda t: -t.stage):
        for name in task.needs:
            height[name] = max(height.get(name, 0), height[task.name] + max(task.steps, 1))
    return sorted(tasks, key=lambda task: -height[task.name])


def followers(tasks: Collection[Task], name: str) -> set[str]:
    """Returns the names of all tasks that cannot be made without the task `name`."""
    lost = {name}
    for task in sorted(tasks, key=lambda t: t.stage):
        if lost & set(task.needs):
            lost.add(task.name)
    return lost - {name}
