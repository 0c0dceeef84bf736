"""Writes ratios and perplexities for people, with as many digits as their size deserves."""

import math
from collections.abc import Mapping

SIGNIFICANT = 4  # digits of a number of 2 or more; near 1, where a ratio begins, the digits after the point count


def decimals(value: float, most: int) -> int:
    """Returns how many digits after the point a number gets: `most` below 2, and fewer the larger it is. A negative
    count rounds to tens, hundreds and so on."""
    if not math.isfinite(value) or abs(round(value, most)) < 2:
        return most
    digits = min(most, SIGNIFICANT - 1 - math.floor(math.log10(abs(value))))
    # 9.9996 is 10.00 with the digits of 9, so it gets those of 10
    return min(digits, SIGNIFICANT - 1 - math.floor(math.log10(abs(round(value, digits)))))


def with_decimals(value: float, digits: int) -> str:
    return f"{round(value, digits):,.{max(digits, 0)}f}"


def format_number(value: float, most: int) -> str:
    """Returns a number with at most `most` digits after the point: 1.0392, 3.680, 24.64, 2,332 or 5,796,000."""
    return with_decimals(value, decimals(value, most))


def format_ratio(value: float) -> str:
    return format_number(value, 4)


def format_perplexity(value: float) -> str:
    return format_number(value, 2)


def format_ends(value: float, low: float, high: float, most: int) -> str:
    """Returns "1.0392 [1.0331, 1.0456]". The ends have the digits of the value, unless they are far smaller or larger."""
    digits = decimals(value, most)
    ends = (with_decimals(end, digits_of_end(digits, decimals(end, most))) for end in (low, high))
    return f"{with_decimals(value, digits)} [{', '.join(ends)}]"


def digits_of_end(digits: int, own: int) -> int:
    """Returns the digits of an interval's end, from those of the value and those that its own size deserves."""
    if own > digits + 1:
        return own - 1
    return own if own < digits - 1 else digits


def format_metric(metrics: Mapping[str, float], name: str, most: int) -> str:
    """Returns the metric `name` by its size, "" if there is none."""
    return format_number(metrics[name], most) if name in metrics else ""


def format_interval(metrics: Mapping[str, float], name: str, most: int) -> str:
    """Returns the metric `name` by its size, with the ends of its interval where it has one, "" if there is none."""
    if f"{name}_lo" not in metrics or f"{name}_hi" not in metrics:
        return format_metric(metrics, name, most)
    return format_ends(metrics[name], metrics[f"{name}_lo"], metrics[f"{name}_hi"], most) if name in metrics else ""


def format_speed(metrics: Mapping[str, float], name: str, digits: int = 0) -> str:
    """Returns a speed with `digits` digits after the point, and its quartiles where it has them, "" if there is none."""
    if name not in metrics:
        return ""
    ends = [f"{metrics[name + end]:,.{digits}f}" for end in ("_lo", "_hi") if name + end in metrics]
    return f"{metrics[name]:,.{digits}f}" + (f" [{', '.join(ends)}]" if ends else "")
