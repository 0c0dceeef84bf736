"""Homes and working folders that are not there, cannot be written, are full, or belong to another user."""

import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.forks import Forks
from tests.support.paths import ROOT
from tests.support.refused import refused
from tests.support.store import new_store

QUICK = ("--measure", "none", "--register", "homes")


@pytest.fixture
def own_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "own.db", str(tmp_path / "mlruns")))


@pytest.fixture
def frozen(tmp_path: Path) -> Iterator[Path]:
    """The folder `disk` a second time, as a disk that nobody can write, not even root."""
    folder, disk = tmp_path / "frozen", tmp_path / "disk"
    folder.mkdir()
    disk.mkdir()
    if subprocess.run(["mount", "--bind", str(disk), str(folder)], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def unknown(uid: int) -> pwd.struct_passwd:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


def test_a_home_of_another_user(
    own_store: None, tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another user left there, such as locks, is neither used nor touched."""
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    home = tmp_path / "shared"
    (home / "locks").mkdir(parents=True)
    os.chown(home, 1, 1)
    monkeypatch.setenv("LOTTERY_HOME", str(home))
    cli("prune", "--model", tiny, *QUICK)
    cli("prune", "--model", tiny, "--measure", "none", "--register", "none")
    assert {p.name for p in home.iterdir()} == {"locks", "user-0"} and not list((home / "locks").iterdir())
    assert {"locks", "tickets"} <= {p.name for p in (home / "user-0").iterdir()}


def test_a_user_whom_the_system_does_not_know(tiny: Path, tmp_path: Path) -> None:
    """As in a container: no HOME and no entry in the list of users. MLflow asks for a home while it is imported."""
    script = (
        "import pwd, sys\n"
        "def unknown(uid): raise KeyError(uid)\n"
        "pwd.getpwuid = unknown\n"
        "from lottery.cli.main import main\n"
        "main(sys.argv[1:])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "LOGNAME", "USER", "XDG_CACHE_HOME")}
    environment |= {"LOTTERY_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, "prune", "--model", str(tiny), "--measure", "none", "--register", "none"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "getpwuid" not in done.stderr and "Traceback" not in done.stderr


def test_no_home_is_known(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "LOTTERY_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for command in ("plan", "list", "doctor"):
        refused(cli(command, code=2), "LOTTERY_HOME is not set", "set LOTTERY_HOME to a folder that can be written")


def test_a_working_folder_that_was_removed(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for command in ("list", "plan", "doctor", "report", "prune"):
        refused(cli(command, code=2), "the working folder was removed; change to another folder (cd)")


def test_a_home_that_is_a_file(
    own_store: None, tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("prune", "--model", tiny, *QUICK)
    (tmp_path / "file").write_text("mine")
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "file"))
    refused(cli("prune", "--model", tiny, *QUICK, code=2), "LOTTERY_HOME=", "give a folder that can be written")
    assert "homes/1" in cli("list").stdout
    assert "every hash is right" in cli("verify", "models:/homes/1").stdout


def test_a_store_and_a_home_on_a_read_only_disk(
    frozen: Path, tiny: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only reads works; what writes says what cannot be written."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path / "disk" / "m.db", str(tmp_path / "mlruns")))
    cli("prune", "--model", tiny, *QUICK)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{frozen}/m.db")
    way_out = "several users can share"
    refused(cli("prune", "--model", tiny, *QUICK, code=2), f"no permission to write {frozen}/m.db", way_out)
    monkeypatch.setenv("LOTTERY_HOME", str(frozen / "home"))
    assert "homes/1" in cli("list").stdout
    assert "every hash is right" in cli("verify", "models:/homes/1").stdout
    assert cli("generate", "models:/homes/1", "--tokens", 2).stdout


def test_kernels_without_a_place_to_keep_them(tmp_path: Path) -> None:
    script = (
        "import numpy as np\n"
        "from lottery.kernels.bitmask import compact\n"
        "from lottery.kernels import select\n"
        "print('works')\n"
    )
    (tmp_path / "file").write_text("")
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"LOTTERY_HOME": str(tmp_path / "file"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "works\n", done.stderr
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(
        f"warning: LOTTERY_HOME={tmp_path}/file/kernels: "
    )


def test_a_disk_that_fills_up_while_a_store_is_made(
    tiny: Path, tmp_path: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow cannot go on with half of its tables, so nothing is left of them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/new.db")
    monkeypatch.chdir(tmp_path)
    command = ("prune", "--model", tiny, "--measure", "none", "--register", "none", "--out", tmp_path / "t")
    (failed,) = forks.run(command, largest_file=200_000)
    assert failed["code"] == 1 and "Traceback" not in failed["err"], failed
    assert "new.db is not usable" in failed["err"].splitlines()[-1]
    assert not list(tmp_path.glob("*.db*")) and not list(tmp_path.glob(".*.db*"))
    (done,) = forks.run(command)
    assert done["code"] == 0 and f"new tracking store: {tmp_path}/new.db" in done["err"], done
