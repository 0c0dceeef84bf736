"""What a hypothesis trains, in which order, and under which names."""

from pathlib import Path

import pytest

from lottery.hypothesis.design import ARM_NAMES, KINDS, read_hypothesis
from lottery.hypothesis.plan import Plan
from lottery.hypothesis.record import shown_arm
from lottery.hypothesis.tasks import Task, by_urgency, divide, followers
from lottery.hypothesis.wording import training_title
from lottery.training.arms import ARMS, needs
from lottery.training.recipe import Setup, Training
from tests.support.hypotheses import CORPUS, plan_of, write

PRESETS = ("quick", "full")


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    return {name: plan_of(name) for name in PRESETS}


@pytest.fixture(scope="module")
def tasks(plans: dict[str, Plan]) -> dict[str, list[Task]]:
    return {name: divide(plan) for name, plan in plans.items()}


def test_what_quick_trains(plans: dict[str, Plan], tasks: dict[str, list[Task]]) -> None:
    plan = plans["quick"]
    assert len(plan.trainings) == 31 and plan.steps == 24_800 and len(plan.segments) == 2
    assert sum(task.steps for task in tasks["quick"]) == 24_800 and len(tasks["quick"]) == 33
    # three dense ones and a longer one, a chain of seven rounds, four arms at four rates of which one ends the chain, ...
    assert [sum(t.arm == arm for t in plan.trainings) for arm in ("dense", "rewound", "permuted", "snip")] == [
        4,
        11,
        4,
        1,
    ]
    assert {t.round for t in plan.trainings if t.arm not in ("dense", "rewound")} == {7}


def test_what_full_trains(plans: dict[str, Plan], tasks: dict[str, list[Task]]) -> None:
    plan = plans["full"]
    assert {t.seed for t in plan.trainings} == {0, 1, 2}
    asked = {shown_arm(t) for t in plan.asked}
    assert asked == set(ARM_NAMES) and set(ARM_NAMES) - {"original"} == set(ARMS)
    assert {s.kind for s in plan.segments} == set(KINDS)
    # the arm `other` starts from the first steps of a network of which the rest is not made
    first_steps = [task for task in tasks["full"] if task.kind == "states"]
    assert {task.what.seed for task in first_steps if isinstance(task.what, Training)} == {1000, 1001, 1002}
    assert {task.steps for task in first_steps} == {40}


@pytest.mark.parametrize("name", PRESETS)
def test_the_trainings_are_those_that_recursion_finds(name: str, plans: dict[str, Plan]) -> None:
    found: set[Training] = set()

    def add(training: Training) -> None:
        found.add(training)
        for need in needs(training):
            if need.step is None:
                add(need.training)

    for training in (*plans[name].asked, *(t for s in plans[name].segments for t in (s.a, s.b))):
        add(training)
    assert set(plans[name].trainings) == found and len(plans[name].trainings) == len(found)


@pytest.mark.parametrize("name", PRESETS)
def test_everything_comes_after_what_it_needs(name: str, plans: dict[str, Plan], tasks: dict[str, list[Task]]) -> None:
    before: set[str] = set()
    states = {t: set(task.keep) for task in tasks[name] if isinstance(t := task.what, Training)}
    for task in tasks[name]:
        assert set(task.needs) <= before
        before.add(task.name)
        for need in needs(task.what) if isinstance(task.what, Training) else ():
            assert need.step is None or need.step in states[need.training]
    seen: set[Training] = set()
    for training in plans[name].trainings:
        assert {n.training for n in needs(training) if n.step is None} <= seen
        seen.add(training)


def test_quick_is_a_part_of_full(plans: dict[str, Plan]) -> None:
    """Who has run the one trains nothing of it again for the other."""
    ids = {name: {t.id(plan.setup) for t in plan.trainings} for name, plan in plans.items()}
    assert len(ids["quick"]) == 31 and ids["quick"] < ids["full"]


