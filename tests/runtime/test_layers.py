"""8-bit tickets, and layers that stay packed in memory: each fast path beside a slow, obvious twin."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

import lottery
from lottery.errors import InputError
from lottery.kernels import cuda, quantizing
from lottery.models.checkpoint import BITS, DTYPES
from lottery.runtime import layers, load
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import Matrix, Stored
from tests.models.test_families import LABELS, logits, make
from tests.support.models import tiny_model

GREATEST = {"int8": 127, "fp8": 448}
QUICK = ("--measure", "none", "--register", "none")


def slow_codes(weight_OI: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes as torch has them, scale_O) of a matrix whose removed weights are zero."""
    x = weight_OI.float()
    scale_O = x.abs().amax(1)
    factor_O = torch.where(scale_O > 0, torch.full_like(scale_O, GREATEST[kind]) / scale_O, 0)
    x = x * factor_O[:, None]
    if kind == "int8":
        return x.round().to(torch.int8), scale_O
    codes = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    return torch.where(codes.float() == 0, 0, codes.float()).to(torch.float8_e4m3fn), scale_O  # no -0


def slow_weight(codes: torch.Tensor, scale_O: torch.Tensor, kind: str) -> torch.Tensor:
    return codes.float() * (scale_O / torch.full_like(scale_O, GREATEST[kind]))[:, None]


def packed_mask(mask_OI: torch.Tensor) -> np.ndarray:
    return np.packbits(mask_OI.numpy(), axis=1, bitorder="little")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 200), st.sampled_from(["BF16", "F16", "F32"]), st.sampled_from(["int8", "fp8"]),
    st.floats(0, 1), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_codes_are_those_of_the_slow_twin(
    rows: int, columns: int, dtype: str, kind: str, share: float, masked: bool, wide: bool, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    spread = torch.exp(-12 * torch.rand(rows, columns, generator=rng))  # small ones too, that round to zero
    weight = (torch.randn(rows, columns, generator=rng) * spread).to(DTYPES[dtype])
    if share > 0.8:
        weight[0] = 0
    mask = torch.rand(rows, columns, generator=rng) < share if masked else torch.ones(rows, columns, dtype=torch.bool)
    mask_OB = packed_mask(mask) if masked else None
    bits = weight.view(BITS[dtype][0]).numpy().copy()
    pieces, scale_O, lost = quantizing.quantize(bits, mask_OB, dtype, kind, wide)
    codes, scale = slow_codes(torch.where(mask, weight, 0), kind)
    found = np.concatenate(pieces)
    assert np.array_equal(scale_O, scale.numpy())
    assert np.array_equal(found, codes.view(torch.uint8)[mask].numpy())
    assert lost == int((codes.float()[mask] == 0).sum())

    start_O = quantizing.starts(mask_OB) if mask_OB is not None else None
    for out_dtype, integer in ((torch.float32, np.uint32), (torch.bfloat16, np.uint16)):
        out = np.empty((rows, columns), integer)
        quantizing.widen(
            mask_OB, start_O, found, quantizing.CODES[kind][0], quantizing.steps(scale_O, kind), out, wide
        )  # fmt: skip
        twin = slow_weight(codes, scale, kind).to(out_dtype)
        assert torch.equal(torch.from_numpy(out).view(out_dtype), torch.where(mask, twin, 0))
        if dtype != "F16" or out_dtype == torch.float32:
            values = weight[mask].view(BITS[dtype][0]).numpy()
            quantizing.widen(mask_OB, start_O, values, dtype, None, out, wide)
            assert torch.equal(torch.from_numpy(out).view(out_dtype), torch.where(mask, weight, 0).to(out_dtype))


@pytest.mark.parametrize("scale", [1e-38, 1e-44, 3e38])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_of_extreme_size(kind: str, scale: float) -> None:
    weight = torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale
    codes = quantizing.quantize(weight.view(torch.uint32).numpy().copy(), None, "F32", kind)[0][0]
    full = {"int8": [127, 256 - 127], "fp8": [0x7E, 0xFE]}[kind]
    assert list(codes[:2]) == full and codes[3] == 0


def test_every_float8_is_widened_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes.view(torch.float8_e4m3fn).float().isfinite()]
    out = np.empty((1, len(codes)), np.uint32)
    quantizing.widen(None, None, codes.numpy(), "F8_E4M3", np.ones(1, np.float32), out)
    assert torch.equal(torch.from_numpy(out).view(torch.float32)[0], codes.view(torch.float8_e4m3fn).float())


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


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", ["BF16", "I8", "F8_E4M3"])
def test_torch_alone_widens_the_same(form: str, masked: bool) -> None:
    """What a GPU without Triton does, here on the CPU."""
    torch.manual_seed(1)
    rows, columns = 19, 77
    mask = torch.rand(rows, columns) < 0.4 if masked else torch.ones(rows, columns, dtype=torch.bool)
    values = torch.randn(int(mask.sum()))
    stored = (values * 40).to(torch.int8) if form == "I8" else values.to(DTYPES[form])
    step_O = torch.rand(rows) if form != "BF16" else None
    mask_OB = torch.from_numpy(packed_mask(mask)) if masked else None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        twin = torch.zeros(rows, columns)
        twin[mask] = stored.float()
        twin = (twin * step_O[:, None] if step_O is not None else twin).to(dtype)
        out = torch.full((rows, columns), torch.nan, dtype=dtype)
        assert torch.equal(cuda.widen_by_torch(mask_OB, stored, step_O, out), twin)


