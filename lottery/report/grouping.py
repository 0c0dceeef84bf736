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
    unusual += calibration_words(row)
    unusual += (
        [row["source"]] if isinstance(row.get("source"), str) else []
    )  # it was pruned from another ticket: results.with_source
    return " ".join([*unusual, *(["seed " + f"{number(row, 'seed') or 0:g}"] if row.get("method") == "random" else [])])


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
