"""Data sets of the hub: their rows, the cache, and the line for all that fails."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from lottery.errors import InputError, MachineError
from lottery.models.hub_datasets import load_dataset_column
from lottery.models.texts import read_text
from tests.support.hub_client import line
from tests.support.hub_server import Fault, Hub, use
from tests.support.paths import DATA, needs_data
from tests.support.servers import free_port

WIKITEXT = (
    "dataset=wikitext2",
    "Salesforce/wikitext",
    "wikitext-2-raw-v1",
    "test",
    "text",
    "give a text as dataset=FILE",
)


@needs_data
def test_wikitext2_and_again_without_the_hub(
    server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.add("Salesforce/wikitext", DATA / "wikitext", kind="datasets")
    rows = load_dataset_column(*WIKITEXT)
    assert (len(rows), len("\n\n".join(rows))) == (4358, 1_294_336)
    use(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path / "home")
    capsys.readouterr()
    assert load_dataset_column(*WIKITEXT) == rows
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "the cached Salesforce/wikitext is used" in warning

    code = f"from lottery.models.hub_datasets import load_dataset_column; print(len('\\n\\n'.join(load_dataset_column(*{WIKITEXT}))))"
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
    line(error, *says, call=lambda: read_text("dataset", "wikitext2"))


@needs_data
def test_the_hub_fails_in_the_middle_of_a_data_set(server: Hub, hurried: None) -> None:
    server.add("Salesforce/wikitext", DATA / "wikitext", kind="datasets")
    server.faults[".parquet"] = Fault(500, method="GET")
    line(MachineError, "(500)", call=lambda: read_text("dataset", "wikitext2"))


def test_a_data_set_without_a_network(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use(monkeypatch, f"http://127.0.0.1:{free_port()}", tmp_path / "home")
    start = time.monotonic()
    line(MachineError, "cannot be reached", "dataset=builtin", call=lambda: read_text("dataset", "wikitext2"))
    assert time.monotonic() - start < 5  # load_dataset alone: 24 s
    use(monkeypatch, server.url, tmp_path / "home", offline=True)
    says = ("offline", "unset HF_HUB_OFFLINE", "dataset=builtin", "test parquet file as dataset=FILE")
    line(InputError, *says, call=lambda: read_text("dataset", "wikitext2"))
    assert server.asked == []
