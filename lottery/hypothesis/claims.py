"""This file compares trainings: paired by seed and by window, each arm at its best learning rate, with intervals.

A rate is chosen on the search text, and what is said is measured on the report text: else the best of three rates would
look better than it is.

Legend: S seeds, N windows.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lottery.measuring.intervals import paired_interval

TOLERANCE = 0.01  # nats a token by which a matching ticket may be worse
CONTROLS = {
    "rewound": ("permuted", "signs", "other", "reinit", "shuffled"),
    "original": ("permuted", "signs", "reinit", "shuffled"),
    "oneshot": ("random",),
    "early": ("random",),
    "tuned": ("shuffled", "random"),
    "rewound-rate": ("shuffled", "random"),
    "snip": ("snip-shuffled", "random"),
    "grasp": ("grasp-shuffled", "random"),
    "synflow": ("synflow-shuffled", "random"),
}


@dataclass(frozen=True, order=True)
class Group:
    """What trainings of one row have in common; they differ in seed and learning rate."""

    arm: str
    density: float
    round: int
    rewind: int
    rewind_share: float
    steps: int
    mask_steps: int
    mask_rewind: int
    scope: str


@dataclass(frozen=True)
class Made:
    """One training that has ended: its losses on every window, [N]."""

    seed: int
    lr: float
    search_loss: float
    report_N: np.ndarray


@dataclass(frozen=True)
class Best:
    """A group at its best rate. `edge`: the rate is the least or the greatest of several that were tried; `rates`: how
    many were."""

    group: Group
    lr: float
    edge: bool
    rates: int
    by_seed: Mapping[int, Made]


def at_rates(made: Iterable[Made]) -> dict[float, dict[int, Made]]:
    """Returns the trainings by rate and seed."""
    found: dict[float, dict[int, Made]] = {}
    for each in made:
        found.setdefault(each.lr, {})[each.seed] = each
    return found


def choose_rate(group: Group, made: Sequence[Made], diverged: Iterable[float] = ()) -> Best | None:
    """Returns a group at the rate that is best on the search text, on average over its seeds.

    A rate at which a seed diverged, or is missing, does not count while another rate has all seeds. But it was tried:
    `diverged` holds the rates at which some seed diverged, and one of them may be the edge of the rates.
    """
    rates = at_rates(made)
    if not rates:
        return None
    most = max(len(seeds) for seeds in rates.values())
    loss = {lr: float(np.mean([m.search_loss for m in s.values()])) for lr, s in rates.items() if len(s) == most}
    lr = min(loss, key=lambda rate: (loss[rate], rate))
    tried = rates.keys() | set(diverged)
    edge = len(tried) > 1 and lr in (min(tried), max(tried))
    return Best(group, lr, edge, len(tried), rates[lr])


def at_best(groups: Mapping[Group, Sequence[Made]], diverged: Mapping[tuple[Group, float], int]) -> dict[Group, Best]:
    """Returns each group of which some training ended, at its best rate."""
    lost = {group: [lr for g, lr in diverged if g == group] for group in groups}
    return {group: best for group, made in groups.items() if (best := choose_rate(group, made, lost[group]))}


def difference(a: Mapping[int, Made], b: Mapping[int, Made]) -> np.ndarray | None:
    """Returns the loss of `a` minus that of `b` for the seeds that both have, [S, N]; None if there is no such seed."""
    seeds = sorted(a.keys() & b.keys())
    return np.stack([a[s].report_N - b[s].report_N for s in seeds]) if seeds else None


def lost_seeds(d_SN: np.ndarray, planned: int) -> str:
    """Returns why fewer seeds than were planned decide nothing, "" if all are there: those that diverged are no accident,
    and one seed that is left would have the narrow interval of one."""
    return f"{len(d_SN)} of {planned} seeds ended on both sides" if len(d_SN) < planned else ""


def claim_match(ticket: Best, dense: Best | None, planned: int = 1) -> dict[str, Any]:
    """Returns the claim that a ticket reaches the dense network of as many steps, to TOLERANCE nats a token."""
    about = {"claim": "matches", **named(ticket, dense), "control": None, "control_lr": dense.lr if dense else None}
    d_SN = difference(ticket.by_seed, dense.by_seed) if dense else None
    if d_SN is None:
        return about | unknown("no dense training of as many steps was made with the same seed")
    if lost := lost_seeds(d_SN, planned):
        return about | unknown(lost)
    mean, (lo, hi) = float(d_SN.mean()), paired_interval(d_SN)
    holds = True if hi <= TOLERANCE else False if lo > TOLERANCE else None
    more = "; it is at most the dense one" if hi <= 0 else ""
    why = {
        True: f"the upper end of the interval, {hi:+.3f}, is at most {TOLERANCE:+.2f}{more}",
        False: f"the lower end of the interval, {lo:+.3f}, is above {TOLERANCE:+.2f}",
        None: f"the interval from {lo:+.3f} to {hi:+.3f} contains {TOLERANCE:+.2f}",
    }[holds] + of_rates(ticket, dense, "dense")
    return about | {"holds": holds, "difference": mean, "lo": lo, "hi": hi, "why": why, "seeds": len(d_SN)}


def claim_beat(ticket: Best, control: Best | None, name: str, planned: int = 1) -> dict[str, Any]:
    """Returns the claim that a ticket is better than its control. Its difference is ticket minus control."""
    about = {"claim": "beats", **named(ticket, control), "control": name, "control_lr": control.lr if control else None}
    d_SN = difference(ticket.by_seed, control.by_seed) if control else None
    if control is None or d_SN is None:
        return about | unknown(f"no training of {name} with the same seed ended")
    if lost := lost_seeds(d_SN, planned):
        return about | unknown(lost)
    mean, (lo, hi) = float(d_SN.mean()), paired_interval(d_SN)
    holds = True if hi < 0 else False if lo >= 0 else None
    why = {
        True: f"the upper end of the interval, {hi:+.3f}, is below 0",
        False: f"the lower end of the interval, {lo:+.3f}, is not below 0",
        None: f"the interval from {lo:+.3f} to {hi:+.3f} contains 0",
    }[holds] + of_rates(ticket, control, name)
    return about | {"holds": holds, "difference": mean, "lo": lo, "hi": hi, "why": why, "seeds": len(d_SN)}


def named(best: Best, other: Best | None) -> dict[str, Any]:
    edge = best.edge or (other is not None and other.edge)
    return {**asdict(best.group), "lr": best.lr, "edge": edge}


def of_rates(ticket: Best, other: Best | None, name: str) -> str:
    """Returns what a comparison owes to the rates that were tried: an edge, or fewer of them on one side."""
    said = [
        f"{n} was best at the edge of the rates that were tried"
        for n, b in ((ticket.group.arm, ticket), (name, other))
        if b and b.edge
    ]
    if other is not None and ticket.rates != other.rates and 1 in (ticket.rates, other.rates):
        few, many = (ticket.group.arm, name) if ticket.rates == 1 else (name, ticket.group.arm)
        said.append(f"{few} was trained at one rate, {many} at {max(ticket.rates, other.rates)}")
    return "".join(f"; {words}" for words in said)


def none_ended(group: Group, control: str | None) -> dict[str, Any]:
    """Returns what is said of a ticket of which no training ended, beside dense or beside a control."""
    about = {"claim": "beats" if control else "matches", **asdict(group), "lr": None, "edge": False}
    return about | {"control": control, "control_lr": None} | unknown("no training of it ended")


def learned_nothing(dense: Best, unigram: float) -> str:
    """Returns why nothing is claimed, "" if the dense network knows more than how frequent tokens are."""
    loss = float(np.mean([m.report_N.mean() for m in dense.by_seed.values()]))
    if loss < unigram - TOLERANCE:
        return ""
    return f"the dense network has learned no more than how frequent tokens are: its loss is {loss:.3f}, theirs {unigram:.3f}"


def nothing_claimed(ticket: Best, control: str | None, why: str) -> dict[str, Any]:
    about = {"claim": "beats" if control else "matches", **named(ticket, None)}
    return about | {"control": control, "control_lr": None} | unknown(why)


def unknown(why: str) -> dict[str, Any]:
    return {"holds": None, "difference": None, "lo": None, "hi": None, "why": why, "seeds": 0}


def all_claims(
    groups: Mapping[Group, Sequence[Made]],
    diverged: Mapping[tuple[Group, float], int],
    planned: Mapping[Group, int] | None = None,
    unigram: float | None = None,
) -> list[dict[str, Any]]:
    """Returns every claim about the arms that were trained at some density below 1.

    `groups` holds each that was planned; one of which no training ended is empty, and what it would say is not known.
    `diverged` counts, by group and rate, the seeds whose training diverged; `planned` all seeds of a group.
    `unigram` is the loss of a model that knows how frequent tokens are and nothing else. While the dense network has not
    come below it, there is nothing that a ticket could keep: it is only ahead in learning frequencies, because its mask
    was trained before. Then nothing is claimed.
    """
    best = at_best(groups, diverged)
    claims = []
    seeds = planned or {}
    for group in sorted(groups):
        if group.arm in ("dense", "untrained") or group.density == 1:
            continue
        ticket, names = best.get(group), CONTROLS.get(group.arm, ())
        controls = {name: control for name in names if (control := beside(groups, group, name))}
        if ticket is None:
            claims += [none_ended(group, name) for name in (None, *controls)]
            continue
        dense = dense_beside(best, group.steps)
        if dense is not None and unigram is not None and (words := learned_nothing(dense, unigram)):
            claims += [nothing_claimed(ticket, name, words) for name in (None, *controls)]
            continue
        claims.append(claim_match(ticket, dense, seeds.get(group, 1)))
        for name, control in controls.items():
            both = min(seeds.get(group, 1), seeds.get(control, 1))  # a row of the grid may have fewer seeds
            claims.append(claim_beat(ticket, best.get(control), name, both))
    return claims


def dense_beside(best: Mapping[Group, Best], steps: int) -> Best | None:
    """Returns the dense trainings of so many steps, from their own start."""
    return next((b for g, b in best.items() if (g.arm, g.steps, g.rewind) == ("dense", steps, 0)), None)


def beside(groups: Iterable[Group], ticket: Group, name: str) -> Group | None:
    """Returns the control that differs from the ticket in its arm alone, if the plan has it.

    `random` knows no rewind point and no chain.
    """
    for group in groups:
        same = (group.round, group.steps) == (ticket.round, ticket.steps)
        chain = (group.rewind, group.mask_steps, group.mask_rewind, group.scope) == (
            ticket.rewind, ticket.mask_steps, ticket.mask_rewind, ticket.scope,
        )  # fmt: skip
        if group.arm == name and same and (chain or name == "random"):
            return group
    return None


def all_rows(
    groups: Mapping[Group, Sequence[Made]], diverged: Mapping[tuple[Group, float], int]
) -> list[dict[str, Any]]:
    """Returns a row for each group and rate: its loss with an interval over seeds and windows, and beside dense."""
    best = at_best(groups, diverged)
    rows = []
    for group, made in sorted(groups.items()):
        rates = at_rates(made)
        lost = {lr for g, lr in diverged if g == group}
        for lr in sorted(rates.keys() | lost):
            row: dict[str, Any] = {**asdict(group), "lr": lr, "diverged": diverged.get((group, lr), 0)}
            seeds = rates.get(lr, {})
            row |= {"seeds": len(seeds), "best": group in best and best[group].lr == lr}
            row["edge"] = bool(row["best"] and best[group].edge)
            row |= of_losses(seeds, dense_beside(best, group.steps))
            rows.append(row)
    return rows


def of_losses(seeds: Mapping[int, Made], dense: Best | None) -> dict[str, Any]:
    """Returns the mean loss with its interval, and the difference to dense with its own."""
    empty = dict.fromkeys(("loss", "lo", "hi", "difference", "difference_lo", "difference_hi"))
    if not seeds:
        return empty
    loss_SN = np.stack([m.report_N for _, m in sorted(seeds.items())])
    lo, hi = paired_interval(loss_SN)
    found = empty | {"loss": float(loss_SN.mean()), "lo": lo, "hi": hi}
    d_SN = difference(seeds, dense.by_seed) if dense else None
    if d_SN is not None:
        lo, hi = paired_interval(d_SN)
        found |= {"difference": float(d_SN.mean()), "difference_lo": lo, "difference_hi": hi}
    return {name: None if value is None or not math.isfinite(value) else value for name, value in found.items()}
