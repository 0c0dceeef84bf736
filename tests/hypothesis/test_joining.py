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


def refusal(other: dict[str, Any], first: Path, tmp_path: Path, cli: Cli) -> str:
    """The last line of a join of a run with an altered one."""
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    return cli("hypothesis", "--join", f"{first},{path}", "--out", "none", code=2).stderr.strip().splitlines()[-1]


def test_other_runs_are_refused(records: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    alone = "join runs that differ in their seeds alone"
    for part, name, value, words in (
        ("setup", "steps", 61, f"the runs differ in steps: 60 and 61; {alone}"),
        ("setup", "seeds", [0, 1], "seed 0 stands in two of the runs; name one of them"),
        ("text", "sha256", "1" * 64, f" and stories (11111111); {alone}"),
    ):
        other = read(records["1"])
        other[part][name] = value
        assert (last := refusal(other, records["0"], tmp_path, cli)).startswith("Error: join: ") and words in last
    other = read(records["1"])
    other["trainings"] = [t for t in other["trainings"] if (t["arm"], t["lr"]) != ("permuted", 0.01)]
    words = f"the runs differ in trainings: permuted at 0.8, lr=0.01 and no permuted at 0.8, lr=0.01; {alone}"
    assert refusal(other, records["0"], tmp_path, cli) == f"Error: join: {words}"


def test_records_that_lack_something_are_refused(records: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    for name in ("command", "tickets", "parameters"):
        other = read(records["1"])
        del other[name]
        assert f"holds no '{name}'; run its command again" in refusal(other, records["0"], tmp_path, cli)
    other = read(records["1"])
    for training in other["trainings"]:
        training.pop("report_nll", None)
    words = "the run of seed 1 was recorded by an earlier lottery, without the losses of each window"
    assert words in refusal(other, records["0"], tmp_path, cli)


def test_wrong_options(records: dict[str, Path], cli: Cli) -> None:
    for given, words in (
        (("--join", f"{records['0']},"), "join: it names one run; name two or more, with commas between them"),
        (("--join", f"{records['0']},nobody"), "hypothesis=nobody: no such hypothesis"),
        (("--join", records["0"], "--seed", 1), "--seed: with --join it has no effect"),
        (("--seeds", "0", "--dry-run"), "seeds=0"),
        (("--seeds", "", "--dry-run"), "seeds="),
        (("--preset", "plan.json", "--seeds", 1), "preset=plan.json: a plan cannot be changed; leave --seeds out"),
    ):
        assert words in cli("hypothesis", *given, code=2).stderr


def test_tickets_that_all_seeds_call_no_match_are_left_out(records: dict[str, Path]) -> None:
    from lottery.hypothesis.joining import join_records

    one, two = (read(records[name]) for name in ("0", "1"))
    (claim,) = (c for c in join_records([one, two])["claims"] if c["claim"] == "matches" and c["arm"] == "rewound")
    one["tickets"] = [{"arm": "rewound", "density": claim["density"], "seed": 0}]
    assert len(join_records([one, two])["tickets"]) == int(bool(claim["holds"]))
    for training in one["trainings"]:
        if training["arm"] == "rewound" and "report_nll" in training:
            training["report_nll"] = [x + 1 for x in training["report_nll"]]
    assert join_records([one, two])["tickets"] == []
