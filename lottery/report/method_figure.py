"""Draws what several methods make of one target: one curve per method, and the random tickets in grey."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lottery.report.style import (
    PALE,
    Rows,
    clean_label,
    colours,
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
    with styled():
        figure, (axes,) = panels([3.8])
        looks = colours(rows.loc[rows["kind"] == "ticket", "method"].unique())
        values, handles = [1.0], []
        for (kind, name), curve in split(rows, ["kind", "method"]):
            colour, marker, line = looks[name] if kind == "ticket" else (PALE, "x", ":")
            curve = curve[curve["ratio"].map(math.isfinite)].sort_values("sparsity")
            x, y = curve["sparsity"], curve["ratio"]
            low, high = curve["band_lo"].fillna(y), curve["band_hi"].fillna(y)
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            handles += axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=clean_label(name)[:40])
            mark_beyond(axes, x, y, colour)
            values += [*y, *low, *high]
        ratio_axis(axes, values)
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.set_xlabel("zeros among the targeted weights")
        axes.set_ylabel("perplexity / dense perplexity")
        axes.set_title(clean_label(rows["base"].iloc[0]))
        legend(axes, handles, 4)
        return figure
