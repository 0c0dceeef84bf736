"""What the hub's client refuses, and the line for all that fails."""

import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lottery.errors import InputError, MachineError
from lottery.models.hub import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, fetch_snapshot, hub_errors
from tests.support.hub_client import SMALL, line
from tests.support.hub_server import Fault, Hub, use
from tests.support.servers import free_port


def test_only_pickled_weights(server: Hub, model: Path) -> None:
    (model / SAFE_WEIGHTS_NAME).rename(model / "pytorch_model-00001-of-00002.bin")
    server.add("org/name", model)
    line(InputError, "pytorch_model", "pickle", "safetensors", "@REVISION")
    assert server.served.total() == 0


@pytest.mark.parametrize("gone", ["config.json", SAFE_WEIGHTS_NAME])
def test_not_a_model(server: Hub, model: Path, gone: str) -> None:
    (model / gone).unlink()
    server.add("org/name", model)
    line(InputError, gone)
    assert server.served.total() == 0


def test_an_architecture_that_is_refused(server: Hub, model: Path) -> None:
    def check(config: dict[str, Any]) -> None:
        raise InputError(f"model=org/name: {config['model_type']} is unknown here")

    server.add("org/name", model)
    line(InputError, "llama is unknown", call=lambda: fetch_snapshot("org/name", SMALL, check))
    assert set(server.served) == {"config.json"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"weight_map": {"a": "../model-1.safetensors"}}', "'../model-1.safetensors'"),
        ('{"weight_map": {"a": "/etc/model.safetensors"}}', "'/etc/model.safetensors'"),
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "'pytorch_model.bin'"),
        ('{"weight_map": {"a": 1}}', "names 1"),
        ('{"weight_map": {}}', "names None"),
        ('{"weight_map": {"a": "model-9.safetensors"}}', "model-9.safetensors, which org/name lacks"),
        ("[]", "not a JSON object"),
        ("{", "not a JSON object"),
    ],
)
def test_an_index_that_cannot_be_followed(server: Hub, sharded: Path, content: str, says: str) -> None:
    (sharded / SAFE_WEIGHTS_INDEX_NAME).write_text(content)
    server.add("org/name", sharded)
    line(InputError, SAFE_WEIGHTS_INDEX_NAME, says)
    assert set(server.served) == {"config.json", SAFE_WEIGHTS_INDEX_NAME}


