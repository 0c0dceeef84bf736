"""Numbers and lists as a sentence has them."""

from collections.abc import Iterable, Sequence


def percent(share: float, digits: int = 0) -> str:
    """As many digits as it takes, one at least where asked for."""
    text = f"{100 * share:.{max(digits, 2)}f}".rstrip("0").rstrip(".")
    return f"{100 * share:.{digits}f}%" if digits else f"{text}%"


def format_ratio(ratio: float) -> str:
    return f"{ratio:,.4f}" if ratio < 2 else f"{ratio:,.2f}" if ratio < 100 else f"{ratio:,.0f}"


def format_range(ratios: Sequence[float]) -> str:
    low, high = format_ratio(min(ratios)), format_ratio(max(ratios))
    return low if low == high else f"{low} to {high}"


def pluralize(n: int, what: str) -> str:
    many = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{n} {what if n == 1 else many}"


def natural_list(words: Iterable[str]) -> str:
    parts = list(words)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
