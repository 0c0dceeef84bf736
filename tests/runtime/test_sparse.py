"""runtime=sparse: few tokens straight from bitmask and survivors, many as with runtime=packed."""

import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch import nn

import lottery
from lottery.errors import InputError
from lottery.kernels import product
from lottery.measuring.memory import weights_bytes
from lottery.measuring.perplexity import nll_per_window
from lottery.runtime import load
from lottery.runtime.layers import PackedLinear
from lottery.runtime.sparse import SparseLinear, WholeLinear
from tests.support.families import LABELS, logits, make
from tests.support.models import tiny_model

QUICK = ("--measure", "none", "--register", "none")
ONE, FEW, MANY = (torch.arange(n)[None] + 7 for n in (1, 8, 9))


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, SparseLinear)}


def remember(seen: list[Any], layer: nn.Module, given: tuple[torch.Tensor, ...], found: torch.Tensor) -> None:
    seen.append((layer, given[0].clone(), found.clone()))


def reference(layer: PackedLinear, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in float64 over the stored values, and the sum of its terms' magnitudes."""
    mask_OI = np.ones((layer.out_features, layer.in_features), bool)
    if layer.bitmask_OB is not None:
        mask_OI = np.unpackbits(layer.bitmask_OB.numpy(), axis=1, bitorder="little")[:, : layer.in_features] == 1
    weight_OI = torch.zeros(mask_OI.shape, dtype=torch.float64)
    weight_OI[torch.from_numpy(mask_OI)] = layer.values_K.double()
    if layer.step_O is not None:
        weight_OI *= layer.step_O.double()[:, None]
    bias = torch.zeros(()) if layer.bias is None else layer.bias.double()
    return x.double() @ weight_OI.T + bias, x.double().abs() @ weight_OI.abs().T + abs(bias)


@pytest.mark.parametrize("label", LABELS)
def test_every_family_multiplies_few_tokens_from_what_is_stored(
    label: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    folder = make(label, tmp_path / "model", "published")
    for quantize in ("none", "fp8", "int8"):
        out = tmp_path / quantize
        cli("prune", "--model", folder, "--quantize", quantize, "--out", out, *QUICK)
        packed, _ = lottery.load(out, dtype="float32", runtime="packed")
        sparse, _ = lottery.load(out, dtype="float32", runtime="sparse")
        layers = sparse_layers(sparse)
        assert set(layers) >= {name for name, m in packed.named_modules() if isinstance(m, PackedLinear)} and layers
        seen: list[tuple[SparseLinear, torch.Tensor, torch.Tensor]] = []
        for layer in layers.values():
            layer.register_forward_hook(partial(remember, seen))
        with torch.inference_mode():
            for ids in (ONE, FEW):
                assert torch.allclose(sparse(ids).logits, packed(ids).logits, rtol=1e-3, atol=1e-4)
        assert len(seen) >= len(layers)
        for layer, x, found in seen:
            want, size = reference(layer, x)
            assert ((found.double() - want).abs() <= 2.0**-20 * size + 1e-30).all()
        if not re.search("moe|mixtral", label):
            assert torch.equal(logits(sparse), logits(packed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
def test_every_type(source: torch.dtype, dtype: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    folder = tiny_model(tmp_path / "model", dtype=source)
    for arguments in (("--storage", "mask"), (), ("--quantize", "int8"), ("--quantize", "fp8", "--sparsity", 0)):
        out = tmp_path / "-".join(("t", *map(str, arguments)))
        cli("prune", "--model", folder, "--target", "late+lm_head", "--out", out, *QUICK, *arguments)
        packed, _ = lottery.load(out, dtype=dtype, runtime="packed")
        sparse, _ = lottery.load(out, dtype=dtype, runtime="sparse")
        kept = SparseLinear if "--quantize" in arguments else WholeLinear  # 8 bits are stored for every matrix
        assert isinstance(sparse.lm_head, SparseLinear) and isinstance(sparse.model.layers[0].mlp.up_proj, kept)
        with torch.inference_mode():
            assert torch.equal(sparse(MANY).logits, packed(MANY).logits)
            found, want = sparse(FEW).logits.float(), packed(FEW).logits.float()
        room = {"float32": 1e-5, "bfloat16": 0.05, "float16": 0.01}[dtype]
        assert (found - want).abs().max() <= room * want.abs().max()
        assert weights_bytes(sparse) == pytest.approx(weights_bytes(packed), abs=1)


def test_perplexity_is_that_of_packed_layers_to_the_bit(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Also where a window is as short as what is multiplied from what is stored."""
    cli("prune", "--out", tmp_path / "t", *QUICK)
    for window in (4, 64):
        ids_NT = np.arange(3 * window).reshape(3, window) % 4000
        found = [
            nll_per_window(lottery.load(tmp_path / "t", runtime=runtime)[0], ids_NT, lambda *_: None)
            for runtime in ("packed", "sparse")
        ]
        assert np.array_equal(found[0], found[1])


def test_the_models_call_decides_and_not_the_layers(tmp_path: Path, cli: Callable[..., Result]) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--target", "all+lm_head", "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    packed, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="packed")
    kept = {"logits_to_keep": 1}
    with torch.inference_mode():
        # The head sees one token of nine: it must still compute as the packed head does.
        assert torch.equal(model(MANY, **kept).logits, packed(MANY, **kept).logits)
        assert not torch.equal(model(FEW, **kept).logits, packed(FEW, **kept).logits)
        embedded = model.get_input_embeddings()(FEW)
        assert torch.equal(model(inputs_embeds=embedded).logits, model(FEW).logits)
        with pytest.raises(ValueError, match="exactly one"):
            model()
        x = torch.randn(1, 48)
        assert torch.equal(model.lm_head(x), packed.lm_head(x))  # outside of a call of the model


def test_layers_that_share_activations_are_multiplied_once(tmp_path: Path, cli: Callable[..., Result]) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    block = model.model.layers[0]
    group = block.self_attn.q_proj.group
    assert group is block.self_attn.k_proj.group is block.self_attn.v_proj.group and len(group.members) == 3
    assert block.mlp.gate_proj.group is block.mlp.up_proj.group is not block.mlp.down_proj.group
    way = block.self_attn.q_proj.way
    way.calls.few = True
    x, other = torch.randn(1, 1, 48), torch.randn(1, 1, 48)
    q, k, v = block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj
    want = [reference(layer, x)[0] for layer in (q, k, v)]
    for layer, expected in zip((q, k, v), want, strict=True):
        assert torch.allclose(layer(x).double(), expected, rtol=1e-4, atol=1e-6)
    changed = x.clone()
    q(changed)
    changed.mul_(2)  # in place, between two layers of a group
    assert torch.allclose(k(changed).double(), 2 * want[1], rtol=1e-4, atol=1e-6)
    assert all(len(layer.group.members) == 1 for layer in (q, k, v))  # they go their own ways from now on
    assert torch.allclose(v(other).double(), reference(v, other)[0], rtol=1e-4, atol=1e-6)
    way.calls.few = False


def test_torch_has_one_thread_while_products_use_several(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads would spin on the processors that the products need."""
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--out", tmp_path / "t", *QUICK)
    before, seen = torch.get_num_threads(), []
    for grain in (256, 1 << 30):
        monkeypatch.setattr(product, "GRAIN_BYTES", grain)
        monkeypatch.setattr(load, "product_threads", lambda: 2)
        model, _ = lottery.load(tmp_path / "t", runtime="sparse")
        model.model.norm.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        torch.set_num_threads(2)
        with torch.inference_mode():
            for ids in (ONE, MANY):
                model(ids)
                assert torch.get_num_threads() == 2
            with pytest.raises(IndexError):
                model(torch.tensor([[5000]]))  # no such word
        assert torch.get_num_threads() == 2
        torch.set_num_threads(before)
    assert seen == [1, 2, 2, 2]


def test_several_threads_use_one_model(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """One thread decodes while another processes prompts, as in a server."""
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", runtime="sparse")
    given = [ONE + i for i in range(4)] + [MANY + i for i in range(2)]
    with torch.inference_mode():
        want = [model(ids).logits for ids in given]
    wrong: list[int] = []

    def call_often(i: int) -> None:
        with torch.inference_mode():
            wrong.extend(i for _ in range(20) if not torch.equal(model(given[i]).logits, want[i]))

    threads = [threading.Thread(target=call_often, args=(i,)) for i in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_sparse_model_refuses_what_it_cannot_do(tmp_path: Path, cli: Callable[..., Result]) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    embedded = model.get_input_embeddings()(ONE).detach().requires_grad_()
    with pytest.raises(InputError, match="have no gradients"):
        model(inputs_embeds=embedded)
    with pytest.raises(InputError, match="load it again with another dtype"):
        model.to(torch.bfloat16)
    with pytest.raises(InputError, match="keep the ticket's folder"):
        model.state_dict()
    with torch.inference_mode():
        before = model(ONE).logits
        assert torch.equal(model.to("cpu")(ONE).logits, before)


def test_whole_layers_follow_their_weight(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Unpruned layers are multiplied with the same loops, also a head that is tied to the embeddings."""
    folder = tiny_model(tmp_path / "model", tie_word_embeddings=True)
    cli("prune", "--model", folder, "--target", "late", "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", dtype="float32", runtime="sparse")
    assert isinstance(model.lm_head, WholeLinear)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with torch.inference_mode():
        before = model(ONE).logits
        want = torch.nn.functional.linear(model.model(ONE).last_hidden_state, model.lm_head.weight)
        assert torch.allclose(before, want, rtol=1e-4, atol=1e-6)
        model.lm_head.weight = nn.Parameter(2 * model.lm_head.weight, requires_grad=False)
        assert torch.equal(model(ONE).logits, 2 * before)


def test_the_buffer_for_unpacking_waits_until_it_is_needed(tmp_path: Path, cli: Callable[..., Result]) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", runtime="sparse")
    workspace = next(iter(sparse_layers(model).values())).workspace
    with torch.inference_mode():
        model(FEW)
        assert workspace.held is None
        model(MANY)
        assert workspace.held is not None


def test_texts_are_the_same(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Greedy texts could part where two logits are equal to rounding; of the embedded model's first words none are."""
    cli("prune", "--sparsity", "0.6", "--out", tmp_path / "t", *QUICK)
    texts: set[Any] = set()
    for runtime in ("dense", "packed", "sparse"):
        found = cli("generate", tmp_path / "t", "--runtime", runtime, "--tokens", "20", "--prompt", "One day, a girl")
        texts.add(found.stdout)
    assert len(texts) == 1
