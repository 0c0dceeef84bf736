"""What `lottery.load` takes out of a registry: the ticket that was registered, or nothing; never the code beside it. In a
local store, and behind a server that asks for a password."""

import contextlib
import json
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import Result

import lottery
from lottery.errors import InputError
from lottery.ticket.record import write_record
from tests.support.guarded import PASSWORD, USER, Door, guarded
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def registered(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    made = lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "altered")
    lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "altered", "--target", "late")
    return made


def model_id(name: str = "altered", version: str = "1") -> str:
    return mlflow.MlflowClient().get_model_version(name, version).source.removeprefix("models:/")


def artifacts(version: str = "1") -> Path:
    location = mlflow.MlflowClient().get_logged_model(model_id(version=version)).artifact_location
    return Path(location.removeprefix("file://"))


@pytest.fixture
def store_folder(registered: dict[str, Any], tmp_path: Path) -> Iterator[Path]:
    """The logged model's own folder, to be altered; as it was afterwards."""
    folder = artifacts()
    shutil.copytree(folder, tmp_path / "kept")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)
    lottery.load("models:/altered/1")


def refused(ticket: Any, cli: Callable[..., Result], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        lottery.load(ticket)
    said = cli("verify", "--ticket", ticket, code=2).stderr.removeprefix(f"fetch {ticket}\n")
    assert said.startswith("Error: ") and said.count("\n") == 1 and said.strip().endswith(str(caught.value))
    for word in words:
        assert word in said, said


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def same(left: Any, right: Any) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_way_to_name_it(registered: dict[str, Any], cli: Callable[..., Result]) -> None:
    client = mlflow.MlflowClient()
    client.set_registered_model_alias("altered", "winner", "1")
    client.set_registered_model_alias("altered", "best", "1")
    model, tokenizer = lottery.load(artifacts() / "data" / "ticket", dtype="source")
    for ticket in ("models:/altered/1", "models:/altered@winner", "models:/altered@best", f"models:/{model_id()}"):
        found, its_tokenizer = lottery.load(ticket, dtype="source")
        assert same(found, model) and its_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert not same(lottery.load("models:/altered/2", dtype="source")[0], model)
    for ticket, words in (
        ("models:/altered@gone", ["it has the versions 1, 2"]),
        ("models:/altered/9", ["it has the versions 1, 2"]),
        ("models:/m-0123456789abcdef", ["not in the registry"]),
        ("models:/altered/latest", ["give models:/NAME/VERSION"]),
        ("models:/altered/1/data", ["give models:/NAME/VERSION"]),
    ):
        refused(ticket, cli, ticket, *words)


@pytest.mark.parametrize(
    "name",
    [
        "model.pkl", "python_model.pkl", "data/model.pkl", "data/ticket/pytorch_model.bin", "data/ticket/.model.pkl",
        "code/lottery/fast.so", "code/model.pkl", "more/below/model.pt", "data/more.json", "data/ticket/below/x.json",
        ".hidden", "code/lottery/lottery.pyc", "data/ticket/more.json", "data/ticket/ticket-00009-of-00009.safetensors",
    ],
)  # fmt: skip
def test_a_file_that_lottery_never_wrote(store_folder: Path, cli: Callable[..., Result], name: str) -> None:
    (store_folder / name).parent.mkdir(parents=True, exist_ok=True)
    (store_folder / name).write_bytes(b"\x80\x04.")
    refused("models:/altered/1", cli, name.rpartition("data/ticket/")[2], "is no part of")


def test_what_others_may_leave_there_is_no_alteration(store_folder: Path) -> None:
    """Python's compiled code and MLflow's note, where `mlflow.pyfunc` has loaded in place."""
    (store_folder / "registered_model_meta").write_text("model_name: altered\n")
    cache = store_folder / "code" / "lottery" / "__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "serve.cpython-311.pyc").write_bytes(b"")
    assert lottery.load("models:/altered/1")


@pytest.mark.parametrize("name", ["data/ticket/config.json", "MLmodel", "data/ticket", "code/lottery/assets", "x.json"])
def test_a_link_out_of_the_folder(store_folder: Path, tmp_path: Path, cli: Callable[..., Result], name: str) -> None:
    """Also one to the very same bytes: they may be others tomorrow."""
    outside, link = tmp_path / "outside", store_folder / name
    if link.exists():
        link.rename(outside)
    else:
        outside.write_text("{}")
    link.symlink_to(outside)
    refused("models:/altered/1", cli, f"{name} (a link)", "is no part of")


def test_something_that_is_no_file(store_folder: Path, cli: Callable[..., Result]) -> None:
    os.mkfifo(store_folder / "data" / "ticket" / "more.json")
    refused("models:/altered/1", cli, "more.json (no file)")


def test_a_changed_byte_in_any_file_of_the_ticket(store_folder: Path, cli: Callable[..., Result]) -> None:
    ticket = store_folder / "data" / "ticket"
    names = sorted(p.name for p in ticket.iterdir() if p.name != "measurements.json")
    assert {"config.json", "ticket.json", "tokenizer.json", "ticket-00001-of-00002.safetensors"} <= set(names)
    for name in names:
        content = (ticket / name).read_bytes()
        for at in (9, len(content) // 2, len(content) - 2):
            flip(ticket / name, at)
            refused("models:/altered/1", cli, "ticket=")
        (ticket / name).write_bytes(content)
    assert lottery.load("models:/altered/1")
    (ticket / "config.json").unlink()
    refused("models:/altered/1", cli, "config.json")


def test_another_record_with_a_checksum_of_its_own(store_folder: Path, cli: Callable[..., Result]) -> None:
    """Whole in itself, so that the folder loads; and not what was registered."""
    ticket = store_folder / "data" / "ticket"
    record = json.loads((ticket / "ticket.json").read_text())
    del record["checksum"]
    record["base"]["id"] = "somebody/else"
    write_record(ticket, record)
    assert lottery.load(ticket)
    refused("models:/altered/1", cli, "ticket.json is not the one that was registered")


def test_another_ticket_in_its_place(store_folder: Path, cli: Callable[..., Result]) -> None:
    shutil.rmtree(store_folder / "data")
    shutil.copytree(artifacts("2") / "data", store_folder / "data")
    assert lottery.load(store_folder / "data" / "ticket")
    refused("models:/altered/1", cli, "ticket.json is not the one that was registered")


@pytest.mark.parametrize("name", ["../config.json", "/etc/passwd", "..", "below/config.json", "..\\config.json"])
@pytest.mark.parametrize("kind", ["files", "shards"])
def test_a_record_that_names_files_elsewhere(
    store_folder: Path, cli: Callable[..., Result], kind: str, name: str
) -> None:
    ticket = store_folder / "data" / "ticket"
    record = json.loads((ticket / "ticket.json").read_text())
    del record["checksum"]
    record[kind][name] = "0" * 64
    write_record(ticket, record)
    refused(ticket, cli, "outside of its folder", repr(name))
    refused("models:/altered/1", cli, "ticket.json is not the one that was registered")


@contextlib.contextmanager
def in_the_database(store: Path, table: str, column: str, where: tuple[str, str], value: str) -> Iterator[None]:
    """What no command of MLflow's changes."""
    with contextlib.closing(sqlite3.connect(store / "mlflow.db")) as db:
        query = f"select {column} from {table} where {where[0]} = ?"
        before = db.execute(query, where[1:]).fetchall()
        for new in ([(value,)], before):
            db.execute(f"update {table} set {column} = ? where {where[0]} = ?", (new[0][0], where[1]))
            db.commit()
            if new != before:
                yield


def test_a_version_whose_source_points_elsewhere(
    store: Path, registered: dict[str, Any], cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    client = mlflow.MlflowClient()
    version = client.create_model_version(
        "altered", f"models:/{model_id()}", tags={"ticket": registered["ticket"]}, model_id=model_id()
    )
    uri, where = f"models:/altered/{version.version}", ("version", str(version.version))
    assert lottery.load(uri)
    for source, words in (
        ("file:///etc", ["that version is no ticket"]),
        (str(artifacts()), ["that version is no ticket"]),
        ("models:/altered/1", ["that version is no ticket"]),
        (f"models:/{model_id(version='2')}", [f"that version was the ticket {registered['ticket']}"]),
        ("models:/m-0123456789abcdef", ["not in the registry"]),
    ):
        with in_the_database(store, "model_versions", "source", where, source):
            refused(uri, cli, uri, *words)
    client.delete_model_version("altered", version.version)


def test_a_logged_model_whose_files_lie_elsewhere(
    store: Path, registered: dict[str, Any], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    shutil.copytree(artifacts("2"), tmp_path / "other")
    where = ("model_id", model_id())
    for place, words in (
        ("file:///etc", ["is no part of a registered ticket"]),
        (tmp_path.as_uri() + "/other", ["ticket.json is not the one that was registered"]),
        (str(tmp_path / "other"), ["ticket.json is not the one that was registered"]),
        (str(tmp_path / "gone"), ["this machine has none"]),
    ):
        with in_the_database(store, "logged_models", "artifact_location", where, place):
            refused("models:/altered/1", cli, *words)
    assert lottery.load("models:/altered/1")


def test_a_version_of_before_hashes_were_kept(
    tiny: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    arguments = ("prune", "--model", tiny, "--measure", "none", "--register", "earlier")
    lottery_json(*arguments)
    mlflow.MlflowClient().delete_logged_model_tag(model_id("earlier"), "sha256")
    refused("models:/earlier/1", cli, "without the hash of its ticket.json", "prune it again")
    assert lottery_json(*arguments)["model_uri"] == "models:/earlier/2"
    assert lottery.load("models:/earlier/2")


def test_the_code_beside_a_ticket_is_never_run(
    store_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another __init__.py, and a loader that runs in a process that has lottery already. MLflow itself does run it."""
    ran = tmp_path / "ran"
    trap = f"open({str(ran)!r}, 'w')\nprint('never')\n"
    (store_folder / "code" / "lottery" / "__init__.py").write_text(trap)
    (store_folder / "code" / "more").mkdir()
    (store_folder / "code" / "more" / "trap.py").write_text(f"{trap}\ndef _load_pyfunc(path):\n    return object()\n")
    described = store_folder / "MLmodel"
    described.write_text(described.read_text().replace("loader_module: lottery.serve", "loader_module: more.trap"))
    before = list(sys.path)
    assert lottery.load("models:/altered/1")
    assert not ran.exists() and sys.path == before
    monkeypatch.setattr(sys, "path", before)
    with contextlib.suppress(Exception):  # what the trap gives is no model
        mlflow.pyfunc.load_model("models:/altered/1")
    assert ran.exists()


# A server: artifacts come through it; who asks must have a password.


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
