"""The benchmark of a training's step, in small."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from lottery.training.recipe import Shape
from tests.analysis.test_bench_calibrate import bench as bench  # a fixture


def test_a_step_is_compared_with_forward_and_backward(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import hypothesis

    monkeypatch.setattr(hypothesis, "SHAPE", Shape(layers=1, width=8, heads=2, inner=8, vocabulary=257, context=16))
    monkeypatch.setattr(hypothesis, "STEPS", 40)
    monkeypatch.setattr(hypothesis, "BATCH", 2)
    result = CliRunner().invoke(bench.main, ["hypothesis", "--rounds", "3"])
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout.splitlines()[-1])["hypothesis"]
    assert set(found) == {"plain_ms", "step_ms", "to_plain", "its own passes", "data", "optimizer and mask", "curve"}
    middle, low, high = found["to_plain"]
    assert 0 < low <= middle <= high and "times as long" in result.stdout and "2 windows of 16 tokens" in result.stdout
