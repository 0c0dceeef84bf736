"""The edges of the process: what the terminal cannot show, drivers that are not installed, a server that refuses a name."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lottery.cli.main import main
from tests.support.refused import refused
from tests.support.servers import mlflow_server

QUICK = ("--measure", "none", "--register", "none")
DEEP = '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"


def test_an_output_that_is_not_utf8(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """A letter that it cannot show becomes a question mark. (Click itself writes UTF-8 where the output is ASCII.)"""
    cli("prune", "--model", tiny, *QUICK, "--out", tmp_path / "t")
    generate = ["generate", str(tmp_path / "t"), "--prompt", "日本 so", "--tokens", "2"]
    result = CliRunner(charset="latin-1").invoke(main, generate)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout_bytes.startswith(b"?? so")


@pytest.mark.parametrize("uri", ["mysql://user:secret@127.0.0.1/x", "mssql+pyodbc://user:secret@127.0.0.1/x"])
def test_a_database_without_its_driver(uri: str, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    for name in ("MySQLdb", "pyodbc"):
        monkeypatch.setitem(sys.modules, name, None)
    result = cli("list", code=2)
    refused(result, "MLFLOW_TRACKING_URI=", "its driver is not installed", "name another one in the URI")
    assert "secret" not in result.output


def test_a_server_that_does_not_know_its_own_name(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_server(tmp_path, more=("--allowed-hosts", "example.org")) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        host = server.url.removeprefix("http://")
        refused(cli("list", code=1), "HTTP 403, Invalid Host header", f"--allowed-hosts {host}")


def test_lists_within_lists(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    (tmp_path / "deep.jsonl").write_text(DEEP)
    refused(cli("prune", "--model", tiny, "--dataset", tmp_path / "deep.jsonl", code=2), "dataset=", "not readable")
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(DEEP)
    refused(cli("prune", "--model", tmp_path / "m", *QUICK, code=2), "config.json", "not readable as JSON")
