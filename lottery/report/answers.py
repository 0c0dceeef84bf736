"""The questions that a study asks, each answered with how sure it is. Arrays and rows only: no model, no MLflow.

A row is a mapping, as `results.rows` has them. What is compared is the mean NLL per token: its difference between a ticket
and the dense base is the logarithm of the ratio of their perplexities. Everything is sure or not by resampling evaluation
windows (resampling.py).

Legend: N windows, T targets.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeAlias, TypeVar

import numpy as np

from lottery.measuring.intervals import RESAMPLES, difference_interval, draws, expanded_tail, order, tau_b

Row: TypeAlias = Mapping[str, Any]
Item = TypeVar("Item")
Nll: TypeAlias = Callable[[str], np.ndarray | None]  # a run's id -> mean NLL per window

SETTING = {"method": "magnitude", "scope": "layer", "pattern": "unstructured", "quantize": "none"}
CELL = re.compile(r"([a-z0-9_]+)@(\d+)")  # one component of one layer
REFINED = 0.025  # between two tickets: closer than this, a straight line is as good as the intervals
LEAST_TARGETS = 4  # of three only four values are possible, two of them 1 and -1: chance makes them


@dataclass(frozen=True)
class Answer:
    """`short`: a word or two for a headline, and `about` what they are of; `sentence`: the answer; `sure`: how sure, and what
    it rests on; `data`: the rows that its figure is drawn of. Where nothing is known `short` is empty, and `sentence` begins
    with "not known"."""

    question: str
    short: str
    sentence: str
    sure: str
    data: tuple[dict[str, Any], ...] = ()
    about: str = ""

    @property
    def known(self) -> bool:
        return bool(self.short)


@dataclass(frozen=True)
class Cliff:
    """Where one curve of ratio against sparsity crosses 1 + tolerance. `at` is None where it does not within what was
    measured; `lo`, `hi`: where the upper and the lower end of the ratio's interval cross (None: not within)."""

    base: str
    family: str
    parameters: float | None
    protocol: str
    target: str
    setting: str
    tolerance: float
    at: float | None
    lo: float | None
    hi: float | None
    bracket: tuple[float, float] | None
    most: float  # the greatest sparsity that was measured
    tickets: int

    @property
    def wide(self) -> bool:
        """Whether so much lies between the two tickets around it that the straight line decides."""
        return self.bracket is not None and self.bracket[1] - self.bracket[0] > REFINED + 1e-9

    @property
    def text(self) -> str:
        if self.at is None:
            return f"over {percent(self.most)}"
        ends = [percent(end, 1) if end is not None else "?" for end in (self.lo, self.hi)]
        return f"{percent(self.at, 1)} [{ends[0]}, {ends[1]}]"


@dataclass(frozen=True)
class Ranking:
    """Targets of one model at one level (equal sparsity or equal budget), the least damaged first. `order_TT`: +1 where the
    row's target is certainly better than the column's, -1 worse, 0 not known."""

    base: str
    protocol: str
    setting: str
    by: str  # sparsity or budget
    level: float
    cells: bool  # components of single layers, as the study `map` has them
    targets: tuple[str, ...]
    log_ratio_T: np.ndarray
    lo_T: np.ndarray
    hi_T: np.ndarray
    removed_T: np.ndarray  # share of all weights
    nll_NT: np.ndarray = field(repr=False)
    order_TT: np.ndarray = field(repr=False)

    @property
    def pairs(self) -> int:
        return len(self.targets) * (len(self.targets) - 1) // 2

    @property
    def certain(self) -> int:
        return int(np.abs(self.order_TT).sum()) // 2

    @property
    def at(self) -> str:
        return f"{percent(self.level)} of all weights" if self.by == "budget" else percent(self.level)


def number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def percent(share: float, digits: int = 0) -> str:
    """As many digits as it takes, one at least where asked for."""
    text = f"{100 * share:.{max(digits, 2)}f}".rstrip("0").rstrip(".")
    return f"{100 * share:.{digits}f}%" if digits else f"{text}%"


