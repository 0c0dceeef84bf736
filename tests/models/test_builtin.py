"""The embedded model and text: what they must be for every default figure to mean something."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lottery.measuring.text import tokenize_windows
from lottery.models.architecture import read_tokenizer
from lottery.models.checkpoint import BUILTIN
from lottery.models.sources import open_base
from lottery.models.texts import BUILTIN_TEXT
from tests.support.paths import DATA, needs_data


def test_the_embedded_model_is_what_it_says() -> None:
    base = open_base("builtin")
    assert base.model_type == "llama" and base.dtype == "BF16"
    assert sum(p.stat().st_size for p in BUILTIN.iterdir()) <= 12_000_000
    assert base.config["tie_word_embeddings"] is False and "lm_head.weight" in base.tensors
    assert base.config["num_hidden_layers"] >= 8 and base.config["max_position_embeddings"] == 512
    ends = base.tensors["lm_head.weight"].numel + base.tensors["model.embed_tokens.weight"].numel
    assert ends <= 0.4 * sum(info.numel for info in base.tensors.values())


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size)}


def test_the_embedded_text_is_long_enough_and_prose() -> None:
    text = BUILTIN_TEXT.read_text(encoding="utf-8")
    assert len(text.split()) >= 12_000
    ids_NT, protocol = tokenize_windows(
        "builtin", read_tokenizer(BUILTIN), 4096, 512, "none", "float32", "dense", "cpu"
    )
    assert protocol.windows == len(ids_NT) >= 32 and protocol.bos == "none"
    paragraphs = [p for p in text.split("\n\n") if len(p) > 60]
    assert len(paragraphs) == len(set(paragraphs)) > 150


@needs_data
def test_no_training_text_contains_the_embedded_one() -> None:
    own = shingles(BUILTIN_TEXT.read_text(encoding="utf-8"), 12)
    for path in sorted((DATA / "text").rglob("*.txt")):
        assert not own & shingles(path.read_text(encoding="utf-8"), 12), path.name


def unigram_perplexity(ids: np.ndarray) -> float:
    """Of the best unigram model there can be: the one fitted to the evaluated tokens themselves."""
    counts = np.array(list(Counter(ids.tolist()).values()))
    share = counts / counts.sum()
    return math.exp(-(share * np.log(share)).sum())


@pytest.mark.slow
def test_the_embedded_model_is_trained_and_has_a_cliff(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    ratios, dense = {}, 0.0
    for sparsity in ("0.5", "0.7", "0.9"):
        made = lottery_json(
            "prune", "--sparsity", sparsity, "--dtype", "float32", "--measure", "perplexity", "--register", "none",
            "--out", tmp_path / sparsity,
        )  # fmt: skip
        ratios[sparsity] = made["metrics"]["perplexity_ratio"]
        dense = json.loads((tmp_path / sparsity / "measurements.json").read_text())["dense"]["perplexity"]
    ids_NT, _ = tokenize_windows("builtin", read_tokenizer(BUILTIN), 4096, 512, "none", "float32", "dense", "cpu")
    assert dense <= unigram_perplexity(ids_NT.ravel()) / 4
    assert 1 < ratios["0.5"] < ratios["0.7"] < ratios["0.9"]
    assert ratios["0.7"] >= 1.1 and ratios["0.9"] >= 2.5


@pytest.mark.parametrize("target", ["attention", "mlp", "early", "late", "embeddings", "lm_head"])
def test_every_target_means_something(target: str, lottery_json: Callable[..., dict[str, Any]]) -> None:
    planned = lottery_json("plan", "--target", target, "--sparsity", "0.5")
    assert planned["sparsity_target"] == pytest.approx(0.5, abs=1e-6)
    assert 0 < planned["sparsity_model"] < planned["sparsity_prunable"] < 0.5
