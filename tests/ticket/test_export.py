"""Tickets as other libraries' models: every format read back by the vanilla library, and its logits compared bit for bit."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import Result
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize as their_quantize
from safetensors.torch import load_file, save_file

import lottery
from lottery.models.tensors import DTYPES
from lottery.runtime import decoding
from lottery.ticket import compressed_tensors
from lottery.ticket.opening import open_ticket
from lottery.ticket.stored import StoredTicket
from tests.support import published
from tests.support.exported import codes_and_scale, same_bits, tensors, twin, vanilla, widened
from tests.support.families import logits, make
from tests.support.models import tiny_model

QUICK = ("--measure", "none", "--register", "none")
RENAMED = ("gpt2", "gpt_neox", "opt", "opt_projected", "falcon")  # the published names of these are not the saved ones
MOE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe")
MOST = {"fp8": 448, "int8": 127}

transformers.logging.disable_progress_bar()


@pytest.mark.parametrize(
    ("label", "names"),
    [*((label, "published") for label in published.TINY), *((label, "saved") for label in RENAMED)],
    ids=lambda x: x,
)
def test_every_family_in_every_format(
    label: str, names: str, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    if label in MOE:  # rows of 16 bytes and more: of less torch's grouped product takes no bfloat16
        sizes = {"intermediate_size": 112, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 80}
        wide = {k: v for k, v in sizes.items() if k in published.TINY[label]}
        monkeypatch.setitem(published.TINY, label, published.TINY[label] | wide)
    made = make(label, tmp_path / "model", names)
    cli("prune", "--model", made, "--out", tmp_path / "t", *QUICK)
    stored = StoredTicket(tmp_path / "t")

    cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / "dense")
    state = tensors(tmp_path / "dense")
    assert state.keys() == stored.tensors.keys()
    assert all(same_bits(state[name], stored.tensor(name)) for name in state)
    for dtype in ("float32", "bfloat16"):
        want, _ = lottery.load(tmp_path / "t", dtype=dtype)
        assert torch.equal(logits(vanilla(tmp_path / "dense", dtype)), logits(want))

    for form in ("fp8", "int8"):
        if label == "gpt2" or (label.startswith("falcon") and form == "int8"):
            said = cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / form, "--format", form, code=2).stderr
            assert f"format={form}: none of this model's matrices" in said and "give format=dense" in said
            assert not (tmp_path / form).exists()
            continue
        found = json.loads(
            cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / form, "--format", form, "--json").stdout
        )
        state = tensors(tmp_path / form)
        matrices = {n for n, e in stored.entries.items() if e["role"] in ("attention", "mlp")}
        if form == "fp8":
            matrices = {n for n in matrices if ".experts." not in n}
        assert {key.removesuffix("_scale") for key in state if key.endswith("_scale")} == matrices
        assert found["quantized"] == len(matrices)
        assert any("experts" in note for note in found["notes"]) == (label in MOE and form == "fp8")
        for name in matrices:
            weight_OI = stored.tensor(name).float()
            codes_OI, scale_O1 = codes_and_scale(state, name)
            assert scale_O1.dtype == torch.bfloat16 and not (codes_OI.float()[weight_OI == 0] != 0).any()
            args = QuantizationArgs(num_bits=8, type="float" if form == "fp8" else "int", strategy="channel")
            theirs = their_quantize(weight_OI, scale_O1.float(), None, args=args, dtype=codes_OI.dtype)
            assert torch.equal(theirs.float(), codes_OI.float())
        for dtype in ("bfloat16", "float32"):
            got = logits(vanilla(tmp_path / form, dtype))
            want = logits(twin(tmp_path / form, widened(state, getattr(torch, dtype)), dtype))
            if label in MOE and dtype == "float32":  # experts stay in the type of the file, or of their scale
                assert (got - want).abs().max() < 1e-4 * want.abs().max()
            else:
                assert torch.equal(got, want)


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_quantized_ticket_gives_its_own_codes(
    kind: str, source: torch.dtype, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """Of widths that fill no int32, with a row of zeros, one of the smallest number there is, and a head of 8 bits, which
    stays out."""
    model = tiny_model(tmp_path / "model", dtype=source, intermediate_size=97)
    state = load_file(model / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][0] = 0
    state["model.layers.0.mlp.up_proj.weight"][1] = torch.finfo(source).smallest_normal * torch.finfo(source).eps
    save_file(state, model / "model.safetensors", {"format": "pt"})
    out = tmp_path / "t"
    cli("prune", "--model", model, "--quantize", kind, "--target", "all+lm_head", "--out", out, *QUICK)
    stored = open_ticket(out)
    own = str(source).removeprefix("torch.")
    slow = {}
    for name, entry in stored.entries.items():
        slow[name] = stored.tensor(name)
        if "quantized" in entry:  # by hand: a code times its scale, in float32
            matrix = stored.matrix(name).unpack()
            codes = torch.from_numpy(matrix.values_K.copy()).view(DTYPES[matrix.values_dtype])
            assert matrix.scale_O is not None
            slow[name] = codes.float() * (torch.from_numpy(matrix.scale_O.copy()) / MOST[kind])[:, None]

    said = cli("export", "--ticket", out, "--to", tmp_path / "dense").stdout
    state = tensors(tmp_path / "dense")
    assert all(same_bits(state[name], slow[name].to(source)) for name in slow)
    assert (f"rounded to {own}" in said) == (source != torch.float32)
    packed, _ = lottery.load(out, dtype=own, runtime="packed")
    assert torch.equal(logits(vanilla(tmp_path / "dense", own)), logits(packed))

    said = cli("export", "--ticket", out, "--to", tmp_path / "same", "--format", kind).stdout
    assert "not in 8 bits: lm_head.weight (the head" in said
    assert ("every row" in said or "a row is off by" in said) == (source != torch.float32)
    state = tensors(tmp_path / "same")
    assert same_bits(state["lm_head.weight"], slow["lm_head.weight"].to(source))
    eight = {n for n, e in stored.entries.items() if "quantized" in e} - {"lm_head.weight"}
    for name in eight:
        codes, scale = codes_and_scale(state, name)
        assert (scale[(codes.float() == 0).all(1)] == 1).all()
        whole = stored.matrix(name).unpack()
        assert np.array_equal(codes.view(torch.uint8).numpy(), whole.values_K) and scale.dtype == torch.float32
        assert torch.equal(codes.float() * scale, slow[name])
        if kind == "int8":
            assert same_bits(state[f"{name}_packed"], pack_to_int32(codes, 8))
    exact = {n: t.float() for n, t in slow.items()} | {"lm_head.weight": state["lm_head.weight"].float()}
    assert torch.equal(logits(vanilla(tmp_path / "same", "float32")), logits(twin(out, exact, "float32")))
    assert torch.equal(logits(vanilla(tmp_path / "same", own)), logits(twin(out, widened(state, source), own)))

    other = {"fp8": "int8", "int8": "fp8"}[kind]
    said = cli("export", "--ticket", out, "--to", tmp_path / "other", "--format", other, code=2).stderr
    assert f"format={other}: this ticket holds {kind} codes" in said and f"give format={kind}, or dense" in said
    assert not (tmp_path / "other").exists()


def test_experts_of_a_quantized_ticket(
    tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """int8 experts keep their codes, under scales of the model's type; float8 ones, that vLLM refuses, are widened."""
    monkeypatch.setitem(published.TINY, "mixtral", published.TINY["mixtral"] | {"intermediate_size": 112})
    model = make("mixtral", tmp_path / "model", "published")
    for kind in ("int8", "fp8"):
        out, to = tmp_path / kind, tmp_path / f"{kind}-model"
        cli("prune", "--model", model, "--quantize", kind, "--out", out, *QUICK)
        said = cli("export", "--ticket", out, "--to", to, "--format", kind).stdout
        stored, state = StoredTicket(out), tensors(to)
        for name in (n for n in stored.entries if ".experts." in n):
            matrix = stored.matrix(name).unpack()
            if kind == "int8":
                codes, scale = codes_and_scale(state, name)
                assert np.array_equal(codes.view(torch.uint8).numpy(), matrix.values_K)
                assert scale.dtype == torch.bfloat16
            else:
                assert same_bits(state[name], stored.tensor(name).bfloat16())
        assert ("the scales of the experts are rounded" in said) == (kind == "int8")
        assert ("which the ticket holds as fp8 codes" in said) == (kind == "fp8")
        got, want = vanilla(to, "bfloat16"), twin(to, widened(state, torch.bfloat16), "bfloat16")
        assert {p.dtype for p in got.model.layers[0].mlp.experts.parameters()} == {torch.bfloat16}
        assert torch.equal(logits(got), logits(want))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_scales_are_rounded_before_the_codes_are_made(kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    weight_OI = (torch.randn(2050, 33) * 10 ** torch.linspace(-7, 2, 2050)[:, None]).to(dtype)
    weight_OI[5] = 0
    weight_OI[:, 3] = 0
    weight_OI[::2, 4] = -1e-7 if dtype == torch.float16 else -1e-30
    codes, step_O, lost = compressed_tensors.quantize(weight_OI, kind, dtype)
    codes_OI = torch.from_numpy(codes).view(torch.float8_e4m3fn if kind == "fp8" else torch.int8).float()
    exact_OI = weight_OI.float()
    step_O1 = step_O.float()[:, None]
    assert step_O.dtype == dtype and (step_O1 > 0).all() and step_O1[5] == 1
    assert (step_O1 * MOST[kind] >= exact_OI.abs().amax(1, keepdim=True)).all()  # nothing is cut off
    off_OI = (codes_OI * step_O1 - exact_OI).abs()
    allowed_OI = exact_OI.abs() / 16 + step_O1 / 1024 if kind == "fp8" else step_O1 / 2
    assert (off_OI <= allowed_OI * 1.0001).all()
    assert lost == int(((codes_OI == 0) & (exact_OI != 0)).sum()) > 0
    assert not ((codes == 0x80) & (kind == "fp8")).any()


def test_experts_that_lie_in_one_tensor(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """As transformers holds them in memory: no reader has 8 bits for them."""
    small: dict[str, Any] = {"intermediate_size": 112, "num_local_experts": 4, "num_hidden_layers": 2}
    model = tiny_model(tmp_path / "model", "Mixtral", **small)
    whole = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    state = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    assert state["model.layers.0.mlp.experts.down_proj"].dim() == 3
    save_file(state, model / "model.safetensors", {"format": "pt"})
    cli("prune", "--model", model, "--out", tmp_path / "t", *QUICK)
    want = logits(lottery.load(tmp_path / "t", dtype="bfloat16")[0])
    for form in ("dense", "fp8", "int8"):
        to = tmp_path / form
        said = cli("export", "--ticket", tmp_path / "t", "--to", to, "--format", form).stdout
        got = vanilla(to, "bfloat16")
        if form == "dense":
            assert torch.equal(logits(got), want)
        else:
            assert "8 matrices are in 8 bits" in said and "(the experts of a layer in one tensor)" in said
            assert torch.equal(logits(got), logits(twin(to, widened(tensors(to), torch.bfloat16), "bfloat16")))


def test_masks_are_exported_through_their_base(tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = tiny_model(tmp_path / "model")
    cli("prune", "--model", model, "--storage", "mask", "--out", tmp_path / "mask", *QUICK)
    cli("prune", "--model", model, "--out", tmp_path / "packed", *QUICK)
    for name in ("mask", "packed"):
        cli("export", "--ticket", tmp_path / name, "--to", tmp_path / f"{name}-model")
    one, two = ((tmp_path / f"{name}-model" / "model.safetensors").read_bytes() for name in ("mask", "packed"))
    assert one == two

    model.rename(tmp_path / "elsewhere")
    arguments = ("export", "--ticket", tmp_path / "mask", "--to", tmp_path / "again", "--format", "int8")
    said = cli(*arguments, code=2).stderr
    assert "could not be opened" in said and "give its folder as base" in said
    assert not (tmp_path / "again").exists() and not (tmp_path / ".again.partial").exists()
    cli(*arguments, "--base", tmp_path / "elsewhere")
    logits(vanilla(tmp_path / "again", "bfloat16"))


def test_a_head_of_its_own_stays_apart(tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = make("qwen2_tied", tmp_path / "model", "saved")
    for target in ("lm_head", "embeddings"):
        out, to = tmp_path / target, tmp_path / f"{target}-model"
        cli("prune", "--model", model, "--target", target, "--out", out, *QUICK)
        cli("export", "--ticket", out, "--to", to)
        found, (want, _) = vanilla(to, "float32"), lottery.load(out, dtype="float32")
        assert torch.equal(logits(found), logits(want))
        apart = found.get_input_embeddings().weight.data_ptr() != found.get_output_embeddings().weight.data_ptr()
        assert apart == (target == "lm_head") == ("lm_head.weight" in tensors(to))


def test_the_embedded_model_by_plain_transformers(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """In a process that has no lottery: -P keeps the repository off the path, and the finder of an editable install is
    removed. The same words as `lottery generate` says."""
    cli("prune", "--out", tmp_path / "t", "--target", "late", *QUICK)
    cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / "model")
    script = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import os; sys.path[:] = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'lottery'))]\n"
        "import importlib.util, json, torch, transformers\n"
        "assert importlib.util.find_spec('lottery') is None\n"
        f"folder = {str(tmp_path / 'model')!r}\n"
        "model, found = transformers.AutoModelForCausalLM.from_pretrained(\n"
        "    folder, dtype=torch.float32, output_loading_info=True)\n"
        "assert not any(found.values()), found\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(folder)\n"
        "ids = tokenizer('Once upon a time', return_tensors='pt')\n"
        "out = model.generate(**ids, max_new_tokens=30, do_sample=False)\n"
        "print(json.dumps(tokenizer.decode(out[0], skip_special_tokens=True)))\n"
        "assert 'lottery' not in sys.modules\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd="/", env=environment
    )
    assert done.returncode == 0, done.stderr

    model, tokenizer = lottery.load(tmp_path / "t", dtype="float32")
    text = decoding.generate(model, tokenizer, ["Once upon a time"], 30)[0]
    assert json.loads(done.stdout.splitlines()[-1]) == text
