"""The look of all figures: colours, axes, ticks, legends.

The colours are those of Okabe and Ito, which colour-blind readers can tell apart. Colour never stands alone: markers,
lines and hatches differ, too.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

Rows: TypeAlias = pd.DataFrame
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
INK, PALE, GRID = "#1f2328", "#6e7781", "#d8dee4"
TOP = 100.0  # the highest ratio to dense on an axis or a colour scale
WIDTH = 5.0  # inches: a phone shows this width with words that are large enough
QUANTIZED_MARKERS = {"none": "o", "int8": "s", "fp8": "D"}
STYLE: Any = {
    "svg.hashsalt": "lottery", "svg.fonttype": "none", "font.family": ["sans-serif"], "font.size": 10,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica", "Arial", "sans-serif"],
    "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
    "axes.edgecolor": PALE, "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 1.8,
    "lines.markersize": 5.5, "text.parse_math": False, "hatch.linewidth": 0.6,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a model's name may be in any script
        yield


def clean_label(text: Any) -> str:
    """Returns a run's text as a label. Control characters become blanks, since XML cannot hold them; a leading
    underscore gets an invisible character in front, since matplotlib hides such labels from a legend."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return f"\u200b{plain}" if plain.startswith("_") else plain[:60]


def panels(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one panel below the other, each as high as given (inches): a phone has no room side by
    side."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.15), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights))
    return figure, list(axes.flat)


def colours(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """Returns name -> (colour, marker, line). The first 32 are all different."""
    found = dict.fromkeys(names)
    return {n: (COLOURS[i % 8], MARKERS[i % 8], LINES[i // 8 % 4]) for i, n in enumerate(found)}


def format_tick(x: float, _: Any = None) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:g}"


def ratio_axis(axes: Axes, values: Sequence[float], least: float = 1.0, top: float = TOP) -> None:
    """Makes the y axis logarithmic with readable ticks: 1.05 and 1.1 if all values are near 1, decades if they span
    some. It ends at `top`: a ticket that is broken altogether would press all others onto the lower edge. `mark_beyond`
    shows what lies higher. The axis holds `least`."""
    known = [min(v, top) for v in values if math.isfinite(v) and v > 0]
    low, high = min([*known, least]), max([*known, least])
    pad = (high / low) ** 0.06
    axes.set_yscale("log")
    axes.set_ylim(low / pad, high * pad)
    axes.yaxis.set_major_locator(FixedLocator(ticks(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(format_tick))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(FixedLocator([]))


def mark_beyond(axes: Axes, x: Iterable[float], y: Iterable[float], colour: str) -> None:
    """Marks points above TOP with an arrow at the upper edge and their ratio."""
    for at, ratio in zip(x, y, strict=True):
        if ratio > TOP:
            edge = (at, 1.0)
            place: Any = axes.get_xaxis_transform()
            axes.plot(
                *edge, marker="^", color=colour, markersize=8, linestyle="", transform=place, clip_on=False, zorder=4
            )
            axes.annotate(short_ratio(ratio), edge, xycoords=place, xytext=(0, -7), textcoords="offset points", ha="center",
                          va="top", color=colour, fontsize=9)  # fmt: skip


def short_ratio(value: float) -> str:
    """Returns a ratio short enough for a cell: 1.039, 3.68, 2,332 or 5.8e6."""
    if value >= 10_000:
        return f"{value:.1e}".replace("e+0", "e")
    return f"{value:.3f}" if value < 1.2 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def ticks(low: float, high: float) -> list[float]:
    """Returns about five round numbers, evenly spread in their logarithm."""
    if high / low < 1.02:
        step = 10 ** math.floor(math.log10(max(high - low, 1e-6)))
        step = step if (high - low) / step < 6 else 2 * step
        return [round(i * step, 8) for i in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]
    fine = (1, 1.02, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 1.7, 2, 2.5, 3, 4, 5, 7)
    inside = [f * 10.0**d for d in range(-4, 9) for f in fine if low * 0.999 <= f * 10.0**d <= high * 1.001]
    for choice in (inside, [t for t in inside if lead(t) in (1, 1.1, 1.2, 1.5, 2, 3, 5)], [t for t in inside if lead(t) in (1, 2, 5)],
                   [t for t in inside if lead(t) in (1, 3)], [t for t in inside if lead(t) == 1]):  # fmt: skip
        if len(choice) <= 7:
            return choice
    return inside[:: math.ceil(len(inside) / 7)]


def lead(x: float) -> float:
    """Returns the leading digits of a number, from 1 to 10: 2.5 for 250."""
    return round(x / 10 ** math.floor(math.log10(x) + 1e-9), 4)


def split(rows: Rows, by: Any) -> list[tuple[Any, Rows]]:
    """Returns (key, rows) for each group, in the order in which the groups first come."""
    return list(rows.groupby(by, sort=False))


def of_tickets(rows: Rows, *needed: str) -> Rows:
    """Returns the tickets that have a value in each of the `needed` columns."""
    if "kind" in rows:
        rows = rows[rows["kind"] == "ticket"]
    return rows.dropna(subset=list(needed))


def legend(axes: Axes, handles: Sequence[Any], columns: int = 3, below: float = -0.2) -> None:
    """Puts the legend below the axes, where it covers nothing. Long labels get fewer columns."""
    longest = max((len(str(h.get_label())) for h in handles), default=0)
    axes.legend(handles=list(handles), loc="upper center", bbox_to_anchor=(0.5, below), columnspacing=1.2, handlelength=1.8,
                ncols=max(1, min(columns, 54 // (longest + 5))))  # fmt: skip


def short_name(base: str) -> str:
    return clean_label(base.split("/")[-1])[:18]
