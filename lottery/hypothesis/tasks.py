"""This file divides a plan into tasks: a training, the first steps of one, or a line between two. Each task names the
tasks that it waits for, so that processes, or the jobs of a cluster, can make them side by side."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from lottery.hypothesis.plan import Plan, Segment
from lottery.training.arms import first_step, needs
from lottery.training.outputs import Outputs
from lottery.training.recipe import Training


@dataclass(frozen=True)
class Task:
    """One piece of the work. `steps` is how many it makes at most."""

    name: str  # training-1-7: the eighth of stage 1; also states-0-0, line-3-2. It is the part that one task makes
    what: Training | Segment
    keep: tuple[int, ...]  # steps at which others start
    needs: tuple[str, ...]  # names of tasks
    stage: int  # tasks of one stage do not wait for one another
    steps: int

    @property
    def kind(self) -> str:
        return self.name.partition("-")[0]

    def is_done(self, outputs: Outputs) -> bool:
        """Returns whether everything that the task makes is on disk."""
        if isinstance(self.what, Segment):
            return outputs.line_path(self.what.a, self.what.b).exists()
        has_states = all(outputs.has(self.what, step) for step in self.keep)
        return has_states and (self.kind == "states" or outputs.has(self.what))


def divide(plan: Plan) -> list[Task]:
    """Returns the tasks of a plan, each after those that it waits for."""
    counts: Counter[str] = Counter()

    def name(kind: str, stage: int) -> str:
        counts[f"{kind}-{stage}"] += 1
        return f"{kind}-{stage}-{counts[f'{kind}-{stage}'] - 1}"

    whole = {training: name("training", depth(training)) for training in plan.trainings}
    starts = {training: name("states", 0) for training in plan.states if training not in whole}
    names = whole | starts
    tasks = [
        Task(name, t, tuple(plan.states[t]), (), 0, max(plan.states[t]) - first_step(t)) for t, name in starts.items()
    ]
    for training, task in whole.items():
        waits = dict.fromkeys(names[need.training] for need in needs(training))
        keep, stage = tuple(plan.states.get(training, ())), depth(training)
        tasks.append(Task(task, training, keep, tuple(waits), stage, training.steps - first_step(training)))
    for segment in plan.segments:
        stage = 1 + max(depth(segment.a), depth(segment.b))
        tasks.append(Task(name("line", stage), segment, (), (names[segment.a], names[segment.b]), stage, 0))
    return tasks


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
