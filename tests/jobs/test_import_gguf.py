"""`lottery import`: tiny files of the real format become folders that hold the model's weights to the bit."""

import importlib.util
import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from gguf import GGMLQuantizationType, dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lottery.cli.main import main
from lottery.files.hashes import file_sha256
from lottery.jobs import import_gguf
from lottery.models import devices
from lottery.models.checkpoint import BUILTIN
from lottery.models.gguf import read_header
from tests.support.gguf_files import BF16, F16, Q4_1, Q8_0, tiny_dense, write_gguf
from tests.support.often import repeats
from tests.support.refused import refused

EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}
# llama.cpp's name -> transformers' class, and what its loader takes for granted
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon": ("Falcon", {"ffn_hidden_size": 256}),
    "gemma2": ("Gemma2", {"head_dim": 16}),
    "gemma3": ("Gemma3Text", {"head_dim": 16}),
    "gpt2": ("GPT2", {"max_position_embeddings": 1024}),
    "llama": ("Llama", {}),
    "phi3": ("Phi3", {"pad_token_id": 0}),
    "qwen2": ("Qwen2", {}),
    "qwen2moe": ("Qwen2Moe", EXPERTS),
    "qwen3": ("Qwen3", {"head_dim": 128}),
    "qwen3moe": ("Qwen3Moe", EXPERTS | {"head_dim": 128, "norm_topk_prob": True}),
    "stablelm": ("StableLm", {}),
}
FUZZ = settings(max_examples=repeats(15, 150), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_dense("Llama")


@pytest.fixture
def file(llama: Any, tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", llama, type=Q8_0)
    return tmp_path / "tiny.gguf"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 61)[None]).logits


