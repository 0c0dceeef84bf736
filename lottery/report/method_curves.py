"""Collects what several methods make of one target: a point for each method and sparsity, and how far it spreads over
draws and texts of the calibration. It works on rows, without MLflow."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lottery.measuring.intervals import difference_interval
from lottery.measuring.verdict import LEAST_WINDOWS
from lottery.report.grouping import Row, distinct_tickets, group_by, keep_main_protocol, median_ticket, number, setting
from lottery.report.judging import reasons_not_judged
from lottery.report.rankings import SINGLE_LAYER, Nll
from lottery.spec import METHODS, Method, short_base


@dataclass(frozen=True)
class Spread:
    """The least and the greatest ratio to dense of tickets that differ in one thing alone."""

    names: tuple[str, ...]  # the seeds or the texts
    least: float
    most: float

    @property
    def factor(self) -> float:
        return self.most / self.least


@dataclass(frozen=True)
class Point:
    """One method at one sparsity. `row` is the ticket that stands for it: of several draws of the main text the one of
    the median ratio. `ratio` is infinite if that ticket overflowed. `least` and `most` are those of all its tickets."""

    method: str
    sparsity: float
    row: Row
    text: str  # that the method looked at, "" if it looks at no data
    tickets: int
    ratio: float
    least: float
    most: float
    draws: Spread | None  # over seeds of one text
    texts: Spread | None  # over texts of one seed


@dataclass(frozen=True)
class Comparison:
    """The methods of one model, protocol and target. `controls`: sparsity -> (median, least, greatest) ratio to dense of
    the random tickets."""

    base: str
    protocol: str
    target: str
    setting: str  # pattern and quantization, where they are not the default
    points: tuple[Point, ...]
    controls: dict[float, tuple[float, float, float]]
    not_judged: str

    @property
    def levels(self) -> dict[float, list[Point]]:
        """The sparsities at which two methods or more were measured, each with its points, the least damaged first."""
        found = group_by(sorted(self.points, key=lambda p: (p.sparsity, p.ratio)), lambda p: p.sparsity)
        return {sparsity: points for sparsity, points in found.items() if len(points) > 1}


@dataclass(frozen=True)
class Gap:
    """How many times the perplexity of the best method that of the worst is, at one sparsity. The interval is paired, and
    it is None if the windows of a ticket are not known."""

    sparsity: float
    best: Point
    worst: Point
    factor: float
    lo: float | None
    hi: float | None
    windows: int

    @property
    def certain(self) -> bool:
        return self.lo is not None and self.lo > 1 and self.windows >= LEAST_WINDOWS


def compare_methods(rows: Iterable[Row]) -> list[Comparison]:
    """Returns one comparison per model that has two methods at one sparsity of one target: of target `all` if there is
    one, else that of most tickets. Random tickets are no method."""
    tickets = [r for r in rows if r.get("kind") == "ticket" and r.get("method") != "random" and is_measured(r)]
    tickets = [r for r in keep_main_protocol(tickets) if not SINGLE_LAYER.fullmatch(str(r["target"]))]
    best: dict[str, tuple[tuple[bool, bool, int], Comparison]] = {}

    def place(r: Row) -> tuple[Any, ...]:
        return r["base"], r["protocol"], r["target"], setting(method_alone(r), "method", "scope")

    for (base, protocol, target, how), members in group_by(tickets, place).items():
        comparison = Comparison(
            base, protocol, target, how, tuple(points_of(members)), controls_of(members),
            next(iter(reasons_not_judged(members)), ""),
        )  # fmt: skip
        rank = target == "all", not how, len(members)
        if comparison.levels and (base not in best or rank > best[base][0]):
            best[base] = rank, comparison
    return [comparison for _, comparison in best.values()]


def is_measured(r: Row) -> bool:
    ratio = number(r, "perplexity_ratio") is not None or r.get("outcome") == "overflow"
    return ratio and bool(number(r, "sparsity"))


def method_alone(r: Row) -> Row:
    """Returns the row as if its method looked at no data, so that `setting` says nothing of the calibration."""
    return {**r, "method": "magnitude"}


def method_names(rows: Sequence[Row]) -> list[str]:
    """Returns for each row its method with what belongs to it, but without text and seed: "magnitude row",
    "wanda nsamples=128". What all methods that look at data have in common is left out."""
    words = [setting(r, "method", "scope", "pattern", "quantize", "calibration", "seed") for r in rows]
    said = {of for r, of in zip(rows, words, strict=True) if text_of(r)}
    names = []
    for r, of in zip(rows, words, strict=True):
        scope = [str(r["scope"])] if r.get("scope", "layer") not in ("layer", None) else []
        names.append(
            " ".join([str(r.get("method", "magnitude")), *scope, *([of] if text_of(r) and len(said) > 1 else [])])
        )
    return [name.strip() for name in names]


def text_of(r: Row) -> str:
    """Returns the short name of the text that a ticket's method looked at, "" for a method that looks at no data."""
    if not METHODS.get(str(r.get("method")), Method()).calibrated:
        return ""
    text = str(r.get("calibration") or "auto")
    return short_base(text) if text != "auto" else "self" if r["base"] == "builtin" else "c4"


