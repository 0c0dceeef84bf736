"""A hypothesis that goes through a real Slurm of one node: an array for each stage, every training once, the page last."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from tests.support.hypotheses import record_of, write
from tests.support.paths import ROOT
from tests.support.refused import refused
from tests.support.servers import mlflow_server
from tests.support.slurm_cluster import slurm_cluster

GRID = [{"arm": "dense"}, {"arm": ["rewound", "other", "random"], "density": 0.64}]
BARRIERS = [{"arm": "rewound", "density": 0.64}]
# stage -> (the part of its tasks, their indices, the stages that it waits for); rounds wait for rounds alone
STAGES = {
    "states-0": ("states-0", "0", []),
    "chain-0": ("training-0", "0", []),
    "training-0": ("training-0", "1", []),
    "chain-1": ("training-1", "0", ["states-0", "chain-0"]),
    "training-2": ("training-2", "0-2", ["chain-1"]),
    "line-3": ("line-3", "0", ["training-2"]),
    "report": ("report", None, ["states-0", "chain-0", "training-0", "chain-1", "training-2", "line-3"]),
}
ASKED = ("--partition", "batch", "--gpus", 0, "--cpus", 1, "--time", 30)


def words_after(command: list[str], start: str) -> str | None:
    return next((word.removeprefix(start) for word in command if word.startswith(start)), None)


def test_the_commands(lottery_json: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Without Slurm: what would be submitted. What is there already is left out."""
    preset = write(tmp_path, "queued", clip=0.8, grid=GRID, barriers=BARRIERS)
    jobs = lottery_json("hypothesis", "--preset", preset, "--slurm", "--dry-run", *ASKED)["jobs"]
    assert [job["what"] for job in jobs] == list(STAGES)
    for job in jobs:
        part, indices, after = STAGES[job["what"]]
        assert job["id"] is None and words_after(job["command"], "--array=") == indices
        names = ",".join(f"afterany:{name.upper()}" for name in after)
        assert (words_after(job["command"], "--dependency=") or "") == names
        assert job["command"][-3] == part and job["command"][-1] == "hypothesis"
        file = Path(job["command"][-4])
        assert file.name == "hypothesis.json" and not file.exists()


def test_what_slurm_refuses(cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = write(tmp_path, "queued", grid=GRID)
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(cli("hypothesis", "--preset", preset, "--slurm", code=2), "there is no sbatch on this machine")


@dataclass(frozen=True)
class Ended:
    states: dict[str, list[str]]
    logs: dict[str, str]
    record: dict[str, Any]
    run: Any
    trainings: list[Any]
    page: str


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, lottery_json: Callable[..., dict[str, Any]]) -> Iterator[Ended]:
    folder = tmp_path_factory.mktemp("cluster")
    with slurm_cluster() as cluster, pytest.MonkeyPatch.context() as patch, mlflow_server(folder) as server:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setenv("LOTTERY_HOME", str(folder / "home"))
        preset = write(folder, "queued", grid=GRID, barriers=BARRIERS)
        submitted = lottery_json("hypothesis", "--preset", preset, "--slurm", *ASKED)
        jobs = {job["what"]: job["id"] for job in submitted["jobs"]}
        cluster.until_ended(jobs["report"], 600)
        (place,) = (folder / "home" / "hypotheses").iterdir()
        client = mlflow.MlflowClient(server.url)
        (run,) = client.search_runs(["0"], "tags.kind = 'hypothesis'")
        yield Ended(
            {what: cluster.states(job) for what, job in jobs.items()},
            {path.stem: path.read_text() for path in (place / "logs").glob("*.log")},
            record_of(run.info.run_id),
            run,
            client.search_runs(["0"], "tags.kind = 'training'"),
            (place / "report" / "index.html").read_text(),
        )


@pytest.mark.slow
def test_every_training_once(ended: Ended) -> None:
    assert {state for states in ended.states.values() for state in states} == {"COMPLETED"}, ended.logs
    assert sum(log.count(": made: loss") for log in ended.logs.values()) == len(ended.record["trainings"]) == 6
    assert sorted(run.info.run_id for run in ended.trainings) == sorted(t["run_id"] for t in ended.record["trainings"])
    assert {t["outcome"] for t in ended.record["trainings"]} == {"done"} and len(ended.record["barriers"]) == 1
    assert {run.data.tags["mlflow.parentRunId"] for run in ended.trainings} == {ended.run.info.run_id}


@pytest.mark.slow
def test_rounds_wait_for_one_another(ended: Ended) -> None:
    times = {run.info.run_id: (run.info.start_time, run.info.end_time) for run in ended.trainings}
    place = {(t["arm"], t["round"], t["order"]): times[t["run_id"]] for t in ended.record["trainings"]}
    assert place["dense", 0, 0] < place["rewound", 1, 0] < place["rewound", 2, 0]
    assert place["rewound", 1, 0] < place["other", 2, 0]


@pytest.mark.slow
def test_the_report_is_last(ended: Ended) -> None:
    assert ended.run.info.status == "FINISHED" and ended.run.info.end_time >= max(
        r.info.end_time for r in ended.trainings
    )
    assert ended.record["tickets"] and "queued" in ended.page and "rewound matches dense" in ended.logs["report"]
    assert ended.record["command"].startswith("lottery hypothesis --preset") and "--slurm" in ended.record["command"]
