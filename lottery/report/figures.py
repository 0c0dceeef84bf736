"""Figures of cliffs, rankings, 8 bits and model sizes. Each is one function from a data frame to a matplotlib Figure.

The data frame is `Results.rows` or an answer's data. pyplot is not used: no window opens, and no state is kept between
two figures.
"""

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

from lottery.report.style import (
    INK,
    LINES,
    PALE,
    QUANTIZED_MARKERS,
    TOP,
    Rows,
    clean_label,
    colours,
    format_tick,
    legend,
    mark_beyond,
    of_tickets,
    panels,
    ratio_axis,
    short_name,
    short_ratio,
    split,
    styled,
    ticks,
)

LOW = 0.35  # sparsity below which a crossing is labelled at its right


def plot_cliff(rows: Rows, by: str = "target", crossings: Sequence[dict[str, Any]] = ()) -> Figure:
    """Draws the ratio to dense against sparsity, with the 95% band of each curve: one panel per model (`by` target), or
    all models in one panel (`by` base, or another column that names curves). `crossings`: where curves cross 1 + tolerance (the data of the answer "how
    much")."""
    rows = of_tickets(rows, "perplexity_ratio", "sparsity")
    with styled():
        parts = [(base, g) for base, g in split(rows, "base")] if by == "target" else [("", rows)]
        looks = colours(rows[by].unique())
        figure, all_axes = panels([3.5] * len(parts))
        # the numbers of many curves would overlap, so they stand in the legend
        crowd = by == "base" and len(crossings) > 1
        at = {c["base"]: c["at"] for c in crossings if c.get("at") is not None} if crowd else {}
        for axes, (base, part) in zip(all_axes, parts, strict=True):
            tolerance = float(part["tolerance"].max()) if part["tolerance"].notna().any() else 0.1
            values, handles = [1.0, 1 + tolerance], []
            for name, curve in split(part, by):
                colour, marker, line = looks[name]
                points = curve_points(curve)
                x, y = points["sparsity"], points["perplexity_ratio"]
                axes.fill_between(x, points["perplexity_ratio_lo"].fillna(y), points["perplexity_ratio_hi"].fillna(y),
                                  color=colour, alpha=0.22, linewidth=0)  # fmt: skip
                label = clean_label(name)[:40] + (f": {at[name]:.1%}" if name in at else "")
                handles += axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=label, markersize=5)
                if by == "target":  # the marks of many models would lie on one another; their curves leave the panel
                    mark_beyond(axes, x, y, colour)
                values += [*y, *points["perplexity_ratio_lo"].dropna(), *points["perplexity_ratio_hi"].dropna()]
            axes.axhline(1 + tolerance, color=PALE, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.text(0.0, 1 + tolerance, f" {1 + tolerance:g}", va="bottom", ha="left", color=PALE, fontsize=9)
            for c in crossings:
                if c.get("at") is None or (by == "target" and c["base"] != base):
                    continue
                colour = looks[c[by]][0] if c.get(by) in looks else INK
                lo, hi = (c["lo"] if c["lo"] is not None else c["at"]), (c["hi"] if c["hi"] is not None else c["at"])
                axes.axvspan(lo, hi, ymax=0.5, color=colour, alpha=0.25, linewidth=0)
                if at:
                    continue
                # Left of a low crossing the label would cover the axis; at its right there is room below the curve.
                beside, side = ((26, 3), "left") if c["at"] < LOW else ((-8, 16), "right")
                axes.annotate(f"crosses at {c['at']:.1%}", (c["at"], 1 + c["tolerance"]), xytext=beside, textcoords="offset points",
                              ha=side, color=colour, fontweight="bold",
                              arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1})  # fmt: skip
            ratio_axis(axes, values)
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
            axes.set_xlabel("zeros among the targeted weights")
            axes.set_ylabel("perplexity / dense perplexity")
            axes.set_title(clean_label(base) if by == "target" else "All models")
            if len(handles) > 1:
                legend(axes, handles, 4 if by == "target" else 2)
        return figure


def curve_points(curve: Rows) -> Rows:
    """Returns the points of one curve by sparsity. It begins at the dense base, but not in 8 bits: these have a cost,
    too."""
    points = curve.drop_duplicates("sparsity").sort_values("sparsity")
    if (points["sparsity"] == 0).any() or (points["quantize"].fillna("none") != "none").any():
        return points
    ratios = ("perplexity_ratio", "perplexity_ratio_lo", "perplexity_ratio_hi")
    return pd.concat([pd.DataFrame([{"sparsity": 0.0} | dict.fromkeys(ratios, 1.0)]), points])


