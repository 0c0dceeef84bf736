"""Runs that differ in their seeds alone are joined: the rows and claims are those of one run of all seeds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from tests.support.hypotheses import record_of, write

OWN = {"clip": 0.55}  # in no other file of a hypothesis, so that nobody has made its trainings before
GRID = [{"arm": "dense"}, {"arm": ["rewound", "permuted"], "density": 0.8, "lr": [0.003, 0.01]}]
BARRIERS = [{"arm": "rewound", "density": 0.8}]
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> dict[str, Path]:
    """The records of seeds 0 and 1 in one run, and of each alone, whose trainings are those of the first run."""
    folder = tmp_path_factory.mktemp("joining")
    preset = write(folder, "joined", **OWN, seeds=2, grid=GRID, barriers=BARRIERS)
    found = {}
    for name, given in {
        "both": (),
        "0": ("--seeds", "1"),
        "1": ("--seeds", "1", "--seed", "1"),
    }.items():
        printed = json.loads(
            cli("hypothesis", "--preset", preset, *given, "--jobs", 1, "--out", "none", "--json").stdout
        )
        found[name] = folder / f"{name}.json"
        found[name].write_text(json.dumps(record_of(printed["run_id"])))
    return found


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_joined_seeds_say_what_one_run_of_them_says(records: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    from lottery.hypothesis.joining import join_records

    both, one, two = (read(records[name]) for name in ("both", "0", "1"))
    joined = join_records([two, one])
    assert joined["setup"] == both["setup"] and joined["setup"]["seeds"] == [0, 1]
    assert joined["rows"] == both["rows"] and {row["seeds"] for row in joined["rows"]} == {2}
    assert joined["claims"] == both["claims"] and {claim["seeds"] for claim in joined["claims"]} == {2}
    assert {t["id"] for t in joined["trainings"]} == {t["id"] for t in both["trainings"]}
    assert len(joined["barriers"]) == len(both["barriers"]) == 2
    assert joined["command"].splitlines() == [one["command"], two["command"]]

    names = f"{records['0']},{records['1']}"
    printed = json.loads(cli("hypothesis", "--join", names, "--out", tmp_path / "report", "--json").stdout)
    assert printed["claims"] == [{key: c[key] for key in printed["claims"][0]} for c in both["claims"]]
    assert "2 seeds" in Path(printed["report"]).read_text()
    said = cli("hypothesis", "--join", names).stdout
    assert "report: " in said and "joined-" in said


def test_names_in_the_store_are_joined_too(records: dict[str, Path], cli: Cli) -> None:
    """The newest run of that name is the one of seed 1."""
    said = cli("hypothesis", "--join", f"joined,{records['0']}", "--out", "none", "--json").stdout
    assert {run["seed"] for run in json.loads(said)["runs"]} == {0, 1}


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("steps", 61, "the runs differ in steps: 60 and 61; join runs that differ in their seeds alone"),
        ("seeds", [0, 1], "seed 0 stands in two of the runs; name one of them"),
    ],
)
def test_other_runs_are_refused(
    name: str, value: Any, words: str, records: dict[str, Path], tmp_path: Path, cli: Cli
) -> None:
    other = read(records["1"])
    other["setup"][name] = value
    (tmp_path / "other.json").write_text(json.dumps(other))
    result = cli("hypothesis", "--join", f"{records['0']},{tmp_path / 'other.json'}", "--out", "none", code=2)
    assert result.stderr.strip().splitlines()[-1] == f"Error: join: {words}"


def test_records_without_losses_of_windows_are_refused(records: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    other = read(records["1"])
    for training in other["trainings"]:
        training.pop("report_nll", None)
    (tmp_path / "other.json").write_text(json.dumps(other))
    result = cli("hypothesis", "--join", f"{records['0']},{tmp_path / 'other.json'}", "--out", "none", code=2)
    assert "without the losses of each window; run its command again" in result.stderr
    result = cli("hypothesis", "--join", records["0"], "--out", "none", code=2)
    assert "join: it names one run; name two or more, with commas between them" in result.stderr
    result = cli("hypothesis", "--join", records["0"], "--seed", 1, code=2)
    assert "--seed: with --join it has no effect" in result.stderr
