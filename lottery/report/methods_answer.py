"""Answers how much of a ticket was the method: how far the methods lie apart at one sparsity, and how far draws and texts
of the calibration spread."""

import math
from collections.abc import Sequence
from typing import Any

from lottery.measuring.numbers import format_ends, format_ratio
from lottery.measuring.verdict import LEAST_WINDOWS
from lottery.report.answers import Answer, unknown
from lottery.report.grouping import Row, number
from lottery.report.judging import mark_estimate, with_reasons
from lottery.report.method_curves import Comparison, Gap, Point, Spread, compare_methods, find_gaps
from lottery.report.rankings import Nll
from lottery.report.wording import format_range, natural_list, percent, pluralize


def answer_methods(rows: Sequence[Row], nll: Nll) -> Answer:
    question = "How much of the ticket was the method?"
    found = [(c, gaps) for c in compare_methods(rows) if (gaps := find_gaps(c, nll))]
    if not found:
        return unknown(question, "tickets of two methods at one sparsity of one target (`lottery study methods`)")
    sentences = []
    for c, gaps in found:
        sentences += [*(span_sentence(c, gap) for gap in gaps), worth_sentence(c), spread_sentence(c, gaps)]
    why = [c.not_judged for c, _ in found]
    short, about = headline(found)
    data = tuple(row for c, _ in found for row in data_rows(c))
    sure = "\n".join(certainty(c, gaps) for c, gaps in found)
    return Answer(
        question, mark_estimate(short, why), "\n".join(filter(None, sentences)), sure, data, with_reasons(about, why)
    )


def headline(found: Sequence[tuple[Comparison, Sequence[Gap]]]) -> tuple[str, str]:
    """Returns (the largest factor between two methods, which they are), of several models the range of these factors."""
    largest = [max(gaps, key=lambda g: g.factor) for _, gaps in found]
    if len(found) > 1:
        least, most = min(largest, key=lambda g: g.factor), max(largest, key=lambda g: g.factor)
        return (
            f"a factor of {short_factor(least.factor)} to {short_factor(most.factor)}",
            f"between the worst and the best method of each of {len(found)} models, where they lie furthest apart "
            f"(`{most.worst.method}` and `{most.best.method}` at {percent(most.sparsity)})",
        )
    gap = largest[0]
    about = (
        f"between `{gap.worst.method}` and `{gap.best.method}`, at {percent(gap.sparsity)} of `{found[0][0].target}`"
    )
    return f"a factor of {short_factor(gap.factor)}", about


def span_sentence(c: Comparison, gap: Gap) -> str:
    """Returns from which ratio to which the methods span at one sparsity."""
    random = f"; random tickets have {format_ratio(c.controls[gap.sparsity][0])}" if gap.sparsity in c.controls else ""
    lost = [p.method for p in c.levels[gap.sparsity] if not math.isfinite(p.ratio)]
    broken = f"; {natural_list(f'`{m}`' for m in lost)} overflowed" if lost else ""
    how = f" ({c.setting})" if c.setting else ""
    return (
        f"{c.base} with {percent(gap.sparsity)} of `{c.target}` removed{how}: the methods span ratios from "
        f"{format_ratio(gap.best.ratio)} (`{gap.best.method}`) to {format_ratio(gap.worst.ratio)} (`{gap.worst.method}`), "
        f"a factor of {factor_text(gap)}{random}{broken}."
    )


def factor_text(gap: Gap) -> str:
    known = gap.lo is not None and gap.hi is not None and math.isfinite(gap.hi)
    return format_ends(gap.factor, gap.lo, gap.hi, 4) if known else format_ratio(gap.factor)  # type: ignore[arg-type]


def worth_sentence(c: Comparison) -> str:
    """Returns how many more zeros the best method allows than the worst, as far as tickets show it; "" if none does. The
    two intervals must lie apart."""
    ends = [(sparsity, points[0], points[-1]) for sparsity, points in c.levels.items()]
    pairs = [
        (high, low, best, worst)
        for high, best, _ in ends
        for low, _, worst in ends
        if high > low and end_of(best, "hi") < end_of(worst, "lo")
    ]
    if not pairs:
        return ""
    high, low, best, worst = max(pairs, key=lambda p: (p[0] - p[1], p[0]))
    lost = format_ratio(worst.ratio) if math.isfinite(worst.ratio) else "overflow"
    return (
        f"`{best.method}` with {percent(high)} of `{c.target}` removed ({format_ratio(best.ratio)}) still loses less than "
        f"`{worst.method}` with {percent(low)} ({lost})."
    )


def end_of(point: Point, end: str) -> float:
    """Returns an end of a point's interval; NaN, which is neither less nor more than anything, if it has none. A ticket
    that overflowed loses more than every other."""
    found = number(point.row, f"perplexity_ratio_{end}")
    return found or (math.nan if math.isfinite(point.ratio) else math.inf)