def plot_ranking(rows: Rows) -> Figure:
    """Draws the targets at each level, the least damaged on top, each with its 95% interval. A grey bar joins
    neighbours whose order is not certain. `rows`: the data of the answer "where", of one model and one way of
    pruning."""
    with styled():
        parts = split(rows, ["base", "by", "level"])
        figure, all_axes = panels([0.8 + 0.27 * len(part) for _, part in parts])
        looks = colours(component_of(t) for t in rows["target"])
        for axes, ((base, by, level), part) in zip(all_axes, parts, strict=True):
            part = part.sort_values("rank")
            for i, r in enumerate(part.to_dict("records")):
                colour, marker, _ = looks[component_of(r["target"])]
                if r["ratio"] > TOP:  # the axis ends there: see `ratio_axis`
                    edge: Any = axes.get_yaxis_transform()
                    axes.plot(1, i, marker=">", color=colour, markersize=8, transform=edge, clip_on=False)
                    axes.annotate(short_ratio(r["ratio"]), (1, i), xycoords=edge, xytext=(-8, 0), textcoords="offset points",
                                  ha="right", va="center", color=colour, fontsize=9)  # fmt: skip
                axes.errorbar(r["ratio"], i, xerr=[[max(r["ratio"] - r["lo"], 0)], [max(r["hi"] - r["ratio"], 0)]], color=colour,
                              marker=marker, capsize=3, linewidth=1.5)  # fmt: skip
                if i + 1 < len(part) and not r["before_next"]:
                    axes.plot([1.015, 1.015], [i, i + 1], color=PALE, linewidth=4, solid_capstyle="round", clip_on=False,
                              transform=axes.get_yaxis_transform())  # fmt: skip
            axes.set_yticks(range(len(part)), [clean_label(t)[:30] for t in part["target"]])
            axes.set_ylim(len(part) - 0.5, -0.5)
            low, high = min(part["lo"].min(), 1.0), min(part["hi"].max(), TOP)
            axes.set_xscale("log")
            pad = (high / low) ** 0.05
            axes.set_xlim(low / pad, high * pad)
            axes.xaxis.set_major_locator(FixedLocator(ticks(low, high)))
            axes.xaxis.set_major_formatter(FuncFormatter(format_tick))
            axes.xaxis.set_minor_locator(FixedLocator([]))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.axvline(1, color=PALE, linewidth=1)
            equal = (
                f"{100 * level:g}% of all weights gone" if by == "budget" else f"{100 * level:g}% of the target gone"
            )
            axes.set_title(f"{clean_label(base)}: {equal}")
            axes.set_xlabel("perplexity / dense perplexity")
        return figure


def component_of(target: str) -> str:
    """Returns the component of a single layer's target, else the target: one colour per layer would be too many
    colours."""
    return target.split("@")[0] if re.fullmatch(r"\w+@\d+", target) else target


def plot_quantization(rows: Rows) -> Figure:
    """Draws what 8 bits cost on top of pruning: the ratio to the same ticket in 16 bits against sparsity, with paired
    95% intervals. `rows`: the data of the answer "what do 8 bits cost"."""
    with styled():
        parts = split(rows, "base")
        figure, all_axes = panels([2.9] * len(parts))
        for axes, (base, part) in zip(all_axes, parts, strict=True):
            looks = colours([f"{q} {t}" for q, t in zip(part["arithmetic"], part["target"], strict=True)])
            handles = []
            for i, ((kind, target), g) in enumerate(split(part, ["arithmetic", "target"])):
                g = g.sort_values("sparsity")
                colour = looks[f"{kind} {target}"][0]
                handles.append(
                    axes.errorbar(g["sparsity"] + 0.004 * i, g["ratio"], yerr=[(g["ratio"] - g["lo"]).clip(0), (g["hi"] - g["ratio"]).clip(0)],
                                  color=colour, marker=QUANTIZED_MARKERS.get(kind.split()[0], "o"), capsize=3, linewidth=1.4, linestyle=LINES[i % 4],
                                  label=clean_label(f"{kind}, {target}"))
                )  # fmt: skip
            axes.axhline(1, color=PALE, linewidth=1)
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
            ratio_axis(axes, [*part["ratio"], *part["lo"], *part["hi"]])
            axes.set_xlabel("zeros among the targeted weights")
            axes.set_ylabel("perplexity in 8 / in 16 bits")
            axes.set_title(clean_label(base))
            legend(axes, handles, 3)
        return figure


def plot_model_sizes(rows: Rows) -> Figure:
    """Draws where the cliff is against the number of weights of the model; markers and colours show families. `rows`:
    the data of the answer "do bigger models hold better tickets"."""
    rows = rows.dropna(subset=["at", "parameters"])
    with styled():
        figure, (axes,) = panels([3.2])
        looks = colours(rows["family"].fillna("").replace("", "unknown"))
        handles: dict[str, Any] = {}
        for r in rows.to_dict("records"):
            family = r["family"] or "unknown"
            low, high = (r[end] if pd.notna(r[end]) else r["at"] for end in ("lo", "hi"))
            colour, marker, _ = looks[family]
            handles[family] = axes.errorbar(r["parameters"], r["at"], yerr=[[max(r["at"] - low, 0)], [max(high - r["at"], 0)]],
                                            color=colour, marker=marker, capsize=3, linestyle="", label=clean_label(family))  # fmt: skip
            axes.annotate(
                short_name(r["base"]),
                (r["parameters"], r["at"]),
                xytext=(7, 5),
                textcoords="offset points",
                fontsize=8.5,
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: weights_text(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.margins(0.2)
        axes.set_xlabel("weights of the model")
        axes.set_ylabel("cliff: zeros at which it is reached")
        legend(axes, list(handles.values()), 4)
        return figure


def weights_text(x: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:g}{unit}"
    return f"{x:g}"
