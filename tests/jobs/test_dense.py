"""A dense base in the place of a ticket: it generates, is measured as the baseline of its tickets, and is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import transformers
from click.testing import Result
from safetensors.torch import load_file, save_file

import lottery
from tests.support.families import logits
from tests.support.hub_server import Hub
from tests.support.models import tiny_model
from tests.support.refused import refused

Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]
HOW = ("--dataset", "builtin", "--window", 64, "--limit", 3, "--measure", "perplexity,samples")


def dense_runs(base: str) -> list[Any]:
    client = mlflow.MlflowClient()
    everywhere = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(everywhere, f"tags.kind = 'dense' and tags.base = '{base}'"))


def test_a_base_is_measured_and_later_tickets_find_it(tmp_path: Path, cli: Cli, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "evaluated")
    result = cli("evaluate", model, *HOW, "--json")
    assert f"{model} is a dense base, not a ticket" in result.stderr
    found = json.loads(result.stdout)
    assert list(found) == ["ticket", "path", "run_id", "model_uri", "metrics", "tags"]
    assert (found["path"], found["model_uri"], found["tags"]["kind"]) == (str(model), None, "dense")
    (run,) = dense_runs("evaluated")
    assert (run.info.run_id, run.info.status) == (found["run_id"], "FINISHED")
    assert run.data.params["ticket"] == run.data.params["model"] == str(model)
    assert run.data.metrics["perplexity"] == found["metrics"]["perplexity"]
    made = lottery_json("prune", "--model", model, *HOW, "--register", "none", "--out", tmp_path / "t")
    assert made["tags"]["protocol"] == found["tags"]["protocol"] and len(dense_runs("evaluated")) == 1
    dense = json.loads((tmp_path / "t" / "measurements.json").read_text())["dense"]
    assert dense["perplexity"] == found["metrics"]["perplexity"]
    ratio = made["metrics"]["perplexity"] / found["metrics"]["perplexity"]
    assert made["metrics"]["perplexity_ratio"] == pytest.approx(ratio)


def test_a_base_has_a_table_of_its_own(cli: Cli) -> None:
    how = (*HOW[2:-2], "--dtype", "bfloat16", "--measure", "perplexity,memory,speed")
    shown = cli("evaluate", "--ticket", "builtin", *how).stdout
    rows = [line for line in shown.splitlines() if line.startswith("| dense")]
    assert len(rows) == 1 and "90.5" in rows[0]  # as measured beside a ticket
    assert "winner" not in shown and "zeros" not in shown


def test_a_base_by_every_name_that_model_takes(server: Hub, tiny: Path, cli: Cli, lottery_json: Json) -> None:
    server.add("org/name", tiny)
    for name in ("org/name", "org/name@main", str(tiny)):
        found = lottery_json("generate", name, "--prompt", "Once", "--tokens", 5)
        assert found["ticket"] == name and found["text"].startswith("Once")
        model, tokenizer = lottery.load(name, dtype="float32")
        plain = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
        assert torch.equal(logits(model), logits(plain)) and tokenizer is not None
    assert cli("generate", "builtin", "--tokens", 10).stdout.startswith("The meaning of life is a great and united")
    said = cli("generate", tiny, "--tokens", 2, "--runtime", "packed", "--base", "builtin").stderr
    assert "a dense base has no packed matrix" in said and "base=builtin is ignored" in said


def test_what_is_neither_a_ticket_nor_a_base(server: Hub, tmp_path: Path, tiny: Path, cli: Cli) -> None:
    for command in ("generate", "evaluate"):
        refused(
            cli(command, tmp_path, code=2), f"ticket={tmp_path}: it holds no ticket.json and no config.json", "builtin"
        )
        refused(
            cli(command, tmp_path / "none", code=2), f"ticket={tmp_path / 'none'}: there is no such folder", "hub id"
        )
        said = "ticket=org/unknown: there is no such folder, and http"
        refused(cli(command, "org/unknown", code=2), said, "finds no model")
    refused(cli("verify", tiny, code=2), "holds no ticket.json")
    refused(cli("export", tiny, "--to", tmp_path / "e", code=2), "holds no ticket.json")


def test_a_wrong_name_where_no_hub_answers(cli: Cli) -> None:
    """A typing error in a folder's name may look like a hub id: the line says that there is no such folder."""
    for command, name in (("evaluate", "ticket"), ("generate", "ticket"), ("plan", "model")):
        said = f"{name}=nodir/typo: there is no such folder, and http"
        refused(cli(command, f"--{name}", "nodir/typo", code=1), said, "cannot be reached")


def test_a_config_without_a_model_type(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "config.json").write_text("{}")
    for command, name in (("evaluate", "ticket"), ("prune", "model")):
        refused(cli(command, f"--{name}", tmp_path, code=2), f"{name}={tmp_path}: its config.json names no model_type")


def test_a_base_that_cannot_be_used_is_named_once(tmp_path: Path, tiny: Path, cli: Cli) -> None:
    copy = Path(shutil.copytree(tiny, tmp_path / "copy"))
    (copy / "model.safetensors").unlink()
    refused(cli("evaluate", copy, code=2), f"ticket={copy}: it has no model.safetensors")
    (copy / "config.json").write_text('{"model_type": "mamba"}')
    refused(cli("evaluate", copy, code=2), f"ticket={copy}: its architecture 'mamba' is not known here")


def test_a_model_that_ends_at_once_says_so(tmp_path: Path, cli: Cli) -> None:
    """Weights of zeros make token 0 the likeliest: the end of the text."""
    model = tiny_model(tmp_path / "m")
    weights = load_file(model / "model.safetensors")
    save_file({name: torch.zeros_like(w) for name, w in weights.items()}, model / "model.safetensors", {"format": "pt"})
    result = cli("generate", model, "--prompt", "The old man", "--tokens", 5)
    assert result.stdout == "The old man\n" and "the model ended the text at once" in result.stderr
    assert "ended the text" not in cli("generate", "builtin", "--prompt", "The old man", "--tokens", 5).stderr
