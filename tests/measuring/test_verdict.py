"""From how many windows on a ticket is judged, and in which words it is not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import Result

from lottery.measuring.intervals import difference_interval
from lottery.measuring.verdict import LEAST_WINDOWS, describe_verdict, is_judged
from lottery.models.texts import BUILTIN_TEXT

QUICK = ("--measure", "perplexity", "--sparsity", "0.01")


def test_two_windows_judge_nothing(
    tiny: Path, tmp_path: Path, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    """Nearly nothing is removed, so the interval lies within the tolerance, and yet the ticket does not win."""
    (tmp_path / "text.txt").write_text(BUILTIN_TEXT.read_text()[:600])
    text = (
        "--model",
        tiny,
        "--dataset",
        tmp_path / "text.txt",
        "--window",
        64,
        *QUICK,
        "--control",
        1,
        "--register",
        "short",
    )
    made = lottery_json("prune", *text)
    windows = int(made["tags"]["winner"].split()[2])
    assert 1 < windows < LEAST_WINDOWS and made["metrics"]["perplexity_ratio_hi"] < 1.1
    expected = f"not judged: {windows} windows, 12 are needed"
    assert made["tags"]["winner"] == made["tags"]["beats_control"] == expected and "limited" not in made["tags"]
    version = mlflow.MlflowClient().get_model_version("short", "1")
    assert version.tags["winner"] == expected and not mlflow.MlflowClient().get_registered_model("short").aliases
    result = cli("prune", *text)
    assert f"{expected} (the ratio's upper end is" in result.stdout and "winner: no" not in result.stdout
    assert "give a longer text)" in result.stdout
    assert f"too few for a verdict ({windows} windows, 12 are needed)" in result.stderr


def test_twelve_windows_judge(tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    text = BUILTIN_TEXT.read_text()
    (tmp_path / "text.txt").write_text(text)
    common = ("--model", tiny, "--dataset", tmp_path / "text.txt", *QUICK, "--register", "none")
    for windows, expected in ((12, "yes"), (11, "not judged: 11 windows, 12 are needed")):
        (tmp_path / "text.txt").write_text(text[: int(len(text) * (windows + 0.4) / 218)])
        assert lottery_json("prune", *common, "--window", 128)["tags"]["winner"] == expected


def test_a_limit_judges_nothing_however_many_windows_it_leaves(
    tiny: Path, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]
) -> None:
    common = ("--model", tiny, "--dataset", "builtin", *QUICK, "--register", "none", "--control", 1)
    made = lottery_json("prune", *common, "--limit", 30)
    assert made["tags"]["winner"] == "not judged: 30 of 218 windows"
    assert made["tags"]["beats_control"] in ("yes", "no")  # the same windows judge both
    few = lottery_json("prune", *common, "--limit", 3)
    assert few["tags"]["beats_control"] == "not judged: 3 windows, 12 are needed"
    assert "limit=none measures them all" in cli("prune", *common, "--limit", 3).stdout


def test_a_limit_that_leaves_nothing_out_is_none(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    common = ("--model", tiny, "--dataset", "builtin", *QUICK, "--register", "none")
    made = lottery_json("prune", *common, "--limit", 218)
    assert made["tags"]["winner"] == "yes" and "limited" not in made["tags"]
    assert made["tags"]["protocol"] == lottery_json("prune", *common)["tags"]["protocol"]


def test_what_earlier_versions_said() -> None:
    assert describe_verdict({"winner": "no", "limited": "8"}) == "not judged: the first 8 windows"
    assert not is_judged({"winner": "no", "limited": "8"}) and not is_judged({}) and is_judged({"winner": "no"})


@pytest.mark.parametrize(("windows", "least"), [(2, 0.4), (LEAST_WINDOWS, 0.93)])
def test_how_often_an_interval_holds_the_mean(windows: int, least: float) -> None:
    """Of skewed differences: what two windows give is a coin, from twelve on it is about 95 in 100."""
    rng = np.random.default_rng(0)
    draws = rng.gamma(4, 0.01, (600, windows))
    held = np.mean([low <= 0.04 <= high for low, high in map(difference_interval, draws)])
    assert least < held < (0.7 if windows == 2 else 0.97) and math.isfinite(held)
