"""What goes wrong is an outcome, not an end: divergence, empty matrices, damaged files, texts that are too short."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import Result

from lottery.files.home import home
from lottery.hypothesis.design import read_hypothesis
from tests.support.hypotheses import everything, record_of, write
from tests.support.refused import refused
from tests.support.store import new_store
from tests.support.studies import runs

Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]
WILD = 1e38  # AdamW's steps are as long as the rate: no rate that a file may give makes a number overflow so soon


@pytest.fixture
def wild_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of every hypothesis has a rate at which it diverges."""
    monkeypatch.setattr("lottery.cli.hypothesis.read_hypothesis", lambda name: replace(read_hypothesis(name), lr=WILD))


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A home and a store in which nothing was trained."""
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "m.db", str(tmp_path / "artifacts")))
    yield tmp_path


@pytest.mark.usefixtures("wild_chain", "fresh")
def test_a_diverged_training_is_an_outcome_and_its_followers_are_not_started(cli: Cli, tmp_path: Path) -> None:
    grid = [{"arm": "dense", "lr": 0.01}, {"arm": ["rewound", "permuted"], "density": 0.64}]
    grid += [{"arm": "random", "density": 0.64, "lr": 0.01}, {"arm": "early", "density": 0.64}]
    preset = write(tmp_path, "wild", grid=grid, barriers=[{"arm": "rewound", "density": 0.64}])
    command = ("hypothesis", "--preset", preset, "--jobs", 1, "--out", tmp_path / "report", "--json")
    result = cli(*command)
    printed = json.loads(result.stdout)
    outcomes = {
        (run["arm"], run["round"], run["lr"]): run["outcome"] for run in printed["runs"] if run["arm"] != "rewound"
    }
    assert outcomes == {
        ("dense", 0, WILD): "diverged", ("dense", 0, 0.01): "done", ("random", 2, 0.01): "done",
        ("permuted", 2, WILD): "not started", ("early", 2, WILD): "not started",
    }  # fmt: skip
    lines = result.stderr.splitlines()
    assert sum("diverged: the loss was no number at step" in line for line in lines) == 1
    assert sum("not started: it starts from a training that diverged" in line for line in lines) >= 4
    assert "Traceback" not in result.output

    record = record_of(printed["run_id"])
    for training in record["trainings"]:
        reason = {"done": None, "not started": "it starts from a training that diverged"}.get(
            training["outcome"], "step"
        )
        assert training["reason"] == reason or reason in training["reason"]
        assert training.get("loss") is None or training["outcome"] == "done"
    assert {c["why"] for c in record["claims"] if c["arm"] == "rewound"} == {"no training of it ended"}
    assert "NaN" not in json.dumps(record) and "Infinity" not in json.dumps(record)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "diverged" in page and "not started" in page
    run = mlflow.get_run(printed["run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics == {"trainings": 8, "failed": 0}
    (diverged,) = runs("tags.outcome = 'diverged'")
    assert "loss" not in diverged.data.metrics and np.isfinite(list(diverged.data.metrics.values())).all()

    before = everything()
    again = cli(*command)
    assert json.loads(again.stdout) == printed and ": made:" not in again.stderr
    changed = {path for path, time in everything().items() if before.get(path) != time}
    assert not [path for path in changed if "/trainings/" in path]


def test_a_rate_that_diverges_is_a_row_of_the_table(
    monkeypatch: pytest.MonkeyPatch, lottery_json: Json, tmp_path: Path
) -> None:
    """Its training is no failure of the hypothesis: the other rates are compared."""
    preset = write(tmp_path, "rates", grid=[{"arm": "dense", "lr": [0.003, 0.01, 0.03]}])

    def read(name: str) -> Any:
        asked = read_hypothesis(name)
        return replace(asked, grid=tuple(replace(row, lr=(0.003, 0.01, WILD)) for row in asked.grid))

    monkeypatch.setattr("lottery.cli.hypothesis.read_hypothesis", read)
    printed = lottery_json("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none")
    record = record_of(printed["run_id"])
    assert [(r["lr"], r["diverged"], r["best"], r["edge"]) for r in record["rows"]] == [
        (0.003, 0, False, False), (0.01, 0, True, False), (WILD, 1, False, False),
    ]  # fmt: skip
    assert mlflow.get_run(printed["run_id"]).info.status == "FINISHED"


def test_a_matrix_without_a_weight_is_said_aloud(cli: Cli, tmp_path: Path) -> None:
    grid = [{"arm": "dense"}, {"arm": "oneshot", "density": 0.001}]
    preset = write(tmp_path, "sparse", rate=0.9, grid=grid)
    result = cli("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none", "--json")
    record = record_of(json.loads(result.stdout)["run_id"])
    empty = {t["arm"]: t["empty"] for t in record["trainings"]}
    assert empty["dense"] == [] and len(empty["oneshot"]) > 3
    (line,) = [line for line in result.stderr.splitlines() if "no weight is left in" in line]
    assert "oneshot round 3" in line and f", no weight is left in {', '.join(empty['oneshot'])}, " in line
    assert all(t["densities"][name] == 0 for t in record["trainings"] for name in t["empty"])


@pytest.fixture
def ended(fresh: Path, lottery_json: Json) -> tuple[Path, dict[str, Any]]:
    """A dense training that ended, and the file of a hypothesis that goes on from it."""
    printed = lottery_json("hypothesis", "--preset", write(fresh, "dense", grid=[{"arm": "dense"}]), "--jobs", 1)
    more = write(fresh, "more", grid=[{"arm": "dense"}, {"arm": "oneshot", "density": 0.64}])
    return more, record_of(printed["run_id"])["trainings"][0]


def flip(path: Path) -> None:
    """Changes one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["weights.safetensors", "report.npy"])