def untouched(folder: Path, *names: str) -> None:
    """Beside the files that were there nothing is left, hidden or not."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


@pytest.mark.parametrize("arch", KINDS)
def test_every_architecture_keeps_its_weights_and_logits(
    arch: str, tmp_path: Path, lottery_json: Callable[..., Any]
) -> None:
    kind, changes = KINDS[arch]
    tiny_dense(kind, **changes).save_pretrained(tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    write_gguf(
        tmp_path / "tiny.gguf", dense, arch, tokenizer=arch == "gpt2", more={"tokenizer.ggml.padding_token_id": 0}
    )
    found = lottery_json("import", tmp_path / "tiny.gguf", tmp_path / "new")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    expected = dense.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weight in model.state_dict().items():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, expected[name]), name
    assert torch.equal(logits(model), logits(dense))
    assert found["parameters"] == sum(p.numel() for p in dense.parameters())
    assert found["weights"] == "rounded to bfloat16 from F32; they were not quantized"
    assert ("no tokenizer" in str(found["notes"])) == (arch != "gpt2")  # whose vocabulary only the tokenizer says


@pytest.mark.parametrize("type", [Q8_0, Q4_1, F16, BF16])
def test_weights_are_those_that_the_package_dequantizes(
    type: GGMLQuantizationType, llama: Any, tmp_path: Path, lottery_json: Callable[..., Any]
) -> None:
    tensors = write_gguf(tmp_path / "tiny.gguf", llama, type=type)
    found = lottery_json("import", tmp_path / "tiny.gguf", tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    for name, ours in (("blk.1.ffn_down", "model.layers.1.mlp.down_proj"), ("token_embd", "model.embed_tokens")):
        stored = dequantize(quantize(tensors[f"{name}.weight"], type), type)
        assert torch.equal(weights[f"{ours}.weight"], torch.from_numpy(np.array(stored)).bfloat16())
    # the rows of q and k are in another order in llama.cpp: pairs of a rotation lie side by side
    stored = dequantize(quantize(tensors["blk.0.attn_q.weight"], type), type)
    rows = [head * 16 + half + 2 * i for head in range(4) for half in (0, 1) for i in range(8)]
    assert torch.equal(weights["model.layers.0.self_attn.q_proj.weight"], torch.from_numpy(stored[rows]).bfloat16())
    bits = {Q8_0: 8.5, Q4_1: 5, F16: 16, BF16: 16}[type]
    assert bits <= found["bits_per_weight"] < bits + 0.1  # norms are in float32
    words = (
        f"dequantized from {found['bits_per_weight']:.2f} bits per weight ({type.name})"
        if bits < 16
        else "not quantized"
    )
    assert words in found["weights"]


def test_the_tokenizer_gives_the_same_tokens(file: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    cli("import", file, tmp_path / "new")
    ours, theirs = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "new", BUILTIN))
    text = (BUILTIN.parent / "evaluation.txt").read_text()[:20_000] + "<|endoftext|> 3.14\n\n\tétude 你好"
    tokens = ours(text)["input_ids"]
    assert tokens == theirs(text)["input_ids"] and ours.decode(tokens) == text
    assert ours.eos_token_id == theirs.eos_token_id == 0


def test_provenance_goes_from_the_file_to_the_ticket(
    file: Path, tmp_path: Path, cli: Callable[..., Result], lottery_json: Callable[..., Any]
) -> None:
    shown = cli("import", file, tmp_path / "new").stdout
    about = json.loads((tmp_path / "new" / "provenance.json").read_text())
    assert about["source"] == {"files": {"tiny.gguf": file_sha256(file)}}
    assert about["types"]["Q8_0"] == {"tensors": 16, "weights": 585_728} and about["types"]["F32"]["tensors"] == 5
    assert about["license"] == "apache-2.0" and about["name"] == "A tiny model" and str(tmp_path) not in str(about)
    assert about["weights"] in shown and "licence: apache-2.0" in shown
    readme = (tmp_path / "new" / "README.md").read_text()
    assert about["source"]["files"]["tiny.gguf"] in readme and about["weights"] in readme
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    }
    assert "work" not in names and (tmp_path / "new" / "model.safetensors").stat().st_mode & 0o777 == 0o644

    words = ("--dataset", "builtin", "--window", 64, "--limit", 4, "--measure", "perplexity")
    ticket = lottery_json("prune", "--model", tmp_path / "new", "--target", "late", "--sparsity", 0.5, *words)
    assert ticket["tags"]["origin"] == about["weights"] and ticket["tags"]["base"] == "new"
    cli("export", ticket["model_uri"], "--to", tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "dequantized from 8.5" in card and "apache-2.0" in card
    again = lottery_json("prune", "--model", ticket["model_uri"], "--target", "early", "--sparsity", 0.5, *words)
    assert again["tags"]["origin"] == about["weights"]


def test_parts_of_gguf_split(llama: Any, tmp_path: Path, cli: Callable[..., Result]) -> None:
    write_gguf(tmp_path / "whole.gguf", llama, type=Q8_0)
    write_gguf(tmp_path / "tiny.gguf", llama, type=Q8_0, per_part=8)
    parts = sorted(tmp_path.glob("tiny-*-of-*.gguf"))
    assert [part.name for part in parts] == [f"tiny-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    cli("import", tmp_path / "whole.gguf", tmp_path / "whole")
    expected = (tmp_path / "whole" / "model.safetensors").read_bytes()
    for i, given_parts in enumerate(([parts[0]], [parts[2]], [parts[2], parts[0], parts[1]])):
        cli("import", *given_parts, tmp_path / f"new{i}")
        assert (tmp_path / f"new{i}" / "model.safetensors").read_bytes() == expected
        assert json.loads((tmp_path / f"new{i}" / "provenance.json").read_text())["source"]["files"].keys() == {
            part.name for part in parts
        }
    refused(cli("import", parts[0], parts[1], tmp_path / "bad", code=2), "file=", "part 3 of 3 is missing")
    refused(cli("import", parts[0], parts[1], parts[1], tmp_path / "bad", code=2), "part 3 of 3 is missing")
    refused(cli("import", parts[0], tmp_path / "whole.gguf", tmp_path / "bad", code=2), "no parts of one model")
    parts[1].rename(tmp_path / "other.gguf")
    refused(cli("import", parts[0], tmp_path / "bad", code=2), "part 2 of 3 is missing: tiny-00002-of-00003.gguf")
    refused(cli("import", tmp_path / "other.gguf", tmp_path / "bad", code=2), "part 2 of 3", "NAME-00002-of-00003.gguf")
    assert not list(tmp_path.glob("*bad*"))


def test_pieces_of_the_bytes(
    file: Path, tmp_path: Path, cli: Callable[..., Result], lottery_json: Callable[..., Any]
) -> None:
    content, at = file.read_bytes(), read_header(file).data // 2  # the first piece ends within the header
    pieces = [tmp_path / f"tiny.gguf.part{i}" for i in range(3)]
    for piece, (begin, end) in zip(pieces, ((0, at), (at, 300_000), (300_000, None)), strict=True):
        piece.write_bytes(content[begin:end])
    found = lottery_json("import", *pieces, tmp_path / "new")
    assert found["source"]["sha256"] == file_sha256(file) and len(found["source"]["files"]) == 3
    cli("import", file, tmp_path / "whole")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    refused(cli("import", *pieces[:2], tmp_path / "bad", code=2), "cut", "all pieces in their order")
    refused(cli("import", pieces[0], tmp_path / "bad", code=2), "tiny.gguf.part0", "cut")
    refused(cli("import", pieces[1], pieces[0], tmp_path / "bad", code=2), "tiny.gguf.part1", "not a GGUF file")
    untouched(tmp_path, "tiny.gguf", "new", "whole", *(piece.name for piece in pieces))


def test_positions_that_transformers_does_not_read(tmp_path: Path, cli: Callable[..., Result]) -> None:
    rope = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    tiny_dense("Llama", rope_parameters=rope).save_pretrained(tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    # llama.cpp stores by how much each frequency is divided
    plain = 500_000.0 ** (-np.arange(0, 16, 2) / 16)
    factors = (plain / dense.model.rotary_emb.inv_freq.double().numpy()).astype(np.float32)
    assert factors.min() == pytest.approx(1) and factors.max() == pytest.approx(32)
    write_gguf(tmp_path / "llama3.gguf", dense, factors=factors)
    cli("import", tmp_path / "llama3.gguf", tmp_path / "new")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert torch.equal(logits(model), logits(dense))

    write_gguf(tmp_path / "odd.gguf", dense, factors=factors + 0.1)
    refused(cli("import", tmp_path / "odd.gguf", tmp_path / "bad", code=2), "rope_freqs.weight", "safetensors")
    write_gguf(tmp_path / "yarn.gguf", dense, more={"llama.rope.scaling.type": "yarn"})
    refused(cli("import", tmp_path / "yarn.gguf", tmp_path / "bad", code=2), "'yarn'", "safetensors")


def test_the_long_context_of_gemma_3(tmp_path: Path, cli: Callable[..., Result]) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    layers = {"head_dim": 16, "num_hidden_layers": 6}  # the sixth sees the whole text
    tiny_dense("Gemma3Text", rope_parameters=rope, **layers).save_pretrained(tmp_path / "dense")
    dense = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    more = {
        "gemma3.rope.scaling.type": "linear",
        "gemma3.rope.scaling.factor": 8.0,
        "tokenizer.ggml.padding_token_id": 0,
    }
    write_gguf(tmp_path / "tiny.gguf", dense, "gemma3", more=more, tokenizer=False)
    cli("import", tmp_path / "tiny.gguf", tmp_path / "new")
    assert torch.equal(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")), logits(dense))


def test_positions_of_a_part_of_each_head(tmp_path: Path, cli: Callable[..., Result]) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_dense("StableLm"), "stablelm", more={"stablelm.rope.dimension_count": 8})
    refused(cli("import", tmp_path / "tiny.gguf", tmp_path / "bad", code=2), "8 of 16 dimensions", "would turn 4")


def test_an_unknown_rule_of_the_tokenizer_is_said(llama: Any, tmp_path: Path, lottery_json: Callable[..., Any]) -> None:
    for rule, notes in (("smollm", 0), ("a-new-one", 1)):
        write_gguf(tmp_path / f"{rule}.gguf", llama, pre=rule)
        found = lottery_json("import", tmp_path / f"{rule}.gguf", tmp_path / rule)
        assert len(found["notes"]) == notes and all(repr(rule) in note for note in found["notes"])


def test_bad_places(file: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    refused(cli("import", file, tmp_path / "full", code=2), "dir=", "not empty")
    refused(cli("import", file, file, code=2), "dir=", "it is a file")
    refused(cli("import", file, code=2), "Missing argument")
    refused(cli("import", tmp_path / "none.gguf", tmp_path / "new", code=2), "file=", "no such file")
    refused(cli("import", tmp_path / "full", tmp_path / "new", code=2), "file=", "it is a folder")
    refused(cli("import", BUILTIN / "config.json", tmp_path / "new", code=2), "config.json", "not a GGUF file")
    with monkeypatch.context() as changed:
        usage = shutil.disk_usage(tmp_path)
        changed.setattr(import_gguf.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        refused(cli("import", file, tmp_path / "new", code=1), "dir=", "1,000 free")
    with monkeypatch.context() as changed:
        changed.setattr(devices, "free_bytes", lambda device: 10**6)
        refused(cli("import", file, tmp_path / "new", code=2), "file=", "GB of memory")
    with monkeypatch.context() as changed:
        changed.setattr(importlib.util, "find_spec", lambda name: None)
        refused(cli("import", file, tmp_path / "new", code=2), "package gguf", "pip install")
    untouched(tmp_path, "tiny.gguf", "full")


def test_a_disk_that_becomes_full(file: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))  # the weights take 1.1 MB
        result = cli("import", file, tmp_path / "new", code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    refused(result, "dir=", "make room")
    untouched(tmp_path, "tiny.gguf")


def test_files_that_are_no_such_model(llama: Any, tmp_path: Path, cli: Callable[..., Result]) -> None:
    write_gguf(tmp_path / "bert.gguf", llama)
    content = bytearray((tmp_path / "bert.gguf").read_bytes())
    content[:200] = content[:200].replace(b"llama", b"berta", 1)
    (tmp_path / "bert.gguf").write_bytes(content)
    refused(cli("import", tmp_path / "bert.gguf", tmp_path / "bad", code=2), "'berta'", "llama", "gemma3")
    for key, value, says in (
        ("block_count", 10**9, "1,000,000,000 layers"),
        ("block_count", 3, "weights"),
        ("embedding_length", 2**31 - 64, "weights"),
        ("attention.head_count", 0, "describe no model"),
    ):
        write_gguf(tmp_path / "odd.gguf", llama, more={f"llama.{key}": value})
        refused(cli("import", tmp_path / "odd.gguf", tmp_path / "bad", code=2), "file=", says)
    path = tmp_path / "odd.gguf"
    write_gguf(path, llama, type=Q8_0)
    content, header = bytearray(path.read_bytes()), read_header(path)
    block = header.data + next(t.offset for t in header.tensors if t.name == "blk.0.ffn_up.weight")
    content[block : block + 2] = struct.pack("<H", 0x7C00)  # the scale of a block becomes infinite
    path.write_bytes(content)
    refused(cli("import", path, tmp_path / "bad", code=2), "damaged", "layers.0.mlp.up_proj", "NaN")
    untouched(tmp_path, "bert.gguf", "odd.gguf")


@given(st.data())
@FUZZ
def test_a_damaged_file_makes_a_folder_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "odd.gguf"
    write_gguf(path, tiny_dense("Llama", vocab_size=64, num_hidden_layers=1), tokenizer=data.draw(st.booleans()))
    content, drawn = bytearray(path.read_bytes()), random.Random(data.draw(st.integers(0, 2**32)))
    end = read_header(path).data
    for _ in range(data.draw(st.integers(1, 4))):
        content[drawn.randrange(24, min(end, 4000) if drawn.random() < 0.7 else end)] = drawn.randrange(256)
    if data.draw(st.booleans()):
        del content[drawn.randrange(end, len(content)) :]
    path.write_bytes(content)
    result = CliRunner().invoke(main, ["import", str(path), str(folder / "new")])
    if result.exit_code:
        assert result.exit_code == 2, (result.output, result.exception)
        refused(result, f"file={path}: ")
        untouched(folder, "odd.gguf")
    else:
        assert transformers.AutoModelForCausalLM.from_pretrained(folder / "new")
