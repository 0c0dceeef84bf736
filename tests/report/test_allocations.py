"""The report of tickets whose layers lost different shares."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import Result

from tests.support.models import tiny_model
from tests.support.studies import MEASURED, runs, write


def test_a_report_shows_what_each_layer_lost(cli: Callable[..., Result], tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "m")
    (tmp_path / "mine.yaml").write_text("early: 0.2\nlate: 0.65\n")  # the model has three layers, two of them late
    grid = [{"allocation": ["uniform", "alpha", str(tmp_path / "mine.yaml")]}]
    study = write(tmp_path, "spread", models=str(model), method="magnitude", grid=grid)
    cli("study", study, *MEASURED, "--out", tmp_path / "r")
    page = (tmp_path / "r" / "index.html").read_text(encoding="utf-8")
    assert "What each layer lost" in page and (tmp_path / "r" / "figures" / "allocations.svg").exists()
    figure = (tmp_path / "r" / "figures" / "allocations.svg").read_text(encoding="utf-8")
    assert ">20%<" in figure and ">65%<" in figure and "all 50% mine.yaml" in figure and "all 50% alpha" in figure
    rows = list(csv.DictReader((tmp_path / "r" / "tables" / "tickets-0.csv").open(encoding="utf-8")))
    assert {row["title"]: row["allocation"] for row in rows if row["kind"] == "ticket"} == {
        "all 50%": "uniform", "all 50% alpha": "alpha", "all 50% mine.yaml": str(tmp_path / "mine.yaml"),
    }  # fmt: skip
    run = next(r for r in runs("params.allocation = 'alpha'") if r.data.params["model"] == str(model))
    local = mlflow.MlflowClient().download_artifacts(run.info.run_id, "layers.json", str(tmp_path))
    shares = json.loads(Path(local).read_text())["shares"]
    assert sum(shares.values()) / 3 == pytest.approx(0.5, abs=1e-3) and len(set(shares.values())) == 3


def test_a_file_of_an_allocation_is_named_by_its_whole_path(cli: Callable[..., Result], tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A task of a cluster works in another folder."""
    (tmp_path / "mine.yaml").write_text("all: 0.5\n")
    study = write(tmp_path, "spread", models="builtin", grid=[{"allocation": "mine.yaml"}])
    monkeypatch.chdir(tmp_path)
    plan = json.loads(cli("study", study, "--dry-run", "--json").stdout)
    assert [p["params"]["allocation"] for p in plan["tickets"]] == [str(tmp_path / "mine.yaml")]
    (tmp_path / "mine.yaml").write_text("all: 0.6\n")
    assert "its mean over the targeted weights is 0.6" in cli("study", study, "--dry-run", code=2).stderr