def test_a_damaged_training_is_not_used(file: str, ended: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    preset, training = ended
    folder = home() / "trainings" / training["id"]
    flip(folder / file)
    result = cli("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none", code=1 if file[0] == "w" else 2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in result.output
    assert f"{folder / file}: it is not the file that the training left; delete {folder}" in errors[0]
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    again = cli("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none", "--json")
    assert json.loads(again.stdout)["runs"][0]["loss"] == training["loss"]


def test_weights_on_the_way_that_were_altered_are_not_used(
    ended: tuple[Path, dict[str, Any]], cli: Cli, tmp_path: Path
) -> None:
    rewound = write(tmp_path, "rewound", grid=[{"arm": "rewound", "density": 0.64, "rewind": 0.05}])
    cli("hypothesis", "--preset", rewound, "--jobs", 1, "--out", "none")
    (path,) = (home() / "trainings").glob("*.states/*.safetensors")
    weights = path.read_bytes()
    flip(path)
    further = write(tmp_path, "further", grid=[{"arm": "rewound", "density": 0.51, "rewind": 0.05}])
    result = cli("hypothesis", "--preset", further, "--jobs", 1, "--out", "none", code=1)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in result.output
    assert f"{path}: not readable (its content is not what its hash says); delete {path}" in errors[0]
    path.unlink()
    cli("hypothesis", "--preset", further, "--jobs", 1, "--out", "none")
    assert path.read_bytes() == weights


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"outcome": "done"}', b"\xff"])
def test_a_damaged_result_gets_one_line(content: bytes, ended: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    preset, training = ended
    path = home() / "trainings" / training["id"] / "result.json"
    path.write_bytes(content)
    result = cli("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none", code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and "Traceback" not in result.output and str(path) in errors[0], result.stderr
    assert f"delete {path.parent}" in errors[0]


@pytest.mark.parametrize("file", ["train_T.npy", "report_text.txt", "corpus.json"])
def test_a_damaged_corpus_gets_one_line(file: str, ended: tuple[Path, dict[str, Any]], cli: Cli) -> None:
    (folder,) = (home() / "corpora").iterdir()
    (folder / file).write_bytes((folder / file).read_bytes()[:-9])
    refused(cli("hypothesis", "--preset", ended[0], "--jobs", 1, code=2), str(folder))


def test_a_text_that_is_too_short_gets_one_line(cli: Cli, tmp_path: Path) -> None:
    preset = write(tmp_path, "dense", grid=[{"arm": "dense"}])
    before = everything()
    lines = "\n".join(f"Cow {i} eats {i * i} apples." for i in range(300))
    for name, content, says in (
        ("empty.txt", "", "it is empty"),
        ("word.txt", "word", "or a longer text"),
        ("short.txt", lines, "its training part has"),
        ("middle.txt", lines * 7, "a part to measure on has"),
    ):
        path = tmp_path / name
        path.write_text(content)
        refused(cli("hypothesis", "--preset", preset, "--text", path, "--jobs", 1, code=2), says)
    assert everything() == before


def test_a_report_s_folder_that_cannot_be_had_is_refused_before_the_work(cli: Cli, tmp_path: Path) -> None:
    preset, before = write(tmp_path, "dense", grid=[{"arm": "dense"}]), everything()
    (tmp_path / "file").write_text("")
    refused(cli("hypothesis", "--preset", preset, "--out", tmp_path / "file", code=2), str(tmp_path / "file"))
    assert everything() == before
