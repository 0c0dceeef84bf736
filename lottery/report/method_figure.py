"""Draws what several methods make of one target: one curve per method, and the random tickets in grey."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, PercentFormatter

from lottery.report.style import (
    PALE,
    Rows,
    clean_label,
    colours,
    lead,
    legend,
    mark_beyond,
    panels,
    ratio_axis,
    split,
    styled,
)

METHODS_CAPTION = (
    "Ratio to the dense model's perplexity by method. Band: from the least to the greatest of a method's draws and texts, "
    "where several were measured (the line is the median of the draws), else the 95% interval. Grey: random tickets of the "
    "same size."
)


def plot_methods(rows: Rows) -> Figure:
    """Draws the ratio to dense against sparsity, a curve for each method. `rows`: the data of the answer "how much of the
    ticket was the method", of one model."""
    methods, controls = rows[rows["kind"] == "ticket"], rows[rows["kind"] == "control"]
    parts = [rows]
    if len(controls) and is_far(methods, controls):  # on one axis the methods would be one line
        parts = [controls, methods]
    with styled():
        figure, all_axes = panels([1.3, 3.4] if len(parts) > 1 else [3.8])
        looks = colours(methods["method"].unique())
        handles: list[Any] = []
        for axes, part in zip(all_axes, parts, strict=True):
            handles += plot_curves(axes, part, looks, apart=part is controls)
            axes.set_xlim(*widened(rows["sparsity"]))
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
            if part is controls:  # a low panel has room for few ticks, and the axis below names its sparsities
                axes.tick_params(labelbottom=False)
                shown = list(axes.yaxis.get_major_locator()())
                axes.yaxis.set_major_locator(FixedLocator([t for t in shown if lead(t) in (1, 2, 5)] or shown[::3]))
        figure.supylabel("perplexity / dense perplexity", fontsize=10)
        all_axes[0].set_title(clean_label(rows["base"].iloc[0]))
        all_axes[-1].set_xlabel("zeros among the targeted weights")
        legend(all_axes[-1], handles, 4)
        return figure


def is_far(methods: Rows, controls: Rows) -> bool:
    """Returns whether the random tickets lie farther from the methods than these from each other."""
    highest, lowest = methods["ratio"].max(), methods["ratio"].min()
    return bool(controls["ratio"].min() / highest > max(highest / lowest, 2))


def plot_curves(axes: Axes, rows: Rows, looks: Mapping[str, tuple[str, str, str]], apart: bool) -> list[Any]:
    """Draws one curve for each method and for the random tickets, with bands. Returns the lines. The axis of random
    tickets that stand apart holds these alone, however broken they are."""
    handles, values = [], []
    for (kind, name), curve in split(rows, ["kind", "method"]):
        colour, marker, line = looks[name] if kind == "ticket" else (PALE, "x", ":")
        curve = curve.dropna(subset=["ratio"]).sort_values("sparsity")
        x, y = curve["sparsity"], curve["ratio"]
        low, high = curve["band_lo"].fillna(y), curve["band_hi"].fillna(y)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        handles += axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=clean_label(name)[:40])
        values += [*y, *low, *high]
        if not apart:
            mark_beyond(axes, x, y, colour)
    ratio_axis(axes, values, *((min(values), math.inf) if apart else ()))
    return handles


def widened(sparsity: Any) -> tuple[float, float]:
    low, high = float(sparsity.min()), float(sparsity.max())
    pad = max(high - low, 0.1) * 0.05
    return low - pad, high + pad
