"""Figures of what tickets cost and save: bytes on disk, speed, memory."""

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

from lottery.measuring.hardware import machine_of
from lottery.report.style import (
    COLOURS,
    INK,
    PALE,
    QUANTIZED_MARKERS,
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
    split,
    styled,
    ticks,
)

RUNTIME_LOOKS = {"dense": ("o", COLOURS[0]), "packed": ("s", COLOURS[3]), "sparse": ("D", COLOURS[2])}


def plot_pareto(rows: Rows) -> Figure:
    """Draws the ratio to dense against bytes on disk, one panel per model. A staircase joins the tickets that no other
    ticket beats in both; markers show 16 or 8 bits. Tickets that store masks only hold no weights, so they are left out
    if the model has other tickets."""
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
                axes.scatter(g["disk_bytes"] / 1e6, g["perplexity_ratio"], s=42, marker=QUANTIZED_MARKERS.get(quantize, "X"),
                             facecolor=looks[target][0] if quantize == "none" else "white", edgecolor=looks[target][0],
                             linewidth=1.5, zorder=3)  # fmt: skip
                mark_beyond(axes, g["disk_bytes"] / 1e6, g["perplexity_ratio"], looks[target][0])
            front = frontier(part)
            axes.step(
                front["disk_bytes"] / 1e6, front["perplexity_ratio"], where="post", color=INK, linewidth=1.1, zorder=2
            )
            ratio_axis(axes, list(part["perplexity_ratio"]))
            axes.set_xlabel("file, MB" + ("" if len(whole) else " (masks alone, the weights are the base's)"))
            axes.set_ylabel("perplexity / dense perplexity")
            axes.set_title(clean_label(base))
            dots = [
                axes.plot([], [], marker="o", linestyle="", color=looks[t][0], label=clean_label(t))[0]
                for t in dict.fromkeys(targets)
            ]
            shapes = [
                axes.plot([], [], marker=QUANTIZED_MARKERS.get(q, "X"), linestyle="", markerfacecolor=INK if q == "none" else "white",
                          color=INK, label="16 bits" if q == "none" else clean_label(q))[0]
                for q in dict.fromkeys(part["quantize"].fillna("none"))
            ]  # fmt: skip
            step = axes.plot([], [], color=INK, linewidth=1.1, label="not beaten")
            legend(axes, [*dots, *shapes, *step], 4)
        return figure


def frontier(rows: Rows) -> Rows:
    """Returns the rows than which no other is both smaller and better, the smallest first."""
    ordered = rows.sort_values(["disk_bytes", "perplexity_ratio"], kind="stable")
    return ordered[
        ordered["perplexity_ratio"] < ordered["perplexity_ratio"].astype(float).cummin().shift(fill_value=math.inf)
    ]


def plot_speed(rows: Rows) -> Figure:
    """Draws decoding speed and memory of the tickets of ONE machine: for each ticket a point with its quartiles, whose
    marker shows the runtime, the dense model of the same process (`beside_tok_s`, `beside_bytes`), and the speed that
    memory alone would allow.

    Raises ValueError for rows of two machines: their speeds do not compare.
    """
    rows = of_tickets(rows, "decode_tok_s")
    machines = list(dict.fromkeys(rows["hardware"].fillna(rows["device"]).map(machine_of)))
    if len(machines) != 1:
        raise ValueError(f"speeds of {len(machines)} machines: {', '.join(map(str, machines))}")
    rows = rows.reset_index(drop=True)
    several = rows["base"].nunique() > 1
    names = [
        clean_label(f"{short_name(r['base'])}: {r['title']}" if several else r["title"])[:44]
        for r in rows.to_dict("records")
    ]
    with styled():
        figure, (decode, memory) = panels([1.3 + 0.27 * len(rows), 0.8 + 0.27 * len(rows)])
        draw_decoding(decode, rows, f"Decoding, tokens per second\n{clean_label(machines[0])}")
        draw_memory(memory, rows)
        for axes in (decode, memory):
            axes.set_yticks(np.arange(len(rows)), names)
            axes.set_ylim(len(rows) - 0.4, -0.6)
            axes.grid(axis="y", visible=False)
        return figure


def draw_decoding(axes: Axes, rows: Rows, title: str) -> None:
    place = np.arange(len(rows))
    speed = rows["decode_tok_s"]
    low, high = rows["decode_tok_s_lo"].fillna(speed), rows["decode_tok_s_hi"].fillna(speed)
    runtimes = rows["runtime"].fillna("dense")
    handles: list[Any] = []
    for runtime in dict.fromkeys(runtimes):
        of = (runtimes == runtime).to_numpy()
        marker, colour = RUNTIME_LOOKS.get(runtime, ("X", INK))
        label = "ticket [quartiles]" if runtimes.nunique() == 1 else f"ticket, {clean_label(runtime)} [quartiles]"
        handles.append(axes.errorbar(speed[of], place[of], xerr=[(speed - low)[of], (high - speed)[of]], linestyle="",
                                     marker=marker, color=colour, capsize=3, label=label))  # fmt: skip
    for column, label, marker, colour in (
        ("beside_tok_s", "dense model, beside", "|", COLOURS[1]),
        ("decode_floor_tok_s", "memory's limit", ">", PALE),
    ):
        if column in rows and rows[column].notna().any():
            handles += axes.plot(rows[column], place, linestyle="", marker=marker, color=colour, markersize=9 if marker == "|" else 6,
                                 markeredgewidth=2 if marker == "|" else 1, label=label)  # fmt: skip
    known = np.concatenate(
        [rows[c].dropna() for c in ("decode_tok_s", "beside_tok_s", "decode_floor_tok_s") if c in rows]
    )
    if known.max() > 8 * known.min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks(known.min(), known.max())))
        axes.xaxis.set_minor_locator(FixedLocator([]))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(FuncFormatter(format_tick))
    axes.set_title(title)
    legend(axes, handles, 3, -0.14)


def draw_memory(axes: Axes, rows: Rows) -> None:
    place = np.arange(len(rows))
    axes.barh(place, rows["weights_bytes"] / 1e6, color=COLOURS[5], height=0.6, edgecolor=COLOURS[0], label="ticket")
    if "beside_bytes" in rows and rows["beside_bytes"].notna().any():
        axes.plot(rows["beside_bytes"] / 1e6, place, linestyle="", marker="|", markersize=11, markeredgewidth=2, color=COLOURS[1],
                  label="dense model, beside")  # fmt: skip
    axes.set_title("Weights in memory, MB")
