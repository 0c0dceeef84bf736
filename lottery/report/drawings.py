"""Draws the figures that belong to each answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lottery.report import figures, frames, grouping, heatmaps, rankings, rendering, results, tables
from lottery.report.answers import Answer
from lottery.report.images import Drawing
from lottery.report.method_figure import METHODS_CAPTION, plot_methods

MOST_CELLS = 24  # single layers in a ranking figure; the heat map shows more


@dataclass(frozen=True)
class Section:
    """One question with its answer, figures and table."""

    name: str
    answer: Answer
    drawings: list[Drawing]
    table: rendering.Table | None


def draw(
    drawn: dict[str, Figure], name: str, function: Callable[..., Figure], rows: pd.DataFrame, caption: str, *more: Any
) -> Drawing | None:
    """Draws a figure, puts it into `drawn` for the folder, and returns it for the page; None if no row has what it
    shows."""
    needs = {"size": "disk_bytes", "cliffs": "perplexity_ratio"} | dict.fromkeys(
        ("places", "layers"), "perplexity_ratio"
    )
    kind = name.split("-")[0]
    if rows.empty or (kind in needs and rows[["perplexity_ratio", needs[kind]]].dropna().empty):
        return None
    drawn[name] = function(rows, *more)
    return Drawing(name, caption, drawn[name])


def section(name: str, answer: Answer, found: results.Results, drawn: dict[str, Figure]) -> Section:
    data = pd.DataFrame(list(answer.data))
    made: list[Drawing | None] = []
    if answer.known and name == "cliff":
        made = cliff_drawings(answer, found, drawn)
    elif answer.known and name == "where":
        made = ranking_drawings(data, drawn)
    elif answer.known and name == "agreement":
        made = agreement_drawings(data, drawn)
    elif answer.known and name == "methods":
        made = [draw(drawn, n, plot_methods, part, METHODS_CAPTION) for n, part in split_by_model(name, data)]
    elif answer.known and name == "eight_bits":
        caption = "Perplexity of a ticket in 8 bits over that of the same ticket in 16, with paired 95% intervals."
        made = [draw(drawn, n, figures.plot_quantization, part, caption) for n, part in split_by_model(name, data)]
    elif answer.known:
        made = [
            draw(
                drawn,
                name,
                figures.plot_model_sizes,
                data,
                "Where the cliff is, with its band, against the size of the model.",
            )
        ]
    return Section(name, answer, [d for d in made if d], tables.answer_table(name, answer))


def cliff_drawings(answer: Answer, found: results.Results, drawn: dict[str, Figure]) -> list[Drawing | None]:
    """Draws the curves of each model. If there are several models, a figure of the curves that the answer is about
    comes first."""
    measured = grouping.keep_main_protocol(grouping.measured_tickets(frames.records(found.rows)))
    rows = pd.DataFrame(grouping.median_draws(measured))
    rows = rows[~rows["target"].str.fullmatch(rankings.SINGLE_LAYER)].reindex(columns=found.rows.columns)
    crossings = [c for c in answer.data if c["chief"]]
    # A model's curves are all of one way of pruning, that of the answer: two ways in one line would make a zigzag.
    ways = {c["base"]: c["setting"] for c in crossings}
    curves = {(c["base"], c["target"]) for c in answer.data if c["setting"] == ways[c["base"]]}
    rows = select_rows(
        rows,
        (
            (r["base"], r["target"]) in curves and grouping.setting(r, "seed") == ways[r["base"]]
            for r in frames.records(rows)
        ),
    )
    caption = "Ratio to the dense model's perplexity, with the 95% band of each curve; dashed: what a winner may lose; upright band: where the ends of the ratio's interval cross that."
    made: list[Drawing | None] = []
    chief = {(c["base"], c["target"]) for c in crossings}
    one = select_rows(rows, ((b, t) in chief for b, t in zip(rows["base"], rows["target"], strict=True)))
    if one["base"].nunique() > 1:
        made.append(draw(drawn, "cliffs", figures.plot_cliff, one, caption, "base", crossings))
    return made + [
        draw(drawn, n, figures.plot_cliff, part, caption, "target", crossings)
        for n, part in split_by_model("cliff", rows)
    ]


def select_rows(rows: pd.DataFrame, flags: Iterable[bool]) -> pd.DataFrame:
    """Returns the flagged rows. The flags become a Series, since pandas takes an empty list for a list of columns."""
    return rows[pd.Series(list(flags), rows.index, dtype=bool)]


def split_by_model(name: str, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Returns (name of the figure, rows) for each model. A page puts these figures side by side if it has room."""
    parts = [part for _, part in rows.groupby("base", sort=False)]
    return [(name if len(parts) == 1 else f"{name}-{i}", part) for i, part in enumerate(parts)]


