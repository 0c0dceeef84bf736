"""Layers that stay packed in memory, and those of 8 bits: each fast path beside a slow, obvious twin."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from torch.nn import functional

import lottery
from lottery.errors import InputError
from lottery.kernels import quantizing
from lottery.runtime import layers, load
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import Matrix, Stored
from tests.support.families import LABELS, logits, make
from tests.support.models import tiny_model
from tests.support.quantized import slow_weight

QUICK = ("--measure", "none", "--register", "none")


def dense_twin(stored: Stored, dtype: str = "float32") -> Any:
    """Every matrix widened, in transformers' own layers."""
    return load.assemble(stored, {name: load.Lazy(stored, name) for name in stored.tensors}, dtype, "cpu")


@pytest.mark.parametrize("label", LABELS)
def test_packed_layers_give_the_bits_of_dense_ones(label: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    folder = make(label, tmp_path / "model", "published")
    for quantize in ("none", "fp8", "int8"):
        out = tmp_path / quantize
        cli("prune", "--model", folder, "--quantize", quantize, "--out", out, *QUICK)
        stored = open_ticket(out)
        packed, _ = lottery.load(out, dtype="float32", runtime="packed")
        found = [m for m in packed.modules() if isinstance(m, layers.PackedLinear)]
        linear = [
            n for n, e in stored.entries.items() if e.get("packed") and len(e["shape"]) == 2 and "experts" not in n
        ]
        assert len(found) == len([n for n in linear if stored.entries[n]["role"] in ("attention", "mlp")])
        want = logits(dense_twin(stored))
        assert torch.equal(logits(packed), want)
        ids_11 = torch.tensor([[7]])  # one token alone is another product
        with torch.inference_mode():
            assert torch.equal(packed(ids_11).logits, dense_twin(stored)(ids_11).logits)
        if not re.search("moe|mixtral", label):  # of these tiny shapes torch's grouped product takes no bfloat16
            half, _ = lottery.load(out, dtype="bfloat16", runtime="packed")
            twin = dense_twin(stored, "bfloat16")
            with torch.inference_mode():
                assert torch.equal(logits(half), logits(twin)) and torch.equal(half(ids_11).logits, twin(ids_11).logits)
        dense, _ = lottery.load(out, dtype="float32")
        if quantize != "int8":
            assert torch.equal(logits(dense), want)
        else:  # W8A8: activations are rounded too
            assert (logits(dense) - want).abs().max() < 0.1 * want.abs().max()
        kinds = {type(m).__name__ for m in dense.modules()}
        assert ("PackedLinear" in kinds) == (quantize == "fp8") and ("StoredInt8" in kinds) == (quantize == "int8")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
def test_packed_layers_in_every_type(
    source: torch.dtype, dtype: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    folder = tiny_model(tmp_path / "model", dtype=source)
    for arguments in (("--storage", "mask"), (), ("--quantize", "int8"), ("--quantize", "fp8", "--sparsity", 0)):
        out = tmp_path / "-".join(("t", *map(str, arguments)))
        cli("prune", "--model", folder, "--target", "all+lm_head", "--out", out, *QUICK, *arguments)
        packed, _ = lottery.load(out, dtype=dtype, runtime="packed")
        assert any(isinstance(m, layers.PackedLinear) for m in packed.modules())
        assert torch.equal(logits(packed), logits(dense_twin(open_ticket(out), dtype))), arguments


@pytest.mark.parametrize("kind", ["GPT2", "Llama"])
def test_bitsandbytes_computes_with_the_stored_codes(kind: str, tmp_path: Path, cli: Callable[..., Result]) -> None:
    folder = make("gpt2" if kind == "GPT2" else "llama", tmp_path / "model", "saved")
    cli("prune", "--model", folder, "--quantize", "int8", "--out", tmp_path / "t", *QUICK)
    stored = open_ticket(tmp_path / "t")
    model, _ = lottery.load(tmp_path / "t", dtype="float32")
    logits(model)
    checked = 0
    for name, entry in stored.entries.items():
        if "quantized" not in entry:
            continue
        path = name.removesuffix(".weight")
        layer = model.get_submodule(path if path.startswith(("model.", "transformer.")) else f"transformer.{path}")
        weight = stored.tensor(name).T if entry.get("transposed") else stored.tensor(name)
        scale_O = torch.from_numpy(np.array(stored.matrix(name).scale_O))
        assert layer.weight.dtype == torch.int8 and torch.equal(layer.state.SCB, scale_O)
        assert torch.equal(slow_weight(layer.weight.data, scale_O, "int8"), weight)
        x = torch.randn(7, weight.shape[1])
        x[0, 0] = 20  # beyond the threshold: this column is computed in 16 bits
        assert (layer(x) - functional.linear(x, weight, layer.bias)).abs().max() < 0.05 * layer(x).abs().max()
        checked += 1
    assert checked == (7 * 3 if kind == "Llama" else 4 * 3)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9), (5, 130), (33, 31)])