def times(ratio: float) -> str:
    return f"{ratio:,.4f}" if ratio < 2 else f"{ratio:,.2f}" if ratio < 100 else f"{ratio:,.0f}"


def span(ratios: Sequence[float]) -> str:
    low, high = times(min(ratios)), times(max(ratios))
    return low if low == high else f"{low} to {high}"


def count(n: int, what: str) -> str:
    many = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{n} {what if n == 1 else many}"


def listed(words: Iterable[str]) -> str:
    parts = list(words)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def setting(row: Row, *without: str) -> str:
    """What is not as usual of how a ticket was made; "" for the usual."""
    words = [str(row.get(name, default)) for name, default in SETTING.items() if name not in without]
    defaults = [default for name, default in SETTING.items() if name not in without]
    unusual = [w for w, d in zip(words, defaults, strict=True) if w not in (d, "nan", "None")]
    unusual += [row["source"]] if isinstance(row.get("source"), str) else []  # another ticket (results.with_source)
    return " ".join([*unusual, *(["seed " + f"{number(row, 'seed') or 0:g}"] if row.get("method") == "random" else [])])


def groups(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def measured(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r.get("kind") == "ticket" and number(r, "perplexity_ratio") is not None]


def chief(rows: Iterable[Row]) -> list[Row]:
    """Of each model only the tickets of one protocol, that of most of them: numbers of two are never compared."""
    kept = []
    for of_base in groups(rows, lambda r: r["base"]).values():
        most = Counter(r["protocol"] for r in of_base).most_common(1)[0][0]
        kept += [r for r in of_base if r["protocol"] == most]
    return kept


# How much can be cut


def crossing(sparsity: Sequence[float], log_ratio: Sequence[float], limit: float) -> tuple[float, float, float] | None:
    """(where a curve first crosses `limit`, the points on either side); a straight line in between. None where it does not.

    Where the point after is infinite (it overflowed) the last good one is all that is known.
    """
    for i in range(1, len(sparsity)):
        left, right = log_ratio[i - 1], log_ratio[i]
        if left <= limit < right:
            share = 0.0 if math.isinf(right) else (limit - left) / (right - left)
            return sparsity[i - 1] + share * (sparsity[i] - sparsity[i - 1]), sparsity[i - 1], sparsity[i]
    return None


def cliffs(rows: Iterable[Row]) -> list[Cliff]:
    """Of every curve (model, target, how it was made) of at least two sparsities; the dense base is its beginning."""
    curves = groups(
        (r for r in rows if r.get("kind") == "ticket" and number(r, "sparsity") is not None),
        lambda r: (r["base"], r["protocol"], r["target"], setting(r), number(r, "tolerance") or 0.0),
    )
    found = []
    for (base, protocol, target, how, tolerance), members in curves.items():
        # The dense base is where a curve begins; 8 bits cost something at 0, too.
        whole = {"perplexity_ratio": 1.0, "perplexity_ratio_lo": 1.0, "perplexity_ratio_hi": 1.0}
        points: dict[float, Row] = {} if members[0].get("quantize") in ("int8", "fp8") else {0.0: whole}
        for r in members:
            sparsity = number(r, "sparsity") or 0.0
            known = number(r, "perplexity_ratio") is not None or r.get("outcome") == "overflow"
            if known and (sparsity not in points or points[sparsity] is whole):
                points[sparsity] = r
        at = sorted(points)
        if len({s for s in at if s}) + ("run_id" in points.get(0.0, {})) < 2:
            continue
        if (number(points[at[0]], "perplexity_ratio") or math.inf) > 1 + tolerance:
            continue  # it has no beginning: over the limit as soon as it was measured
        ends = {}
        for name in ("perplexity_ratio", "perplexity_ratio_lo", "perplexity_ratio_hi"):
            logs = [math.log(number(points[s], name) or number(points[s], "perplexity_ratio") or math.inf) for s in at]
            ends[name] = crossing(at, logs, math.log1p(tolerance))
        middle, late, early = ends.values()
        found.append(
            Cliff(
                base=base,
                family=str(members[0].get("family") or ""),
                parameters=next((p for r in members if (p := number(r, "parameters"))), None),
                protocol=protocol,
                target=target,
                setting=how,
                tolerance=tolerance,
                at=middle[0] if middle else None,
                lo=early[0] if early else None,
                hi=late[0] if late else None,
                bracket=middle[1:] if middle else None,
                most=at[-1],
                tickets=len(members),
            )
        )
    return found


def chief_cliffs(rows: Sequence[Row]) -> list[Cliff]:
    """One of each model: of target `all`, made as usual, where there is such a curve, else of the one of most tickets."""
    best: dict[str, Cliff] = {}
    for cliff in cliffs(chief(rows)):
        other = best.get(cliff.base)
        rank = (cliff.target == "all", not cliff.setting, cliff.tickets)
        if other is None or rank > (other.target == "all", not other.setting, other.tickets):
            best[cliff.base] = cliff
    return list(best.values())


def how_much(rows: Sequence[Row]) -> Answer:
    question = "How much can be cut?"
    found = chief_cliffs(rows)
    if not found:
        return Answer(question, "", "not known: it takes tickets of one target at two sparsities at least", "")
    sentences = []
    for c in found:
        allowed = f"perplexity is {percent(c.tolerance)} over the dense model's"
        how = f" ({c.setting})" if c.setting else ""
        if c.at is None:
            more = f"more than {percent(c.most)}" if c.most < 1 else "all"
            sentences.append(f"{c.base}: {more} of `{c.target}`{how}; no ticket reached where {allowed}.")
            continue
        low = percent(c.lo, 1) if c.lo is not None else "not known"
        about = "about " if c.wide else ""
        sentences.append(
            f"{c.base}: {about}{percent(c.at, 1)} of the weights of `{c.target}`{how} can go before {allowed}; "
            f"a winner, by the upper end of the interval, up to {low}."
        )
    known = [c.at for c in found if c.at is not None]
    least = min(c.most for c in found)
    short = f"over {percent(least)}" if least < 1 else "all"
    if known and len(known) < len(found):
        short = f"{min(*known, least):.0%} or more"
    elif known:
        short = percent(min(known)) if min(known) == max(known) else f"{min(known):.0%} to {max(known):.0%}"
        short = f"{known[0]:.0%}" if len(known) == 1 else short
    if known:
        short = f"about {short}" if any(c.wide for c in found) else short
    sure = [
        f"{c.base}: the band {c.text.split(' ', 1)[1]} is where the two ends of the ratio's 95% interval cross; tickets at "
        f"{percent(c.bracket[0])} and {percent(c.bracket[1])} stand on either side, with a straight line in log ratio between"
        + (
            ", which is further apart than the band is wide: the curve bends upwards, so it is rather more than less."
            if c.wide
            else "."
        )
        for c in found
        if c.at is not None and c.bracket
    ]
    every = [c.__dict__ | {"chief": c in found} for c in cliffs(chief(rows))]
    targets, tolerances = dict.fromkeys(c.target for c in found), dict.fromkeys(c.tolerance for c in found)
    about = (
        f"of {listed(f'`{t}`' for t in targets)} can go before perplexity is {listed(map(percent, tolerances))} higher"
    )
    return Answer(question, short, "\n".join(sentences), "\n".join(sure), tuple(every), about)


# Where


def rankings(rows: Sequence[Row], nll: Nll) -> list[Ranking]:
    """Of every model, protocol and level with two targets at least; tickets that overflowed have no place."""
    found = []

    def level(r: Row) -> tuple[str, float]:
        budget = number(r, "budget")
        return ("sparsity", round(number(r, "sparsity") or 0.0, 6)) if budget is None else ("budget", budget)

    def key(r: Row) -> tuple[Any, ...]:
        return r["base"], r["protocol"], setting(r), *level(r), bool(CELL.fullmatch(r["target"]))

    for (base, protocol, how, by, at, cells), members in groups(measured(rows), key).items():
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
                    nll_NT, order(nll_NT))
        )  # fmt: skip
    return sorted(found, key=lambda r: (r.base, r.by == "sparsity", r.cells, r.setting, r.level))


