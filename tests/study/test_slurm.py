"""Studies on a real Slurm of one node: what is submitted, what is refused, what comes back from the queue."""

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from lottery.errors import InputError, MachineError
from lottery.registry.parts import part_key
from lottery.registry.store import store_digest
from lottery.study import slurm
from lottery.study.slurm import Options
from tests.support.paths import ROOT
from tests.support.servers import mlflow_server
from tests.support.slurm_cluster import Cluster, slurm_cluster

SMALL = {"partition": "batch", "cpus": 1, "time": "30"}
PARTS_MADE = [f"ticket-{i}" for i in range(7)]
PARTS: dict[str, Sequence[int]] = {"dense": [0], "ticket": range(19), "refine": [0]}


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    with slurm_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """This process, and the tasks that it submits, know the cluster, and run this checkout."""
    monkeypatch.setenv("SLURM_CONF", shared_cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return shared_cluster


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "100% mine" / "study.yaml"
    file.parent.mkdir()
    file.write_text("models: [builtin]\n")
    return file


def words(study: Path, options: Options, parts: Mapping[str, Sequence[int]] = PARTS) -> dict[str, list[str]]:
    return {job.what: list(job.command) for job in slurm.submit(study, parts, options, "locate", dry_run=True)}


def test_commands(study: Path) -> None:
    """As the users' cluster asks by default; no shell ever reads a value; the report waits for the end of all others."""
    found = words(study, Options())
    script = str(ROOT / "slurm" / "task.sbatch")
    logs = str(study.parent / "logs").replace("%", "%%")  # Slurm's own sign
    common = ["sbatch", "--parsable", "--export=ALL", "--job-name=lottery-locate-ticket", "--partition=dgx", "--gpus=1"]
    common += ["--cpus-per-gpu=8", "--time=0-4:0", "--array=0-18", f"--output={logs}/ticket-%a.log"]
    after = ["--dependency=afterok:DENSE", "--kill-on-invalid-dep=yes"]
    assert found["ticket"] == [*common, *after, script, str(study), "ticket", sys.executable]
    assert not any("dependency" in word for word in found["dense"])
    assert "--dependency=afterok:DENSE,afterany:TICKET" in found["refine"]
    assert "--dependency=afterany:DENSE,afterany:TICKET,afterany:REFINE" in found["report"]
    assert not any("--array" in word for word in found["report"])
    assert not (study.parent / "logs").exists()


def test_commands_of_what_is_left(study: Path, tmp_path: Path) -> None:
    """A study that goes on asks for its missing parts alone; several baselines do not take each other's tickets along."""
    environment = tmp_path / "my venv"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()
    given = {"gpus": "0", "cpus": "4", "memory": "16G", "concurrent": "2", "environment": str(environment)}
    options = Options.parse(**given)
    found = words(study, options, {"dense": [], "ticket": [7, 1, 0, 2, 9, 10], "refine": []})
    assert list(found) == ["ticket", "report"]
    assert {"--array=0-2,7,9-10%2", "--cpus-per-task=4", "--mem=16G"} < set(found["ticket"])
    assert not any("gpu" in word or "dependency" in word for word in found["ticket"])
    assert found["ticket"][-1] == str(environment)
    two = words(study, options, {"dense": [0, 1], "ticket": [0]})
    assert "--dependency=afterany:DENSE" in two["ticket"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gpus": "-1"}, "gpus=-1"),
        ({"cpus": "0"}, "cpus=0"),
        ({"concurrent": "0"}, "concurrent=0"),
        ({"partition": " "}, "partition is empty"),
        ({"environment": "/nowhere"}, "environment=/nowhere: no bin/python"),
        ({"environment": "nowhere"}, "environment=nowhere: no such folder, and no conda"),
    ],
)
def test_bad_options(study: Path, given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONDA_EXE", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=said):
        slurm.submit(study, PARTS, Options.parse(**given), "locate", dry_run=True)


def test_no_sbatch(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="no sbatch on this machine"):
        slurm.submit(study, PARTS, Options(), "locate")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"partition": "dgx"}, "partition=dgx: this cluster has none of that name; known: batch, urgent"),
        ({"time": "soon"}, "Invalid --time specification .*time=soon"),
        ({"memory": "lots"}, "Invalid --mem specification .*memory=lots"),
        ({"gpus": 99}, "Requested node configuration is not available .*gpus=99"),
    ],
)
def test_slurm_refuses(cluster: Cluster, study: Path, given: dict[str, str | int], said: str) -> None:
    """One line, and nothing is submitted."""
    before = jobs(cluster)
    with pytest.raises(InputError, match=said):
        slurm.submit(study, PARTS, small(**given), "locate")
    assert jobs(cluster) == before


def test_too_many_tickets(cluster: Cluster, study: Path) -> None:
    with pytest.raises(InputError, match=r"it has 102 tickets.*101 tasks \(MaxArraySize\)"):
        slurm.submit(study, {"ticket": [0, 101]}, small(), "locate")


def test_nothing_half_submitted(cluster: Cluster, study: Path) -> None:
    """The cluster takes the baseline, then no array of so many tasks: the baseline is cancelled."""
    before = jobs(cluster)
    with pytest.raises(InputError, match="slurm refuses"):
        slurm.submit(study, {"dense": [0], "ticket": range(60)}, small(), "locate")
    added = [job for job in jobs(cluster) if job not in before]
    assert len(added) == 1
    cluster.until("the baseline is cancelled", lambda: cluster.state(added[0]) == "CANCELLED", 30)


