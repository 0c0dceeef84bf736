"""What slurm/ does on a node: tasks that are signalled, cancelled and put back, their environment, the server."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lottery.study import slurm
from tests.support.slurm_cluster import Cluster, small


def test_server(cluster: Cluster, tmp_path: Path) -> None:
    """It publishes an address that answers under its names; goes back to the queue and comes back; is gone when cancelled."""
    folder = tmp_path / "my store"
    address = folder / "address"
    script = slurm.scripts() / "server.sbatch"
    how = ["sbatch", "--parsable", "--partition=batch", "--time=30", f"--output={tmp_path}/server.log"]
    job = cluster.ask(*how, str(script), str(folder), sys.executable, "--workers", "1")
    cluster.until("the server answers", lambda: address.exists() or cluster.state(job) == "FAILED")
    assert address.exists(), (tmp_path / "server.log").read_text()
    first = address.read_text().strip()
    assert answer(first) == answer(first, cluster.node) == answer(first, f"{cluster.node}:1234") == 200
    assert answer(first, "example.org") == 403  # the server's own check of names is on
    second = cluster.ask(*how, str(script), str(folder), sys.executable)
    assert cluster.until_ended(second) == ["FAILED"]
    assert f"has a server already, at {first}" in (tmp_path / "server.log").read_text()
    assert address.read_text().strip() == first

    subprocess.run(["scancel", "--signal=TERM", "--batch", job], env=cluster.environment, check=True)
    cluster.until("its address is withdrawn", lambda: not address.exists(), 30)
    cluster.until("the server is back", address.exists)
    assert answer(address.read_text().strip()) == 200
    assert (folder / "mlflow.db").exists()
    subprocess.run(["scancel", job], env=cluster.environment, check=True)
    assert cluster.until_ended(job) == ["CANCELLED"]
    cluster.until("its address is withdrawn", lambda: not address.exists(), 30)


def test_baseline_fails(cluster: Cluster, tmp_path: Path) -> None:
    """Tickets that cannot be had are cancelled and do not wait for ever; the report runs."""
    jobs = slurm.submit(tmp_path / "none.json", {"dense": [0], "ticket": [0, 1], "refine": [0]}, small(), "none")
    cluster.until_ended(str(jobs[-1].id))
    assert {job.what: set(cluster.states(str(job.id))) for job in jobs} == {
        "dense": {"FAILED"},
        "ticket": {"CANCELLED"},
        "refine": {"CANCELLED"},
        "report": {"FAILED"},
    }
    assert "none.json" in (tmp_path / "logs" / "dense-0.log").read_text()
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["dense-0.log", "report.log"]


def sleeper(folder: Path) -> str:
    """What takes the Python's place: a task that is long at work."""
    program = folder / "sleeper"
    program.write_text("#!/bin/bash\ntouch ready-$SLURM_ARRAY_TASK_ID\nexec sleep 100\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def tasks(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Submits an array of two tasks that are long at work, and waits until they are."""
    submitted = []

    def start(**environment: str) -> str:
        how = ["--parsable", "--array=0-1", "--partition=batch", "--time=30", f"--chdir={tmp_path}", "--output=log-%a"]
        words = ["sbatch", *how, str(slurm.scripts() / "task.sbatch"), "none.json", "ticket", sleeper(tmp_path)]
        done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=True)
        submitted.append(done.stdout.strip())
        cluster.until("both run", lambda: (tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists())
        return submitted[-1]

    yield start
    for job in submitted:
        subprocess.run(["scancel", job], check=True)
        cluster.until_ended(job)


def test_only_the_signalled_task_is_put_back(cluster: Cluster, tasks: Callable[..., str]) -> None:
    """The last task of an array has the array's own number: requeued by that, all the others would be too."""
    job = tasks()
    subprocess.run(["scancel", "--signal=TERM", "--batch", f"{job}_1"], check=True)
    cluster.until("it is put back", lambda: cluster.state(f"{job}_1") == "PENDING", 30)
    assert cluster.state(f"{job}_0") == "RUNNING"


def test_starts_have_an_end(cluster: Cluster, tasks: Callable[..., str], tmp_path: Path) -> None:
    job = tasks(LOTTERY_STARTS="1")
    subprocess.run(["scancel", "--signal=TERM", "--batch", f"{job}_1"], check=True)
    assert cluster.until_ended(f"{job}_1") == ["FAILED"]
    assert "ticket-1: not put back, after 1 starts" in (tmp_path / "log-1").read_text()
    assert cluster.state(f"{job}_0") == "RUNNING"


def test_cancelled_is_cancelled(cluster: Cluster, tasks: Callable[..., str], tmp_path: Path) -> None:
    job = tasks()
    subprocess.run(["scancel", job], check=True)
    assert cluster.until_ended(job) == ["CANCELLED", "CANCELLED"]
    assert "put back" not in (tmp_path / "log-0").read_text() + (tmp_path / "log-1").read_text()


CONDA = """#!/bin/bash
echo 'conda() { [[ $UNSET$1$2 == activatemine ]] && PATH="{folder}/bin:$PATH"; }'
"""


@pytest.mark.parametrize("kind", ["folder", "conda"])
def test_environments(cluster: Cluster, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A venv by its folder, a conda environment by its name; what the task runs there, and with which variables."""
    folder = tmp_path / "my venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (tmp_path / "lottery").mkdir()
    (tmp_path / "lottery" / "__main__.py").write_text(
        "import os, sys\nprint(sys.prefix, sys.argv[1:], os.environ['MLFLOW_TRACKING_URI'], 'MLFLOW_RUN_ID' in os.environ)\n"
    )
    conda = tmp_path / "conda"  # as its own `conda shell.bash hook` does, it defines a function
    conda.write_text(CONDA.replace("{folder}", str(folder)))
    conda.chmod(0o755)
    monkeypatch.setenv("CONDA_EXE", str(conda))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MLFLOW_RUN_ID", "of-the-one-that-submits")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")  # of an outer job
    monkeypatch.setenv("LOTTERY_SERVER", str(tmp_path))
    (tmp_path / "address").write_text("http://moved:5000\n")
    options = small(environment=str(folder) if kind == "folder" else "mine")
    job = slurm.submit(tmp_path / "none.json", {}, options, "none")[0]
    cluster.until_ended(str(job.id))
    log = (tmp_path / "logs" / "report.log").read_text()
    said = f"{folder} ['study', '{tmp_path}/none.json', '--part', 'report'] http://moved:5000 False\n"
    assert log.endswith(said), log
    assert f"report: job {job.id} on {cluster.node}, start 1" in log


def test_environment_unknown(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known where it was submitted, and not on the node: one line in the log."""
    monkeypatch.setenv("CONDA_EXE", "/nowhere/conda")
    job = slurm.submit(tmp_path / "none.json", {}, small(environment="mine"), "none")[0]
    assert cluster.until_ended(str(job.id)) == ["FAILED"]
    assert "environment=mine: neither a venv nor known to conda" in (tmp_path / "logs" / "report.log").read_text()


def answer(url: str, host: str | None = None) -> int:
    asked = urllib.request.Request(f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0")
    if host:
        asked.add_header("Host", host)
    try:
        return urllib.request.urlopen(asked, timeout=20).status
    except urllib.error.HTTPError as e:
        return e.code