def at_levels(members: Sequence[Ranking], end: int) -> str:
    """at 30% (ratio 1.0001) and 50% (1.0392): of the target that stands at that end."""
    return "at " + listed(f"{r.at} (ratio {times(math.exp(r.log_ratio_T[end]))})" for r in members)


def where(found: Sequence[Ranking]) -> Answer:
    question = "Where is it?"
    if not found:
        return Answer(
            question, "", "not known: it takes tickets of two targets at one sparsity, with their windows", ""
        )
    sentences, sure = [], []
    best: list[tuple[tuple[bool, bool], str, str]] = []
    for (base, by, cells, how), members in groups(found, lambda r: (r.base, r.by, r.cells, r.setting)).items():
        equal = "At equal budget" if by == "budget" else "At equal sparsity"
        best += [((by == "budget", not cells), base, r.targets[0]) for r in members if not how]
        least = groups(members, lambda r: r.targets[0])
        most = groups(members, lambda r: r.targets[-1])
        words = [
            "; ".join(f"`{t}` {at_levels(of_t, end)}" for t, of_t in named.items()) + f" loses {what}"
            if len(named) == 1
            else f"{what} is lost by " + ", ".join(f"`{t}` {at_levels(of_t, end)}" for t, of_t in named.items())
            for named, end, what in ((least, 0, "least"), (most, -1, "most"))
        ]
        sentences.append(f"{base}{f' ({how})' if how else ''}: {equal.lower()}, {'; '.join(words)}.")
        certain, pairs = sum(r.certain for r in members), sum(r.pairs for r in members)
        sure.append(f"{base}, {equal.lower()}: the order of {certain} of {count(pairs, 'pair')} of targets is certain.")
        if by == "sparsity" and not cells:
            removed = np.concatenate([r.removed_T for r in members])
            if np.isfinite(removed).any():
                sure.append(
                    f"Equal sparsity is not equal budget: these tickets lose from {percent(float(np.nanmin(removed)), 1)} to "
                    f"{percent(float(np.nanmax(removed)), 1)} of all weights."
                )
    sure.append(
        "Certain: the paired 95% interval of the difference over the windows does not hold 0, each pair for itself."
    )
    # What is the least damaged most often; an equal budget is the fairer question, a part of the model before a single layer.
    fairest = max((rank for rank, _, _ in best), default=(False, True))
    tops = groups([b for b in best if b[0] == fairest], lambda b: b[1])
    top = {base: Counter(t for _, _, t in of_base).most_common(1)[0][0] for base, of_base in tops.items()}
    about = f"loses least at equal {'budget' if fairest[0] else 'sparsity'}"
    short = next(iter(top.values()), found[0].targets[0])
    if len(set(top.values())) > 1:
        short, about = "it differs", "; ".join(f"{base}: `{t}`" for base, t in list(top.items())[:6])
        about += f"; and {len(top) - 6} more" if len(top) > 6 else ""
    data = [
        {
            "base": r.base, "protocol": r.protocol, "setting": r.setting, "by": r.by, "level": r.level, "at": r.at,
            "cells": r.cells, "target": t, "rank": i + 1, "ratio": math.exp(r.log_ratio_T[i]),
            "lo": math.exp(r.lo_T[i]), "hi": math.exp(r.hi_T[i]), "removed": float(r.removed_T[i]),
            "before_next": bool(i + 1 < len(r.targets) and r.order_TT[i, i + 1] > 0),
            "certain_better_than": [r.targets[j] for j in np.flatnonzero(r.order_TT[i] > 0)],
        }
        for r in found
        for i, t in enumerate(r.targets)
    ]  # fmt: skip
    return Answer(question, short, "\n".join(sentences), "\n".join(sure), tuple(data), about)


