"""A model of a very short context: what needs more tokens is left out with its reason, and the rest is measured."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from click.testing import Result

from tests.support.models import tiny_model
from tests.support.refused import refused

REASON = "not measured: speed and samples: a prompt and its 50 new tokens take 57 tokens, this model takes 32"


def test_a_context_of_32_tokens(tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = tiny_model(tmp_path / "short", max_position_embeddings=32)
    result = cli("prune", "--model", model, "--dataset", "builtin", "--limit", 4, "--out", tmp_path / "t", "--json")
    found = json.loads(result.stdout)
    assert result.stderr.count(REASON) == 1
    assert {"perplexity", "perplexity_ratio", "weights_bytes", "peak_bytes"} <= found["metrics"].keys()
    assert not {"decode_tok_s", "repetition", "dense_nll"} & found["metrics"].keys()
    assert (
        "the first 4 of 875 windows of 32"
        in cli("evaluate", tmp_path / "t", "--dataset", "builtin", "--limit", 4).stdout
    )
    refused(cli("generate", tmp_path / "t", code=2), "prompt", "50 new ones", "32")
    assert cli("generate", tmp_path / "t", "--tokens", 20).stdout.startswith("The meaning of life is")


def test_a_context_that_is_just_long_enough(tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    model = tiny_model(tmp_path / "enough", max_position_embeddings=57)
    how = ("--dataset", "builtin", "--limit", 2, "--measure", "samples,speed", "--register", "none")
    assert {"decode_tok_s", "repetition"} <= lottery_json("prune", "--model", model, *how)["metrics"].keys()


def test_a_study_of_such_a_model_ends_and_measures_nothing_twice(tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = tiny_model(tmp_path / "studied", max_position_embeddings=32)
    file = tmp_path / "two.yaml"
    file.write_text(
        f"name: short-context\nmodels: [{json.dumps(str(model))}]\ngrid: [{{target: [early, late]}}]\n"
        "dataset: builtin\nlimit: 4\n"
    )
    said = [cli("study", file, "--out", tmp_path / "report").stderr for _ in range(2)]
    assert [text.count(REASON) for text in said] == [1, 1]
    query = "tags.study = 'short-context' and tags.kind = 'ticket'"
    assert len(mlflow.search_runs(search_all_experiments=True, filter_string=query)) == 2
