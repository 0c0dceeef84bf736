"""Formats numbers and lists for sentences."""

from collections.abc import Iterable, Sequence

from lottery.measuring.numbers import format_ratio


def percent(share: float, digits: int = 0) -> str:
    """Returns a share in percent: with at most two digits after the point, or with exactly `digits` if that is not
    0."""
    text = f"{100 * share:.{max(digits, 2)}f}".rstrip("0").rstrip(".")
    return f"{100 * share:.{digits}f}%" if digits else f"{text}%"


def format_range(ratios: Sequence[float]) -> str:
    """Returns "1.0005 to 1.0015", or one number if both ends read the same."""
    low, high = format_ratio(min(ratios)), format_ratio(max(ratios))
    return low if low == high else f"{low} to {high}"


def pluralize(n: int, what: str) -> str:
    many = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{n} {what if n == 1 else many}"


def natural_list(words: Iterable[str]) -> str:
    """Returns "a, b and c"."""
    parts = list(words)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
