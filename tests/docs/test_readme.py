"""Every command of the README runs, as written, in a copy of the repository; its parameter table is the program's own."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

import pytest
import requests

from lottery.spec import Spec
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.S | re.M)


def test_the_parameter_table_is_the_program_s() -> None:
    rows = [f"| `{f.name}` | `{f.default}` | {f.metadata['help']} | {f.metadata['values']} |" for f in fields(Spec)]
    assert "\n".join(rows) in README


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, with the environment that the tests run in as `.venv`."""
    folder = tmp_path_factory.mktemp("readme") / "lottery"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def environment(copy: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_TRACKING")}
    return kept | {"LOTTERY_HOME": str(copy / "home"), "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"}


def run(command: str, copy: Path) -> str:
    done = subprocess.run(["bash", "-ec", command], cwd=copy, env=environment(copy), capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@contextmanager
def running(command: str, copy: Path, page: str) -> Iterator[requests.Response]:
    """A command that runs until it is stopped, from its first answer on."""
    server = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=copy, env=environment(copy), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(240):
            time.sleep(0.5)
            try:
                answer = requests.get(page, timeout=5)
                break
            except requests.ConnectionError:
                assert server.poll() is None
        else:
            raise AssertionError(f"{command} never answered")
        assert answer.status_code == 200
        yield answer
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_every_command_of_the_readme(copy: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert lines[0] == "make ticket" and lines[-1] == "make test" and len(lines) > 10
    # `make test` is what runs this; the rest in the order in which a reader meets it. The environment is ready (-o).
    table = run("make -o .venv/.ready ticket", copy)
    assert "| dense " in table and "| late 50% " in table and "registered: models:/ticket-builtin/1" in table
    with ExitStack() as open_to_the_end:
        for line in lines[1:-1]:
            command = line.split("   #")[0].strip()
            if command.endswith("mlflow ui"):
                with running(f"{command} --port 5987", copy, "http://127.0.0.1:5987/") as answer:
                    assert "MLflow" in answer.text
            elif command.startswith("mlflow models serve"):
                open_to_the_end.enter_context(running(command, copy, "http://127.0.0.1:5001/ping"))
            elif command.startswith("curl"):
                assert run(command, copy).startswith('{"predictions": ["The old man')
            else:
                run(command, copy)
    printed = run(f"{sys.executable} - <<'END'\n{blocks('python')[0]}END", copy)
    assert "models:/ticket-builtin/" in printed and "The meaning of life is" in printed
    for command in re.findall(r"`(mlflow run \. --env-manager local -e [^`]+)`", README.replace("\n", " ")):
        run(command, copy)
