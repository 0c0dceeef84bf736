"""The hub client against a hub on this machine: what it downloads, what it keeps, and the line for all that fails."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lottery.errors import InputError, MachineError
from lottery.models import hub
from lottery.models.hub import INDEX, WHOLE, dataset_rows, fetch, is_id, reached
from tests.support.hub_server import Fault, Hub, use
from tests.support.paths import DATA, STORIES, needs_data

SMALL = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt")
WIKITEXT = ("dataset=wikitext2", "Salesforce/wikitext", "wikitext-2-raw-v1", "test", "text")


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's pauses between its attempts, left out."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a small model."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("not needed")
    save_file({"a": np.ones(1000, np.float32)}, folder / WHOLE)
    return folder


@pytest.fixture
def sharded(model: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model, tmp_path / "sharded"))
    (folder / WHOLE).unlink()
    for i in (1, 2, 3):
        save_file({f"t{i}": np.full(100 * i, i, np.float32)}, folder / f"model-{i}.safetensors")
    save_file({"no": np.ones(1)}, folder / "consolidated.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {f"t{i}": f"model-{i}.safetensors" for i in (1, 2, 3)}}))
    return folder


def line(error: type[Exception], *says: str, call: Callable[[], Any] = lambda: fetch("org/name", SMALL)) -> str:
    """The one line that the call ends with."""
    with pytest.raises(error) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and said.startswith(("model=org/name", "dataset=wikitext2")), said
    for word in says:
        assert word in said, said
    return said


def unused_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_what_looks_like_an_id() -> None:
    for name in ("gpt2", "org/name", "mistralai/Mistral-7B-v0.1", "gpt2@main", "org/name@refs/pr/1", "org/name@0a1b2c"):
        assert is_id(name), name
    for name in ("./name", "../name", "~/name", "/name", "a/b/c", "name/", "models:/name/1", "", "org/name@", "a b"):
        assert not is_id(name), name


def test_importing_it_is_cheap() -> None:
    code = "import sys, lottery.models.hub; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "httpx2", "datasets", "huggingface_hub"} & set(loaded)


# --- what is downloaded


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


# --- what is refused before a weight is downloaded


def test_only_pickled_weights(server: Hub, model: Path) -> None:
    (model / WHOLE).rename(model / "pytorch_model-00001-of-00002.bin")
    server.add("org/name", model)
    line(InputError, "pytorch_model", "pickle", "safetensors", "@REVISION")
    assert server.served.total() == 0


@pytest.mark.parametrize("gone", ["config.json", WHOLE])
def test_not_a_model(server: Hub, model: Path, gone: str) -> None:
    (model / gone).unlink()
    server.add("org/name", model)
    line(InputError, gone)
    assert server.served.total() == 0


def test_an_architecture_that_is_refused(server: Hub, model: Path) -> None:
    def check(config: dict[str, Any]) -> None:
        raise InputError(f"model=org/name: {config['model_type']} is unknown here")

    server.add("org/name", model)
    line(InputError, "llama is unknown", call=lambda: fetch("org/name", SMALL, check))
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
    (sharded / INDEX).write_text(content)
    server.add("org/name", sharded)
    line(InputError, INDEX, says)
    assert set(server.served) == {"config.json", INDEX}


# --- offline


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
    snapshot = fetch("org/name", SMALL)
    url = server.url if fault else f"http://127.0.0.1:{unused_port()}"
    use(monkeypatch, url, tmp_path / "home", seconds=1)
    if fault:
        server.faults["/api/models"] = fault
    capsys.readouterr()
    assert fetch("org/name", SMALL) == snapshot
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and warning.startswith("warning: model=org/name: ") and commit in warning
    (snapshot.folder / WHOLE).unlink()
    line(MachineError, url)


# --- every failure is one line


def test_gated(server: Hub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add("org/name", model)
    server.gated.add("org/name")
    line(InputError, "(401)", f"{server.url}/org/name", "HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "other-token")
    line(InputError, "(403)", f"{server.url}/org/name", "HF_TOKEN")
    assert server.served.total() == 0
    monkeypatch.setenv("HF_TOKEN", "good-token")
    assert (fetch("org/name", SMALL).folder / WHOLE).is_file()


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
    line(InputError, "no revision v2 (404)", "branch, tag or commit", call=lambda: fetch("org/name@v2", SMALL))


def test_a_name_that_cannot_be(server: Hub) -> None:
    line(InputError, "org/name--x", "ORG/NAME", call=lambda: fetch("org/name--x", SMALL))


@pytest.mark.parametrize(
    ("where", "fault", "error", "says"),
    [
        ("/api/models", Fault(403), InputError, ("(403)", "ask for access")),
        ("/api/models", Fault(429), MachineError, ("(429)", "some minutes")),
        ("/api/models", Fault(503), MachineError, ("(503)", "try again later")),
        ("/api/models", Fault(418), InputError, ("(418)",)),
        ("/api/models", Fault(drop_after=5), MachineError, ("broke off",)),
        ("config.json", Fault(500, method="HEAD"), MachineError, ("(500)",)),  # as "not in the cache", by the library
        (WHOLE, Fault(500, method="GET"), MachineError, ("(500)",)),
        (WHOLE, Fault(404, "EntryNotFound"), InputError, ("no file model.safetensors", "(404)")),
        (WHOLE, Fault(drop_after=1000, method="GET"), MachineError, ("broke off", "same command", "are kept")),
        (WHOLE, Fault(hang_s=60, method="GET"), MachineError, ("in time", "HF_HUB_DOWNLOAD_TIMEOUT")),
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
    assert (fetch("org/name", SMALL).folder / WHOLE).read_bytes() == (model / WHOLE).read_bytes()


def test_something_else_answers(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    use(monkeypatch, server.url.removeprefix("http://"), tmp_path / "home")
    line(MachineError, "cannot be reached", "HF_ENDPOINT")
    use(monkeypatch, server.url, tmp_path / "home")
    monkeypatch.setattr(
        "tests.support.hub_server.Answer.json", lambda self, content: self.send(b"<html>welcome to the hotel</html>")
    )
    server.add("org/name", model)
    line(MachineError, "does not answer as a hub", "HF_ENDPOINT")


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
    with pytest.raises(InputError, match=r"^mine$"), reached("model=org/name", "org/name"):
        raise InputError("mine")


# --- data sets


@needs_data
def test_wikitext2_and_again_without_the_hub(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("Salesforce/wikitext", DATA / "wikitext", kind="datasets")
    rows = dataset_rows(*WIKITEXT)
    assert (len(rows), len("\n\n".join(rows))) == (4358, 1_294_336)
    use(monkeypatch, f"http://127.0.0.1:{unused_port()}", tmp_path / "home")
    capsys.readouterr()
    assert dataset_rows(*WIKITEXT) == rows
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "the cached Salesforce/wikitext is used" in warning

    code = f"from lottery.models.hub import dataset_rows; print(len('\\n\\n'.join(dataset_rows(*{WIKITEXT}))))"
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1294336\n", "")


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (Fault(401), InputError, ("(401)", "HF_TOKEN")),
        (Fault(403), InputError, ("(403)", "/datasets/Salesforce/wikitext")),
        (Fault(404, "RepoNotFound"), InputError, ("no dataset Salesforce/wikitext", "(404)")),
        (Fault(429), MachineError, ("(429)", "dataset=builtin", "dataset=FILE")),
        (Fault(502), MachineError, ("(502)", "dataset=builtin", "dataset=FILE")),
        (Fault(hang_s=60), MachineError, ("in time", "dataset=builtin", "dataset=FILE")),
    ],
    ids=["401", "403", "404", "429", "502", "hang"],
)
def test_the_hub_fails_for_a_data_set(
    fault: Fault,
    error: type[Exception],
    says: Sequence[str],
    server: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    use(monkeypatch, server.url, tmp_path / "home", seconds=1)
    server.faults["/api/datasets"] = fault
    line(error, *says, call=lambda: dataset_rows(*WIKITEXT))


@needs_data
def test_the_hub_fails_in_the_middle_of_a_data_set(server: Hub, hurried: None) -> None:
    server.add("Salesforce/wikitext", DATA / "wikitext", kind="datasets")
    server.faults[".parquet"] = Fault(500, method="GET")
    line(MachineError, "(500)", call=lambda: dataset_rows(*WIKITEXT))


def test_a_data_set_without_a_network(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, f"http://127.0.0.1:{unused_port()}", tmp_path / "home")
    start = time.monotonic()
    line(MachineError, "cannot be reached", "dataset=builtin", call=lambda: dataset_rows(*WIKITEXT))
    assert time.monotonic() - start < 5  # load_dataset alone: 24 s
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    says = ("offline", "unset HF_HUB_OFFLINE", "dataset=builtin", "test parquet file as dataset=FILE")
    line(InputError, *says, call=lambda: dataset_rows(*WIKITEXT))
    assert server.asked == []