# Is it the same in every model


def agreement(one: Ranking, other: Ranking, resamples: int = RESAMPLES) -> dict[str, Any] | None:
    """How alike two models order the targets that both have at one level; None for fewer than `LEAST_TARGETS`. Each
    model's windows are drawn for itself: they need not be of the same text or number."""
    common = [t for t in one.targets if t in other.targets]
    if len(common) < LEAST_TARGETS:
        return None
    at = [[r.targets.index(t) for t in common] for r in (one, other)]
    a_NT, b_MT = one.nll_NT[:, at[0]], other.nll_NT[:, at[1]]
    n, m = len(a_NT), len(b_MT)
    once_N, once_M = np.ones((1, n)), np.ones((1, m))
    tau = float(tau_b(a_NT, b_MT, once_N, once_M)[0])
    tau_S = tau_b(a_NT, b_MT, draws(n, resamples, 1), draws(m, resamples, 2))
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
        "b": other.base, "targets": len(common), "tau": tau, "lo": float(lo), "hi": float(hi), "pairs": len(names),
        "same": pairs(1), "reversed": pairs(-1),
    }  # fmt: skip


def same_everywhere(found: Sequence[Ranking], resamples: int = RESAMPLES) -> Answer:
    question = "Is it the same in every model?"
    bases = list(dict.fromkeys(r.base for r in found))
    if len(bases) < 2:
        only = f"only {bases[0]} has" if bases else "no model has"
        return Answer(question, "", f"not known: {only} targets that were put in order; it takes two models", "")
    data = []
    for members in groups(found, lambda r: (r.by, r.level, r.cells, r.setting)).values():
        for first, second in combinations(members, 2):
            if first.base != second.base and (row := agreement(first, second, resamples)):
                data.append(row)
    if not data:
        return Answer(question, "", f"not known: no two models have {LEAST_TARGETS} targets in common at one level", "")
    taus = [row["tau"] for row in data]
    alike, against = sum(row["lo"] > 0 for row in data), sum(row["hi"] < 0 for row in data)
    one = data[0]
    spread = (
        f"{min(taus):.2f}" if len(data) == 1 else f"{min(taus):.2f} to {max(taus):.2f}, median {np.median(taus):.2f}"
    )
    if len(data) == 1:
        spread += f" [{one['lo']:.2f}, {one['hi']:.2f}]"
    levels = listed(dict.fromkeys(row["at"] for row in data))
    if alike == len(data):
        verdict, short = "yes, more alike than by chance", "alike"
    elif alike and against:
        verdict, short = "in part", "in part"
    elif alike or against:
        rest = "" if alike + against == len(data) else ", where it is known at all"
        verdict, short = (f"yes{rest}", "alike") if alike else (f"no, it is rather reversed{rest}", "reversed")
    else:
        verdict, short = "that is open", "open"
    sentence = (
        f"{verdict[0].upper()}{verdict[1:]}: Kendall's tau between the orders of the targets is {spread} "
        f"({count(len(bases), 'model')}, at {levels}; 1 is the same order, 0 none in common, -1 the reverse)."
    )
    same, flipped = sum(len(row["same"]) for row in data), sum(len(row["reversed"]) for row in data)
    pairs = sum(row["pairs"] for row in data)
    sure = (
        f"Of {count(len(data), 'comparison')} the 95% interval of tau lies above 0 in {alike}, below in {against}, and holds 0 in "
        f"{len(data) - alike - against}. Of {count(pairs, 'pair')} of targets {same} are in the same order in both models with "
        f"certainty, {flipped} in reversed order, of {pairs - same - flipped} it is not known."
    )
    return Answer(question, short, sentence, sure, tuple(data), f"Kendall's tau {spread}")


