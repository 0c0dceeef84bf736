"""This file plans a hypothesis: it lists every training, what each needs, and every line between two of them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from lottery.hypothesis.design import Hypothesis, Line, Row
from lottery.training.arms import (
    BEFORE_TRAINING,
    OF_CHAIN,
    OF_DENSE,
    SHUFFLED,
    ancestors,
    first_step,
    is_before_training,
    needs,
)
from lottery.training.recipe import Setup, Shape, Training


@dataclass(frozen=True)
class Segment:
    """The straight line between the ends of two trainings."""

    a: Training
    b: Training
    kind: str  # order, level


@dataclass(frozen=True)
class Plan:
    """The trainings of a hypothesis, each after those that it needs, and the lines between their ends."""

    hypothesis: Hypothesis
    setup: Setup
    asked: tuple[Training, ...]  # those that the grid names: rows of the tables
    segments: tuple[Segment, ...]

    @cached_property
    def trainings(self) -> list[Training]:
        """All trainings that are made to their ends, each after those that it needs."""
        found: dict[Training, None] = {}
        for training in (*self.asked, *(t for s in self.segments for t in (s.a, s.b))):
            found |= {need.training: None for need in ancestors(training) if need.step is None}
            found[training] = None
        return sorted(found, key=lambda t: sum(need.step is None for need in ancestors(t)))

    @cached_property
    def states(self) -> dict[Training, list[int]]:
        """The steps of each dense training at which others start; of some the rest is not made at all."""
        found: dict[Training, set[int]] = {}
        for training in self.trainings:
            for need in needs(training):
                if need.step is not None:
                    found.setdefault(need.training, set()).add(need.step)
        return {training: sorted(steps) for training, steps in found.items()}

    @property
    def steps(self) -> int:
        """The steps of all trainings together."""
        return sum(t.steps - first_step(t) for t in self.trainings)


def make_setup(hypothesis: Hypothesis, corpus: str, device: str) -> Setup:
    """Returns what the trainings of a hypothesis share. `corpus` is its sha256."""
    h = hypothesis
    return Setup(
        corpus,
        Shape(h.layers, h.width, h.heads, h.inner, h.vocabulary, h.context),
        batch=h.batch, warmup=h.warmup, decay=h.decay, clip=h.clip, rate=h.rate, device=device, compile=h.compile == "yes",
    )  # fmt: skip


def make_plan(hypothesis: Hypothesis, setup: Setup) -> Plan:
    """Returns the plan of a hypothesis."""
    asked = unique(t for row in hypothesis.grid for t in of_row(hypothesis, row))
    segments = tuple(dict.fromkeys(s for line in hypothesis.barriers for s in of_line(hypothesis, line)))
    return Plan(hypothesis, setup, asked, segments)


def unique(trainings: Iterable[Training]) -> tuple[Training, ...]:
    return tuple(dict.fromkeys(trainings))


def of_row(hypothesis: Hypothesis, row: Row) -> Iterator[Training]:
    """Yields the trainings of a row of the grid."""
    for seed in hypothesis.all_seeds[: row.seeds]:
        for arm in row.arm:
            for times in row.times:
                for scope in row.scope or (hypothesis.scope,):
                    for rewind in rewinds(hypothesis, row, arm):
                        for density in row.density:
                            for lr in row.lr if row.lr and arm != "untrained" else (hypothesis.lr,):
                                yield training(hypothesis, arm, seed, density, rewind, times, lr, scope)


def rewinds(hypothesis: Hypothesis, row: Row | Line, arm: str) -> tuple[float, ...]:
    """Returns the rewind points of an arm, as shares of the steps: one, 0, for an arm that does not rewind."""
    if arm in ("original", "untrained") or is_before_training(arm):
        return (0.0,)
    return row.rewind or (0.0 if arm == "dense" else hypothesis.rewind,)


def training(
    hypothesis: Hypothesis, arm: str, seed: int, density: float, rewind: float, times: int, lr: float, scope: str
) -> Training:
    """Returns the training of one combination, in the one form that names it.

    What does not matter to an arm has one value, so that two presets share their trainings.
    """
    steps, chain_lr = hypothesis.steps * times, hypothesis.lr
    k = hypothesis.step_of(rewind, times)
    found = Training(
        "rewound" if arm == "original" else arm, seed, hypothesis.round_of(density), k, steps, lr, chain_lr, steps, k,
        scope=scope,
    )  # fmt: skip
    if arm == "dense":
        return replace(found, mask_lr=lr, mask_rewind=0, scope="global")
    if arm in BEFORE_TRAINING or arm in SHUFFLED:
        scope = "global" if arm == "random" else scope
        return replace(found, rewind=0, mask_lr=0.0, mask_steps=0, mask_rewind=0, scope=scope)
    return replace(found, mask_rewind=0) if arm in OF_DENSE else found


def of_line(hypothesis: Hypothesis, line: Line) -> Iterator[Segment]:
    """Yields the segments of a row of the barriers.

    The mask of a line at any rewind point is that of the hypothesis' own chain, so that only the point differs.
    """
    for seed in hypothesis.all_seeds[: line.seeds]:
        for arm in line.arm:
            for times in line.times:
                for density in line.density:
                    for rewind in rewinds(hypothesis, line, arm):
                        own = 0.0 if arm == "original" else hypothesis.rewind
                        a = training(hypothesis, arm, seed, density, rewind, times, hypothesis.lr, hypothesis.scope)
                        if a.arm in OF_CHAIN:
                            a = replace(a, mask_rewind=hypothesis.step_of(own, times))
                        if line.kind == "order":
                            yield Segment(a, replace(a, order=1), "order")
                        elif a.round:
                            before = replace(a, round=a.round - 1) if a.round > 1 else None
                            yield Segment(before or level_zero(a), a, "level")


def level_zero(training: Training) -> Training:
    """Returns the dense training from which a chain begins."""
    return Training(
        "dense", training.seed, lr=training.lr, mask_lr=training.lr, steps=training.steps, mask_steps=training.steps
    )
