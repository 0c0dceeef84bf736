"""Which tickets may be compared: rows grouped by model, protocol and how they were pruned."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

Row: TypeAlias = Mapping[str, Any]
Item = TypeVar("Item")
SETTING = {"method": "magnitude", "scope": "layer", "pattern": "unstructured", "quantize": "none"}


def number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def setting(row: Row, *without: str) -> str:
    """What is not as usual of how a ticket was made; "" for the usual."""
    words = [str(row.get(name, default)) for name, default in SETTING.items() if name not in without]
    defaults = [default for name, default in SETTING.items() if name not in without]
    unusual = [w for w, d in zip(words, defaults, strict=True) if w not in (d, "nan", "None")]
    unusual += [row["source"]] if isinstance(row.get("source"), str) else []  # another ticket (results.with_source)
    return " ".join([*unusual, *(["seed " + f"{number(row, 'seed') or 0:g}"] if row.get("method") == "random" else [])])


def group_by(items: Iterable[Item], key: Callable[[Item], Any]) -> dict[Any, list[Item]]:
    found: dict[Any, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def measured_tickets(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r.get("kind") == "ticket" and number(r, "perplexity_ratio") is not None]


def keep_main_protocol(rows: Iterable[Row]) -> list[Row]:
    """Of each model only the tickets of one protocol, that of most of them: numbers of two are never compared."""
    kept = []
    for of_base in group_by(rows, lambda r: r["base"]).values():
        most = Counter(r["protocol"] for r in of_base).most_common(1)[0][0]
        kept += [r for r in of_base if r["protocol"] == most]
    return kept