def test_names_stay() -> None:
    """A training whose id were another tomorrow would be made again."""
    assert Training("dense").id(Setup(CORPUS)) == "0981ecc9c29f"
    ticket = Training("rewound", round=7, rewind=40, mask_rewind=40)
    assert ticket.id(Setup(CORPUS)) == "68e67ede2724" != ticket.id(Setup("1" * 64))


@pytest.mark.parametrize("name", PRESETS)
def test_followers_are_all_that_wait_for_a_task(name: str, tasks: dict[str, list[Task]]) -> None:
    by_name = {task.name: task for task in tasks[name]}

    def waits(task: Task, other: str) -> bool:
        return other in task.needs or any(waits(by_name[need], other) for need in task.needs)

    for other in list(by_name)[:: max(1, len(by_name) // 12)]:
        assert followers(tasks[name], other) == {task.name for task in tasks[name] if waits(task, other)}


@pytest.mark.parametrize("name", PRESETS)
def test_the_task_that_begins_the_longest_chain_is_first(name: str, tasks: dict[str, list[Task]]) -> None:
    known: dict[str, int] = {}

    def height(task: Task) -> int:
        """Steps that must be made one after the other once this task has ended."""
        if task.name not in known:
            known[task.name] = max(
                (height(t) + max(t.steps, 1) for t in tasks[name] if task.name in t.needs), default=0
            )
        return known[task.name]

    ordered = by_urgency(tasks[name])
    heights = [height(task) for task in ordered]
    assert heights == sorted(heights, reverse=True) and len(ordered) == len(tasks[name])
    first = ordered[0].what
    assert isinstance(first, Training) and first.arm == "dense" and not first.rewind


def test_a_stage_of_full_fits_an_array_of_slurm(tasks: dict[str, list[Task]]) -> None:
    """By default an array has no index above 1,000. `full` has 1,056 trainings."""
    names = [task.name for task in tasks["full"]]
    assert len(set(names)) == len(names) > 1001
    assert max(int(name.rpartition("-")[2]) for name in names) < 400
    assert {int(t.name.split("-")[1]) - t.stage for t in tasks["full"]} == {0}


def test_titles_name_what_differs(plans: dict[str, Plan]) -> None:
    titles = [training_title(t, 800) for t in plans["quick"].trainings]
    assert len(set(titles)) == 31
    assert {"dense lr=0.003 seed=0", "dense lr=0.003 seed=0 steps=1600", "snip round 7 lr=0.003 seed=0"} <= set(titles)
    assert "rewound round 7 from step 40 lr=0.003 seed=0 order=1" in titles


def test_seeds_scopes_and_times(tmp_path: Path) -> None:
    """A row with fewer seeds; ranked within matrices; a chain at twice the steps has its rewind point at the same share."""
    row = {"arm": "rewound", "density": 0.64, "scope": ["global", "layer"], "times": 2, "seeds": 1}
    path = write(tmp_path, "a", seeds=3, grid=[row, {"arm": "dense"}])
    plan = plan_of(read_hypothesis(str(path)).with_options(seed="5"))
    assert sorted(t.seed for t in plan.asked if t.arm == "dense") == [5, 6, 7]
    tickets = [t for t in plan.asked if t.arm == "rewound"]
    assert [(t.seed, t.round, t.rewind, t.steps, t.mask_steps) for t in tickets] == [(5, 2, 6, 120, 120)] * 2
    assert [t.scope for t in tickets] == ["global", "layer"]


def test_what_does_not_matter_to_an_arm_makes_no_second_training(tmp_path: Path) -> None:
    grid = [{"arm": ["random", "snip"], "density": 0.64, "rewind": [0, 0.1]}, {"arm": "original", "density": 0.64}]
    grid += [{"arm": "rewound", "density": 0.64, "rewind": 0}, {"arm": "untrained", "density": 0.64, "lr": [0.1, 0.2]}]
    grid += [{"arm": "random", "density": 0.64, "scope": "layer"}]
    plan = plan_of(str(write(tmp_path, "a", grid=grid)))
    assert [t.arm for t in plan.asked] == ["random", "snip", "rewound", "untrained"]
    assert shown_arm(plan.asked[2]) == "original"
