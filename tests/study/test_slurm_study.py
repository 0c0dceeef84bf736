"""A study that goes through a real Slurm of one node: what comes back from the queue."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlflow
import pytest

from lottery.registry.parts import part_key
from tests.support.paths import ROOT
from tests.support.servers import mlflow_server
from tests.support.slurm_cluster import Cluster

pytestmark = pytest.mark.slow
PARTS_MADE = [f"ticket-{i}" for i in range(7)]


STUDY = """
models: [builtin]
measure: perplexity
limit: 4
grid:
  - {target: [all, attention, mlp, early, late, embeddings, lm_head], sparsity: 0.5}
  - {target: all, sparsity: 0.5, dataset: gone.txt}
"""


@dataclass
class Ended:
    """A study that went through Slurm, and what happened to it on the way. `runs` are by their part, the newest first."""

    states: dict[str, list[str]]
    logs: dict[str, str]
    runs: dict[str, list[mlflow.entities.Run]]
    signalled: str
    preempted: list[str]
    versions: list[str]  # their tickets


@pytest.fixture(scope="module")
def ended(
    shared_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory, lottery_json: Callable[..., dict[str, Any]]
) -> Ended:
    """Two baselines, then eight tickets at once; a baseline and a ticket cannot be made. One ticket is signalled in its
    middle, as at its time limit, others are preempted by a job of the better partition. The report is last."""
    folder = tmp_path_factory.mktemp("study")
    cluster = shared_cluster
    with pytest.MonkeyPatch.context() as patch, mlflow_server(folder) as server:
        patch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MLFLOW_TRACKING_URI", server.url)
        patch.setenv("LOTTERY_HOME", str(folder / "home"))
        patch.chdir(folder)
        (folder / "gone.txt").write_text("The old man went home. " * 2000)
        (folder / "small.yaml").write_text(STUDY)
        submitted = lottery_json("study", "small.yaml", "--slurm", "--partition", "batch", "--cpus", 1, "--time", 30)
        (folder / "gone.txt").unlink()
        jobs = {job["what"]: job["id"] for job in submitted["jobs"]}
        tag, client = part_key(submitted["run_id"]), mlflow.MlflowClient(server.url)
        names = {f"{jobs['ticket']}_{i}": f"ticket-{i}" for i in range(8)}

        def waiting() -> list[str]:
            return [part for job, part in names.items() if cluster.state(job) == "PENDING"]

        def at_work() -> list[str]:
            """The tickets whose run is open, without the one that is to fail: its run is open for a moment too."""
            open_runs = client.search_runs(["0"], "attributes.status = 'RUNNING'")
            parts = {run.data.tags.get(tag) for run in open_runs} & set(PARTS_MADE)
            return [job for job, part in names.items() if part in parts and cluster.state(job) == "RUNNING"]

        cluster.until("eight run at once", lambda: cluster.states(jobs["ticket"]).count("RUNNING") == 8)
        cluster.until("some tickets are being made", lambda: len(at_work()) >= 3)
        signalled = at_work()[-1]
        subprocess.run(["scancel", "--signal=TERM", "--batch", signalled], env=cluster.environment, check=True)
        # not preempted too, while it ends: then Slurm, not the script, would put it back
        cluster.until("it is put back", lambda: names[signalled] in waiting(), 60)
        better = ["--parsable", "--partition=urgent", "--gpus=3", "--cpus-per-gpu=1", "--time=5", "--output=/dev/null"]
        urgent = cluster.ask("sbatch", *better, "--wrap", "sleep 1")
        cluster.until("others are preempted", lambda: set(waiting()) - {names[signalled]}, 60)
        preempted = [part for part in waiting() if part != names[signalled]]
        cluster.until_ended(urgent)
        cluster.until_ended(jobs["report"], 300)
        runs: dict[str, list[mlflow.entities.Run]] = {}
        for run in client.search_runs(["0"], order_by=["attributes.start_time DESC"]):
            runs.setdefault(run.data.tags.get(tag, run.data.tags["kind"]), []).append(run)
        (logs,) = (folder / "home" / "studies").glob(f"{submitted['study_id']}-*/logs")
        return Ended(
            {what: cluster.states(job) for what, job in jobs.items()},
            {path.stem: path.read_text() for path in logs.glob("*.log")},
            runs,
            names[signalled],
            preempted,
            [version.tags["ticket"] for version in client.search_model_versions("name = 'ticket-builtin'")],
        )


def test_every_ticket_once(ended: Ended) -> None:
    """Eight registered at once, and what was interrupted was made again alone."""
    for i in range(7):
        finished = [run for run in ended.runs[f"ticket-{i}"] if run.info.status == "FINISHED"]
        assert len(finished) == 1, ended.logs[f"ticket-{i}"]
    # a task that is preempted between its version and its end leaves that to its next life
    assert sorted(ended.versions) == sorted(ended.runs[part][0].data.tags["ticket"] for part in PARTS_MADE)
    assert ended.states["ticket"].count("COMPLETED") == 7


def test_order(ended: Ended) -> None:
    begun = [run.info.start_time for part, runs in ended.runs.items() for run in runs if part.startswith("ticket")]
    done = [run.info.end_time for part, runs in ended.runs.items() for run in runs if part.startswith("ticket")]
    assert ended.runs["dense-0"][0].info.end_time < min(begun)
    assert ended.runs["study"][0].info.end_time > max(done)


def test_signalled_task_comes_back(ended: Ended) -> None:
    log = ended.logs[ended.signalled]
    assert f"{ended.signalled}: put back into the queue" in log
    assert "start 2" in log
    (counts,) = ended.runs[ended.signalled]
    assert counts.info.status == "FINISHED"
    # the interrupted one is kept, and is no part of the study any more
    same = [run for run in ended.runs["ticket"] if run.data.tags["ticket"] == counts.data.tags["ticket"]]
    assert [run.info.status for run in same] == ["KILLED"]
    assert same[0].data.tags["mlflow.parentRunId"] == ended.runs["study"][0].info.run_id


def test_preempted_tasks_come_back(ended: Ended) -> None:
    assert ended.preempted
    for part in ended.preempted:
        assert "DUE TO PREEMPTION" in ended.logs[part]
        assert "start 2" in ended.logs[part]
        assert "put back" not in ended.logs[part]  # Slurm did


def test_failed_task(ended: Ended) -> None:
    """Its error is in its log and on its run; neither it nor its baseline takes the others along; the report tells."""
    assert ended.states["dense"].count("FAILED") == ended.states["ticket"].count("FAILED") == 1
    for part in ("dense-1", "ticket-7"):
        assert "gone.txt: there is no such file" in ended.logs[part]
        assert ended.runs[part][0].info.status == "FAILED"
    assert ended.logs["report"].count("gone.txt") == 2
    assert "lm_head 50%" in ended.logs["report"]
    assert ended.runs["study"][0].info.status == "FAILED"
