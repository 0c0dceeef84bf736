"""The search for where a ticket stops being one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.models.checkpoint import BUILTIN
from lottery.registry.parts import part_key
from lottery.study.bisection import find_bracket, next_sparsity
from tests.support.models import tiny_model
from tests.support.studies import MEASURED, QUICK, runs, write


def test_cliff_is_known_to_one_point(lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]) -> None:
    # on the embedded model: of a random one every ratio is 1
    command = ("study", "cliff", "--measure", "perplexity", "--limit", 4, "--register", "none")
    found = lottery_json(*command)
    (cliff,) = found["cliffs"]
    ratios = {float(r["params"]["sparsity"]): r["metrics"]["perplexity_ratio"] for r in found["tickets"][1:]}
    assert (cliff["below"], cliff["above"]) == (0.48, 0.49)  # pinned; seen by a scan of every point, too
    assert ratios[0.48] <= 1.1 < ratios[0.49] and ratios[0.0] == 1.0
    assert list(ratios) == [
        0,
        0.3,
        0.4,
        0.45,
        0.48,
        0.49,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]  # in order, the grid's seven and four more
    assert mlflow.get_run(found["run_id"]).data.metrics["cliff_builtin_all"] == pytest.approx(0.485)
    said = cli(*command)
    about = "cliff of all, builtin: not judged: 4 of 54 windows, an estimate; the ratio to dense crosses 1.1 between 48.00% and"
    assert about in said.stdout and "made" not in said.stderr
    assert said.stdout.count("| not judged: 4 of 54 windows |") == 11 and " 0 winners" not in said.stdout
    upper = {float(r["params"]["sparsity"]): r["metrics"]["perplexity_ratio_hi"] for r in found["tickets"][1:]}
    within = max(sparsity for sparsity, end in upper.items() if end <= 1.1)
    assert within < 0.48 and f"How much can be cut? {within:.0%} (an estimate, not judged)" in said.stdout


def test_the_line_of_a_cliff_names_the_sparsest_winner(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    grid = [{"target": "attention", "sparsity": ["0.3", "0.9"], "refine": "0.5"}]
    common = ("--measure", "perplexity", "--register", "none", "--dataset", "builtin")
    path = write(tmp_path, "won", models=["builtin"], grid=grid)
    command = ("study", path, *common, "--out", "none")
    tickets = lottery_json(*command)["tickets"]
    won = [r["params"]["sparsity"] for r in tickets if r["tags"].get("winner") == "yes"]
    said = cli(*command).stdout
    assert (
        won
        and f"cliff of attention, builtin: {max(map(float, won)):.2%} wins; the ratio to dense crosses 1.1 between"
        in said
    )


def test_the_line_of_a_cliff_that_was_not_reached(cli: Callable[..., Result], tiny: Path, tmp_path: Path) -> None:
    """Of a random model every ratio is about 1: up to the highest sparsity that was measured nothing crosses."""
    grid = [{"target": "all", "sparsity": ["0.3", "0.6"], "refine": "0.3"}]
    path = write(tmp_path, "flat", models=[str(tiny)], grid=grid)
    said = cli("study", path, *QUICK).stdout
    about = "cliff of all, tiny: not judged: 3 of 218 windows, an estimate; the ratio to dense does not reach 1.1 up to 90.00%"
    assert about in said and "beyond" not in said


@settings(max_examples=200, deadline=None)
@given(st.floats(0.0, 1.0), st.sampled_from([0.01, 0.02, 0.05, 0.003]), st.sets(st.integers(0, 99), max_size=8))
def test_bisection_against_a_scan(true: float, width: float, grid: set[int]) -> None:
    """Whatever the grid: the crossing of a rising ratio lies in the end between two points as near as was asked."""

    def ratio(sparsity: float) -> float:
        return 1.0 if sparsity <= true else 2.0

    points = {i / 100: ratio(i / 100) for i in grid}
    asked = 0
    while (sparsity := next_sparsity(*find_bracket(points, 1.1), width)) is not None:
        assert sparsity not in points
        points[sparsity] = ratio(sparsity)
        asked += 1
        assert asked < 20
    below, above = find_bracket(points, 1.1)
    assert below <= true <= above and above - below <= width * 1.0001


def test_an_overflow_is_beyond_the_cliff() -> None:
    assert find_bracket({0.0: 1.0, 0.5: float("nan"), 0.7: 1.0}, 1.1) == (0.0, 0.5)
    assert find_bracket({}, 1.1) == (0.0, 1.0) and find_bracket({0.3: 1.0}, 1.1) == (0.3, 1.0)


def test_a_search_that_nobody_made_is_missing(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    grid = [{"target": "all", "sparsity": ["0.2", "0.6"], "refine": "0.1"}]
    path = write(tmp_path, "searched", models=[str(tiny)], grid=grid)
    for part in ("ticket-0", "ticket-1"):
        lottery_json("study", path, *QUICK, "--part", part)
    found = json.loads(cli("study", path, *QUICK, "--part", "report", "--json", code=1).stdout)
    assert [(r["title"], r["state"]) for r in found["tickets"]] == [
        ("dense", "missing"), ("all 20%", "made"), ("all 60%", "made"), ("all: search", "missing"),
    ]  # fmt: skip
    assert "it ended between 60.00% and 100.00%" in found["tickets"][3]["reason"]
    assert (
        set(mlflow.get_run(found["run_id"]).data.metrics) == {"tickets", "failed"} and not found["cliffs"][0]["known"]
    )


def test_a_model_that_changed_is_searched_anew(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tmp_path: Path
) -> None:
    """What was searched for the old one counts no more; the command, the report and a cluster's last job agree."""
    model = tmp_path / "model"
    shutil.copytree(BUILTIN, model)
    grid = [{"target": "all", "sparsity": ["0.5", "0.6"], "refine": "0.03"}]
    path = write(tmp_path, "changing", models=[str(model)], grid=grid)
    first = lottery_json("study", path, *MEASURED, "--out", tmp_path / "first")
    assert len(first["tickets"]) > 3 and first["cliffs"][0]["above"] < 0.6 and first["answers"][0]["answer"]
    config = json.loads((model / "generation_config.json").read_text())
    shutil.rmtree(model)
    tiny_model(model)  # a random one: every ratio is about 1
    (model / "generation_config.json").write_text(json.dumps(config))
    second = lottery_json("study", path, *MEASURED, "--out", tmp_path / "second")
    assert second["run_id"] == first["run_id"] and second["cliffs"][0]["below"] >= 0.9
    closed = lottery_json("study", path, *MEASURED, "--part", "report", "--out", tmp_path / "closed")
    assert closed["cliffs"] == second["cliffs"] and closed["answers"] == second["answers"]
    parts = runs(f"tags.`{part_key(first['run_id'])}` LIKE 'refine%'")
    assert not {run.info.run_id for run in parts} & {row["run_id"] for row in first["tickets"]}


def test_a_search_with_nothing_to_do_is_not_missing(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    grid = [{"target": "all", "sparsity": ["0.95", "1"], "refine": "0.1"}]
    path = write(tmp_path, "tight", models=[str(tiny)], grid=grid, tolerance="0.05")
    found = lottery_json("study", path, *MEASURED, "--out", tmp_path / "report")
    assert [row["state"] for row in found["tickets"] if row["title"] != "dense"] == ["made", "made"]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["absent"] == []
    grid = [{"target": "all", "sparsity": ["0.35", "0.6"], "refine": "0.1"}]
    path = write(tmp_path, "loose", models=[str(tiny)], grid=grid)
    for part in ("dense-0", "ticket-0", "ticket-1"):
        lottery_json("study", path, *QUICK, "--part", part)
    lottery_json("report", "--study", "loose", "--out", tmp_path / "loose")
    (absent,) = json.loads((tmp_path / "loose" / "report.json").read_text())["absent"]
    assert (absent["title"], absent["reason"]) == ("all: search", "it ended between 60.00% and 100.00%")