def test_bitsandbytes_takes_odd_shapes(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    (codes,), scale_O, _ = quantizing.quantize(weight.view(torch.uint32).numpy().copy(), None, "F32", "int8")
    matrix = Matrix(*shape, "F32", False, "int8", codes.reshape(shape), None, scale_O)
    layer = layers.int8_linear(matrix, None, "cpu")
    x = torch.randn(1, 4, shape[1])
    with torch.inference_mode():
        assert (layer(x) - functional.linear(x, weight)).abs().max() < 0.1 * functional.linear(x, weight).abs().max()


def test_float8_lies_whole_in_a_dense_runtime_and_packed_in_a_packed_one(
    tmp_path: Path, cli: Callable[..., Result]
) -> None:
    folder = tiny_model(tmp_path / "model", hidden_size=256, intermediate_size=512, vocab_size=4096)
    sizes: dict[tuple[str, str], float] = {}
    for quantize in ("none", "int8", "fp8"):
        cli("prune", "--model", folder, "--quantize", quantize, "--out", tmp_path / quantize, *QUICK)
        for kind in ("dense", "packed"):
            model, _ = lottery.load(tmp_path / quantize, runtime=kind, dtype="bfloat16")
            inside = [t for n, t in named_resident(model) if ".layers." in n and "norm" not in n]
            dense = sum(
                m.in_features * m.out_features * 2 for m in model.model.layers.modules() if hasattr(m, "in_features")
            )
            sizes[quantize, kind] = sum(t.nbytes for t in inside) / dense
            if (quantize, kind) == ("fp8", "dense"):
                assert {t.dtype for t in inside} == {torch.float8_e4m3fn, torch.float32}
    assert sizes["none", "dense"] == 1 and 0.5 < sizes["int8", "dense"] < 0.52 and 0.5 < sizes["fp8", "dense"] < 0.52
    assert 0.5 < sizes["none", "packed"] <= 0.6
    assert 0.3 < sizes["int8", "packed"] <= 0.35 and sizes["fp8", "packed"] == sizes["int8", "packed"]


def named_resident(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Every tensor inside the layers by the path of its module, bitsandbytes' scales too."""
    found = list(model.named_parameters()) + list(model.named_buffers())
    for path, module in model.named_modules():
        if type(module).__name__ == "StoredInt8":
            found.append((f"{path}.SCB", module.weight.SCB))
    return found


def test_what_packed_layers_refuse(tmp_path: Path, cli: Callable[..., Result]) -> None:
    folder = tiny_model(tmp_path / "model")
    for quantize, kind in (("none", "packed"), ("fp8", "dense"), ("int8", "dense")):
        cli("prune", "--model", folder, "--quantize", quantize, "--out", tmp_path / quantize, *QUICK)
        model, _ = lottery.load(tmp_path / quantize, runtime=kind, dtype="bfloat16")
        assert not model(torch.tensor([[5, 6]])).logits.requires_grad  # no graph, unasked
        with pytest.raises(
            InputError, match="save_pretrained"
        ):  # it would be read as something else, or as random numbers
            model.save_pretrained(tmp_path / "saved")
        if quantize != "int8":
            with pytest.raises(InputError, match="state_dict"):
                model.state_dict()
            with pytest.raises(InputError, match="dtype"):
                model.half()
            model.get_input_embeddings().weight.requires_grad_(True)
            with pytest.raises(InputError, match="no gradients"):
                model(torch.tensor([[5, 6]]))


@pytest.mark.parametrize(("quantize", "kind"), [("none", "packed"), ("fp8", "dense"), ("int8", "dense")])
@pytest.mark.parametrize("used", [False, True])
def test_all_of_a_model_moves(quantize: str, kind: str, used: bool, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """To a device that is here: one without values. GPT-2's layers have a second buffer."""
    folder = make("gpt2", tmp_path / "model", "saved")
    cli("prune", "--model", folder, "--quantize", quantize, "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", runtime=kind)
    if used:
        first = logits(model)
        with torch.no_grad():  # what was made in inference mode serves outside of it
            assert torch.equal(model(torch.arange(5, 25)[None]).logits, model(torch.arange(5, 25)[None]).logits)
        assert torch.equal(logits(model), first)
    before = len(layers.resident(model))
    model.to("meta")
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, layers.PackedLinear):
            tensors.append(module.scratch.turn(torch.empty(4, 2, dtype=model.dtype, device="meta")))
        elif layers.is_int8(module):
            tensors += [t for held in (module.weight, module.state) for t in (held.CB, held.SCB) if t is not None]
            assert module.weight.SCB is not None or module.state.SCB is not None
    assert before and {t.device.type for t in tensors} == {"meta"}


def test_threads_share_the_buffer_in_turn(tmp_path: Path, cli: Callable[..., Result]) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--quantize", "fp8", "--out", tmp_path / "t", *QUICK)
    model, _ = lottery.load(tmp_path / "t", runtime="packed")
    want, wrong = logits(model), []

    def work() -> None:
        for _ in range(50):
            wrong.extend([] if torch.equal(logits(model), want) else [1])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_everything_is_measured_of_a_packed_head(tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    folder = tiny_model(tmp_path / "model")
    made = lottery_json(
        "prune", "--model", folder, "--target", "all+lm_head", "--quantize", "int8", "--runtime", "packed",
        "--dataset", "builtin", "--limit", 3, "--register", "none",
    )  # fmt: skip
    assert {"decode_floor_tok_s", "perplexity", "dense_nll", "weights_ratio"} <= made["metrics"].keys()
    planned = cli_text(lottery_json, folder)
    assert "21 tensors are stored in 8 bits" in planned


@pytest.mark.parametrize("target", ["mlp", "lm_head"])
def test_a_head_multiplies_whole_tensors(target: str, tmp_path: Path) -> None:
    """Of a prompt's last token too: a slice is a batch of products for torch, which some processors do slowly."""
    lottery.prune(
        model=str(tiny_model(tmp_path / "model")), target=target, measure="none", register="none", out=tmp_path / "t"
    )
    packed, _ = lottery.load(tmp_path / "t", device="cpu", dtype="float32", runtime="packed")
    dense, _ = lottery.load(tmp_path / "t", device="cpu", dtype="float32")
    head, seen = packed.get_output_embeddings(), []
    assert isinstance(head, layers.PackedLinear) == (target == "lm_head")
    head.register_forward_hook(lambda _, given, out: seen.append(given[0].stride()))
    prompt = torch.arange(9)[None]
    with torch.inference_mode():
        assert torch.equal(packed(prompt, logits_to_keep=1).logits, dense(prompt, logits_to_keep=1).logits)
    assert seen == [torch.empty(1, 1, 48).stride()]


def cli_text(lottery_json: Callable[..., dict[str, Any]], folder: Path) -> str:
    from lottery.cli import console
    from lottery.jobs import plan

    return console.plan_table(plan.plan(model=str(folder), target="late", quantize="int8"))
