"""Groups rows by model, protocol and the way of pruning, so that only tickets that compare are compared."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from lottery.spec import calibration_words, short_base

Row: TypeAlias = Mapping[str, Any]
Item = TypeVar("Item")
SETTING = {
    "method": "magnitude",
    "scope": "layer",
    "allocation": "uniform",
    "pattern": "unstructured",
    "quantize": "none",
}


def number(row: Row, name: str) -> float | None:
    """Returns a finite value as a float, or None."""
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def setting(row: Row, *without: str) -> str:
    """Returns how a ticket was made, as words for what differs from the defaults; "" for the defaults. Parameters named
    in `without` do not count."""
    words = [short_base(str(row.get(name, default))) for name, default in SETTING.items() if name not in without]
    defaults = [default for name, default in SETTING.items() if name not in without]
    unusual = [w for w, d in zip(words, defaults, strict=True) if w not in (d, "nan", "None")]
    unusual += calibration_words(
        {name: value for name, value in row.items() if name == "method" or name not in without}
    )
    unusual += (
        [row["source"]] if isinstance(row.get("source"), str) else []
    )  # it was pruned from another ticket: results.with_source
    return " ".join(unusual)


def median_draws(rows: Iterable[Row]) -> list[Row]:
    """Returns one ticket for all that differ in their seed alone: the one of the median ratio to dense, of an even number
    the worse of the two in the middle. Rows that are no tickets stay."""
    rows = list(rows)

    def key(r: Row) -> tuple[Any, ...]:
        place = (
            r["base"],
            r["protocol"],
            r.get("target"),
            number(r, "sparsity"),
            number(r, "budget"),
            number(r, "tolerance"),
        )
        files = (str(r.get("calibration")), str(r.get("allocation")))  # of which `setting` has the names alone
        return (*place, setting(r, "seed"), *files)

    kept: set[int] = set()
    for members in group_by((r for r in rows if r.get("kind") == "ticket"), key).values():
        kept.add(id(median_ticket(members)))
    return [r for r in rows if r.get("kind") != "ticket" or id(r) in kept]


def median_ticket(rows: Iterable[Row]) -> Row:
    """Returns the ticket of the median ratio to dense; one that was measured twice counts once."""
    ordered = sorted(distinct_tickets(rows), key=lambda r: number(r, "perplexity_ratio") or math.inf)
    return ordered[len(ordered) // 2]


def distinct_tickets(rows: Iterable[Row]) -> list[Row]:
    """Returns the first row of each ticket."""
    return [members[0] for members in group_by(rows, lambda r: r.get("ticket") or r.get("run_id")).values()]


def group_by(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    """Returns key -> items, both in the order in which they come."""
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def measured_tickets(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r.get("kind") == "ticket" and number(r, "perplexity_ratio") is not None]


def keep_main_protocol(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows of one protocol per model, that of most rows: numbers of two protocols are never compared."""
    kept = []
    for of_base in group_by(rows, lambda r: r["base"]).values():
        most = Counter(r["protocol"] for r in of_base).most_common(1)[0][0]
        kept += [r for r in of_base if r["protocol"] == most]
    return kept