@pytest.mark.parametrize(
    "fault", [None, Fault(hang_s=60), Fault(500), Fault(429)], ids=["refused", "hang", "500", "429"]
)
def test_the_cache_stands_in_for_a_hub_that_fails(
    fault: Fault | None,
    server: Hub,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commit = server.add("org/name", model)
    snapshot = fetch_snapshot("org/name", SMALL)
    url = server.url if fault else f"http://127.0.0.1:{free_port()}"
    use(monkeypatch, url, tmp_path / "home", seconds=1)
    if fault:
        server.faults["/api/models"] = fault
    capsys.readouterr()
    assert fetch_snapshot("org/name", SMALL) == snapshot
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning: model=org/name: ") and commit in warning
    (snapshot.folder / SAFE_WEIGHTS_NAME).unlink()
    line(MachineError, url)


def test_gated(server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("org/name", model)
    server.gated.add("org/name")
    line(InputError, "(401)", f"{server.url}/org/name", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "other-token")
    line(InputError, "(403)", f"{server.url}/org/name", "HF_TOKEN")
    assert server.served.total() == 0
    monkeypatch.setenv("HF_TOKEN", "good-token")
    assert (fetch_snapshot("org/name", SMALL).folder / SAFE_WEIGHTS_NAME).is_file()


@pytest.mark.parametrize("token", ["hf_expired", "hf_\x0bbroken", "hf_café"])
def test_a_wrong_token_is_not_shown(server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    server.add("org/name", model)
    monkeypatch.setenv("HF_TOKEN", token)
    assert "hf_" not in line(InputError, "token", "HF_TOKEN", "hf auth login")


@pytest.mark.parametrize(("token", "status"), [("", "(401)"), ("good-token", "(404)")])
def test_no_such_repository(server: Hub, monkeypatch: pytest.MonkeyPatch, token: str, status: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    line(InputError, "no model org/name", status, "check the name", "private", "HF_TOKEN")


def test_no_such_revision(server: Hub, model: Path) -> None:
    server.add("org/name", model)
    line(InputError, "no revision v2 (404)", "branch, tag or commit", call=lambda: fetch_snapshot("org/name@v2", SMALL))


def test_a_name_that_cannot_be(server: Hub) -> None:
    line(InputError, "org/name--x", "ORG/NAME", call=lambda: fetch_snapshot("org/name--x", SMALL))


@pytest.mark.parametrize(
    ("where", "fault", "error", "says"),
    [
        ("/api/models", Fault(403), InputError, ("(403)", "ask for access")),
        ("/api/models", Fault(429), MachineError, ("(429)", "some minutes")),
        ("/api/models", Fault(503), MachineError, ("(503)", "try again later")),
        ("/api/models", Fault(418), InputError, ("(418)",)),
        ("/api/models", Fault(drop_after=5), MachineError, ("was lost",)),
        ("config.json", Fault(500, method="HEAD"), MachineError, ("(500)",)),  # as "not in the cache", by the library
        (SAFE_WEIGHTS_NAME, Fault(500, method="GET"), MachineError, ("(500)",)),
        (SAFE_WEIGHTS_NAME, Fault(404, "EntryNotFound"), InputError, ("no file model.safetensors", "(404)")),
        (
            SAFE_WEIGHTS_NAME,
            Fault(drop_after=1000, method="GET"),
            MachineError,
            ("was lost", "same command", "are kept"),
        ),
        (SAFE_WEIGHTS_NAME, Fault(hang_s=60, method="GET"), MachineError, ("in time", "HF_HUB_DOWNLOAD_TIMEOUT")),
    ],
    ids=["403", "429", "503", "418", "drop", "500 HEAD", "500 GET", "404 file", "drop file", "hang file"],
)
def test_the_hub_fails(
    where: str,
    fault: Fault,
    error: type[Exception],
    says: Sequence[str],
    server: Hub,
    model: Path,
    hurried: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use(monkeypatch, server.url, tmp_path / "home", seconds=1)
    server.add("org/name", model)
    server.faults[where] = fault
    line(error, *says)
    server.faults.clear()  # the same command, after that, goes on
    assert (fetch_snapshot("org/name", SMALL).folder / SAFE_WEIGHTS_NAME).read_bytes() == (
        model / SAFE_WEIGHTS_NAME
    ).read_bytes()


def test_something_else_answers(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    use(monkeypatch, server.url.removeprefix("http://"), tmp_path / "home")
    line(MachineError, "cannot be reached", "HF_ENDPOINT")
    use(monkeypatch, server.url, tmp_path / "home")
    monkeypatch.setattr(
        "tests.support.hub_server.Answer.json", lambda self, content: self.send(b"<html>welcome to the hotel</html>")
    )
    server.add("org/name", model)
    line(MachineError, "does not answer like a Hugging Face hub", "HF_ENDPOINT")


def test_a_full_disk(server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("org/name", model)
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        line(MachineError, "0.00 GB free", "HF_HOME")
    assert set(server.served) == {"config.json"}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        line(MachineError, "file too large", "HF_HOME")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_cache_that_cannot_be_written(server: Hub, model: Path, tmp_path: Path) -> None:
    server.add("org/name", model)
    (tmp_path / "home").write_text("a file in its place")
    line(InputError, str(tmp_path / "home"), "not a directory", "HF_HOME")


def test_a_line_of_ones_own_passes() -> None:
    with pytest.raises(InputError, match=r"^mine$"), hub_errors("model=org/name", "org/name"):
        raise InputError("mine")
