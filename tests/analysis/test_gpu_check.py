"""The check of a GPU, as far as it goes without one: its tests need no MLflow, and its parts give figures."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lottery.kernels import cuda_product
from tests.support.paths import ROOT


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    spec = importlib.util.spec_from_file_location("analysis_gpu_check", ROOT / "analysis" / "gpu_check.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so(gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu_check.main, ["--out", str(tmp_path / "found.json")])
    assert done.exit_code == 2 and "torch finds no GPU" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_its_tests_run_without_mlflow(gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlflow.py").write_text("raise ImportError('no MLflow here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu_check.run_tests()
    assert found["passed"] >= 6 and "failed" not in found and "error" not in found, found


def test_its_figures(gpu_check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = gpu_check.time_kernel("cpu", 64, 512)
    assert kernel.pop("copy_bandwidth") > 1e8 and set(kernel) == {"BF16", "I8", "F8_E4M3"}
    assert all(found["torch"] > found["floor"] > 0 and "kernel" not in found for found in kernel.values())
    graphs = gpu_check.find_graphs("cpu")
    assert graphs["graph"] > 0 and graphs["step by step"] > 0
    assert graphs["in_use"] is False and "CUDA graph" in graphs["error"]
    shown = capsys.readouterr().out
    assert "unpacking 64 x 512 at 50%" in shown and "CUDA graphs in use: no" in shown


def test_the_figures_of_the_product(gpu_check: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Here Triton's interpreter and torch's own product stand for a GPU: the figures say nothing of speed."""
    pytest.importorskip("triton")
    assert cuda_product.is_triton_available()
    found = gpu_check.bench_product("cpu", {"small": (8, 300)}, 3)["small"]
    assert len(found) == 12 and {"16 bits 0%", "int8 50%", "fp8 90%"} < set(found)
    for figures in found.values():
        low, median, high = figures["ratio"]
        assert 0 < low <= median <= high and figures["seconds"] > 0
    assert "int8      50%" in capsys.readouterr().out
