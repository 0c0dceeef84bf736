"""A plan says what the job does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any


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