def spread_sentence(c: Comparison, gaps: Sequence[Gap]) -> str:
    """Returns by how much other draws and other texts of the calibration change a ratio, and whether the method decides
    more than they do; "" if there is one draw of one text."""
    parts, most = [], 1.0
    for what, spreads in (
        ("another draw of the calibration samples", [(p.draws.factor, p, p.draws) for p in c.points if p.draws]),
        ("another text", [(p.texts.factor, p, p.texts) for p in c.points if p.texts]),
    ):
        if spreads:
            factor, point, spread = max(spreads, key=lambda s: s[0])
            parts.append(f"{what} changes a ratio by up to {times(factor)} ({spread_words(point, spread)})")
            most = max(most, factor)
    if not parts:
        return ""
    said = ", and ".join(parts)
    said = f"{said[0].upper()}{said[1:]}"
    between = max((ps[-1].ratio / ps[0].ratio for ps in looking(c).values()), default=None)
    if between is None:
        more = "more" if max(g.factor for g in gaps) > most else "less"
        return f"{said}: the method decides {more} than the calibration."
    which = "the calibration" if most > between else "the method"
    return (
        f"{said}. Among the methods that look at a text, the worst has up to {format_ratio(between)} times the perplexity of "
        f"the best: {which} decides more."
    )


def looking(c: Comparison) -> dict[float, list[Point]]:
    """Returns the points of methods that look at a text, where two or more have a ratio, the least damaged first."""
    found = {s: [p for p in points if p.text and math.isfinite(p.ratio)] for s, points in c.levels.items()}
    return {sparsity: points for sparsity, points in found.items() if len(points) > 1}


def times(factor: float) -> str:
    """Returns "2.5%" of 1.025, and "3.2 times" of 3.2."""
    return percent(factor - 1, 1) if factor < 2 else f"{short_factor(factor)} times"


def short_factor(value: float) -> str:
    """Returns a factor with three digits: 1.45, 14.2, 1,042."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def spread_words(point: Point, spread: Spread) -> str:
    names = f"{len(spread.names)} of {point.text}" if spread is point.draws else natural_list(spread.names)
    return f"`{point.method}` at {percent(point.sparsity)}: {format_ratio(spread.least)} to {format_ratio(spread.most)}, {names}"


def certainty(c: Comparison, gaps: Sequence[Gap]) -> str:
    """Returns how sure the comparison is, and on which text it rests."""
    sure = sum(g.certain for g in gaps)
    texts = list(dict.fromkeys(p.text for p in c.points if p.text))
    on = f" Calibration text: {natural_list(texts)}." if texts else ""
    several = " Those of different texts compare roughly." if len(texts) > 1 else ""
    one = [p for p in c.points if p.text and not p.draws]
    drawn = (
        f" {natural_list(f'`{m}`' for m in dict.fromkeys(p.method for p in one))} looked at one draw of it alone, so how "
        f"much another draw would change is not known of {'it' if len({p.method for p in one}) == 1 else 'them'}."
        if one
        else ""
    )
    return (
        f"{c.base}: of {pluralize(len(gaps), 'sparsity')} the worst method certainly loses more than the best in {sure} (the "
        f"paired 95% interval of the factor over the windows lies above 1, from {LEAST_WINDOWS} windows on).{on}{several}{drawn}"
    )


def data_rows(c: Comparison) -> list[dict[str, Any]]:
    """Returns one row for each point, by sparsity and then the least damaged first, and one for each random control."""
    rows = []
    for p in sorted(c.points, key=lambda p: (p.sparsity, p.ratio)):
        several = p.tickets > 1
        ends = [number(p.row, f"perplexity_ratio_{end}") for end in ("lo", "hi")]
        rows.append(
            {
                "kind": "ticket", "base": c.base, "protocol": c.protocol, "target": c.target, "setting": c.setting,
                "sparsity": p.sparsity, "method": p.method, "text": p.text, "tickets": p.tickets,
                "ratio": p.ratio if math.isfinite(p.ratio) else None,
                "lo": ends[0], "hi": ends[1], "band_lo": p.least if several and math.isfinite(p.least) else ends[0],
                "band_hi": p.most if several and math.isfinite(p.most) else ends[1], "draws": spread_row(p.draws), "texts": spread_row(p.texts),
                "run_id": p.row.get("run_id"),
                **{name: p.row.get(name) for name in ("layer_error", "calibrate_s", "prune_s", "control_ratio",
                                                      "control_ratio_lo", "control_ratio_hi", "beats_control")},
            }
        )  # fmt: skip
    for sparsity, (middle, least, most) in c.controls.items():
        rows.append(
            {
                "kind": "control", "base": c.base, "protocol": c.protocol, "target": c.target, "setting": c.setting,
                "sparsity": sparsity, "method": "random", "text": "", "tickets": 1, "ratio": middle, "lo": None, "hi": None,
                "band_lo": least, "band_hi": most, "draws": "", "texts": "",
            }
        )  # fmt: skip
    return rows


def spread_row(spread: Spread | None) -> str:
    """Returns "1.043 to 1.051 (3)" for a table, "" for no spread."""
    return f"{format_range([spread.least, spread.most])} ({len(spread.names)})" if spread else ""
