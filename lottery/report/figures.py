"""Each figure one function: a data frame in (as `results.rows` or an answer's data), a matplotlib Figure out.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and never alone: markers, lines and hatches differ too.
No pyplot: nothing is shown, and nothing is kept between two figures.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, PercentFormatter

Rows: TypeAlias = pd.DataFrame

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
INK, PALE, GRID = "#1f2328", "#6e7781", "#d8dee4"
HEAT = "cividis_r"  # made for colour-blind eyes; light where little is lost
WIDTH = 5.0  # inches: as wide as a phone shows it without making its words too small
QUANTIZED = {"none": "o", "int8": "s", "fp8": "D"}
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
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a base's name may be in any script
        yield


def word(text: Any) -> str:
    """A run's own word as a label: no control characters, which XML can't hold, and not one that a legend would hide."""
    plain = "".join(c if c.isprintable() else " " for c in str(text))
    return f"\u200b{plain}" if plain.startswith("_") else plain[:60]


def svg(figure: Figure) -> str:
    """The same bytes for the same data, to stand inside a page."""
    out = io.StringIO()
    with styled():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    with styled():
        figure.savefig(out, format="png", dpi=160, metadata={"Software": None})
    return out.getvalue()


def panels(heights: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """One under the other, each so many inches high: on a phone there is no room beside."""
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.15), layout="constrained")
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights))
    return figure, list(axes.flat)


def colours(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """name -> colour, marker, line: no two alike among 32."""
    found = dict.fromkeys(names)
    return {n: (COLOURS[i % 8], MARKERS[i % 8], LINES[i // 8 % 4]) for i, n in enumerate(found)}


def plain(x: float, _: Any = None) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:g}"


def ratio_axis(axes: Axes, values: Sequence[float]) -> None:
    """Logarithmic, with ticks that can be read: 1.05 and 1.1 where all are near 1, decades where they span some."""
    known = [v for v in values if math.isfinite(v) and v > 0]
    low, high = min([*known, 1.0]), max([*known, 1.0])
    pad = (high / low) ** 0.06
    axes.set_yscale("log")
    axes.set_ylim(low / pad, high * pad)
    axes.yaxis.set_major_locator(FixedLocator(ticks(low, high)))
    axes.yaxis.set_major_formatter(FuncFormatter(plain))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(FixedLocator([]))


def ticks(low: float, high: float) -> list[float]:
    """Five or so round numbers, evenly spread by their logarithm."""
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
    return round(x / 10 ** math.floor(math.log10(x) + 1e-9), 4)


def spaced(values: Sequence[float], places: int = 6) -> list[float]:
    """Of more sparsities than an axis can name, those that leave room."""
    found: list[float] = []
    room = (max(values) - min(values)) / places if len(values) > 1 else 0
    for v in sorted(values):
        if not found or v - found[-1] >= room * 0.75:
            found.append(v)
    return found


def split(rows: Rows, by: Any) -> list[tuple[Any, Rows]]:
    """Its parts in the order in which they come."""
    return list(rows.groupby(by, sort=False))


def of_tickets(rows: Rows, *needed: str) -> Rows:
    if "kind" in rows:
        rows = rows[rows["kind"] == "ticket"]
    return rows.dropna(subset=list(needed))


def legend(axes: Axes, handles: Sequence[Any], columns: int = 3, below: float = -0.2) -> None:
    """Below the axes, where it covers nothing; in as few columns as long words need."""
    longest = max((len(str(h.get_label())) for h in handles), default=0)
    axes.legend(handles=list(handles), loc="upper center", bbox_to_anchor=(0.5, below), columnspacing=1.2, handlelength=1.8,
                ncols=max(1, min(columns, 54 // (longest + 5))))  # fmt: skip


def cliff(rows: Rows, by: str = "target", crossings: Sequence[dict[str, Any]] = ()) -> Figure:
    """Ratio to the dense base against sparsity, with the 95% band of each curve; a panel a model (`by` target), or the
    models together (`by` base). `crossings`: where curves cross 1 + tolerance (an answer's data)."""
    rows = of_tickets(rows, "perplexity_ratio", "sparsity")
    with styled():
        parts = [(base, g) for base, g in split(rows, "base")] if by == "target" else [("", rows)]
        looks = colours(rows[by].unique())
        figure, all_axes = panels([3.5] * len(parts))
        # of many curves the numbers would lie on one another: they stand in the legend
        crowd = by == "base" and len(crossings) > 2
        at = {c["base"]: c["at"] for c in crossings if c.get("at") is not None} if crowd else {}
        for axes, (base, part) in zip(all_axes, parts, strict=True):
            tolerance = float(part["tolerance"].max()) if part["tolerance"].notna().any() else 0.1
            values, handles = [1.0, 1 + tolerance], []
            for name, curve in split(part, by):
                colour, marker, line = looks[name]
                points = curve.drop_duplicates("sparsity").sort_values("sparsity")
                first = {"sparsity": 0.0} | dict.fromkeys(
                    ("perplexity_ratio", "perplexity_ratio_lo", "perplexity_ratio_hi"), 1.0
                )
                if not (points["sparsity"] == 0).any() and (points["quantize"].fillna("none") == "none").all():
                    points = pd.concat([pd.DataFrame([first]), points])
                x, y = points["sparsity"], points["perplexity_ratio"]
                axes.fill_between(x, points["perplexity_ratio_lo"].fillna(y), points["perplexity_ratio_hi"].fillna(y),
                                  color=colour, alpha=0.22, linewidth=0)  # fmt: skip
                label = word(name)[:40] + (f": {at[name]:.1%}" if name in at else "")
                handles += axes.plot(x, y, color=colour, marker=marker, linestyle=line, label=label, markersize=5)
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
                axes.annotate(f"{c['at']:.1%}", (c["at"], 1 + c["tolerance"]), xytext=(-8, 16), textcoords="offset points",
                              ha="right", color=colour, fontweight="bold",
                              arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1})  # fmt: skip
            ratio_axis(axes, values)
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
            axes.set_xlabel("zeros among the targeted weights")
            axes.set_ylabel("perplexity / dense perplexity")
            axes.set_title(word(base) if by == "target" else "All models")
            if len(handles) > 1:
                legend(axes, handles, 4 if by == "target" else 2)
        return figure


