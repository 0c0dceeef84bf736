"""What `lottery.load` takes out of a registry: the ticket that was registered, or nothing; never the code beside it."""

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
from click.testing import Result

import lottery
from lottery.ticket.record import write_record
from tests.support.altered import flip, model_id, refused, same


@pytest.fixture(scope="module")
def registered(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    made = lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "altered")
    lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "altered", "--target", "late")
    return made


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
        (str(tmp_path / "gone"), ["this machine has no such folder"]),
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
