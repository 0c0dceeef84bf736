"""Every family, block by block: the same logits as the whole model, and the same statistics as hooks on it see."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from lottery.models.checkpoint import Base
from lottery.models.sources import open_base
from lottery.pruning.calibrated import CalibratedSelection
from lottery.pruning.calibration import Calibration
from lottery.pruning.capture import Capture, key_of
from lottery.pruning.samples import Samples
from lottery.pruning.statistics import Statistics
from lottery.pruning.streaming import check_streaming, open_blocks
from lottery.runtime.load import load_model
from lottery.runtime.widening import wide_products
from lottery.spec import METHODS, Spec
from tests.support.families import LABELS, RENAMED, make

FILES = [*((label, "published") for label in LABELS), *((label, "saved") for label in RENAMED)]


@pytest.fixture(scope="module", params=FILES, ids="-".join)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    label, names = request.param
    return open_base(str(make(label, tmp_path_factory.mktemp("family") / label, names)))


def tokens(count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(5, 500, (count, 32)))


def whole_model(base: Base) -> Any:
    model = load_model(base, [p.name for p in base.places], "bfloat16", "cpu")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


def prunable(base: Base) -> list[Any]:
    return [p for p in base.places if p.role in ("attention", "mlp")]


@torch.inference_mode()
def test_streamed_logits_are_the_whole_models(base: Base) -> None:
    ids_NT = tokens()
    blocks = open_blocks(base, ids_NT[:2], "cpu")
    model = load_model(base, [p.name for p in base.places], "bfloat16", "cpu")
    for ids_T in ids_NT:
        hidden = blocks.embed(ids_T[None])
        for block in range(blocks.layers):
            blocks.load(block)
            hidden = blocks.run(block, hidden)
            blocks.unload(block)
        streamed = blocks.finish(ids_T[None], hidden)
        with wide_products(torch.bfloat16, "cpu"):  # as the blocks compute where the processor has no bfloat16
            whole = model(ids_T[None], use_cache=False).logits[:, -16:]
        assert torch.equal(streamed, whole)
    assert all(p.device.type == "meta" for p in blocks.blocks.parameters())  # no block's weights stay in memory


def inputs_seen_by_hooks(model: Any, ids_NT: torch.Tensor) -> dict[str, torch.Tensor]:
    """Path of every linear layer -> all its inputs, float32 [tokens, I]; experts are recomputed by hand."""
    seen: dict[str, list[torch.Tensor]] = {}

    def linear(path: str) -> Any:
        return lambda _, given: seen.setdefault(path, []).append(given[0].flatten(0, -2).float())

    def experts(path: str) -> Any:
        def hook(module: Any, given: Any) -> None:
            x, chosen, _ = given
            for e in range(module.num_experts):
                routed = x.flatten(0, -2)[(chosen == e).any(1)]
                gate, up = functional.linear(routed, module.gate_up_proj[e]).chunk(2, -1)
                seen.setdefault(f"{path}/{e}/first", []).append(routed.float())
                seen.setdefault(f"{path}/{e}/second", []).append((module.act_fn(gate) * up).float())

        return hook

    for path, module in model.named_modules():
        if hasattr(module, "gate_up_proj") and isinstance(module.gate_up_proj, torch.nn.Parameter):
            module.register_forward_pre_hook(experts(path))
        elif isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.dim() == 2:
            module.register_forward_pre_hook(linear(path))
    for ids_T in ids_NT:
        model(ids_T[None], use_cache=False)
    return {path: torch.cat(parts) for path, parts in seen.items()}


@torch.inference_mode()
def test_statistics_are_those_of_hooks_on_the_whole_model(base: Base) -> None:
    ids_NT = tokens()
    with wide_products(torch.bfloat16, "cpu"):
        seen = inputs_seen_by_hooks(whole_model(base), ids_NT)
    blocks = open_blocks(base, ids_NT[:2], "cpu")
    hidden = [blocks.embed(ids_T[None]) for ids_T in ids_NT]
    checked = 0
    for block in range(blocks.layers):
        blocks.load(block)
        matrices = [m for p in prunable(base) if p.layer == block for m in blocks.matrices(p)]
        capture = Capture(blocks, matrices, with_gram=True)
        with capture.watching(stop=False):
            for n in range(len(hidden)):
                capture.begin_sample()
                hidden[n] = blocks.run(block, hidden[n])
        owners = {key_of(m): capture.owner[key_of(m)] for m in matrices}
        for statistics, group in capture.groups(matrices):
            for m in group:
                which = "" if m.expert is None else f"/{m.expert}/{'second' if m.second else 'first'}"
                check_statistics(statistics, seen[f"{m.module}{which}"])
                checked += 1
        if base.model_type in ("mistral", "llama", "qwen2"):  # q, k, v share one Gram matrix, gate and up one
            assert len(set(owners.values())) == 4
        blocks.unload(block)
    assert checked >= len(prunable(base))


def check_statistics(statistics: Statistics, x_TI: torch.Tensor) -> None:
    assert statistics.tokens == len(x_TI)
    norm_I = x_TI.double().square().sum(0).sqrt()
    torch.testing.assert_close(statistics.norm_I.double(), norm_I, rtol=1e-3, atol=1e-6)
    norm_I[norm_I == 0] = 1
    gram_II = (x_TI.double() / norm_I).T @ (x_TI.double() / norm_I)
    gram_II.fill_diagonal_(1)
    assert statistics.gram_II is not None
    torch.testing.assert_close(statistics.gram_II.double(), gram_II, rtol=1e-3, atol=1e-3)


def test_a_block_that_leaks_between_samples_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second sample shows it: its hidden states are mixed with those of the first."""
    base = open_base(str(make("llama", tmp_path / "m", "saved")))
    blocks = open_blocks(base, tokens(2), "cpu")
    own, before = blocks.run, []

    def leaking(block: int, hidden: torch.Tensor) -> torch.Tensor:
        before.append(own(block, hidden))
        return before[-1] if len(before) % 2 else before[-1] + before[-2]

    monkeypatch.setattr(blocks, "run", leaking)
    with pytest.raises(Exception, match="LlamaForCausalLM give other logits one by one than together"):
        check_streaming(blocks, tokens(2))


