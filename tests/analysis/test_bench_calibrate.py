"""The benchmark of calibration, in small."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lottery.models.checkpoint import BUILTIN
from tests.support.paths import ROOT


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    spec = importlib.util.spec_from_file_location("analysis_bench", ROOT / "analysis" / "bench.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from benchmarks import one_thread

    for name in one_thread.ONE_THREAD:  # else it starts a process of one thread
        monkeypatch.setenv(name, "1")
    return module


def test_passes_and_solving_are_timed(bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import calibrate

    monkeypatch.setenv("LOTTERY_REAL_MODELS", str(tmp_path))
    monkeypatch.setattr(calibrate, "SAMPLES", 2)
    monkeypatch.setattr(calibrate, "TOKENS", 64)
    result = CliRunner().invoke(bench.main, ["calibrate", "--rounds", "2"])
    assert json.loads(result.stdout.splitlines()[-1])["calibrate"] is None
    assert "python analysis/real_models.py makes it" in result.stdout
    shutil.copytree(BUILTIN, tmp_path / "smollm2-135m-instruct")
    result = CliRunner().invoke(bench.main, ["calibrate", "--rounds", "2"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])["calibrate"]
    assert (
        set(found["solving_s"]) == {"wanda", "swaps", "refit", "sparsegpt", "alps", "repair"}
        and min(found["solving_s"].values()) > 0
    )
    middle, low, high = found["passing"]["to_forward"]
    assert 0 < low <= middle <= high
    assert "times as long" in result.stdout
