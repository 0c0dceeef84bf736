"""Draws a hypothesis: loss against density, and curves of training. Each function returns a matplotlib Figure."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from lottery.report.hypothesis_record import (
    BEFORE,
    CONTROLS,
    LATER,
    TICKETS,
    Record,
    Row,
    arm_rank,
    best_rows,
    curves,
    density_text,
    is_usual,
    label,
    longer_dense,
    middle,
    times_text,
    trainings_of,
)
from lottery.report.style import COLOURS, INK, LINES, MARKERS, PALE, clean_label, legend, panels, styled

CLIP = 1.5  # nats above dense: what is worse is shown at the upper edge, with its loss
ASIDE = 1.04  # the greatest factor between two arms of one density alone, which stand side by side
MOST = 8  # curves in one figure
EARLY = 0.15  # share of the steps after which curves of training are drawn: before it all of them fall alike


def usual_rows(record: Record) -> list[Row]:
    """Returns the best rows of the setup's own number of steps and scope, of each arm at the rewind point that most of
    its rows have."""
    found = []
    rows = [r for r in best_rows(record) if is_usual(record, r) and not (r["arm"] == "dense" and r["rewind"])]
    for arm in dict.fromkeys(r["arm"] for r in rows):
        of_arm = [r for r in rows if r["arm"] == arm]
        shares = [r["rewind_share"] for r in of_arm]
        share = max(set(shares), key=lambda s: (shares.count(s), s))
        found += [r for r in of_arm if r["rewind_share"] == share]
    return found


def figures_of(record: Record) -> dict[str, tuple[Figure, str]]:
    """Returns name -> (figure, caption) of all figures of losses whose data the record has."""
    usual, every = usual_rows(record), [r for r in best_rows(record) if r["arm"] != "dense"]
    ticket = [r for r in usual if r["arm"] == TICKETS[0]] or [r for r in usual if r["arm"] == TICKETS[1]]
    band = "On the report text, each arm at the best of the rates that it was trained at, with its 95% interval. Dashed: the dense network by its number of steps; thin: an n-gram model. Arms of one density alone stand side by side."
    parts = {
        "loss": ([r for r in usual if r["arm"] in (*TICKETS, *CONTROLS)], f"Loss against density: the ticket and its controls. {band}"),
        "before": ([r for r in every if r["arm"] in BEFORE and r["steps"] == record["setup"]["steps"]], f"Masks that are found before or early in training, beside the ticket. {band}"),
        "later": ([r for r in usual if r["arm"] in LATER], f"Other ways to spend the same trainings, beside the ticket. {band}"),
        "variants": ([r for r in every if r["arm"] in TICKETS and not any(r is u for u in usual)],
                     f"The ticket from other rewind points, at other lengths of training and scopes. {band}"),
    }  # fmt: skip
    found = {}
    for name, (rows, caption) in parts.items():
        rows = rows if name == "loss" else [*ticket, *rows] if rows else []
        if rows:
            found[name] = (plot_losses(record, rows), caption)
    if lines := training_lines(record, usual):
        at = density_text(middle_density(usual))
        caption = (f"Curves of training at {at}: loss on the search text against the step, at each arm's best rate, mean over seeds. "
                   f"The first {EARLY:.0%} of the steps are left out.")  # fmt: skip
        found["curves"] = (plot_training(record, lines), caption)
    return found


def looks(rows: Sequence[Row], record: Record) -> dict[str, tuple[str, str, str]]:
    """Returns label -> (colour, marker, line). A method has one colour: dashed where its mask is shuffled, dotted where it
    ranks another scope."""
    rows = sorted(rows, key=lambda r: arm_rank(r["arm"]))
    bases = list(dict.fromkeys(base_of(record, r) for r in rows))
    found = {}
    for r in rows:
        i = bases.index(base_of(record, r))
        look = (COLOURS[i % MOST], MARKERS[i % MOST], LINES[i // MOST % 4])
        if r["arm"] in BEFORE and r["scope"] != record["setup"]["scope"]:
            look = (look[0], "+", ":")
        elif r["arm"].endswith("-shuffled"):
            look = (look[0], "x", "--")
        found[label(record, r)] = look
    return found


def base_of(record: Record, r: Row) -> str:
    """Returns what shares a colour: a method before training with its twins, else an arm as it is labelled."""
    return r["arm"].removesuffix("-shuffled") if r["arm"] in BEFORE else label(record, r)


def plot_losses(record: Record, rows: Sequence[Row]) -> Figure:
    """Draws one curve for each arm of the rows, against a logarithmic axis of density that begins at the dense network."""
    with styled():
        figure, (axes,) = panels([4.4])
        seen = looks(rows, record)
        dense = next((r["loss"] for r in longer_dense(record) if r["steps"] == record["setup"]["steps"]), None)
        top = (dense if dense is not None else min(r["loss"] for r in rows)) + CLIP
        lines = curves(rows)
        handles, single, step = [], 0, step_aside(lines)
        for c in lines:
            handles.append(
                draw_curve(axes, record, c, seen[label(record, c[0])], top, step**single if len(c) == 1 else 1.0)
            )
            single += len(c) == 1
        highest = draw_levels(axes, record, rows, top)
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(max(high, highest), top))
        density_axis(axes, [r["density"] for r in rows])
        axes.set_ylabel("loss, nats a token")
        legend(axes, handles, 3, -0.17)
        return figure


def step_aside(lines: Sequence[Sequence[Row]]) -> float:
    """Returns the factor by which arms of one density alone stand to the left of each other: all of them closer to their
    own density than to the next one."""
    single = [c[0]["density"] for c in lines if len(c) == 1]
    if len(single) < 2:
        return 1.0
    denser = min((r["density"] for c in lines for r in c if r["density"] > max(single) + 1e-6), default=1.0)
    return min(ASIDE, (denser / max(single)) ** (0.4 / (len(single) - 1)))


def draw_curve(
    axes: Axes, record: Record, curve: Sequence[Row], look: tuple[str, str, str], top: float, aside: float
) -> Any:
    """Draws one arm with its band, `aside` times its densities; a curve of one point has an error bar. Returns the line for
    the legend."""
    colour, marker, line = look
    x, y = [100 * r["density"] * aside for r in curve], [r["loss"] for r in curve]
    low = [r["lo"] if r["lo"] is not None else r["loss"] for r in curve]
    high = [r["hi"] if r["hi"] is not None else r["loss"] for r in curve]
    if len(curve) > 1:
        axes.fill_between(x, low, [min(h, top) for h in high], color=colour, alpha=0.15, linewidth=0)
    elif y[0] <= top:
        axes.errorbar(x, y, yerr=[[y[0] - low[0]], [high[0] - y[0]]], color=colour, capsize=3, linewidth=1.2)
    chief = curve[0]["arm"] in TICKETS
    (handle,) = axes.plot(x, y, color=colour, marker=marker, linestyle=line, linewidth=2.4 if chief else 1.5,
                          label=clean_label(label(record, curve[0])), zorder=3 if chief else 2)  # fmt: skip
    for at, loss in zip(x, y, strict=True):
        if loss > top:
            axes.annotate(f"{loss:.2f}", (at, 1), xycoords=("data", "axes fraction"), xytext=(0, -4), textcoords="offset points",
                          ha="center", va="top", color=colour, fontsize=9)  # fmt: skip
    return handle


def draw_levels(axes: Axes, record: Record, rows: Sequence[Row], top: float) -> float:
    """Draws the dense network's losses and the n-gram model's as lines across, named at the dense end. Returns the highest
    of them that is drawn."""
    usual, highest = record["setup"]["steps"], -math.inf
    levels = [("dense" + (f", {times_text(r['steps'], usual)}" if r["steps"] != usual else ""), r["loss"], INK, 1.2)
              for r in longer_dense(record)]  # fmt: skip
    ngram = record["text"].get("ngram") or {}
    if ngram.get("report") is not None:
        levels.append((f"{ngram['order']}-gram", ngram["report"], PALE, 0.8))
    for name, loss, colour, width in levels:
        if loss > top:
            continue
        axes.axhline(loss, color=colour, linewidth=width, linestyle=(0, (5, 3)) if colour == INK else "-", zorder=1)
        axes.annotate(name, (0, loss), xycoords=("axes fraction", "data"), xytext=(13 if colour == INK else 3, 2), textcoords="offset points",
                      fontsize=8.5, color=colour)  # fmt: skip
        if colour == INK:
            axes.plot([100], [loss], color=colour, marker="o", markersize=4, zorder=3)
        highest = max(highest, loss)
    return highest


def density_axis(axes: Axes, densities: Sequence[float]) -> None:
    """Makes the x axis logarithmic, from the dense network at the left to the sparsest at the right."""
    axes.set_xscale("log")
    least = 100 * min(densities)
    axes.set_xlim(100 * 1.08, least / 1.12)
    inside = sorted({round(100 * d, 4) for d in densities} | {100.0}, reverse=True)
    shown: list[float] = []
    apart = math.log(100 / least) / 9 if least < 100 else 1.0
    for t in inside:
        if not shown or math.log(shown[-1] / t) >= apart:
            shown.append(t)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: density_text(x / 100)))
    axes.xaxis.set_minor_locator(FixedLocator([]))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("density: prunable weights that live")


def middle_density(rows: Sequence[Row]) -> float:
    """Returns the middle density of the ticket, or of whatever was pruned."""
    pruned = [r for r in rows if r["arm"] != "dense"]
    mine = [r for r in pruned if r["arm"] in TICKETS]
    shared = [d for d in {r["density"] for r in mine} if any(is_at(r, d) and r["arm"] not in TICKETS for r in pruned)]
    return middle(shared or [r["density"] for r in mine or pruned or rows])


def is_at(r: Row, density: float) -> bool:
    return math.isclose(r["density"], density, abs_tol=1e-6)


def before_last(r: Row) -> tuple[Any, ...]:
    return (r["arm"] in BEFORE, arm_rank(r["arm"]))


def training_lines(record: Record, usual: Sequence[Row]) -> list[tuple[Row, list[tuple[int, float]]]]:
    """Returns (row, [(step, search loss)]) of dense and at most seven arms at the middle density, each at its best rate."""
    if not usual:
        return []
    density = middle_density(usual)
    chosen = [
        r for r in usual if r["arm"] == "dense" or (is_at(r, density) and r["arm"] in (*TICKETS, *CONTROLS, *BEFORE))
    ]
    drawn = [(r, mean_curve(trainings_of(record, r), EARLY * r["steps"])) for r in sorted(chosen, key=before_last)]
    return [(r, points) for r, points in drawn if points][:MOST]


def mean_curve(trainings: Sequence[Row], start: float) -> list[tuple[int, float]]:
    """Returns (step, mean search loss) at the steps from `start` on that every training has measured."""
    seen = [{int(step): search for step, _, search in t["curve"] or [] if search is not None} for t in trainings]
    if not seen:
        return []
    common = sorted(set.intersection(*(set(s) for s in seen)))
    return [(step, sum(s[step] for s in seen) / len(seen)) for step in common if step >= start]


def plot_training(record: Record, lines: Sequence[tuple[Row, list[tuple[int, float]]]]) -> Figure:
    with styled():
        figure, (axes,) = panels([3.8])
        arms = [r for r, _ in lines if r["arm"] != "dense"]
        seen, handles = looks(arms, record), []
        for r, points in lines:
            colour, marker, line = (INK, "", "--") if r["arm"] == "dense" else seen[label(record, r)]
            handles += axes.plot(*zip(*points, strict=True), color=colour, marker=marker, linestyle=line, markersize=4,
                                 markevery=max(1, len(points) // 6), linewidth=1.5,
                                 label=clean_label(f"{label(record, r)}, rate {r['lr']:g}"))  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("step")
        axes.set_ylabel("search loss, nats a token")
        legend(axes, handles, 2, -0.2)
        return figure