# Prune and quantize


def eight_bits(rows: Sequence[Row], nll: Nll) -> Answer:
    """What 8 bits cost beside the same ticket in 16: the ratio of the two perplexities, with its paired interval."""
    question = "Prune and quantize: what do 8 bits cost on top?"
    data = []

    def key(r: Row) -> tuple[Any, ...]:
        return r["base"], r["protocol"], r["target"], number(r, "sparsity"), setting(r, "quantize"), number(r, "budget")

    for members in groups(measured(rows), key).values():
        whole = next((r for r in members if r.get("quantize") == "none"), None)
        before = nll(str(whole["run_id"])) if whole else None
        for r in members:
            if r is whole or r.get("quantize") in ("none", None) or whole is None or before is None:
                continue
            after = nll(str(r["run_id"]))
            if after is None or len(after) != len(before) or not np.isfinite(after - before).all():
                continue
            lo, hi = difference_interval(after - before)
            data.append(
                {
                    "base": r["base"], "protocol": r["protocol"], "target": r["target"],
                    "sparsity": number(r, "sparsity") or 0.0, "quantize": r["quantize"], "arithmetic": arithmetic(r),
                    "ratio": math.exp((after - before).mean()), "lo": math.exp(lo), "hi": math.exp(hi),
                    "disk_ratio": number(r, "disk_ratio"), "disk_ratio_16": number(whole, "disk_ratio"),
                }
            )  # fmt: skip
    if not data:
        return Answer(question, "", "not known: no ticket was measured both in 16 and in 8 bits", "")
    parts, sure = [], []
    for kind, of_kind in groups(data, lambda r: r["arithmetic"]).items():
        worst = max(of_kind, key=lambda r: r["ratio"])
        costs = sum(r["lo"] > 1 for r in of_kind)
        parts.append(
            f"{kind}: {span([r['ratio'] for r in of_kind])} times the perplexity of the same "
            f"ticket in 16 bits, the most at {percent(worst['sparsity'])} of `{worst['target']}` ({worst['base']})"
        )
        sure.append(
            f"{kind}: of {count(len(of_kind), 'pair')} of tickets {costs} are certainly worse in 8 bits (paired 95%)."
        )
    top = max(r["ratio"] for r in data) - 1
    short = f"under {percent(max(math.ceil(1000 * top) / 1000, 0.001), 1)}" if top < 0.1 else f"up to {top:.0%}"
    return Answer(question, short, f"{'; '.join(parts)}.", " ".join(sure), tuple(data), "more perplexity at most")


