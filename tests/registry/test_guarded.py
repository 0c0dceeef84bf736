"""A registered ticket behind a server that asks for a password: artifacts come through it, once, and only what was registered."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

import lottery
from lottery.ticket.record import write_record
from tests.support.altered import flip, model_id, refused, same
from tests.support.guarded import PASSWORD, USER, Door, guarded
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    with guarded(tmp_path_factory.mktemp("door")) as door:
        yield door


@pytest.fixture
def outside(door: Door, tmp_path: Path) -> Iterator[Door]:
    """This process set to the server, with no password yet and an empty home."""
    before = dict(os.environ)
    os.environ |= {"MLFLOW_TRACKING_URI": door.url, "LOTTERY_HOME": str(tmp_path / "home")}
    yield door
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def server(outside: Door) -> Door:
    os.environ |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    return outside


@pytest.fixture(scope="module")
def published(door: Door, tmp_path_factory: pytest.TempPathFactory, lottery_json: Callable[..., Any]) -> dict[str, Any]:
    """A ticket registered there, by a user whose password stands in the URI."""
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny")
    before = dict(os.environ)
    escaped = PASSWORD.replace("/", "%2F").replace("@", "%40")
    os.environ["MLFLOW_TRACKING_URI"] = door.url.replace("//", f"//{USER}:{escaped}@")
    made = lottery_json("prune", "--model", base, "--measure", "none", "--register", "far")
    os.environ.clear()
    os.environ.update(before)
    return made


def far_artifacts(door: Door) -> Path:
    return next((door.folder / "artifacts").rglob(model_id("far"))) / "artifacts"


@pytest.fixture
def far_folder(published: dict[str, Any], server: Door, tmp_path: Path) -> Iterator[Path]:
    """The logged model's folder on the server's side, to be altered."""
    folder = far_artifacts(server)
    shutil.copytree(folder, tmp_path / "kept")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)


def downloads(door: Door) -> int:
    """How many tensor files it has given since the last question."""
    count = sum(path.endswith(".safetensors") for path in door.asked)
    door.asked.clear()
    return count


def test_the_password_in_the_uri_is_nowhere(published: dict[str, Any], server: Door) -> None:
    run = mlflow.MlflowClient().get_run(published["run_id"])
    model = mlflow.MlflowClient().get_logged_model(model_id("far"))
    kept = [json.dumps(published), str(run.to_dictionary()), str(model.to_dictionary())]
    files = [p for p in server.folder.rglob("*") if p.is_file()]
    assert any(p.name == "server.db" for p in files)
    for word in (PASSWORD, "sesame", f"{USER}:"):
        assert not any(word in text for text in kept)
        assert not [p for p in files if word.encode() in p.read_bytes()]


def test_a_ticket_comes_from_the_server_once(published: dict[str, Any], server: Door) -> None:
    folder = far_artifacts(server)
    whole, _ = lottery.load(folder / "data" / "ticket", dtype="source")
    downloads(server)
    mlflow.MlflowClient().set_registered_model_alias("far", "winner", "1")
    for ticket in ("models:/far/1", "models:/far@winner", f"models:/{model_id('far')}"):
        assert same(lottery.load(ticket, dtype="source")[0], whole)
    assert downloads(server) == len(list((folder / "data" / "ticket").glob("*.safetensors")))
    fetched = Path(os.environ["LOTTERY_HOME"]) / "fetched" / model_id("far")
    names = {p.name for p in fetched.rglob("*") if p.is_file()}
    assert names == {p.name for p in (folder / "data" / "ticket").iterdir()}  # no code


def test_masks_come_from_the_server(server: Door, lottery_json: Callable[..., Any]) -> None:
    """Their bits can only be checked over the base: at loading."""
    arguments = ("--storage", "mask", "--target", "late", "--measure", "none", "--register", "masks")
    lottery_json("prune", *arguments)
    loaded, _ = lottery.load("models:/masks/1", dtype="source")
    out = Path(os.environ["LOTTERY_HOME"]) / "packed"
    lottery_json("prune", "--target", "late", "--measure", "none", "--register", "none", "--out", out)
    assert same(loaded, lottery.load(out, dtype="source")[0])


def test_a_damaged_copy_is_fetched_anew(published: dict[str, Any], server: Door, cli: Callable[..., Result]) -> None:
    cli("verify", "--ticket", "models:/far/1")
    copy = Path(os.environ["LOTTERY_HOME"]) / "fetched" / model_id("far") / "ticket"
    shard = max(copy.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    content = shard.read_bytes()
    downloads(server)
    os.utime(shard)  # touched, and whole
    cli("verify", "--ticket", "models:/far/1")
    assert downloads(server) == 0
    flip(shard, len(content) - 2)
    cli("verify", "--ticket", "models:/far/1")
    assert downloads(server) and shard.read_bytes() == content
    shard.unlink()
    assert lottery.load("models:/far/1")
    assert downloads(server) and shard.read_bytes() == content
    (copy / "model.pkl").write_bytes(b"\x80\x04.")
    assert lottery.load("models:/far/1")
    assert downloads(server) and not (copy / "model.pkl").exists()
    shutil.rmtree(copy)
    assert lottery.load("models:/far/1") and downloads(server)


@pytest.mark.parametrize(
    "name",
    [
        "model.pkl", "data/model.pkl", "data/ticket/pytorch_model.bin", "data/ticket/.model.pkl", "code/lottery/fast.so",
        "more/below/model.pt",
    ],
)  # fmt: skip
def test_a_strange_file_on_the_server(server: Door, far_folder: Path, cli: Callable[..., Result], name: str) -> None:
    cli("verify", "--ticket", "models:/far/1")  # a good copy does not hide it
    (far_folder / name).parent.mkdir(parents=True, exist_ok=True)
    (far_folder / name).write_bytes(b"\x80\x04.")
    refused("models:/far/1", cli, name, "is no part of")


@pytest.mark.parametrize("name", ["ticket.json", "config.json", "00002.safetensors"])
def test_bytes_changed_on_the_server(server: Door, far_folder: Path, cli: Callable[..., Result], name: str) -> None:
    for path in (far_folder / "data" / "ticket").iterdir():
        if path.name.endswith(name):
            flip(path, path.stat().st_size - 3)
    refused("models:/far/1", cli, "tensor" if "safe" in name else name, "somebody has altered")
    assert not list((Path(os.environ["LOTTERY_HOME"]) / "fetched").iterdir())


def test_a_record_changed_on_the_server_with_its_checksum(
    server: Door, far_folder: Path, cli: Callable[..., Result]
) -> None:
    ticket = far_folder / "data" / "ticket"
    record = json.loads((ticket / "ticket.json").read_text())
    del record["checksum"]
    record["base"]["id"] = "somebody/else"
    write_record(ticket, record)
    refused("models:/far/1", cli, "ticket.json is not the one that was registered")


def test_what_a_wrong_password_gives(
    published: dict[str, Any], outside: Door, cli: Callable[..., Result], capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*words: str) -> None:
        for command in (("generate", "--ticket", "models:/far/1"), ("label", "0" * 32, "--coherent", "yes")):
            said = cli(*command, code=1).output
            assert said.startswith("Error: ") and said.count("\n") == 1, said
            assert all(word in said for word in words), said
            assert "wrong" not in said + "".join(capfd.readouterr()), said
        with pytest.raises(lottery.errors.MachineError) as caught:
            lottery.load("models:/far/1")
        assert "wrong" not in str(caught.value) + str(caught.value.__cause__)

    ways_out = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    stopped(outside.url, "HTTP 401", *ways_out)
    os.environ |= {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": "wrong"}
    stopped(outside.url, "HTTP 401", *ways_out)
    for password in ("wrong", "wrong%2Fone", "wrong@one"):
        os.environ["MLFLOW_TRACKING_URI"] = outside.url.replace("//", f"//{USER}:{password}@")
        stopped(outside.url, "HTTP 401", *ways_out)
    outside.barred.add(USER)
    stopped(outside.url, "HTTP 403", *ways_out)
    outside.barred.clear()


def test_no_error_prints_a_password(
    outside: Door, cli: Callable[..., Result], capfd: pytest.CaptureFixture[str]
) -> None:
    for uri, code in (
        (f"http://{USER}:secret@127.0.0.1:1", 1),  # nobody is there
        (outside.url.replace("//", f"//{USER}:sec/ret@"), 2),  # no URI
        (outside.url.replace("//", "//secret@"), 2),
    ):
        os.environ["MLFLOW_TRACKING_URI"] = uri
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
        said = cli("verify", "--ticket", "models:/far/1", code=code).output
        shown = said + cli("doctor", code=1).output + "".join(capfd.readouterr())
        assert said.startswith("Error: ") and said.count("\n") == 1, said
        assert not any(word in shown for word in ("secret", "sec/ret", "sec/", "/ret", USER + ":")), shown
