"""Figures of coloured cells: targets against sparsity, components against layers, models against models."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from lottery.report.style import (
    COLOURS,
    GRID,
    PALE,
    TOP,
    Rows,
    clean_label,
    format_tick,
    of_tickets,
    panels,
    short_name,
    short_ratio,
    split,
    styled,
    ticks,
)

HEAT = "cividis_r"  # colour-blind readers can read it; light means that little is lost


def draw_cells(axes: Axes, values: np.ndarray, palette: str, norm: Normalize) -> Any:
    """Draws coloured cells, the first row on top. They are vector shapes, not an image: sharp at any size, in one
    file."""
    down, across = values.shape
    edges = np.arange(across + 1) - 0.5, np.arange(down + 1) - 0.5
    steps = matplotlib.colormaps[palette].resampled(
        48
    )  # with 50 steps or more, matplotlib makes the colour bar an image
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(values), edgecolors="white", linewidth=1, cmap=steps, norm=norm)
    axes.set_ylim(down - 0.5, -0.5)
    return mesh


def draw_heatmap(
    axes: Axes, table: Rows, norm: Normalize, note: Callable[[float], str] = lambda v: short_ratio(v)
) -> Any:
    """Draws a table of ratios as coloured cells with their numbers. A missing cell is hatched and has a dash."""
    values = table.to_numpy(float)
    image = draw_cells(axes, values, HEAT, norm)
    axes.grid(False)
    axes.set_xticks(range(table.shape[1]), [clean_label(c) for c in table.columns])
    axes.set_yticks(range(table.shape[0]), [clean_label(r)[:30] for r in table.index])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    size = 9 if table.shape[1] <= 8 else 7
    for (i, j), value in np.ndenumerate(values):
        if not math.isfinite(value):
            axes.add_patch(
                matplotlib.patches.Rectangle(
                    (j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor=GRID, linewidth=0
                )
            )
            axes.text(j, i, "-", ha="center", va="center", color=PALE, fontsize=size)
        elif table.shape[1] <= 16:
            dark = float(norm(value)) > 0.5
            axes.text(j, i, note(value), ha="center", va="center", color="white" if dark else "black", fontsize=size)
    return image


def colour_scale(values: Iterable[float], least: float = 1.05) -> LogNorm:
    known = [min(v, TOP) for v in values if math.isfinite(v) and v > 0]
    return LogNorm(min([1.0, *known]), max([least, *known]))


def plot_targets(rows: Rows, norm: Normalize | None = None) -> Figure:
    """Draws the ratio to dense of each target (rows) at each sparsity (columns), one panel per model, the least damaged
    target on top. `norm`: the colour scale, if several figures share it."""
    rows = of_tickets(rows, "perplexity_ratio", "sparsity")
    with styled():
        tables = []
        for base, part in split(rows, "base"):
            table = part.pivot_table("perplexity_ratio", "target", "sparsity", aggfunc="first")
            table = table.loc[np.log(table).mean(axis=1).sort_values(kind="stable").index]
            ranked = table.rank(method="first").mean(axis=1).sort_values(kind="stable").index
            if len(
                shared := table.columns[table.notna().sum() > 1]
            ):  # the sparsities of a refined cliff have one target each
                table = table[shared]
            table = table.loc[ranked].rename(columns=lambda s: f"{100 * s:g}%")
            tables.append((base, table))
        figure, all_axes = panels([0.9 + 0.36 * len(table) for _, table in tables])
        norm = norm or colour_scale(rows["perplexity_ratio"])
        for axes, (base, table) in zip(all_axes, tables, strict=True):
            image = draw_heatmap(axes, table, norm)
            axes.set_title(clean_label(base))
            axes.set_xlabel("zeros among the targeted weights")
        add_colorbar(figure, image, all_axes, norm)
        return figure


def add_colorbar(figure: Figure, image: Any, axes: Sequence[Axes], norm: Normalize) -> None:
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.02, label="ratio to dense")
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks(float(norm.vmin or 1), float(norm.vmax or 1))))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(format_tick))
    bar.ax.yaxis.set_minor_locator(FixedLocator([]))
    bar.outline.set_visible(False)


def plot_layers(rows: Rows, norm: Normalize | None = None) -> Figure:
    """Draws what pruning one component of one layer costs, components against layers, one panel per model and sparsity.
    Only rows whose target is COMPONENT@LAYER are drawn. `norm`: the colour scale, if several figures share it."""
    rows = of_tickets(rows, "perplexity_ratio")
    cells = rows["target"].str.extract(r"^(?P<component>[a-z0-9_]+)@(?P<layer>\d+)$")
    rows = rows.assign(**cells).dropna(subset=["component", "layer"])
    rows["layer"] = rows["layer"].astype(int)
    with styled():
        parts = split(rows, ["base", "sparsity"])
        deepest = max(int(rows["layer"].max()) + 1, 1)
        tall = max(part["component"].nunique() for _, part in parts)
        turned = deepest > 16  # many layers run downwards, where a phone has more room
        figure, all_axes = panels([0.9 + (0.24 * deepest if turned else 0.5 * tall)] * len(parts))
        norm = norm or colour_scale(rows["perplexity_ratio"], 1.02)
        for axes, ((base, sparsity), part) in zip(all_axes, parts, strict=True):
            table = part.pivot_table("perplexity_ratio", "component", "layer", aggfunc="first")
            table = table.reindex(columns=range(int(part["layer"].max()) + 1))
            image = draw_heatmap(axes, table.T if turned else table, norm)
            axes.set_title(f"{clean_label(base)}, one at a time at {100 * sparsity:g}%")
            (axes.set_ylabel if turned else axes.set_xlabel)("layer")
        add_colorbar(figure, image, all_axes, norm)
        return figure


def plot_agreement(rows: Rows) -> Figure:
    """Draws Kendall's tau between each two models, one panel per level; a value in brackets has a 95% interval that
    holds 0. For two models it draws one line per level, with the interval. `rows`: the data of the answer "is it the
    same in every model"."""
    if rows[["a", "b"]].stack().nunique() == 2:
        return plot_agreement_of_two(rows)
    with styled():
        parts = split(rows, ["by", "level", "cells", "setting"])
        bases = list(dict.fromkeys([*rows["a"], *rows["b"]]))
        figure, all_axes = panels([1.0 + 0.62 * len(bases)] * len(parts))
        for axes, ((by, level, of_layers, how), part) in zip(all_axes, parts, strict=True):
            table = pd.DataFrame(np.nan, index=bases, columns=bases)
            texts: dict[tuple[int, int], tuple[float, str]] = {}
            for r in part.to_dict("records"):
                for a, b in ((r["a"], r["b"]), (r["b"], r["a"])):
                    table.loc[a, b] = r["tau"]
                    texts[bases.index(a), bases.index(b)] = (
                        r["tau"],
                        f"{r['tau']:.2f}" if r["certain"] else f"({r['tau']:.2f})",
                    )
            image = draw_cells(axes, table.to_numpy(float), "PuOr", Normalize(-1, 1))
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xticks(range(len(bases)), [short_name(b) for b in bases], rotation=30, ha="right")
            axes.set_yticks(range(len(bases)), [short_name(b) for b in bases])
            for (i, j), (tau, text) in texts.items():
                colour = "white" if abs(tau) > 0.6 else "black"
                axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=colour)
            for i in range(len(bases)):
                axes.text(i, i, "same", ha="center", va="center", color=PALE, fontsize=8.5)
            axes.set_title(level_text(by, level, of_layers, how))
        bar = figure.colorbar(image, ax=all_axes, shrink=0.7, pad=0.02, label="Kendall's tau")
        bar.outline.set_visible(False)
        return figure


def level_text(by: str, level: float, cells: bool, how: str) -> str:
    equal = f"{100 * level:g}% of all weights" if by == "budget" else f"{100 * level:g}% of each target"
    return f"{equal}{', single layers' if cells else ''}{f', {clean_label(how)}' if how else ''}"


def plot_agreement_of_two(rows: Rows) -> Figure:
    with styled():
        figure, (axes,) = panels([1.1 + 0.4 * len(rows)])
        for i, r in enumerate(rows.to_dict("records")):
            axes.errorbar(r["tau"], i, xerr=[[r["tau"] - min(r["lo"], r["tau"])], [max(r["hi"], r["tau"]) - r["tau"]]], color=COLOURS[0],
                          marker="o", capsize=4)  # fmt: skip
        names = [level_text(r["by"], r["level"], r["cells"], r["setting"]) for r in rows.to_dict("records")]
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-1.05, 1.05)
        axes.axvline(0, color=PALE, linewidth=1)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["-1\nreversed", "-0.5", "0", "0.5", "1\nthe same"])
        axes.set_xlabel("Kendall's tau")
        axes.set_title(f"{short_name(rows['a'].iloc[0])} and {short_name(rows['b'].iloc[0])}")
        return figure