def cells(axes: Axes, values: np.ndarray, palette: str, norm: Normalize) -> Any:
    """Coloured cells, the first row on top; drawn, not an image: sharp at any size, and nothing to fetch."""
    down, across = values.shape
    edges = np.arange(across + 1) - 0.5, np.arange(down + 1) - 0.5
    steps = matplotlib.colormaps[palette].resampled(48)  # of 50 and more the colour bar becomes an image
    mesh = axes.pcolormesh(*edges, np.ma.masked_invalid(values), edgecolors="white", linewidth=1, cmap=steps, norm=norm)
    axes.set_ylim(down - 0.5, -0.5)
    return mesh


def heat(axes: Axes, table: Rows, norm: Normalize, note: Callable[[float], str] = lambda v: short_ratio(v)) -> Any:
    """A table of ratios as coloured cells with their numbers; what is missing is hatched, and says so by its dash."""
    values = table.to_numpy(float)
    image = cells(axes, values, HEAT, norm)
    axes.grid(False)
    axes.set_xticks(range(table.shape[1]), [word(c) for c in table.columns])
    axes.set_yticks(range(table.shape[0]), [word(r)[:30] for r in table.index])
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


def short_ratio(value: float) -> str:
    return f"{value:.3f}" if value < 1.2 else f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def scale(values: Iterable[float], least: float = 1.05) -> LogNorm:
    known = [v for v in values if math.isfinite(v) and v > 0]
    return LogNorm(min([1.0, *known]), max([least, *known]))


def places(rows: Rows, norm: Normalize | None = None) -> Figure:
    """Target x sparsity: the ratio to dense as a heat map, a panel a model; the least damaged target on top. `norm`: the
    scale of colours, where several figures share it."""
    rows = of_tickets(rows, "perplexity_ratio", "sparsity")
    with styled():
        tables = []
        for base, part in split(rows, "base"):
            table = part.pivot_table("perplexity_ratio", "target", "sparsity", aggfunc="first")
            table = table.loc[np.log(table).mean(axis=1).sort_values(kind="stable").index]
            ranked = table.rank(method="first").mean(axis=1).sort_values(kind="stable").index
            if len(shared := table.columns[table.notna().sum() > 1]):  # what a cliff was refined at is of one target
                table = table[shared]
            table = table.loc[ranked].rename(columns=lambda s: f"{100 * s:g}%")
            tables.append((base, table))
        figure, all_axes = panels([0.9 + 0.36 * len(table) for _, table in tables])
        norm = norm or scale(rows["perplexity_ratio"])
        for axes, (base, table) in zip(all_axes, tables, strict=True):
            image = heat(axes, table, norm)
            axes.set_title(word(base))
            axes.set_xlabel("zeros among the targeted weights")
        bar(figure, image, all_axes, norm)
        return figure


