"""What transformers says of a model's small files is asked once, and again when a file changes."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from lottery.errors import InputError
from lottery.files.facts import find_fact


def test_a_fact_is_found_once_for_each_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    file, calls = tmp_path / "config.json", list[str]()

    def find() -> str:
        calls.append(file.read_text())
        if calls[-1] == "bad":
            raise InputError("bad")
        return calls[-1]

    for content in ("one", "one", "two", "two", "one"):
        file.write_text(content)
        assert find_fact("content", [file, tmp_path / "absent"], None, find) == content
    assert calls == ["one", "two"]
    assert find_fact("content", [file], "more", find) == "one"
    assert len(calls) == 3
    file.write_text("bad")
    for _ in range(2):  # an error is not kept
        with pytest.raises(InputError):
            find_fact("content", [file], None, find)
    assert len(calls) == 5


def test_a_home_that_cannot_be_written_or_is_damaged_only_costs_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    assert find_fact("size", [], None, lambda: 1) == 1
    (damaged,) = (tmp_path / "home" / "facts").iterdir()
    damaged.write_text("{")
    assert find_fact("size", [], None, lambda: 2) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "file"))
    assert find_fact("size", [], None, lambda: 3) == 3


def test_pruning_a_known_model_needs_no_transformers(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    given = ["prune", "--model", str(tiny), "--measure", "none", "--register", "none", "--out"]
    cli(*given, tmp_path / "first")
    script = f"""
import sys
from lottery.cli.main import main
main({[*given, str(tmp_path / "second")]!r}, standalone_mode=False)
assert "mlflow" in sys.modules
assert not {{"transformers", "scipy.optimize", "sklearn"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    first, second = ((tmp_path / name / "ticket.json").read_bytes() for name in ("first", "second"))
    assert first == second


def test_a_model_that_cannot_be_loaded_is_refused_every_time(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    given = ["prune", "--model", model, "--measure", "none", "--register", "none", "--out", tmp_path / "t"]
    config = (model / "config.json").read_text()
    assert '"LlamaForCausalLM"' in config
    cli(*given)
    (model / "config.json").write_text(config.replace("LlamaForCausalLM", "NoSuchModel"))
    for _ in range(2):
        assert "names the architecture NoSuchModel" in cli(*given[:-1], tmp_path / "other", code=2).stderr
    assert not (tmp_path / "other").exists()
