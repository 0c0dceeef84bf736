"""Which Python `make ticket` takes: the newest that the lock installs on, and none that does not work."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the Makefile, in a folder with a space, and no program on the path but its own."""
    place = tmp_path / "a folder"
    (place / "bin").mkdir(parents=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, place)
    return place


def add_python(folder: Path, name: str, check: int) -> None:
    """A Python that ends with `check` when it is asked whether it is one that the lock installs on."""
    path = folder / "bin" / name
    path.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then exit {check}; fi\necho "Python of {name}"\n')
    path.chmod(0o755)


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    assert MAKE
    environment = {"PATH": str(folder / "bin"), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run([MAKE, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_newest_python_that_works(folder: Path) -> None:
    add_python(folder, "python3.14", 127)  # a shim of pyenv whose version is not chosen
    add_python(folder, "python3.13", 0)
    add_python(folder, "python3.11", 0)
    done = make(folder, "python")
    assert done.returncode == 0
    assert done.stdout == f"Python: {folder}/bin/python3.13 (Python of python3.13)\n"
    named = make(folder, "python", "PYTHON=python3.11")
    assert "(Python of python3.11)" in named.stdout


def test_no_python_that_works(folder: Path) -> None:
    add_python(folder, "python3", 1)  # older, or without the module venv
    for arguments in (("python",), ("setup",), ("ticket",)):
        done = make(folder, *arguments)
        assert done.returncode == 2 and "Python 3.11 to 3.14 with its module venv is needed" in done.stderr
    named = make(folder, "python", "PYTHON=python3")
    assert "PYTHON=python3: " in named.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["Makefile", "bin", "pyproject.toml", "requirements.lock"]


def test_the_pythons_agree() -> None:
    """The Makefile, pyproject.toml and conda.yaml name the same ones."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_makefile = {line for line in (ROOT / "Makefile").read_text().split() if line.startswith("python3.")}
    prefix = "Programming Language :: Python :: "
    classified = {f"python{c.removeprefix(prefix)}" for c in project["classifiers"] if c.startswith(prefix)}
    assert of_makefile == classified == {"python3.11", "python3.12", "python3.13", "python3.14"}
    assert project["requires-python"] == ">=3.11,<3.15"
    assert "- python=3.11." in (ROOT / "conda.yaml").read_text()
