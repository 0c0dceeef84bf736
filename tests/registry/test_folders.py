"""Where the default tracking store lies: working folders whose names URLs escape, a new store, one that has moved."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

import lottery
from tests.support.refused import refused
from tests.support.store import new_store
from tests.support.studies import write

QUICK = ("--dataset", "builtin", "--limit", "2", "--window", "64", "--measure", "perplexity")


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The working folder, with the default store; each of these letters means something else in a URL."""
    folder = tmp_path / 'a b ü#?%41&"x'
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    return folder


def test_every_command_in_a_folder_whose_name_urls_escape(
    odd: Path, tiny: Path, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    first = cli("prune", "--model", tiny, "--target", "late", *QUICK, "--json")
    assert first.stderr.count(f"new tracking store: {odd}/mlflow.db") == 1
    uri = json.loads(first.stdout)["model_uri"]
    again = cli("prune", "--model", tiny, "--target", "early", *QUICK)
    assert "new tracking store" not in again.stderr and (odd / "mlflow.db").is_file()
    assert [row["uri"] for row in lottery_json("list")["tickets"]] == [uri, uri.replace("/1", "/2")]
    assert "every hash is right" in cli("verify", uri).stdout
    cli("generate", uri, "--tokens", 2)
    lottery_json("evaluate", uri, *QUICK)
    cli("export", uri, "--to", odd / "exported")
    assert (odd / "exported" / "config.json").is_file()
    assert lottery.load(uri)[1] is not None
    cli("study", write(odd, "own", models=[str(tiny)], target=["mlp"], sparsity=[0.4]), *QUICK, "--out", odd / "own")
    assert (odd / "own" / "index.html").is_file()
    cli("report", "--out", odd / "page")
    assert (odd / "page" / "index.html").is_file()
    store = next(c for c in lottery_json("doctor")["checks"] if c["name"] == "tracking store")
    assert store["fine"], store


def test_a_folder_in_which_mlflow_cannot_make_a_store(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow writes the folder's name between quotes into its SQL."""
    folder = tmp_path / "John's"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for uri in (None, f"sqlite:///{tmp_path}/elsewhere.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri) if uri else monkeypatch.delenv("MLFLOW_TRACKING_URI")
        refused(cli("prune", "--model", tiny, *QUICK, code=2), f"folder {folder}: ", "run this in another folder")
    assert not list(folder.iterdir()) and not (tmp_path / "elsewhere.db").exists()


def test_a_ticket_that_is_measured_again_after_mlflow_gc(
    tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that judged the version is gone for good; the next measurement has the figures."""
    uri = new_store(tmp_path / "gc.db", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    command = ("prune", "--model", tiny, *QUICK, "--register", "gc")
    first = lottery_json(*command)
    mlflow.MlflowClient().delete_run(first["run_id"])
    gc = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    subprocess.run(gc, check=True, capture_output=True)
    again = lottery_json(*command)
    rows = lottery_json("list", "--name", "gc")["tickets"]
    assert rows[-1]["metrics"]["perplexity"] == again["metrics"]["perplexity"]


def test_a_store_that_was_moved(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(old / "m.db", str(old / "mlruns")))
    command = ("prune", "--model", tiny, "--measure", "none", "--register", "moved")
    assert "was moved" not in cli(*command).stderr
    old.rename(new)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{new}/m.db")
    said = cli("list").stderr
    assert said.count("was moved") == 1 and f"{old}/mlruns" in said and f"a link to {new}/mlruns" in said
    refused(cli("verify", "models:/moved/1", code=2), f"should be in {old}", "make the old path a link to the new one")
    old.symlink_to(new)
    again = cli("verify", "models:/moved/1")
    assert "every hash is right" in again.stdout and "was moved" not in again.stderr