def bar(figure: Figure, image: Any, axes: Sequence[Axes], norm: Normalize) -> None:
    bar = figure.colorbar(image, ax=list(axes), shrink=0.8, pad=0.02, label="ratio to dense")
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks(float(norm.vmin or 1), float(norm.vmax or 1))))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(plain))
    bar.ax.yaxis.set_minor_locator(FixedLocator([]))
    bar.outline.set_visible(False)


def layers(rows: Rows, norm: Normalize | None = None) -> Figure:
    """Component x layer: what one matrix group of one layer costs; a panel a model and sparsity. Rows are those whose
    targets are COMPONENT@LAYER. `norm`: the scale of colours, where several figures share it."""
    rows = of_tickets(rows, "perplexity_ratio")
    cells = rows["target"].str.extract(r"^(?P<component>[a-z0-9_]+)@(?P<layer>\d+)$")
    rows = rows.assign(**cells).dropna(subset=["component", "layer"])
    rows["layer"] = rows["layer"].astype(int)
    with styled():
        parts = split(rows, ["base", "sparsity"])
        deepest = max(int(rows["layer"].max()) + 1, 1)
        tall = max(part["component"].nunique() for _, part in parts)
        turned = deepest > 16  # layers downwards: a phone has more room there
        figure, all_axes = panels([0.9 + (0.24 * deepest if turned else 0.5 * tall)] * len(parts))
        norm = norm or scale(rows["perplexity_ratio"], 1.02)
        for axes, ((base, sparsity), part) in zip(all_axes, parts, strict=True):
            table = part.pivot_table("perplexity_ratio", "component", "layer", aggfunc="first")
            table = table.reindex(columns=range(int(part["layer"].max()) + 1))
            image = heat(axes, table.T if turned else table, norm)
            axes.set_title(f"{word(base)}, one at a time at {100 * sparsity:g}%")
            (axes.set_ylabel if turned else axes.set_xlabel)("layer")
        bar(figure, image, all_axes, norm)
        return figure


def ranking(rows: Rows) -> Figure:
    """Targets at one level, the least damaged on top, each with its 95% interval; a grey tie joins neighbours whose order
    is not certain. Rows are those of the answer "where", of one model and way of pruning."""
    with styled():
        parts = split(rows, ["base", "by", "level"])
        figure, all_axes = panels([0.8 + 0.27 * len(part) for _, part in parts])
        looks = colours(kind_of(t) for t in rows["target"])
        for axes, ((base, by, level), part) in zip(all_axes, parts, strict=True):
            part = part.sort_values("rank")
            for i, r in enumerate(part.to_dict("records")):
                colour, marker, _ = looks[kind_of(r["target"])]
                axes.errorbar(r["ratio"], i, xerr=[[max(r["ratio"] - r["lo"], 0)], [max(r["hi"] - r["ratio"], 0)]], color=colour,
                              marker=marker, capsize=3, linewidth=1.5)  # fmt: skip
                if i + 1 < len(part) and not r["before_next"]:
                    axes.plot([1.015, 1.015], [i, i + 1], color=PALE, linewidth=4, solid_capstyle="round", clip_on=False,
                              transform=axes.get_yaxis_transform())  # fmt: skip
            axes.set_yticks(range(len(part)), [word(t)[:30] for t in part["target"]])
            axes.set_ylim(len(part) - 0.5, -0.5)
            low, high = min(part["lo"].min(), 1.0), part["hi"].max()
            axes.set_xscale("log")
            pad = (high / low) ** 0.05
            axes.set_xlim(low / pad, high * pad)
            axes.xaxis.set_major_locator(FixedLocator(ticks(low, high)))
            axes.xaxis.set_major_formatter(FuncFormatter(plain))
            axes.xaxis.set_minor_locator(FixedLocator([]))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.axvline(1, color=PALE, linewidth=1)
            equal = (
                f"{100 * level:g}% of all weights gone" if by == "budget" else f"{100 * level:g}% of the target gone"
            )
            axes.set_title(f"{word(base)}: {equal}")
            axes.set_xlabel("perplexity / dense perplexity")
        return figure


def kind_of(target: str) -> str:
    """Of single layers the component: a colour each would be too many."""
    return target.split("@")[0] if re.fullmatch(r"\w+@\d+", target) else target


