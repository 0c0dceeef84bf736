"""Ranks the targets of one model by the damage of pruning them, and compares the rankings of two models.

Legend: N and M windows, S resamples, T targets.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from lottery.measuring.intervals import (
    RESAMPLES,
    expanded_tail,
    resample_counts,
    significant_order,
    tau_b,
)
from lottery.measuring.verdict import LEAST_WINDOWS
from lottery.report.grouping import Row, group_by, measured_tickets, median_draws, number, setting
from lottery.report.judging import reasons_not_judged
from lottery.report.wording import percent

Nll: TypeAlias = Callable[[str], np.ndarray | None]  # a run's id -> mean NLL per window
SINGLE_LAYER = re.compile(r"([a-z0-9_]+)@(\d+)")  # one component of one layer
LEAST_TARGETS = (
    4  # tau of three targets has four possible values, two of them 1 and -1, so chance alone often gives one of these
)


@dataclass(frozen=True)
class Ranking:
    """The targets of one model at one level (equal sparsity or equal budget), the least damaged first. `order_TT` is +1
    where the row's target is certainly better than the column's, -1 where it is certainly worse, 0 where neither is
    certain."""

    base: str
    protocol: str
    setting: str
    by: str  # sparsity or budget
    level: float
    cells: bool  # whether the targets are components of single layers, as in the study `map`
    targets: tuple[str, ...]
    log_ratio_T: np.ndarray
    lo_T: np.ndarray
    hi_T: np.ndarray
    removed_T: np.ndarray  # the removed share of all weights
    nll_NT: np.ndarray = field(repr=False)
    order_TT: np.ndarray = field(repr=False)
    not_judged: str = ""  # why its tickets have no verdict ("not judged: 8 of 54 windows"), "" if they have one

    @property
    def pairs(self) -> int:
        return len(self.targets) * (len(self.targets) - 1) // 2

    @property
    def certain(self) -> int:
        return int(np.abs(self.order_TT).sum()) // 2

    @property
    def at(self) -> str:
        return f"{percent(self.level)} of all weights" if self.by == "budget" else percent(self.level)


def rank_targets(rows: Sequence[Row], nll: Nll) -> list[Ranking]:
    """Returns a ranking for each model, protocol and level that has two targets or more. Tickets that overflowed are
    left out, and of those that differ in their seed alone the median counts. `nll` gives a run's mean NLL per window, [N].
    """
    found = []

    def level(r: Row) -> tuple[str, float]:
        budget = number(r, "budget")
        return ("sparsity", round(number(r, "sparsity") or 0.0, 6)) if budget is None else ("budget", budget)

    def key(r: Row) -> tuple[Any, ...]:
        return r["base"], r["protocol"], setting(r, "seed"), *level(r), bool(SINGLE_LAYER.fullmatch(r["target"]))

    for (base, protocol, how, by, at, cells), members in group_by(median_draws(measured_tickets(rows)), key).items():
        if at == 0:
            continue
        of_target: dict[str, tuple[Row, np.ndarray]] = {}
        for r in members:
            nll_N = nll(str(r["run_id"])) if r["target"] not in of_target else None
            if nll_N is not None and np.isfinite(nll_N).all() and len(nll_N) > 1:
                of_target[r["target"]] = (r, nll_N)
        length = Counter(len(n) for _, n in of_target.values()).most_common(1)
        kept = [(t, r, n) for t, (r, n) in of_target.items() if len(n) == length[0][0]]
        if len(kept) < 2:
            continue
        kept.sort(key=lambda k: number(k[1], "perplexity_ratio") or math.inf)
        log_T = np.array([math.log(number(r, "perplexity_ratio") or math.inf) for _, r, _ in kept])
        ends = [
            np.array(
                [
                    math.log(number(r, f"perplexity_ratio_{end}") or number(r, "perplexity_ratio") or 1.0)
                    for _, r, _ in kept
                ]
            )
            for end in ("lo", "hi")
        ]
        nll_NT = np.stack([n for _, _, n in kept], 1)
        removed = np.array([number(r, "sparsity_model") or math.nan for _, r, _ in kept])
        found.append(
            Ranking(base, protocol, how, by, at, cells, tuple(t for t, _, _ in kept), log_T, ends[0], ends[1], removed,
                    nll_NT, significant_order(nll_NT), next(iter(reasons_not_judged(r for _, r, _ in kept)), ""))
        )  # fmt: skip
    return sorted(found, key=lambda r: (r.base, r.by == "sparsity", r.cells, r.setting, r.level))


def compare_rankings(one: Ranking, other: Ranking, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """Returns Kendall's tau-b between two models' rankings of the targets that both have, with its 95% interval, or
    None for fewer than `LEAST_TARGETS` targets. The windows of each model are resampled independently, so the two
    models may have other texts and other numbers of windows. `certain` is 1 where the interval lies above 0, -1 where it
    lies below, and 0 where neither is certain."""
    common = [t for t in one.targets if t in other.targets]
    if len(common) < LEAST_TARGETS:
        return None
    at = [[r.targets.index(t) for t in common] for r in (one, other)]
    a_NT, b_MT = one.nll_NT[:, at[0]], other.nll_NT[:, at[1]]
    n, m = len(a_NT), len(b_MT)
    once_N, once_M = np.ones((1, n)), np.ones((1, m))
    tau = float(tau_b(a_NT, b_MT, once_N, once_M)[0])
    tau_S = tau_b(a_NT, b_MT, resample_counts(n, resamples, 1), resample_counts(m, resamples, 2))
    tau_S = tau_S[np.isfinite(tau_S)]
    if not math.isfinite(tau) or not len(tau_S):
        return None
    low = expanded_tail(min(n, m))
    lo, hi = np.quantile(tau_S, [low, 1 - low])
    a_TT, b_TT = one.order_TT[np.ix_(at[0], at[0])], other.order_TT[np.ix_(at[1], at[1])]
    upper = np.triu_indices(len(common), 1)
    product = a_TT[upper].astype(int) * b_TT[upper]
    names = [(common[i], common[j]) for i, j in zip(*upper, strict=True)]
    sides = a_TT[upper]

    def pairs(sign: int) -> list[str]:
        chosen = [(p if s > 0 else p[::-1]) for p, s, x in zip(names, sides, product, strict=True) if x == sign]
        return [f"{better} before {worse}" for better, worse in chosen]

    return {
        "by": one.by, "level": one.level, "at": one.at, "cells": one.cells, "setting": one.setting, "a": one.base,
        "b": other.base, "targets": len(common), "tau": tau, "lo": float(lo), "hi": float(hi), "windows": min(n, m),
        "certain": 0 if min(n, m) < LEAST_WINDOWS else int(lo > 0) - int(hi < 0), "pairs": len(names), "same": pairs(1), "reversed": pairs(-1),
    }  # fmt: skip
