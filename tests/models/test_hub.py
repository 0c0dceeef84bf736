"""The hub client against a hub on this machine: what it downloads, what it keeps, what it has offline."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lottery.errors import InputError
from lottery.models import hub
from lottery.models.hub import INDEX, WHOLE, fetch, is_id
from tests.support.hub_client import SMALL, line
from tests.support.hub_server import Fault, Hub, use
from tests.support.paths import STORIES, needs_data


def test_what_looks_like_an_id() -> None:
    for name in ("gpt2", "org/name", "mistralai/Mistral-7B-v0.1", "gpt2@main", "org/name@refs/pr/1", "org/name@0a1b2c"):
        assert is_id(name), name
    for name in ("./name", "../name", "~/name", "/name", "a/b/c", "name/", "models:/name/1", "", "org/name@", "a b"):
        assert not is_id(name), name


def test_importing_it_is_cheap() -> None:
    code = "import sys, lottery.models.hub; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "httpx2", "datasets", "huggingface_hub"} & set(loaded)


@needs_data
def test_a_single_file_model(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    commit = server.add("org/name", STORIES)
    seen: list[dict[str, Any]] = []
    snapshot = fetch("org/name", SMALL, seen.append)
    assert (snapshot.id, snapshot.revision, snapshot.folder.name) == ("org/name", commit, commit)
    assert seen == [json.loads((STORIES / "config.json").read_text())]
    for path in STORIES.iterdir():
        assert (snapshot.folder / path.name).read_bytes() == path.read_bytes()
    assert capsys.readouterr().err == "download org/name\n"

    served = server.served.total()
    assert fetch("org/name", SMALL) == snapshot
    assert (server.served.total(), capsys.readouterr().err) == (served, "")
    assert fetch("org/name", SMALL, local_only=True) == snapshot


def test_a_sharded_model(server: Hub, sharded: Path) -> None:
    server.add("org/name", sharded)
    folder = fetch("org/name", SMALL).folder
    weights = {"model-1.safetensors", "model-2.safetensors", "model-3.safetensors"}
    assert {path.name for path in folder.iterdir()} == weights | {INDEX, "config.json", "tokenizer.json"}
    assert [float(load_file(folder / f"model-{i}.safetensors")[f"t{i}"].sum()) for i in (1, 2, 3)] == [100, 400, 900]
    asked = [entry.rsplit("/", 1)[1] for entry in server.asked if entry.startswith("GET /org")]
    assert asked[:2] == ["config.json", INDEX] and set(asked[-3:]) == weights  # the weights last


def test_one_file_is_taken_before_shards(server: Hub, sharded: Path) -> None:
    save_file({"a": np.ones(10, np.float32)}, sharded / WHOLE)
    server.add("org/name", sharded)
    fetch("org/name", SMALL)
    assert set(server.served) == {"config.json", "tokenizer.json", WHOLE}


def test_a_revision_is_a_branch_or_a_commit(server: Hub, model: Path, sharded: Path) -> None:
    main, other = server.add("org/name", model), server.add("org/name", sharded, branch="refs/pr/1")
    assert fetch("org/name@refs/pr/1", SMALL).revision == other
    assert fetch(f"org/name@{main}", SMALL).revision == main
    served = server.served.total()
    assert fetch("org/name", SMALL).revision == main
    assert fetch(f"org/name@{other}", SMALL).revision == other
    assert server.served.total() == served
    assert fetch("org/name@refs/pr/1", SMALL, local_only=True).revision == other
    server.add("org/name", sharded)  # main moves on; its files are here already
    assert fetch("org/name", SMALL).revision == other
    assert server.served.total() == served


@pytest.fixture
def bar(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, list[float]]]:
    """Every stage as (title, total, the amounts it advanced by)."""
    stages: list[tuple[str, float, list[float]]] = []

    @contextmanager
    def stage(title: str, total: float, unit: str) -> Iterator[Callable[[float], None]]:
        stages.append((title, total, []))
        yield stages[-1][2].append

    monkeypatch.setattr(hub, "stage", stage)
    return stages


def test_a_dropped_connection_goes_on_from_what_had_arrived(
    server: Hub, model: Path, hurried: None, bar: list[tuple[str, float, list[float]]]
) -> None:
    mib = 2**20  # the library writes, and so resumes, in steps of 10 MiB
    values = np.random.default_rng(0).integers(0, 255, 25 * mib, np.uint8)
    save_file({"a": values}, model / WHOLE)
    size = (model / WHOLE).stat().st_size
    server.add("org/name", model)
    server.faults[WHOLE] = Fault(drop_after=15 * mib, times=1, method="GET")
    folder = fetch("org/name", SMALL).folder
    assert (folder / WHOLE).read_bytes() == (model / WHOLE).read_bytes()
    assert [entry.partition("bytes=")[2] for entry in server.asked if WHOLE in entry] == ["", "", "", f"{10 * mib}-"]
    assert server.served[WHOLE] == 15 * mib + size - 10 * mib
    [(title, total, amounts)] = bar
    assert (title, total, sum(amounts)) == ("download org/name", size + 2, size + 2)


def test_hf_xet_advances_the_bar_once() -> None:
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    amounts: list[float] = []
    with XetDownloadProgressReporter(
        reconstruction_desc="",
        total=100,
        log_level=0,
        tqdm_class=hub.forward(amounts.append),  # type: ignore[arg-type]  # append takes no note
    ) as reporter:
        for done in (40, 100):
            reporter.update_progress(
                SimpleNamespace(
                    total_bytes=100,
                    total_bytes_completed=done,
                    total_transfer_bytes_completed=done // 2,
                    total_bytes_completion_rate=1.0,
                    total_transfer_bytes_completion_rate=1.0,
                )
            )
    assert amounts == [40, 60]


@pytest.fixture
def offline(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    return lambda: use(monkeypatch, server.url, tmp_path / "home", offline=True)


def test_offline_with_all_files(server: Hub, sharded: Path, offline: Callable[[], None]) -> None:
    commit = server.add("org/name", sharded, branch="dev")
    snapshot = fetch("org/name@dev", SMALL)
    offline()
    server.asked.clear()
    seen: list[dict[str, Any]] = []
    assert fetch("org/name@dev", SMALL, seen.append) == fetch(f"org/name@{commit}", SMALL) == snapshot
    assert (seen, server.asked) == ([{"model_type": "llama"}], [])


def test_offline_lists_the_files_that_are_missing(server: Hub, sharded: Path, offline: Callable[[], None]) -> None:
    server.add("org/name", sharded, branch="dev")
    folder = fetch("org/name@dev", SMALL).folder
    offline()
    (folder / "model-3.safetensors").unlink()
    (folder / "model-1.safetensors").resolve().unlink()  # its link is left
    from_dev: Callable[[], Any] = lambda: fetch("org/name@dev", SMALL)  # noqa: E731 (mypy wants the type)
    way_out = "unset HF_HUB_OFFLINE, or run `hf download org/name --revision dev`"
    line(InputError, "has no model-1.safetensors, model-3.safetensors; " + way_out, call=from_dev)
    (folder / INDEX).unlink()
    (folder / "config.json").unlink()
    line(InputError, "has no config.json, model.safetensors; ", call=from_dev)
    line(InputError, "has no config.json, model.safetensors; ", "`hf download org/name`")  # nothing of main is here


def test_only_the_cache_where_the_caller_says_so(server: Hub, model: Path) -> None:
    server.add("org/name", model)
    local: Callable[[], Any] = lambda: fetch("org/name", SMALL, local_only=True)  # noqa: E731 (mypy wants the type)
    line(InputError, "config.json, model.safetensors", call=local)
    assert server.asked == []
    assert fetch("org/name", SMALL) == local()
