"""A hypothesis whose processes are killed, or told to end: what is made stays, and the same command goes on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from click.testing import Result

from lottery.files.home import home
from tests.support.forks import Forks
from tests.support.hypotheses import record_of, write
from tests.support.paths import ROOT
from tests.support.store import new_store

pytestmark = pytest.mark.slow
GRID = [
    {"arm": "dense", "times": [1, 2]},
    {"arm": ["rewound", "permuted"], "density": 0.64, "lr": [0.003, 0.01]},
    {"arm": ["random", "other"], "density": 0.64},
]
BARRIERS = [{"arm": "rewound", "density": 0.64}]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a store of its own; no process of another test has the home's name in its environment."""
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "m.db", str(tmp_path / "artifacts")))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def at_work(place: Path) -> list[int]:
    """Returns the processes that multiprocessing has started for a command with the home of a test."""
    ours, found = f"LOTTERY_HOME={place}/home".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started = b"multiprocessing" in (path / "cmdline").read_bytes()
            if started and ours in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


def until(what: str, true: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def made_in(said: str) -> list[str]:
    """Returns the titles of the trainings that a command said it made."""
    return [line.split("] ", 1)[1].split(": made:")[0] for line in said.splitlines() if ": made:" in line]


def test_killed_twice_it_ends_with_the_same_losses(
    place: Path, forks: Forks, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = write(place, "killed", grid=GRID, barriers=BARRIERS)
    command = ("hypothesis", "--preset", preset, "--jobs", 2, "--out", "none", "--json")
    made: list[str] = []
    times: dict[str, int] = {}
    for count in (2, 4):
        (killed,) = forks.run(command, kill_at=(": made: ", count))
        assert killed["code"] == -signal.SIGKILL and killed["out"] == ""
        until("the workers end", lambda: not at_work(place), 10)
        made += made_in(killed["err"])
        for path in home().glob("trainings/*/result.json"):
            assert times.setdefault(str(path), path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    (ended,) = forks.run(command)
    assert ended["code"] == 0, ended["err"]
    made += made_in(ended["err"])
    printed = json.loads(ended["out"])
    assert len(made) == len(set(made)) and len(printed["runs"]) == 10
    for name, written in times.items():
        assert Path(name).stat().st_mtime_ns == written
    client = mlflow.MlflowClient()
    finished = client.search_runs(["0"], "tags.kind = 'training' and attributes.status = 'FINISHED'")
    assert sorted(r.info.run_id for r in finished) == sorted(run["run_id"] for run in printed["runs"])
    assert not client.search_runs(["0"], "attributes.status = 'RUNNING'")
    record = record_of(printed["run_id"])
    until("the workers end", lambda: not at_work(place), 10)

    monkeypatch.setenv("LOTTERY_HOME", str(place / "undisturbed"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(place / "u.db", str(place / "artifacts")))
    whole = json.loads(cli(*command[:4], 1, *command[5:]).stdout)
    twin = record_of(whole["run_id"])
    for one, two in zip(record["trainings"], twin["trainings"], strict=True):
        assert {**one, "seconds": 0, "run_id": ""} == {**two, "seconds": 0, "run_id": ""}
    assert record["barriers"] == twin["barriers"] and record["claims"] == twin["claims"]


@pytest.fixture
def started(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A command in a process group of its own, as a terminal gives it, whose two workers are training."""
    preset = write(place, "long", steps=20_000, grid=[{"arm": "dense", "lr": [0.003, 0.01]}])
    command = [sys.executable, "-m", "lottery", "hypothesis", "--preset", str(preset), "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until("both are being made", lambda: len(list(place.glob("home/trainings/*.unfinished"))) == 2, 120)
    yield process
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("everybody", [True, False])
def test_a_signal_ends_it_without_a_traceback(
    number: int, code: int, everybody: bool, started: subprocess.Popen[str], place: Path
) -> None:
    """A terminal sends Ctrl-C to all processes of the group, `kill` to the one."""
    os.killpg(started.pid, number) if everybody else os.kill(started.pid, number)
    out, err = started.communicate(timeout=15)
    assert started.returncode == code and "Traceback" not in err and "Process" not in err, err
    assert out == "" and [line for line in err.splitlines() if line.startswith("Error: ")] == (
        ["Error: interrupted"] if number == signal.SIGINT else []
    )
    until("the workers end", lambda: not at_work(place), 10)
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "KILLED"


def test_a_worker_that_is_killed_ends_it_with_one_line(started: subprocess.Popen[str], place: Path) -> None:
    """As the kernel does where memory runs out."""
    workers = [pid for pid in at_work(place) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    out, err = started.communicate(timeout=15)
    assert started.returncode == 1 and "Traceback" not in err and out == "", err
    (line,) = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert "a process that trains was killed" in line and "fewer --jobs" in line
    until("the workers end", lambda: not at_work(place), 10)