def pareto(rows: Rows) -> Figure:
    """Ratio to dense against bytes on disk, a panel a model; the staircase joins the tickets that no other beats in both.
    Shapes say 16 or 8 bits. Tickets of masks alone hold no weights, so they are left out where others are there."""
    rows = of_tickets(rows, "perplexity_ratio", "disk_bytes")
    with styled():
        parts = split(rows, "base")
        figure, all_axes = panels([3.6] * len(parts))
        for axes, (base, part) in zip(all_axes, parts, strict=True):
            whole = part[part["storage"].fillna("packed") != "mask"]
            part = whole if len(whole) else part
            targets = part["target"].where(~part["target"].str.contains("@"), "one layer")
            looks = colours(targets)
            for (target, quantize), g in split(part, [targets, part["quantize"].fillna("none")]):
                axes.scatter(g["disk_bytes"] / 1e6, g["perplexity_ratio"], s=42, marker=QUANTIZED.get(quantize, "X"),
                             facecolor=looks[target][0] if quantize == "none" else "white", edgecolor=looks[target][0],
                             linewidth=1.5, zorder=3)  # fmt: skip
            front = frontier(part)
            axes.step(
                front["disk_bytes"] / 1e6, front["perplexity_ratio"], where="post", color=INK, linewidth=1.1, zorder=2
            )
            ratio_axis(axes, list(part["perplexity_ratio"]))
            axes.set_xlabel("file, MB" + ("" if len(whole) else " (masks alone, the weights are the base's)"))
            axes.set_ylabel("perplexity / dense perplexity")
            axes.set_title(word(base))
            dots = [
                axes.plot([], [], marker="o", linestyle="", color=looks[t][0], label=word(t))[0]
                for t in dict.fromkeys(targets)
            ]
            shapes = [
                axes.plot([], [], marker=QUANTIZED.get(q, "X"), linestyle="", markerfacecolor=INK if q == "none" else "white",
                          color=INK, label="16 bits" if q == "none" else word(q))[0]
                for q in dict.fromkeys(part["quantize"].fillna("none"))
            ]  # fmt: skip
            step = axes.plot([], [], color=INK, linewidth=1.1, label="not beaten")
            legend(axes, [*dots, *shapes, *step], 4)
        return figure


def frontier(rows: Rows) -> Rows:
    """Those that no other is both smaller and better than, from the smallest on."""
    ordered = rows.sort_values(["disk_bytes", "perplexity_ratio"], kind="stable")
    return ordered[
        ordered["perplexity_ratio"] < ordered["perplexity_ratio"].astype(float).cummin().shift(fill_value=math.inf)
    ]


def speed(rows: Rows) -> Figure:
    """Decoding speed and memory of the tickets of ONE machine: a point with its quartiles, the dense model of the same
    process beside (`beside_tok_s`, `beside_bytes`), and what memory alone would allow.

    Raises ValueError for rows of two machines: their speeds do not compare.
    """
    rows = of_tickets(rows, "decode_tok_s")
    machines = list(dict.fromkeys(rows["hardware"].fillna(rows["device"])))
    if len(machines) != 1:
        raise ValueError(f"speeds of {len(machines)} machines: {', '.join(map(str, machines))}")
    rows = rows.reset_index(drop=True)
    several = rows["base"].nunique() > 1
    names = [
        word(f"{shorter(r['base'])}: {r['title']}" if several else r["title"])[:44] for r in rows.to_dict("records")
    ]
    with styled():
        figure, (decode, memory) = panels([1.3 + 0.27 * len(rows), 0.8 + 0.27 * len(rows)])
        place = np.arange(len(rows))
        low, high = (
            rows["decode_tok_s_lo"].fillna(rows["decode_tok_s"]),
            rows["decode_tok_s_hi"].fillna(rows["decode_tok_s"]),
        )
        handles: list[Any] = [
            decode.errorbar(rows["decode_tok_s"], place, xerr=[rows["decode_tok_s"] - low, high - rows["decode_tok_s"]], linestyle="",
                            marker="o", color=COLOURS[0], capsize=3, label="ticket [quartiles]")
        ]  # fmt: skip
        for column, label, marker, colour in (
            ("beside_tok_s", "dense, beside", "|", COLOURS[1]),
            ("decode_floor_tok_s", "memory's limit", ">", PALE),
        ):
            if column in rows and rows[column].notna().any():
                handles += decode.plot(rows[column], place, linestyle="", marker=marker, color=colour, markersize=9 if marker == "|" else 6,
                                       markeredgewidth=2 if marker == "|" else 1, label=label)  # fmt: skip
        known = np.concatenate(
            [rows[c].dropna() for c in ("decode_tok_s", "beside_tok_s", "decode_floor_tok_s") if c in rows]
        )
        if known.max() > 8 * known.min():
            decode.set_xscale("log")
            decode.xaxis.set_major_locator(FixedLocator(ticks(known.min(), known.max())))
            decode.xaxis.set_minor_locator(FixedLocator([]))
            decode.xaxis.set_minor_formatter(NullFormatter())
        else:
            decode.set_xlim(left=0)
        decode.xaxis.set_major_formatter(FuncFormatter(plain))
        decode.set_title(f"Decoding, tokens per second\n{word(machines[0])}")
        legend(decode, handles, 3, -0.14)
        memory.barh(
            place, rows["weights_bytes"] / 1e6, color=COLOURS[5], height=0.6, edgecolor=COLOURS[0], label="ticket"
        )
        if "beside_bytes" in rows and rows["beside_bytes"].notna().any():
            memory.plot(rows["beside_bytes"] / 1e6, place, linestyle="", marker="|", markersize=11, markeredgewidth=2, color=COLOURS[1],
                        label="dense, beside")  # fmt: skip
        memory.set_title("Weights in memory, MB")
        for axes in (decode, memory):
            axes.set_yticks(place, names)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
        return figure


