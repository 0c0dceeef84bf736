"""Studies on a real Slurm of one node: what is submitted, and what is refused."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from lottery.errors import InputError, MachineError
from lottery.registry.store import store_digest
from lottery.study import slurm
from lottery.study.slurm import SlurmOptions
from tests.support.paths import ROOT
from tests.support.slurm_cluster import Cluster, small

PARTS: dict[str, Sequence[int]] = {"dense": [0], "ticket": range(19), "refine": [0]}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "100% mine" / "study.yaml"
    file.parent.mkdir()
    file.write_text("models: [builtin]\n")
    return file


def words(study: Path, options: SlurmOptions, parts: Mapping[str, Sequence[int]] = PARTS) -> dict[str, list[str]]:
    return {job.what: list(job.command) for job in slurm.submit(study, parts, options, "locate", dry_run=True)}


def test_commands(study: Path) -> None:
    """As the users' cluster asks by default; no shell ever reads a value; the report waits for the end of all others."""
    found = words(study, SlurmOptions())
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
    options = SlurmOptions.parse(**given)
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
        slurm.submit(study, PARTS, SlurmOptions.parse(**given), "locate", dry_run=True)


def test_no_sbatch(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match="no sbatch on this machine"):
        slurm.submit(study, PARTS, SlurmOptions(), "locate")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"partition": "dgx"}, "partition=dgx: this cluster has no such partition; known: batch, urgent"),
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
    found = slurm.reachability_warnings()
    assert len(found) == (said is not None)
    if said:
        assert said in found[0]
        assert "secret" not in found[0]


def test_home_out_of_reach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://dgx01:5000")
    monkeypatch.setenv("LOTTERY_HOME", "/tmp/lottery")
    assert [
        line
        for line in slurm.reachability_warnings()
        if "LOTTERY_HOME=/tmp/lottery: only this machine has this disk" in line
    ]
    monkeypatch.setenv("LOTTERY_HOME", "/home/me/lottery")
    monkeypatch.setenv("LOTTERY_SERVER", str(tmp_path))
    assert len(slurm.reachability_warnings()) == 1
    (tmp_path / "address").write_text("http://dgx01:5000\n")
    assert slurm.reachability_warnings() == []


def test_scripts_parse() -> None:
    for script in ("task.sbatch", "server.sbatch"):
        subprocess.run(["bash", "-n", slurm.scripts() / script], check=True)


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
    assert "only this machine has this disk" in said.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["facts"]  # what is known of the model, and no study
    begun = {run.info.run_id for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
    refused = cli("study", "locate", "--slurm", code=2)
    assert "partition=dgx: this cluster has no such partition; known: batch, urgent" in refused.stderr
    batch = ("study", "locate", "--slurm", "--partition", "batch", "--gpus", 0, "--cpus", 1, "--time", 30)
    refused = cli(*batch, "--dataset", "gone.txt", code=2)
    assert "dataset=gone.txt: there is no such file" in refused.stderr
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


def jobs(cluster: Cluster) -> list[str]:
    return cluster.ask("squeue", "--noheader", "--states=all", "--format=%F").split()
