"""Finds the cliff of a target: where its curve of ratio against sparsity crosses what a winner may lose."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lottery.report.grouping import Row, group_by, keep_main_protocol, median_draws, number, setting
from lottery.report.judging import reasons_not_judged
from lottery.report.wording import percent

REFINED = 0.025  # sparsity: between two tickets that are closer, a straight line is as exact as the intervals


@dataclass(frozen=True)
class Cliff:
    """The sparsity `at` which one curve crosses 1 + tolerance; None if it does not cross within what was measured. `lo`
    and `hi` are where the upper and the lower end of the ratio's interval cross, or None. `bracket`: the sparsities of
    the tickets on either side."""

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
    least: float  # the lowest sparsity that was measured, above 0 if there is one
    most: float  # the highest
    tickets: int
    wins: float | None  # the highest sparsity at which the upper end of a ticket's interval is at most 1 + tolerance
    lost: tuple[float, ...]  # lower sparsities than `wins` at which a ticket does not win
    not_judged: str  # why its tickets have no verdict ("not judged: 8 of 54 windows"), "" if they have one

    @property
    def wide(self) -> bool:
        """Whether the two tickets around it are so far apart that the straight line between them decides."""
        return self.bracket is not None and self.bracket[1] - self.bracket[0] > REFINED + 1e-9

    @property
    def text(self) -> str:
        if self.at is None:
            return f"over {percent(self.most)}"
        ends = [percent(end, 1) if end is not None else "?" for end in (self.lo, self.hi)]
        return f"{percent(self.at, 1)} [{ends[0]}, {ends[1]}]"


def first_crossing(
    sparsity: Sequence[float], log_ratio: Sequence[float], limit: float
) -> tuple[float, float, float] | None:
    """Returns (where the curve first crosses `limit`, the sparsity before, the sparsity after), or None if it does not
    cross.

    The curve is a straight line between two points. If the point after is infinite (the ticket overflowed), the
    crossing is put at the point before: nothing else is known.
    """
    for i in range(1, len(sparsity)):
        left, right = log_ratio[i - 1], log_ratio[i]
        if left <= limit < right:
            share = 0.0 if math.isinf(right) else (limit - left) / (right - left)
            return sparsity[i - 1] + share * (sparsity[i] - sparsity[i - 1]), sparsity[i - 1], sparsity[i]
    return None


def find_cliffs(rows: Iterable[Row]) -> list[Cliff]:
    """Returns the cliff of every curve (model, protocol, target, way of pruning) that has two sparsities or more. Of
    tickets that differ in their seed alone the median counts."""
    curves = group_by(
        (r for r in median_draws(rows) if r.get("kind") == "ticket" and number(r, "sparsity") is not None),
        lambda r: (r["base"], r["protocol"], r["target"], setting(r, "seed"), number(r, "tolerance") or 0.0),
    )
    found = []
    for (base, protocol, target, how, tolerance), members in curves.items():
        # A curve begins at the dense base, but not in 8 bits: these have a cost at sparsity 0, too.
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
            continue  # its first point is over the limit already, so where it crosses is not known
        ends = {}
        for name in ("perplexity_ratio", "perplexity_ratio_lo", "perplexity_ratio_hi"):
            logs = [math.log(number(points[s], name) or number(points[s], "perplexity_ratio") or math.inf) for s in at]
            ends[name] = first_crossing(at, logs, math.log1p(tolerance))
        middle, late, early = ends.values()
        wins, lost = find_winners(points, tolerance)
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
                least=next((s for s in at if s), 0.0),
                most=at[-1],
                tickets=len(members),
                wins=wins,
                lost=lost,
                not_judged=next(iter(reasons_not_judged(members)), ""),
            )
        )
    return found


def find_winners(points: Mapping[float, Row], tolerance: float) -> tuple[float | None, tuple[float, ...]]:
    """Returns (the highest sparsity of a ticket whose interval ends within the tolerance, None if there is no such
    ticket; the lower sparsities of tickets whose interval does not).

    `points`: sparsity -> the row; the dense base itself, which is no ticket, has no kind.
    """
    upper = {s: number(r, "perplexity_ratio_hi") for s, r in points.items() if r.get("kind") == "ticket"}
    won = [s for s, hi in upper.items() if hi is not None and hi <= 1 + tolerance]
    return max(won, default=None), tuple(sorted(s for s in upper if won and s < max(won) and s not in won))


def main_cliffs(rows: Sequence[Row]) -> list[Cliff]:
    """Returns one cliff per model. A curve of target `all` comes first, then one pruned in the default way, then the
    one of most tickets."""
    best: dict[str, Cliff] = {}
    for cliff in find_cliffs(keep_main_protocol(rows)):
        other = best.get(cliff.base)
        rank = (cliff.target == "all", not cliff.setting, cliff.tickets)
        if other is None or rank > (other.target == "all", not other.setting, other.tickets):
            best[cliff.base] = cliff
    return list(best.values())