def mask_of(base: Base, **parameters: Any) -> dict[str, np.ndarray]:
    spec = Spec.parse(**parameters)
    calibration = Calibration("x", "x", 3, 32, 0, "pruned" if spec.propagate == "auto" else spec.propagate)
    chosen = prunable(base)
    selection = CalibratedSelection(spec, base, chosen, Samples(calibration, tokens().numpy(), "cpu"))
    found = {}
    for place in sorted(chosen, key=lambda p: p.layer or 0):
        info = base.info(place.name)
        rows = info.shape[1] if place.transposed else info.numel // info.shape[-1]
        bits_OI = np.zeros((rows, info.numel // rows), np.uint16)
        mask_OB, more = selection.mask(place, info, bits_OI, 0)
        kept = int(np.unpackbits(mask_OB, axis=1, count=bits_OI.shape[1], bitorder="little").sum())
        assert kept == more["requested"] == info.numel - round(spec.sparsity * info.numel)
        found[place.name] = mask_OB
    return found


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.calibrated and not m.in_order])
def test_every_tensor_loses_exactly_its_share(base: Base, method: str) -> None:
    """With few tokens, experts without an update included. What the first block loses does not depend on propagation."""
    pruned = mask_of(base, method=method, sparsity=0.37)
    dense = mask_of(base, method=method, sparsity=0.37, propagate="dense")
    first = [p.name for p in prunable(base) if p.layer == 0]
    assert all(np.array_equal(pruned[name], dense[name]) for name in first)
    assert any(not np.array_equal(pruned[name], dense[name]) for name in pruned)
