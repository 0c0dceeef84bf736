"""`mlflow run` with values that the shell quotes: spaces, ~ and letters beyond ASCII, in every entry point."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result
from mlflow.projects.utils import load_project

from lottery.report.frames import run_to_row
from tests.support.paths import ROOT
from tests.support.studies import write

TEXT = "~/sp ace/mein täxt.txt"


@pytest.fixture
def homely(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, with a text and a model in a folder of an odd name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "sp ace").mkdir()
    Path(TEXT).expanduser().write_text("The old man went down to the sea. " * 200, encoding="utf-8")
    (tmp_path / "sp ace" / "tïny").symlink_to(tiny)
    return tmp_path


@pytest.fixture
def mlflow_run(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Any]]:
    """An entry point's command as MLflow makes it, in this process, and its run as MLflow opens it: its params are logged
    as the shell gets them."""
    project, client = load_project(str(ROOT)), mlflow.MlflowClient()

    def run(entry: str, *more: str, **typed: str) -> tuple[Result, Any]:
        point = project.get_entry_point(entry)
        begun = client.create_run("0").info.run_id
        for name, value in point.compute_parameters(typed, None)[0].items():
            client.log_param(begun, name, value)
        monkeypatch.setenv("MLFLOW_RUN_ID", begun)
        result = cli(*shlex.split(point.compute_command(typed, None))[3:], *more)
        return result, client.get_run(begun)

    return run


def test_every_entry_point(
    homely: Path, mlflow_run: Callable[..., tuple[Result, Any]], cli: Callable[..., Result]
) -> None:
    quick = {"dataset": TEXT, "window": "32", "limit": "3", "measure": "perplexity"}
    model = "~/sp ace/tïny"
    made, run = mlflow_run("main", model=model, register="quoted", storage="mask", **quick)
    assert run.info.status == "FINISHED" and "perplexity" in run.data.metrics and "quoted/1" in made.stdout
    assert run_to_row(run)["dataset"] == TEXT
    cli("prune", "--model", model, "--out", homely / "sp ace" / "tickët", "--measure", "none", "--register", "none")
    _, run = mlflow_run("evaluate", ticket="~/sp ace/tickët", **quick)
    assert run.info.status == "FINISHED" and "perplexity" in run.data.metrics
    said, _ = mlflow_run(
        "generate", ticket="models:/quoted/1", base=model, prompt="Sie sagte: „Über's Meer“ ~", tokens="2"
    )
    assert said.stdout.startswith("Sie sagte: „Über's Meer“ ~")
    for entry, name in (("cliff", "model"), ("locate", "model"), ("map", "model"), ("compare", "models")):
        plan, _ = mlflow_run(entry, "--dry-run", **{name: model, "dataset": TEXT})
        assert "tiny" in plan.stdout
    cli("study", write(homely, "own", models=[model], target=["mlp"], sparsity=[0.4], measure="none"), "--out", "none")
    page, _ = mlflow_run("report", out="~/sp ace/bericht „1“", study="newest")
    assert (homely / "sp ace" / "bericht „1“" / "index.html").is_file(), page.output


def test_the_real_one(homely: Path) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [
        "mlflow",
        "run",
        str(ROOT),
        "--env-manager",
        "local",
        "-P",
        "model=~/sp ace/tïny",
        "-P",
        f"dataset={TEXT}",
    ]
    command += ["-P", "measure=perplexity", "-P", "register=none", "-P", "window=32", "-P", "limit=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout + done.stderr
