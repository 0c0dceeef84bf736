"""A report names tickets as their study does."""

import csv
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from lottery.registry import store
from lottery.report import cliffs, frames, results


def study(folder: Path, name: str, grid: str, limit: int = 3) -> Path:
    """A study of the embedded model on its own text."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nmodels: [builtin]\ndataset: builtin\nlimit: {limit}\nregister: none\nmeasure: perplexity\ngrid:\n{grid}"
    )
    return path


def test_a_ticket_stands_under_the_name_that_its_study_has_for_it(cli: Callable[..., Result], tmp_path: Path) -> None:
    """It may be found, made under another; and two parts may be one ticket."""
    cli("prune", "--target", "all@late", "--sparsity", "0.5", "--dataset", "builtin", "--limit", "3", "--measure",
        "perplexity", "--register", "none")  # fmt: skip
    asked = ["late", "attention+mlp", "all"]
    cli(
        "study",
        study(tmp_path, "names", f"  - {{target: [{', '.join(asked)}], sparsity: 0.5}}\n"),
        "--out",
        tmp_path / "r",
    )
    rows = results.load(store.connect(), "names").tickets
    assert list(rows["target"]) == asked and list(rows["title"]) == [f"{t} 50%" for t in asked]
    assert rows["ticket"].nunique() == 2
    ranked = list(csv.DictReader((tmp_path / "r" / "tables" / "where.csv").open()))
    assert {row["target"] for row in ranked} == set(asked)


def test_a_study_of_single_layers_has_a_report(cli: Callable[..., Result], tmp_path: Path) -> None:
    path = study(tmp_path, "cells", "  - {target: q_proj@7, sparsity: [0.5, 1], tolerance: 2}\n")
    said = cli("study", path, "--out", tmp_path / "r").stdout
    assert "all of `q_proj@7` can go: the ticket without it would win" in said
    assert "no ticket is 200% over the dense model's perplexity." in said
    path = study(
        tmp_path,
        "curves",
        "  - {target: mlp, sparsity: 0.5}\n  - {target: all, sparsity: [0.05, 0.7], quantize: int8}\n",
    )
    cli("study", path, "--out", tmp_path / "c")
    assert (tmp_path / "c" / "index.html").exists()


def test_tickets_of_a_ticket_stand_apart(cli: Callable[..., Result], tmp_path: Path) -> None:
    common = ("--dataset", "builtin", "--limit", "3", "--measure", "perplexity", "--tolerance", "0.7")
    cli("prune", "--target", "early", "--sparsity", "0.7", *common, "--register", "sources")
    for model in ("models:/sources/1", "builtin"):
        cli("prune", "--model", model, "--target", "all", "--sparsity", "0.3", *common, "--register", "none")
    cli("prune", "--target", "all", "--sparsity", "0.2", *common, "--register", "none")
    frame = results.search_tickets("params.target = 'all' and params.tolerance = '0.7'")
    assert sorted(frame["title"]) == ["all 20%", "all 30%", "all 30% of models:/sources/1"]
    (curve,) = cliffs.find_cliffs(frames.records(frame))
    assert curve.tickets == 2 and curve.setting == ""


def test_scripts_of_earlier_versions_find_the_tickets() -> None:
    from lottery import results as door
    from lottery.report.results import search_tickets

    assert door.tickets is search_tickets