def agreement_drawings(data: pd.DataFrame, drawn: dict[str, Figure]) -> list[Drawing | None]:
    """Draws one figure for two models; for more models, one figure per level that compares each two."""
    about = "Kendall's tau between the orders of the targets in each two models"
    if data[["a", "b"]].stack().nunique() == 2:
        caption = f"{about}, with its 95% interval from resampled windows."
        return [draw(drawn, "agreement", heatmaps.plot_agreement, data, caption)]
    caption = f"{about}; in brackets if it may be 0, by its 95% interval (see the table) or for want of windows."
    levels = data.groupby(["by", "level", "cells", "setting"], sort=False)
    return [draw(drawn, f"agreement-{i}", heatmaps.plot_agreement, part, caption) for i, (_, part) in enumerate(levels)]


def ranking_drawings(data: pd.DataFrame, drawn: dict[str, Figure]) -> list[Drawing | None]:
    """Draws a figure for each model, separately for equal budget and equal sparsity."""
    made = []
    data = data[data["setting"] == data["setting"].iloc[0]]
    for by, what in (("budget", "equal numbers of removed weights"), ("sparsity", "equal sparsity")):
        for cells in (False, True):
            part = data[(data["by"] == by) & (data["cells"] == cells)]
            for i, (_, of_base) in enumerate(part.groupby("base", sort=False)):
                if cells and of_base.groupby("level").size().max() > MOST_CELLS:
                    continue
                caption = (
                    f"{'Single layers' if cells else 'Targets'} at {what}, the least damaged on top, with 95% intervals. A grey "
                    f"bar at the right joins neighbours whose order is not certain."
                )
                name = f"ranking-{by}{'-layers' if cells else ''}-{i}"
                made.append(draw(drawn, name, figures.plot_ranking, of_base, caption))
    return made


def heatmap_drawings(drawn: dict[str, Figure], found: results.Results) -> list[Drawing | None]:
    """Draws heat maps of the tickets pruned in the default way: targets against sparsity, components against layers."""
    rows = grouping.keep_main_protocol(grouping.measured_tickets(frames.records(found.tickets)))
    usual = pd.DataFrame([r for r in rows if not grouping.setting(r)]).reindex(columns=found.rows.columns)
    equal = usual[usual["budget"].isna()]
    cells = equal["target"].astype(str).str.fullmatch(rankings.SINGLE_LAYER)
    made = []
    if equal[~cells]["target"].nunique() > 1:
        norm = heatmaps.colour_scale(equal[~cells]["perplexity_ratio"])  # one for all models
        caption = "Ratio to dense of each target at each sparsity: the darker, the more is lost. Hatched: not measured."
        made += [
            draw(drawn, n, heatmaps.plot_targets, part, caption, norm)
            for n, part in split_by_model("places", equal[~cells])
        ]
    if cells.any():
        norm = heatmaps.colour_scale(equal[cells]["perplexity_ratio"], 1.02)
        caption = "One component of one layer at a time: ratio to dense."
        made += [
            draw(drawn, n, heatmaps.plot_layers, part, caption, norm)
            for n, part in split_by_model("layers", equal[cells])
        ]
    return made