def test_controller_away(study: Path, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is the cluster's fault, not the options'."""
    lines = (cluster.folder / "slurm.conf").read_text().splitlines()
    lines = ["SlurmctldPort=9" if line.startswith("SlurmctldPort") else line for line in lines]
    (tmp_path / "slurm.conf").write_text("\n".join([*lines, "SlurmctldTimeout=2", "MessageTimeout=2"]))
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(MachineError, match=r"slurm: .*contact slurm controller"):
        slurm.submit(study, PARTS, small(), "locate")


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("", "is not set: tasks share sqlite:///mlflow.db"),
        ("sqlite:////home/me/mlflow.db", "=sqlite:////home/me/mlflow.db: a file"),
        ("mlruns", "=mlruns: a file"),
        ("http://localhost:5000", "names localhost"),
        ("postgresql+psycopg2://me:secret@127.0.0.1:5432/db", "names 127.0.0.1"),
        ("http://dgx01:5000", None),
        ("postgresql+psycopg2://me:secret@db.example.org/db", None),
    ],
)
def test_store_out_of_reach(uri: str, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTERY_HOME", "/home/me/lottery")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    found = slurm.warnings()
    assert len(found) == (said is not None)
    if said:
        assert said in found[0]
        assert "secret" not in found[0]


def test_home_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://dgx01:5000")
    monkeypatch.setenv("LOTTERY_HOME", "/tmp/lottery")
    assert [line for line in slurm.warnings() if "LOTTERY_HOME=/tmp/lottery: a disk of this machine alone" in line]
    monkeypatch.setenv("LOTTERY_HOME", "/home/me/lottery")
    monkeypatch.setenv("LOTTERY_SERVER", str(tmp_path))
    assert len(slurm.warnings()) == 1
    (tmp_path / "address").write_text("http://dgx01:5000\n")
    assert slurm.warnings() == []


def test_scripts_parse() -> None:
    for script in ("task.sbatch", "server.sbatch"):
        subprocess.run(["bash", "-n", slurm.scripts() / script], check=True)


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
    with pytest.MonkeyPatch.context() as patch, mlflow_server(folder, f"sqlite:///{folder}/mlflow.db") as server:
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
            """The tickets whose run is open."""
            open_runs = client.search_runs(["0"], "attributes.status = 'RUNNING'")
            parts = [run.data.tags.get(tag) for run in open_runs]
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
        assert "gone.txt: not builtin, wikitext2 or a file" in ended.logs[part]
        assert ended.runs[part][0].info.status == "FAILED"
    assert ended.logs["report"].count("gone.txt") == 2
    assert "lm_head 50%" in ended.logs["report"]
    assert ended.runs["study"][0].info.status == "FAILED"


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


def test_front_door(
    cluster: Cluster, cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--dry-run prints the commands; what Slurm refuses leaves no study begun."""
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path))
    said = cli("study", "locate", "--slurm", "--dry-run")
    lines = said.stdout.strip().splitlines()
    assert [line.split()[-2] for line in lines] == ["dense", "ticket", "report"]
    assert all("--partition=dgx --gpus=1 --cpus-per-gpu=8 --time=0-4:0" in line for line in lines)
    assert "--array=0-18 " in lines[1]
    assert "a disk of this machine alone" in said.stderr
    assert not list(tmp_path.iterdir())
    begun = {run.info.run_id for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    refused = cli("study", "locate", "--slurm", code=2)
    assert "partition=dgx: this cluster has none of that name; known: batch, urgent" in refused.stderr
    batch = ("study", "locate", "--slurm", "--partition", "batch", "--gpus", 0, "--cpus", 1, "--time", 30)
    refused = cli(*batch, "--dataset", "gone.txt", code=2)
    assert "dataset=gone.txt: not builtin, wikitext2 or a file" in refused.stderr
    refused = cli(*batch, "--register", "a/b", code=2)
    assert "register=a/b" in refused.stderr
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert {run.info.run_id for run in found} == begun


def test_a_refused_submission_leaves_no_study(
    cluster: Cluster, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Slurm takes the baseline, then no array of so many tasks: the new run goes, and the next command is not --fresh."""
    (tmp_path / "many.yaml").write_text(f"sparsity: {[i / 100 for i in range(20, 80)]}\nmeasure: perplexity\n")
    submit = (
        "study",
        tmp_path / "many.yaml",
        "--slurm",
        "--partition",
        "batch",
        "--gpus",
        0,
        "--cpus",
        1,
        "--time",
        30,
    )
    assert "slurm refuses" in cli(*submit, "--fresh", code=2).stderr
    client = mlflow.MlflowClient()
    assert not client.search_runs(["0"], "tags.kind = 'study' and tags.study = 'many'")
    lottery_json("study", tmp_path / "many.yaml", "--part", "dense-0")
    (begun,) = client.search_runs(["0"], "tags.kind = 'study' and tags.study = 'many'")
    assert "fresh" not in begun.data.tags
    # one that was there before stays, as it was
    client.set_terminated(begun.info.run_id, "KILLED")
    assert "slurm refuses" in cli(*submit, code=2).stderr
    assert client.get_run(begun.info.run_id).info.status == "KILLED"


def test_a_server_that_moves_is_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a task has left unsent is found by the next one, which asks the same server at another address."""
    monkeypatch.setenv("LOTTERY_SERVER", str(tmp_path))
    names = set()
    for port in (5001, 5002):
        (tmp_path / "address").write_text(f"http://dgx01:{port}\n")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://dgx01:{port}")
        names.add(store_digest())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://another:5000")
    assert len(names) == 1 and store_digest() not in names


def small(**given: Any) -> Options:
    return Options.parse(**(SMALL | given))


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


def jobs(cluster: Cluster) -> list[str]:
    return cluster.ask("squeue", "--noheader", "--states=all", "--format=%F").split()