def agreement(rows: Rows) -> Figure:
    """Kendall's tau between each two models, a panel a level, between brackets where its 95% interval holds 0; or of two
    models a line a level, with the interval. Rows are those of the answer "is it the same in every model"."""
    if rows[["a", "b"]].stack().nunique() == 2:
        return agreement_of_two(rows)
    with styled():
        parts = split(rows, ["by", "level", "cells", "setting"])
        bases = list(dict.fromkeys([*rows["a"], *rows["b"]]))
        figure, all_axes = panels([1.0 + 0.62 * len(bases)] * len(parts))
        for axes, ((by, level, of_layers, how), part) in zip(all_axes, parts, strict=True):
            table = pd.DataFrame(np.nan, index=bases, columns=bases)
            said: dict[tuple[int, int], tuple[float, str]] = {}
            for r in part.to_dict("records"):
                for a, b in ((r["a"], r["b"]), (r["b"], r["a"])):
                    table.loc[a, b] = r["tau"]
                    sure = r["lo"] > 0 or r["hi"] < 0
                    said[bases.index(a), bases.index(b)] = r["tau"], f"{r['tau']:.2f}" if sure else f"({r['tau']:.2f})"
            image = cells(axes, table.to_numpy(float), "PuOr", Normalize(-1, 1))
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0)
            axes.set_xticks(range(len(bases)), [shorter(b) for b in bases], rotation=30, ha="right")
            axes.set_yticks(range(len(bases)), [shorter(b) for b in bases])
            for (i, j), (tau, text) in said.items():
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
    return f"{equal}{', single layers' if cells else ''}{f', {word(how)}' if how else ''}"


def agreement_of_two(rows: Rows) -> Figure:
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
        axes.set_title(f"{shorter(rows['a'].iloc[0])} and {shorter(rows['b'].iloc[0])}")
        return figure


def shorter(base: str) -> str:
    return word(base.split("/")[-1])[:18]


def eight_bits(rows: Rows) -> Figure:
    """What 8 bits cost on top of pruning: the ratio to the same ticket in 16 bits against sparsity, paired 95% intervals.
    Rows are those of the answer."""
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
                                  color=colour, marker=QUANTIZED.get(kind.split()[0], "o"), capsize=3, linewidth=1.4, linestyle=LINES[i % 4],
                                  label=word(f"{kind}, {target}"))
                )  # fmt: skip
            axes.axhline(1, color=PALE, linewidth=1)
            axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4f}".rstrip("0").rstrip(".")))
            axes.set_xlabel("zeros among the targeted weights")
            axes.set_ylabel("perplexity in 8 / in 16 bits")
            axes.set_title(word(base))
            legend(axes, handles, 3)
        return figure


def sizes(rows: Rows) -> Figure:
    """Where the cliff is against how many weights a model has; shapes and colours are families. Rows are those of the
    answer "do bigger models hold better tickets"."""
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
                                            color=colour, marker=marker, capsize=3, linestyle="", label=word(family))  # fmt: skip
            axes.annotate(
                shorter(r["base"]), (r["parameters"], r["at"]), xytext=(7, 5), textcoords="offset points", fontsize=8.5
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


def apart(text: str, prefix: str) -> str:
    """An SVG whose ids are no other's in the same page."""
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\1{prefix}-", text)