def test_a_quantized_ticket_counts_its_zeros_apart_and_is_no_source(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]
) -> None:
    folder = tiny_model(tmp_path / "model")
    out = tmp_path / "t"
    found = lottery_json(
        "prune", "--model", folder, "--quantize", "int8", "--target", "late", "--out", out, *QUICK
    )["metrics"]  # fmt: skip
    stored = open_ticket(out)
    in_8_bits = {n for n, e in stored.entries.items() if "quantized" in e}
    assert in_8_bits == {n for n, e in stored.entries.items() if e["role"] in ("attention", "mlp")}  # not late alone
    zeros = sum(int((stored.tensor(n) == 0).sum()) for n in in_8_bits)
    pruned = sum(stored.info(n).numel - e["kept"] for n, e in stored.entries.items() if "kept" in e)
    assert found["rounding_zeros"] == zeros - pruned > 0
    assert found["sparsity_target"] == 0.5 and pruned == sum(
        stored.info(n).numel // 2 for n, e in stored.entries.items() if "requested" in e
    )
    said = cli("prune", "--model", out, *QUICK, code=2).stderr
    assert "is quantized (int8)" in said and "prune one that is not" in said
    planned = lottery_json("plan", "--model", folder, "--quantize", "int8", "--target", "late")
    sizes = {key.rpartition(".")[2] for key in stored._stored}
    assert sizes == {"bitmask", "values", "scale", "weight"}
    assert planned["disk_bytes_after"] == sum(info.nbytes for info in stored._stored.values())


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


@pytest.mark.parametrize(
    ("quantize", "key", "change"),
    [
        ("int8", "scale", lambda t: t * torch.nan),
        ("int8", "scale", lambda t: -t),
        ("fp8", "scale", lambda t: t.bfloat16()),
        ("int8", "scale", lambda t: t.double()),
        ("int8", "scale", lambda t: t[1:].clone()),
        ("int8", "values", lambda t: torch.full_like(t, -128)),
        ("fp8", "values", lambda t: torch.full_like(t.view(torch.uint8), 0x7F).view(t.dtype)),
        ("fp8", "values", lambda t: t.view(torch.int8)),
        ("int8", "values", lambda t: torch.zeros_like(t)),
        ("int8", "bitmask", lambda t: t.view(torch.int8)),
        ("int8", "bitmask", lambda t: t[:10].clone()),
        ("none", "bitmask", lambda t: t[:10].clone()),
        ("mask", "bitmask", lambda t: t[:10].clone()),
        ("mask", "bitmask", lambda t: t[:, :3].clone()),
    ],
)
def test_an_8_bit_ticket_that_lies(
    quantize: str, key: str, change: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """Every hash in it made right again: what does not fit together is refused all the same."""
    from safetensors.torch import load_file, save_file

    from lottery.models.checkpoint import read_json
    from lottery.ticket import packing
    from lottery.ticket.record import RECORD, write_record

    folder, out = tiny_model(tmp_path / "model", hidden_size=64), tmp_path / "t"
    how = ("--storage", "mask") if quantize == "mask" else ("--quantize", quantize)
    cli("prune", "--model", folder, "--target", "k_proj", "--out", out, *how, *QUICK)
    record, name = read_json(out / RECORD), "model.layers.1.self_attn.k_proj.weight"
    for shard in record["shards"]:
        state = load_file(out / shard)
        if f"{name}.{key}" in state:
            state[f"{name}.{key}"] = change(state[f"{name}.{key}"])
            (out / shard).chmod(0o644)
            save_file(state, out / shard, {"format": "pt"})
        record["shards"][shard] = packing.header_sha256(out / shard)
    stored: dict[str, torch.Tensor] = {}
    for shard in record["shards"]:
        stored |= load_file(out / shard)
    parts = [stored[k] for part in ("bitmask", "values", "scale") if (k := f"{name}.{part}") in stored]
    if quantize == "mask":
        parts.append(load_file(folder / "model.safetensors")[name])
    record["tensors"][name]["sha256"] = packing.sha256_of(*map(packing.tensor_bytes, parts))
    write_record(out, {k: v for k, v in record.items() if k != "checksum"})
    said = cli("verify", "--ticket", out, "--base", folder if quantize == "mask" else "auto", code=2).stderr
    assert "k_proj" in said and "Traceback" not in said
    for kind in ("dense", "packed"):
        if (key, quantize) != ("values", "int8") or change(torch.ones(2, dtype=torch.int8))[
            0
        ]:  # all 0: found by `verify`
            with pytest.raises(InputError):
                lottery.load(out, runtime=kind, base=str(folder) if quantize == "mask" else "auto")