def arithmetic(r: Row) -> str:
    """int8 is two: bitsandbytes rounds activations to 8 bits, too."""
    if r["quantize"] != "int8":
        return str(r["quantize"])
    return "int8 (w8a16)" if r.get("runtime") == "packed" else "int8 (w8a8)"


# Do bigger models hold better tickets


def bigger(rows: Sequence[Row]) -> Answer:
    question = "Do bigger models hold better tickets?"
    of_all = [c for c in chief_cliffs(rows) if c.at is not None]
    known = sorted((c for c in of_all if c.parameters), key=lambda c: c.parameters or 0)
    if len({c.parameters for c in known}) < 2:
        lack = "it takes two models whose cliff was found"
        if len(of_all) > len(known):
            lack = "the runs do not say how many weights their models have"
        return Answer(question, "", f"not known: {lack}", "")
    pairs = [(a, b) for a, b in combinations(known, 2) if a.parameters != b.parameters]
    ends = [(c.lo if c.lo is not None else -math.inf, c.hi if c.hi is not None else math.inf) for c in known]
    place = {c.base: e for c, e in zip(known, ends, strict=True)}
    up = sum(place[a.base][1] < place[b.base][0] for a, b in pairs)
    down = sum(place[b.base][1] < place[a.base][0] for a, b in pairs)
    words = {(True, False): ("yes, in these", "yes, here"), (False, True): ("no, the smaller do in these", "no, here")}
    verdict, short = words.get((up == len(pairs), down == len(pairs)), ("not one way", "not one way"))
    if not up and not down:
        verdict, short = "that is open", "open"
    families = sorted({c.family or "unknown" for c in known})
    cliffs_said = "; ".join(f"{c.base} ({c.parameters or 0:,.0f} weights): {c.text}" for c in known)
    sure = (
        f"This rests on {count(len(known), 'model')} of {count(len(families), 'family')} ({listed(families)}): the bigger model of "
        f"{count(len(pairs), 'pair')} has the later cliff in {up} and the earlier in {down} with bands apart. Models differ in more "
        f"than their size: in what and how long they were trained."
    )
    data = tuple(c.__dict__ for c in known)
    rests = f"over {count(len(known), 'model')} of {count(len(families), 'family')}"
    return Answer(question, short, f"{verdict[0].upper()}{verdict[1:]}: {cliffs_said}.", sure, data, rests)
