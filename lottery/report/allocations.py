"""Draws what each layer of a ticket lost, where its layers lost different shares."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from lottery.report import results
from lottery.report.drawings import Drawing, draw, split_by_model
from lottery.report.heatmaps import draw_heatmap
from lottery.report.style import Rows, clean_label, panels, styled

MOST_TICKETS = 12  # in one figure
CAPTION = "The share of its targeted weights that each layer was asked to lose, of tickets whose layers lose different shares."


def allocation_drawings(drawn: dict[str, Figure], found: results.Results) -> list[Drawing]:
    """Draws one figure for each model. Artifacts are read of those tickets alone whose layers may differ."""
    tickets = found.tickets
    uneven = tickets[~tickets["allocation"].isin(["uniform", ""]) & tickets["allocation"].notna()]
    cells = [
        {"base": base, "title": title, "layer": layer, "share": share}
        for run_id, base, title in zip(uneven["run_id"], uneven["base"], uneven["title"], strict=True)
        for layer, share in found.layer_shares(run_id).items()
    ]
    rows = pd.DataFrame(cells, columns=["base", "title", "layer", "share"])
    made = [draw(drawn, name, plot_allocations, part, CAPTION) for name, part in split_by_model("allocations", rows)]
    return [d for d in made if d]


def plot_allocations(rows: Rows) -> Figure:
    """Draws layers downwards and tickets across, as a phone has room for them."""
    with styled():
        table = rows.pivot_table("share", "layer", "title", aggfunc="first", sort=False).sort_index()
        table = table.iloc[:, :MOST_TICKETS]
        figure, (axes,) = panels([1.6 + 0.24 * len(table)])
        known = table.to_numpy(float)
        norm = Normalize(np.nanmin(known), np.nanmax(known))
        image = draw_heatmap(axes, table, norm, lambda share: f"{100 * share:.0f}%")
        axes.set_xticks(range(table.shape[1]), [clean_label(t) for t in table.columns], rotation=30, ha="right")
        axes.set_title(clean_label(rows["base"].iloc[0]))
        axes.set_ylabel("layer")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, label="share of the layer's weights removed")
        bar.ax.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
        bar.outline.set_visible(False)
        return figure
