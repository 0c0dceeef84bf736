"""Draws the instability analysis: the barrier between two copies against the rewind point, the losses on the way, and
barriers from one level of pruning to the next."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from lottery.report.hypothesis_answers import order_barriers
from lottery.report.hypothesis_figures import density_axis
from lottery.report.hypothesis_record import Record, Row, arm_rank, density_text
from lottery.report.style import COLOURS, INK, LINES, MARKERS, PALE, clean_label, legend, panels, styled

LINEAR = 0.01  # nats: barriers below it are drawn on a linear scale, since some are 0 or less
MOST = 10  # lines in one figure


def barrier_figures(record: Record) -> dict[str, tuple[Figure, str]]:
    """Returns name -> (figure, caption) of the figures whose data the record has."""
    found: dict[str, tuple[Figure, str]] = {}
    if order := order_barriers(record):
        found["barrier"] = (plot_barriers(order), "Error barrier between two copies that leave step k with other orders of the data: "
                            "the highest loss on the straight line between their ends, minus the mean of the ends. Bars: least and greatest seed.")  # fmt: skip
    if lines := barrier_lines(record):
        found["line"] = (plot_lines(lines), f"Loss on the straight line between the two ends, of copies that leave k = "
                         f"{100 * lines[0]['rewind_share']:g}% of the steps. Mean over seeds.")  # fmt: skip
    if levels := level_barriers(record):
        found["levels"] = (plot_levels(levels), "Error barrier between the network of one round and that of the round before, at the "
                           "density of the sparser one. Mean over seeds.")  # fmt: skip
    return found


def barrier_looks(rows: Sequence[Row]) -> dict[tuple[str, float], tuple[str, str, str]]:
    """Returns (arm, density) -> look: a colour for each density, a marker and a line for each arm."""
    arms = sorted({r["arm"] for r in rows}, key=arm_rank)
    arms = [a for a in arms if a != "dense"]
    densities = sorted({round(r["density"], 6) for r in rows if r["arm"] != "dense"}, reverse=True)
    found = {("dense", round(r["density"], 6)): (INK, "o", "-") for r in rows if r["arm"] == "dense"}
    for i, arm in enumerate(arms):
        for j, density in enumerate(densities):
            colour = COLOURS[j % 8] if len(densities) > 1 else COLOURS[i % 8]
            found[arm, density] = (colour, MARKERS[(i + 1) % 8], LINES[i % 4])
    return found


def name_of(r: Row) -> str:
    return "dense" if r["arm"] == "dense" else clean_label(f"{r['arm']} {density_text(r['density'])}")


def by_line(rows: Sequence[Row]) -> list[list[Row]]:
    found: dict[tuple[str, float], list[Row]] = {}
    for r in rows:
        found.setdefault((r["arm"], round(r["density"], 6)), []).append(r)
    return list(found.values())[:MOST]


def plot_barriers(rows: Sequence[Row]) -> Figure:
    with styled():
        figure, (axes,) = panels([3.6])
        seen, handles = barrier_looks(rows), []
        for part in by_line(rows):
            colour, marker, line = seen[part[0]["arm"], round(part[0]["density"], 6)]
            x, y = [r["rewind_share"] for r in part], [r["barrier"] for r in part]
            spread = [[r["barrier"] - r["least"] for r in part], [r["most"] - r["barrier"] for r in part]]
            handles.append(axes.errorbar(x, y, yerr=spread, color=colour, marker=marker, linestyle=line, capsize=3, linewidth=1.6,
                                         label=name_of(part[0])))  # fmt: skip
        shares = sorted({r["rewind_share"] for r in rows})
        axes.set_xticks(shares)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}%"))
        pad = max(shares[-1] - shares[0], 0.02) * 0.12
        axes.set_xlim(shares[0] - pad, shares[-1] + pad)
        barrier_axis(axes, [r["barrier"] for r in rows])
        axes.set_xlabel("rewind point k, share of the steps")
        legend(axes, handles, 3)
        return figure


def barrier_axis(axes: Any, values: Sequence[float]) -> None:
    axes.set_yscale("symlog", linthresh=LINEAR)
    low, high = min(0.0, *values), max(LINEAR, *values)
    axes.set_ylim(1.3 * low - 0.001, 1.6 * high)
    axes.yaxis.set_major_locator(
        FixedLocator([t for t in (-0.1, -0.01, 0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3) if low <= t <= 1.6 * high])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.yaxis.set_minor_locator(FixedLocator([]))
    axes.axhline(0, color=PALE, linewidth=1)
    axes.set_ylabel("error barrier, nats a token")


def barrier_lines(record: Record) -> list[dict[str, Any]]:
    """Returns the mean line of each arm and density at the rewind point that most barriers have, the greatest of equals."""
    usual = [
        b for b in record["barriers"] if b["kind"] == "order" and b["line"] and b["steps"] == record["setup"]["steps"]
    ]
    if not usual:
        return []
    shares = [b["rewind_share"] for b in usual]
    chosen = max(set(shares), key=lambda s: (shares.count(s), s))
    found = []
    for part in by_line(
        sorted((b for b in usual if b["rewind_share"] == chosen), key=lambda b: (arm_rank(b["arm"]), -b["density"]))
    ):
        same = [b for b in part if [p[0] for p in b["line"]] == [p[0] for p in part[0]["line"]]]
        mean = [(at, sum(b["line"][i][1] for b in same) / len(same)) for i, (at, _) in enumerate(part[0]["line"])]
        found.append({**part[0], "line": mean})
    return found


def plot_lines(lines: Sequence[Row]) -> Figure:
    with styled():
        figure, (axes,) = panels([3.6])
        seen, handles = barrier_looks(lines), []
        for r in lines:
            colour, marker, line = seen[r["arm"], round(r["density"], 6)]
            handles += axes.plot(*zip(*r["line"], strict=True), color=colour, marker=marker, linestyle=line, markersize=4,
                                 linewidth=1.6, label=name_of(r))  # fmt: skip
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["one copy", "25%", "50%", "75%", "the other"])
        axes.set_xlabel("on the way from one copy to the other")
        axes.set_ylabel("loss, nats a token")
        legend(axes, handles, 3)
        return figure


def level_barriers(record: Record) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for b in record["barriers"]:
        if b["kind"] == "level" and b["barrier"] is not None and b["steps"] == record["setup"]["steps"]:
            found.setdefault((*arm_rank(b["arm"]), -b["rewind_share"], -round(b["density"], 6)), []).append(b)
    return [{**of[0], "barrier": sum(b["barrier"] for b in of) / len(of)} for _, of in sorted(found.items())]


def plot_levels(rows: Sequence[Row]) -> Figure:
    with styled():
        figure, (axes,) = panels([3.2])
        handles = []
        curves = list(dict.fromkeys((r["arm"], r["rewind_share"]) for r in rows))[:MOST]
        for i, (arm, share) in enumerate(curves):
            part = [r for r in rows if (r["arm"], r["rewind_share"]) == (arm, share)]
            handles += axes.plot([100 * r["density"] for r in part], [r["barrier"] for r in part], color=COLOURS[i % 8],
                                 marker=MARKERS[i % 8], label=clean_label(f"{arm}, k={100 * share:g}%"))  # fmt: skip
        barrier_axis(axes, [r["barrier"] for r in rows])
        density_axis(axes, [r["density"] for r in rows])
        legend(axes, handles, 3, -0.22)
        return figure
