"""Where nothing can be written, or not enough: one line that names the place, and nothing is left there."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.forks import Forks
from tests.support.models import tiny_model
from tests.support.refused import refused
from tests.support.store import new_store


@pytest.fixture
def small_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A tracking store of its own, below the limits of these tests: that of the session grows with every run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "own.db"))


def test_an_error_while_much_is_in_flight_ends(tmp_path: Path, forks: Forks, small_store: None) -> None:
    """A disk that is full when the reader is far ahead: whoever waits for memory is told."""
    model = tiny_model(
        tmp_path / "m",
        vocab_size=64,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=12,
        tie_word_embeddings=True,
    )
    command = ("prune", "--model", model, "--measure", "none", "--register", "none", "--out", tmp_path / "t")
    (failed,) = forks.run(command, largest_file=2_000_000)
    assert failed["code"] == 1 and "File too large; make room" in failed["err"].splitlines()[-1], failed
    assert failed["took"] < 120
    assert not (tmp_path / "t").exists() and not (tmp_path / ".t.partial").exists()


def test_an_output_that_cannot_be_written(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    quick = ("--measure", "none", "--register", "none")
    refused(cli("prune", "--model", tiny, "--out", "/proc/no/such", *quick, code=2), "out=/proc/no")
    (tmp_path / "file").write_text("")
    refused(cli("prune", "--model", tiny, "--out", tmp_path / "file" / "t", *quick, code=2), "out=")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("keep me")
    refused(cli("prune", "--model", tiny, "--out", tmp_path / "other", *quick, code=2), "out=", "new folder")
    assert (tmp_path / "other" / "mine.txt").read_text() == "keep me"
    cli("prune", "--model", tiny, "--out", tmp_path / "t", *quick)
    refused(
        cli("prune", "--model", tiny, "--sparsity", "0.6", "--out", tmp_path / "t", *quick, code=2), "another ticket"
    )


def test_a_read_only_output(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Root may write anywhere but on a file system mounted read-only; anybody else is stopped by the folder's mode."""
    folder = tmp_path / "frozen"
    folder.mkdir(mode=0o555)
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    )
    try:
        if os.geteuid() == 0 and not mounted:
            pytest.skip("root without the right to mount cannot meet a read-only folder")
        out = folder / "t"
        result = cli("prune", "--model", tiny, "--out", out, "--measure", "none", "--register", "none", code=2)
        refused(result, f"out={folder}", "give a folder that can be written")
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(tmp_path: Path, forks: Forks, small_store: None) -> None:
    """A limit on the size of a file makes the same system call fail at the same place as a full disk."""
    model = tiny_model(tmp_path / "m", hidden_size=160)
    command = ("prune", "--model", model, "--measure", "none", "--register", "none", "--out", tmp_path / "t")
    (failed,) = forks.run(command, largest_file=2_000_000)  # less than the ticket takes, more than the tracking store
    assert failed["code"] == 1 and "Traceback" not in failed["err"], failed
    assert failed["err"].splitlines()[-1].startswith(f"Error: out={tmp_path}/t: File too large; make room")
    assert not (tmp_path / "t").exists() and not (tmp_path / ".t.partial").exists()
    (done,) = forks.run(command)  # there is room again
    assert done["code"] == 0 and (tmp_path / "t" / "ticket.json").exists(), done
