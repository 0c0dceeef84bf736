"""Scopes and patterns, and what is counted once: each against a slow twin, through the command."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

import lottery
import lottery.models.sources
from lottery.models.checkpoint import BITS
from lottery.ticket.stored import Stored
from tests.support.families import make
from tests.support.models import tiny_model
from tests.support.weights import is_mlp, same_bits, tensors

QUICK = ("--measure", "none", "--register", "none")
Cli = Callable[..., Result]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sparsity", [0.5, 0.83, 0, 1])
def test_global_scope_is_exact_over_all_tensors_together(
    dtype: torch.dtype, sparsity: float, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / "m", dtype=dtype)
    state = tensors(model)
    for name in sorted(state):  # of unlike scale, and with ties across tensors
        if is_mlp(name):
            state[name] = (state[name].float() * (1 + len(name) % 3)).to(dtype)
            state[name][0] = 0.01
            state[name][1] = -0.0
    save_file(state, model / "model.safetensors", {"format": "pt"})
    made = lottery_json(
        "prune", "--model", model, "--target", "mlp", "--scope", "global", "--sparsity", sparsity, "--out", tmp_path / "t", *QUICK
    )  # fmt: skip
    names = sorted(n for n in state if is_mlp(n))
    flat = torch.cat([state[n].flatten() for n in names])
    k = round(sparsity * len(flat))
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[flat.float().abs().sort(stable=True).indices[: max(k, int((flat == 0).sum()))]] = True
    at, stored = 0, Stored(tmp_path / "t")
    shares = set()
    for name in names:
        mask = gone[at : at + state[name].numel()].reshape(state[name].shape)
        at += state[name].numel()
        assert same_bits(stored.tensor(name), torch.where(mask, 0, state[name])), name
        shares.add(float(mask.float().mean()))
    assert len(shares) > 1 or sparsity in (0, 1)
    assert made["metrics"]["sparsity_target"] == pytest.approx(float(gone.double().mean()), abs=1e-12)


def test_global_scope_refuses_types_that_cannot_be_compared(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    state = tensors(model)
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].half()
    save_file(state, model / "model.safetensors", {"format": "pt"})
    said = cli("prune", "--model", model, "--scope", "global", "--out", tmp_path / "t", *QUICK, code=2).stderr
    assert "mixed types" in said and "up_proj" in said and "scope=layer" in said and not (tmp_path / "t").exists()
    assert (
        "warning: the targeted weights are of mixed types"
        in cli("prune", "--model", model, "--out", tmp_path / "t", *QUICK).stderr
    )
    stored = Stored(tmp_path / "t")
    assert {stored.info(n).dtype for n in stored.tensors} == {"BF16", "F16"}


@pytest.mark.parametrize(("pattern", "keep", "group"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("kind", ["Llama", "gpt2"])
def test_patterns_hold_in_every_group_along_the_inputs(
    pattern: str, keep: int, group: int, kind: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = (
        make("gpt2", tmp_path / "m", "published")
        if kind == "gpt2"
        else tiny_model(tmp_path / "m", intermediate_size=96)
    )
    target = "attention" if kind == "gpt2" else "all"
    made = lottery_json(
        "prune", "--model", model, "--pattern", pattern, "--target", target, "--out", tmp_path / "t", *QUICK
    )
    assert made["metrics"]["sparsity_target"] == 0.5
    base, stored = tensors(model), Stored(tmp_path / "t")
    for name, entry in stored.entries.items():
        if "requested" not in entry:
            continue
        weight, pruned = (t.T if kind == "gpt2" else t for t in (base[name], stored.tensor(name)))
        groups, left = weight.reshape(-1, group), pruned.reshape(-1, group)
        order = groups.float().abs().sort(dim=1, stable=True).indices[:, : group - keep]
        assert torch.equal(left, groups.clone().scatter_(1, order, 0))
        assert entry.get("transposed", False) == (kind == "gpt2")


def test_a_pattern_over_a_dimension_that_does_not_divide_writes_nothing(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli("prune", "--model", tiny, "--pattern", "4:8", "--out", tmp_path / "t", *QUICK, code=2).stderr
    assert "down_proj" in said and "100 inputs" in said and not list(tmp_path.iterdir())
    cli("prune", "--model", tiny, "--pattern", "4:8", "--target", "attention", "--out", tmp_path / "t", *QUICK)


@pytest.mark.parametrize("target", ["embeddings", "lm_head", "embeddings+lm_head", "all+lm_head"])
def test_a_tied_head_counts_once(target: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    model = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    made = lottery_json("prune", "--model", model, "--target", target, "--out", tmp_path / "t", *QUICK)
    sizes = {n: t.numel() for n, t in tensors(model).items()}
    table, layers = sizes["model.embed_tokens.weight"], sum(n for name, n in sizes.items() if "_proj" in name)
    untied = "embeddings" not in target
    gone = (table / 2 if target != "all+lm_head" else table / 2 + layers / 2) / (sum(sizes.values()) + untied * table)
    assert made["metrics"]["sparsity_model"] == pytest.approx(gone, rel=1e-3)
    assert ("lm_head.weight" in Stored(tmp_path / "t").tensors) == untied


def test_a_tied_head_that_is_in_the_file_too(
    tmp_path: Path, cli: Cli, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    state = tensors(model)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, model / "model.safetensors", {"format": "pt"})
    plan = lottery_json("plan", "--model", model, "--target", "embeddings")
    assert plan["dropped"] == ["lm_head.weight"] and plan["tied"] and "counted once" in plan["notes"][0]
    state["lm_head.weight"][0, 0] += 1
    save_file(state, model / "model.safetensors", {"format": "pt"})
    assert "tie_word_embeddings to false" in cli("plan", "--model", model, code=2).stderr


def test_negative_zeros_become_positive_where_they_are_removed(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    state = tensors(model)
    name = "model.layers.0.mlp.up_proj.weight"
    state[name][:, ::2] = -0.0
    save_file(state, model / "model.safetensors", {"format": "pt"})
    for storage in ("packed", "mask"):
        cli("prune", "--model", model, "--sparsity", "0.2", "--storage", storage, "--out", tmp_path / storage, *QUICK)
        bits = lottery.ticket.opening.open_ticket(tmp_path / storage).tensor(name).view(BITS["BF16"][0])
        assert not (bits == 0x8000).any() and int((bits == 0).sum()) >= bits.numel() // 2
