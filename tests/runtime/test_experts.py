"""Experts that stay packed in memory: the bits of packed layers for a text, and of few tokens a slow, obvious twin."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

import lottery
from lottery.runtime import layers
from lottery.runtime.experts import SparseExperts
from lottery.runtime.sparse import Way
from lottery.ticket.opening import open_ticket
from tests.support.families import logits, make

QUICK = ("--measure", "none", "--register", "none")
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
WAYS = {
    "packed": (),
    "mask": ("--storage", "mask"),
    "int8": ("--quantize", "int8"),
    "fp8": ("--quantize", "fp8"),
    "whole": ("--quantize", "int8", "--sparsity", "0"),
    "part": ("--target", "down_proj"),
}


def fuse(folder: Path) -> None:
    """Writes the experts of each layer as two tensors, as transformers holds them."""
    state = load_file(folder / "model.safetensors")
    fused: dict[str, list[Tensor]] = {}
    for name in [n for n in state if ".experts." in n]:
        layer, rest = name.split(".experts.")
        expert, projection, _ = rest.split(".")
        own = {"w1": "gate", "w3": "up", "w2": "down"}.get(projection, projection.removesuffix("_proj"))
        fused.setdefault(f"{layer.replace('block_sparse_moe', 'mlp')}.experts", []).append(state[name])
        state[f"{layer} {expert} {own}"] = state.pop(name)
    for experts in fused:
        layer = experts.removesuffix(".experts")
        keys = sorted(k for k in state if k.replace("block_sparse_moe", "mlp").startswith(f"{layer} "))
        down, gate, up = (
            torch.stack([state.pop(k) for k in keys if k.endswith(own)]) for own in ("down", "gate", "up")
        )
        state[f"{experts}.gate_up_proj"], state[f"{experts}.down_proj"] = torch.cat([gate, up], 1), down
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def experts_of(model: Any) -> dict[str, SparseExperts]:
    return {path: module for path, module in model.named_modules() if isinstance(module, SparseExperts)}


def way_of(module: SparseExperts) -> Way:
    first: Any = module.experts[0]
    return first.down_proj.way


def prune(cli: Callable[..., Result], folder: Path, out: Path, *arguments: Any) -> Path:
    cli("prune", "--model", folder, "--out", out, *QUICK, *arguments)
    return out


@pytest.mark.parametrize("way", [*WAYS, "fused", "fused int8"])
@pytest.mark.parametrize("label", MIXTURES)
def test_a_text_gets_the_bits_of_packed_layers(
    label: str, way: str, tmp_path: Path, cli: Callable[..., Result], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, arguments = make(label, tmp_path / "model", "published"), WAYS.get(way, ())
    if "fused" in way:
        fuse(folder)
        arguments = WAYS["int8"] if "int8" in way else ()
    if way == "part" and label == "mixtral":
        arguments = ("--target", "w2")
    out = prune(cli, folder, tmp_path / "t", *arguments)
    for dtype in ("float32", "bfloat16"):  # transformers' grouped product, and one expert after the other
        packed, _ = lottery.load(out, dtype=dtype, runtime="packed")
        capsys.readouterr()
        sparse, _ = lottery.load(out, dtype=dtype, runtime="sparse")
        assert "lie dense" not in capsys.readouterr().err
        assert type(sparse) is type(packed) and len(experts_of(sparse)) == (2 if label == "qwen3_moe" else 3)
        assert not any(p.dim() == 3 for p in sparse.parameters())
        with torch.inference_mode():
            want, few = packed(torch.tensor([[7, 8, 9]])).logits, sparse(torch.tensor([[7, 8, 9]])).logits
            assert torch.equal(logits(sparse), logits(packed))
            with layers.as_packed():
                assert torch.equal(sparse(torch.tensor([[7, 8, 9]])).logits, want)
        assert (few - want).abs().max() <= want.abs().max() * (1e-5 if dtype == "float32" else 0.03)
        for module in experts_of(sparse).values():  # transformers' tensors are there during a call only
            assert not hasattr(module.own, "gate_up_proj") and not hasattr(module.own, "down_proj")


@pytest.mark.parametrize("way", ["packed", "mask", "int8", "fp8", "fused"])
@pytest.mark.parametrize("label", MIXTURES)
def test_few_tokens_equal_float64_arithmetic_on_the_stored_values(
    label: str, way: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    folder = make(label, tmp_path / "model", "published")
    if way == "fused":
        fuse(folder)
    stored = open_ticket(prune(cli, folder, tmp_path / "t", *WAYS.get(way, ())))
    sparse, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    dense, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="packed")
    assert {e["kept"] for n, e in stored.entries.items() if ".experts." in n}  # they are pruned
    for path, module in experts_of(sparse).items():
        own = dense.get_submodule(path)
        gate_up, down = own.gate_up_proj.double(), own.down_proj.double()
        for tokens in (1, 3, 8):
            x_TI = torch.randn(tokens, gate_up.shape[2])
            chosen_TC = torch.stack([torch.randperm(own.num_experts)[:2] for _ in range(tokens)])
            weight_TC = torch.rand(tokens, 2)
            want_TI = torch.zeros(tokens, down.shape[1], dtype=torch.float64)
            for t in range(tokens):
                for e, weight in zip(chosen_TC[t], weight_TC[t], strict=True):
                    gate, up = functional.linear(x_TI[t].double(), gate_up[e]).chunk(2)
                    want_TI[t] += weight * functional.linear(functional.silu(gate) * up, down[e])
            with torch.inference_mode():
                way_of(module).calls.few = True
                got_TI = module(x_TI, chosen_TC, weight_TC)
            torch.testing.assert_close(got_TI.double(), want_TI, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("few", [True, False])
def test_an_expert_that_gets_no_token_is_not_read(few: bool, tmp_path: Path, cli: Callable[..., Result]) -> None:
    prune(cli, make("mixtral", tmp_path / "model", "published"), tmp_path / "t")
    sparse, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    module = sparse.model.layers[1].mlp.experts
    chosen_TC, weight_TC = torch.tensor([[0, 2]]), torch.tensor([[0.25, 0.75]])
    way_of(module).calls.few = few
    x_TI = torch.randn(1, 48)
    with torch.inference_mode():
        want_TI = module(x_TI, chosen_TC, weight_TC)
        for unread in (1, 3):
            module.experts[unread] = torch.nn.Identity()
        assert torch.equal(module(x_TI, chosen_TC, weight_TC), want_TI)
    assert (module.workspace.held is None) == few  # few tokens need no buffer


def test_perplexity_and_resident_bytes(tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    folder = make("olmoe", tmp_path / "model", "published")
    figures = {}
    for runtime in ("packed", "sparse"):
        how = ("--runtime", runtime, "--measure", "perplexity,memory", "--limit", 2, "--register", "none")
        figures[runtime] = lottery_json("prune", "--model", folder, "--dataset", "builtin", *how)["metrics"]
    assert figures["sparse"]["perplexity"] == figures["packed"]["perplexity"]
    assert figures["sparse"]["weights_bytes"] < figures["packed"]["weights_bytes"]


def test_gradients_are_refused(tmp_path: Path, cli: Callable[..., Result]) -> None:
    prune(cli, make("mixtral", tmp_path / "model", "published"), tmp_path / "t", "--target", "mlp")
    sparse, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    module = sparse.model.layers[0].mlp.experts
    with pytest.raises(lottery.errors.InputError, match="no gradients"):
        module(torch.randn(1, 48, requires_grad=True), torch.tensor([[0, 1]]), torch.ones(1, 2))