def points_of(rows: Sequence[Row]) -> list[Point]:
    """Returns a point for each method and sparsity. The text that most methods looked at is the main one, so that methods
    are compared on one text where that is possible."""
    named = list(zip(method_names(rows), rows, strict=True))
    looked = group_by((n for n in named if text_of(n[1])), lambda n: text_of(n[1]))
    rank = {text: (len({method for method, _ in of}), len(of)) for text, of in looked.items()}
    made = []
    places = group_by(named, lambda n: (n[0], round(number(n[1], "sparsity") or 0.0, 6)))
    for (method, sparsity), members in places.items():
        tickets = distinct_tickets(r for _, r in members)
        of_text = group_by(tickets, text_of)
        text = max(of_text, key=lambda t: rank.get(t, (0, 0)))
        row = median_ticket(of_text[text])
        ratios = [ratio_of(r) for r in tickets]
        draws = spread_of(of_text[text], lambda r: f"{number(r, 'seed') or 0:g}") if text else None
        made.append(
            Point(method, sparsity, row, text, len(tickets), ratio_of(row), min(ratios), max(ratios), draws, spread_of(one_draw(of_text), text_of))
        )  # fmt: skip
    return made


def ratio_of(r: Row) -> float:
    return number(r, "perplexity_ratio") or math.inf


def one_draw(of_text: dict[str, list[Row]]) -> list[Row]:
    """Returns a ticket of each text, all of the least seed that every text has; none if no seed is common."""
    seeds = [{number(r, "seed") or 0.0 for r in rows} for rows in of_text.values()]
    common = set.intersection(*seeds)
    return (
        [next(r for r in rows if (number(r, "seed") or 0.0) == min(common)) for rows in of_text.values()]
        if common
        else []
    )


def spread_of(rows: Sequence[Row], name: Callable[[Row], str]) -> Spread | None:
    """Returns the spread of the tickets' ratios, None for fewer than two that have one. `name` says what differs."""
    known = [r for r in rows if math.isfinite(ratio_of(r))]
    if len(known) < 2:
        return None
    names, ratios = tuple(dict.fromkeys(map(name, known))), [ratio_of(r) for r in known]
    return Spread(names, min(ratios), max(ratios)) if len(names) > 1 else None


def controls_of(rows: Sequence[Row]) -> dict[float, tuple[float, float, float]]:
    """Returns sparsity -> (median, least, greatest) ratio to dense of the random tickets beside these."""
    found: dict[float, list[tuple[float, float, float]]] = {}
    for r in rows:
        mine, ratio = number(r, "perplexity"), number(r, "perplexity_ratio")
        ends = [number(r, f"control_perplexity{end}") for end in ("", "_lo", "_hi")]
        if mine and ratio and all(ends):
            middle, least, most = (float(end or 0) * ratio / mine for end in ends)
            found.setdefault(round(number(r, "sparsity") or 0.0, 6), []).append((middle, least, most))
    return {
        sparsity: (
            float(np.median([m for m, _, _ in of])),
            min(low for _, low, _ in of),
            max(high for _, _, high in of),
        )
        for sparsity, of in sorted(found.items())
    }


def find_gaps(comparison: Comparison, nll: Nll) -> list[Gap]:
    """Returns the gap at each sparsity at which two methods have a perplexity. `nll` gives a run's mean NLL per window."""
    found = []
    for sparsity, points in comparison.levels.items():
        known = [p for p in points if math.isfinite(p.ratio)]
        if len(known) < 2:
            continue
        best, worst = known[0], known[-1]
        before_N, after_N = nll(str(best.row["run_id"])), nll(str(worst.row["run_id"]))
        if before_N is None or after_N is None or len(before_N) != len(after_N):
            found.append(Gap(sparsity, best, worst, worst.ratio / best.ratio, None, None, 0))
            continue
        lo, hi = difference_interval(after_N - before_N)
        factor = math.exp(float((after_N - before_N).mean()))
        found.append(
            Gap(sparsity, best, worst, factor, math.exp(lo), math.exp(hi) if hi < 700 else math.inf, len(before_N))
        )
    return found
