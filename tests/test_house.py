"""The house: what may import what, how long a file is, where a test lies, and what a command loads before it works."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT

ROOMS = {path.parent.name for path in (ROOT / "lottery").glob("*/__init__.py")}
HEAVY = {"torch", "transformers", "mlflow", "numpy", "numba", "rich"}
LONGEST_FILE = 400  # lines


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(folder), "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_no_import_runs_upwards_or_in_a_circle(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ROOT / "lottery", tmp_path / "lottery", ignore=shutil.ignore_patterns("assets")))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    whole = lint_imports(tmp_path)
    assert whole.returncode == 0 and " 0 broken" in whole.stdout, whole.stdout + whole.stderr
    with open(copy / "ticket" / "record.py", "a") as f:
        f.write("\nfrom lottery.study.run import run\n")
    broken = lint_imports(tmp_path)
    assert broken.returncode == 1
    assert "lottery.ticket is not allowed to import lottery.study" in broken.stdout, broken.stdout
    assert "lottery.ticket.record -> lottery.study.run" in broken.stdout


def test_no_file_is_too_long_without_a_reason() -> None:
    """A file of tables, say, gives its reason in its first lines: why it is as long as it is."""
    for top in ("lottery", "tests", "analysis"):
        for path in (ROOT / top).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            if len(lines) > LONGEST_FILE:
                assert re.search(r"\blong\b", "\n".join(lines[:6])), f"{path.relative_to(ROOT)} has {len(lines)} lines"


def test_tests_lie_where_the_rooms_do() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == ROOMS | {"support", "docs", "analysis"}
    for folder in folders - {"support"}:
        assert list((ROOT / "tests" / folder).glob("test_*.py")), folder
    assert not list((ROOT / "tests" / "support").rglob("test_*.py"))


def loaded_after(*commands: tuple[Any, ...]) -> dict[str, list[str]]:
    """What is loaded after each of the commands, which one new process runs one after the other."""
    words = [[str(word) for word in command] for command in commands]
    script = (
        "import contextlib, io, json, sys\n"
        "from lottery.cli.main import main\n"
        "found = {}\n"
        f"for command in json.loads({json.dumps(words)!r}):\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(command, standalone_mode=False)\n"
        f"    found[command[0]] = sorted({{m.split('.')[0] for m in sys.modules}} & set({sorted(HEAVY)}))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_loads_nothing_heavy() -> None:
    from lottery.cli.main import main

    script = (
        "import sys; from click.testing import CliRunner; from lottery.cli.main import main\n"
        "for name in ([], *([c] for c in main.commands)): assert CliRunner().invoke(main, [*name, '--help']).exit_code == 0\n"
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and "lottery" in done.stdout.split() and len(main.commands) > 5, done.stderr
    assert not HEAVY & set(done.stdout.split())


@pytest.fixture(scope="module")
def made(
    tiny: Path, tmp_path_factory: pytest.TempPathFactory, lottery_json: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    """A registered ticket, whose folder stays."""
    out = tmp_path_factory.mktemp("house") / "t"
    return lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "house", "--out", out)


def test_what_reads_the_registry_loads_no_torch(made: dict[str, Any]) -> None:
    found = loaded_after(
        ("list", "--name", "house"), ("label", made["run_id"], "--coherent", "no"), ("publish", made["path"])
    )
    assert list(found) == ["list", "label", "publish"]
    for command, heavy in found.items():
        assert "mlflow" in heavy and not {"torch", "transformers"} & set(heavy), command


def test_what_reads_files_loads_no_mlflow(made: dict[str, Any], tiny: Path, tmp_path: Path) -> None:
    found = loaded_after(
        ("plan", "--model", tiny), ("verify", made["path"]), ("study", "cliff", "--dry-run"),
        ("export", made["path"], "--to", tmp_path / "exported"),
    )  # fmt: skip
    assert list(found) == ["plan", "verify", "study", "export"] and (tmp_path / "exported" / "config.json").exists()
    for command, heavy in found.items():
        assert "mlflow" not in heavy, command
    assert "torch" in found["export"]
