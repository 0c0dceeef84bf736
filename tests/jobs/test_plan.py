"""A plan says what the job does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lottery.pruning.cost import LIBRARIES
from tests.support.models import tiny_model

CALIBRATED = ("wanda", "refit", "sparsegpt", "alps")
LOOK = ("--nsamples", "4", "--seqlen", "32")


def test_plan_says_what_prune_does(tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    arguments = ("--model", tiny, "--target", "mlp+embeddings", "--sparsity", "0.9")
    planned = lottery_json("plan", *arguments)
    made = lottery_json("prune", *arguments, "--measure", "none", "--register", "none", "--out", tmp_path / "t")
    assert planned["ticket"] == made["ticket"]
    for name in ("sparsity_target", "sparsity_prunable", "sparsity_model"):
        assert planned[name] == made["metrics"][name]
    headers = 1.2 * (tiny / "model.safetensors").stat().st_size - planned["disk_bytes_before"]
    assert (
        planned["disk_bytes_after"]
        <= made["metrics"]["disk_bytes"]
        <= planned["disk_bytes_after"] + max(headers, 20_000)
    )


@pytest.mark.parametrize("method", CALIBRATED)
def test_plan_says_what_a_calibrated_method_takes(
    method: str, tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five " * 100)
    arguments = ("--model", tiny, "--method", method, "--calibration", text, *LOOK)
    planned = lottery_json("plan", *arguments)
    made = lottery_json("prune", *arguments, "--measure", "none", "--register", "none", "--out", tmp_path / "t")
    assert planned["ticket"] == made["ticket"] and "no_ticket" not in planned
    propagate = "pruned" if method in ("sparsegpt", "alps") else "dense"
    assert planned["calibration"] == {"text": str(text), "nsamples": 4, "seqlen": 32, "propagate": propagate}
    parts = planned["calibration_bytes"]
    assert parts["libraries"] == LIBRARIES and parts["hidden_states"] == 4 * 32 * 48 * 2
    assert planned["calibration_peak_bytes"] == sum(parts.values()) < LIBRARIES + 10e6
    assert 0 < planned["calibrate_s"] < 60 and 0 < planned["prune_s"] < 60
    assert lottery_json("plan", *arguments, "--propagate", "pruned")["calibration"]["propagate"] == "pruned"


def test_a_plan_needs_no_weights_and_no_text_of_the_hub(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    model, bare = tiny_model(tmp_path / "m"), tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model / "config.json").read_bytes())
    arguments = ("--method", "refit", *LOOK)
    whole = lottery_json("plan", "--model", model, *arguments, "--calibration", "self")
    for folder, calibration, reason in (
        (bare, "self", "the weights of the base are not on this machine"),
        (model, "c4", "it needs the text of calibration=c4, which a plan does not download"),
        (model, "auto", "it needs the text of calibration=c4, which a plan does not download"),
        (model, "wikitext2-train", "it needs the text of calibration=wikitext2-train, which a plan does not download"),
    ):
        planned = lottery_json("plan", "--model", folder, *arguments, "--calibration", calibration)
        assert planned["ticket"] is None and planned["no_ticket"] == reason
        assert planned["calibration_bytes"] == whole["calibration_bytes"]
        shown = cli("plan", "--model", folder, *arguments, "--calibration", calibration).stdout
        assert f"(its id is not known yet: {reason})" in shown


def test_the_table_tells_memory_and_time_in_words(tiny: Path, cli: Callable[..., Result]) -> None:
    shown = cli("plan", "--model", tiny, "--method", "sparsegpt", "--calibration", "self", *LOOK).stdout
    assert (
        "calibration: 4 samples of 32 tokens of self; the model writes them first, which takes more; a block sees what "
        "the pruned blocks before it give"
    ) in shown
    assert "memory: at most about 70" in shown and ", libraries 700.00" in shown
    assert (
        "for the samples in the blocks, about 1 s for the rest (extrapolated from products that were timed now)"
        in shown
    )
    assert "calibration" not in cli("plan", "--model", tiny).stdout


def test_what_a_calibration_cannot_be_a_plan_refuses_too(tiny: Path, cli: Callable[..., Result]) -> None:
    given = ("plan", "--model", tiny, "--method", "wanda")
    for more, message in (
        (("--calibration", "nothing.txt"), "calibration=nothing.txt: there is no such file"),
        (("--calibration", "self", "--seqlen", "100000"), "seqlen=100000: this model takes at most"),
        (("--target", "embeddings"), "target=embeddings: method=wanda"),
    ):
        assert message in cli(*given, *more, code=2).stderr.strip().splitlines()[-1]
    ignored = cli("plan", "--model", tiny, "--nsamples", "8").stderr
    assert "warning: nsamples=8: ignored, because method=magnitude looks at no data" in ignored
