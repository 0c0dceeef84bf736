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
from lottery.models.tensors import FLOAT_BITS
from lottery.ticket.stored import StoredTicket
from tests.support.families import make
from tests.support.models import tiny_model
from tests.support.row_twin import twin_rows
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
    at, stored = 0, StoredTicket(tmp_path / "t")
    shares = set()
    for name in names:
        mask = gone[at : at + state[name].numel()].reshape(state[name].shape)
        at += state[name].numel()
        assert same_bits(stored.tensor(name), torch.where(mask, 0, state[name])), name
        shares.add(float(mask.float().mean()))
    assert len(shares) > 1 or sparsity in (0, 1)
    assert made["metrics"]["sparsity_target"] == pytest.approx(float(gone.double().mean()), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sparsity", [0.5, 0.8301, 0, 1])
def test_row_scope_takes_as_many_from_every_output(
    dtype: torch.dtype, sparsity: float, tmp_path: Path, cli: Cli, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / "m", dtype=dtype)
    state = tensors(model)
    for name in filter(is_mlp, state):
        state[name][3] *= 9  # per tensor this row would lose almost nothing
        state[name][5, ::2] = -0.0
        state[name][7] = 0.01
    save_file(state, model / "model.safetensors", {"format": "pt"})
    arguments = ("--model", model, "--target", "mlp", "--sparsity", sparsity, "--scope")
    planned = lottery_json("plan", *arguments, "row")
    assert planned["tensors"] == lottery_json("plan", *arguments, "layer")["tensors"]
    made = lottery_json("prune", *arguments, "row", "--out", tmp_path / "t", *QUICK)
    assert planned["ticket"] == made["ticket"]
    stored = StoredTicket(tmp_path / "t")
    for name in filter(is_mlp, state):
        bits = state[name].abs().view(FLOAT_BITS[stored.info(name).dtype][0]).numpy()
        k = round(sparsity * bits.size)
        stays = torch.from_numpy(twin_rows(bits, k))
        assert same_bits(stored.tensor(name), torch.where(stays, state[name], 0)), name
        assert stored.entries[name]["kept"] == min(bits.size - k, int((state[name] != 0).sum()))
        if sparsity:  # enough for the zeros that were there
            assert stored.entries[name]["requested"] == stored.entries[name]["kept"]
            assert stays.sum(1).max() - stays.sum(1).min() <= 1


def test_random_rows_follow_the_seed_and_lose_as_many_as_the_others(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    kept = {}
    for seed in (0, 1):
        out = tmp_path / f"{seed}"
        cli("prune", "--model", model, "--scope", "row", "--method", "random", "--seed", seed, "--out", out, *QUICK)
        stored = StoredTicket(out)
        assert stored.record["spec"] | {"seed": 0} == {
            "method": "random", "pattern": "unstructured", "quantize": "none", "scope": "row", "seed": 0, "sparsity": 0.5,
            "storage": "packed",
        }  # fmt: skip
        kept[seed] = {n: stored.tensor(n) != 0 for n, e in stored.entries.items() if "requested" in e}
        for name, stays in kept[seed].items():
            assert stays.sum() == round(0.5 * stays.numel()) and stays.sum(1).max() - stays.sum(1).min() <= 1, name
    assert all(float((kept[0][n] == kept[1][n]).float().mean()) < 0.6 for n in kept[0])


def test_a_row_of_a_transposed_matrix_is_an_output(tmp_path: Path, cli: Cli) -> None:
    model = make("gpt2", tmp_path / "m", "published")
    cli("prune", "--model", model, "--scope", "row", "--sparsity", "0.37", "--out", tmp_path / "t", *QUICK)
    base, stored = tensors(model), StoredTicket(tmp_path / "t")
    pruned = [n for n, e in stored.entries.items() if "requested" in e]
    assert pruned and all(stored.entries[n]["transposed"] for n in pruned)
    for name in pruned:
        weight_OI = base[name].T.contiguous()
        keys_OI = weight_OI.abs().view(FLOAT_BITS[stored.info(name).dtype][0]).numpy()
        stays = torch.from_numpy(twin_rows(keys_OI, round(0.37 * weight_OI.numel())))
        assert same_bits(stored.tensor(name).T.contiguous(), torch.where(stays, weight_OI, 0)), name


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_rows_of_a_ticket_that_is_pruned_further_keep_their_zeros(method: str, tmp_path: Path, cli: Cli) -> None:
    model, first, second = tiny_model(tmp_path / "m"), tmp_path / "first", tmp_path / "second"
    cli("prune", "--model", model, "--sparsity", "0.6", "--out", first, *QUICK)  # rows lose unequally
    cli("prune", "--model", first, "--scope", "row", "--method", method, "--sparsity", "0.7", "--out", second, *QUICK)
    before, after = StoredTicket(first), StoredTicket(second)
    fuller = 0
    for name, entry in after.entries.items():
        if "requested" not in entry:
            continue
        was, now = before.tensor(name), after.tensor(name)
        assert int((now != 0).sum()) == now.numel() - round(0.7 * now.numel()), name
        assert not ((was == 0) & (now != 0)).any() and torch.equal(torch.where(now != 0, was, 0), now), name
        lost_O, zero_O = (now == 0).sum(1), (was == 0).sum(1)
        level = lost_O[lost_O > zero_O].max()  # of the rows that lost more
        fuller += int((zero_O > level).sum())
        assert ((lost_O == zero_O) | (lost_O >= level - 1)).all(), name
    assert fuller, "no row had more zeros than its share"


def test_the_name_of_a_ticket_and_the_list_say_the_scope(
    tmp_path: Path, cli: Cli, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / "titled")
    made = lottery_json("prune", "--model", model, "--scope", "row", "--measure", "none")
    assert made["model_uri"] == "models:/ticket-titled/1"
    assert "| all    |      50% | row   |" in cli("list", "--name", "ticket-titled").stdout


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
    stored = StoredTicket(tmp_path / "t")
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
    base, stored = tensors(model), StoredTicket(tmp_path / "t")
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
    assert ("lm_head.weight" in StoredTicket(tmp_path / "t").tensors) == untied


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
        bits = lottery.ticket.opening.open_ticket(tmp_path / storage).tensor(name).view(FLOAT_BITS["BF16"][0])
        assert not (bits == 0x8000).any() and int((bits == 0).sum()) >= bits.numel() // 2
