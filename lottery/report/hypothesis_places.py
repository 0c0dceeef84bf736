"""Shows where the weights of a ticket sit: the density of each projection of each layer."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lottery.report.heatmaps import draw_cells
from lottery.report.hypothesis_record import Record, Row, density_text, trainings_of
from lottery.report.style import PALE, clean_label, panels, styled
from lottery.report.wording import natural_list, pluralize

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
PALETTE = "cividis_r"
EVEN = 0.15  # of the whole density: parts that differ by less are called even
MANY = 12  # layers beyond which cells have no number


def mean_densities(record: Record, row: Row) -> tuple[dict[tuple[int, str], float], int]:
    """Returns ((layer, projection) -> share of living weights, mean over seeds) and the number of seeds."""
    of_seed = {t["seed"]: t["densities"] for t in trainings_of(record, row) if t.get("densities")}
    found: dict[tuple[int, str], list[float]] = {}
    for densities in of_seed.values():
        for name, share in densities.items():
            layer, _, projection = name.partition(".")
            found.setdefault((int(layer), projection), []).append(share)
    return {place: sum(of) / len(of) for place, of in found.items()}, len(of_seed)


def plot_places(cells: Mapping[tuple[int, str], float], title: str) -> Figure:
    layers = sorted({layer for layer, _ in cells})
    known = [p for p in (*ATTENTION, *MLP) if any(p == name for _, name in cells)]
    names = known + sorted({name for _, name in cells} - set(known))
    values = np.array([[cells.get((layer, name), math.nan) for layer in layers] for name in names])
    with styled():
        figure, (axes,) = panels([1.0 + 0.36 * len(names)])
        norm = Normalize(0, float(np.nanmax(values)) or 1.0)
        image = draw_cells(axes, values, PALETTE, norm)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_yticks(range(len(names)), [clean_label(n)[:30] for n in names])
        for (i, j), value in np.ndenumerate(values):
            if not math.isfinite(value):
                axes.text(j, i, "-", ha="center", va="center", color=PALE)
            elif len(layers) <= MANY:
                colour = "white" if float(norm(value)) > 0.5 else "black"
                axes.text(j, i, f"{100 * value:.0f}%", ha="center", va="center", fontsize=9, color=colour)
        axes.set_xlabel("layer")
        axes.set_title(title)
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, format=PercentFormatter(1, 0))
        bar.outline.set_visible(False)
        return figure


def shares(record: Record, cells: Mapping[tuple[int, str], float]) -> dict[str, float]:
    """Returns the densities of attention, MLP, early and late layers, each matrix weighted by its number of weights."""
    setup, found = record["setup"], {}
    early = setup["layers"] // 2
    parts = {
        "attention": lambda layer, name: name in ATTENTION,
        "mlp": lambda layer, name: name in MLP,
        "early": lambda layer, name: layer < early,
        "late": lambda layer, name: layer >= early,
    }
    for part, is_in in parts.items():
        of = [(weights_in(setup, name), share) for (layer, name), share in cells.items() if is_in(layer, name)]
        if total := sum(n for n, _ in of):
            found[part] = sum(n * share for n, share in of) / total
    return found


def weights_in(setup: Mapping[str, Any], projection: str) -> int:
    return int(setup["width"] * (setup["inner"] if projection in MLP else setup["width"]))


def places_sentence(record: Record, row: Row, cells: Mapping[tuple[int, str], float], seeds: int, matches: bool) -> str:
    """Returns where the weights sit, and how that compares with what `lottery study locate` asks."""
    by = shares(record, cells)
    what = "the sparsest ticket that matches" if matches else "no ticket is known to match; this one came closest"
    how = "under one threshold for the whole network" if row["scope"] == "global" else "ranked within each matrix"
    said = [f"{density_text(by[part])} of `{part}`" for part in ("attention", "mlp", "early", "late") if part in by]
    return (
        f"`{row['arm']}` at {density_text(row['density'])} ({what}; mean of {pluralize(seeds, 'seed')}) keeps "
        f"{natural_list(said)}: {places_short(row, by)}. This is where the largest trained weights sit, {how}. "
        f"`lottery study locate` asks another question of a trained model: it prunes one of these parts at a time and "
        f"measures which one the model can lose. If both find the same place, the part that is densest here is hurt most there."
    )


def places_short(row: Row, by: Mapping[str, float]) -> str:
    """Returns in which part most and least of the weights live: "evenly" if all parts are within EVEN of the whole."""
    if not by or max(by.values()) - min(by.values()) <= EVEN * row["density"]:
        return "evenly"
    return f"most in `{max(by, key=lambda p: by[p])}`, least in `{min(by, key=lambda p: by[p])}`"
