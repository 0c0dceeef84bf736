"""What config.json may hold beside the shape of a model: it loads where transformers loads it, or one line says why not."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import Result
from safetensors.torch import load_file, save_file

import lottery
from tests.support.families import logits, make
from tests.support.models import tiny_model
from tests.support.refused import refused

Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]
QUICK = ("--dataset", "builtin", "--window", 64, "--limit", 2, "--register", "none")


def changed(model: Path, file: str = "config.json", **values: Any) -> Path:
    """Changes keys of one of a model's JSON files; None removes a key."""
    path = model / file
    content = (json.loads(path.read_text()) if path.exists() else {}) | values
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return model


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("file", "switches"),
    [
        ("config.json", {"return_dict": False}),
        ("config.json", {"output_hidden_states": True, "output_attentions": True, "torchscript": True}),
        ("config.json", {"use_cache": False}),
        ("generation_config.json", {"return_dict_in_generate": True, "output_hidden_states": True, "use_cache": False}),
        ("generation_config.json", {"num_beams": 3, "num_return_sequences": 2, "do_sample": True}),
    ],
)
def test_switches_for_what_a_forward_pass_returns(
    file: str, switches: dict[str, Any], copy: Path, tiny: Path, tmp_path: Path, lottery_json: Json
) -> None:
    """The same figures and the same texts as without them."""
    changed(copy, file, **switches)
    measure, outs = "perplexity,samples", (tmp_path / "one", tmp_path / "two")
    one = lottery_json("prune", "--model", tiny, *QUICK, "--measure", measure, "--out", outs[0])
    measure += ",speed" if file == "config.json" else ""
    two = lottery_json("prune", "--model", copy, *QUICK, "--measure", measure, "--out", outs[1])
    assert one["metrics"]["perplexity"] == two["metrics"]["perplexity"]
    samples = [json.loads((out / "measurements.json").read_text())["samples"] for out in outs]
    assert samples[0] == samples[1] and len(samples[0]) == 4


def test_a_config_without_architectures(copy: Path, tiny: Path, tmp_path: Path, cli: Cli) -> None:
    changed(copy, architectures=None)
    cli("prune", "--model", copy, "--measure", "none", "--register", "none", "--sparsity", 0, "--out", tmp_path / "t")
    plain = transformers.AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    assert torch.equal(logits(lottery.load(tmp_path / "t", dtype="float32")[0]), logits(plain.eval()))


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("flash_attention_2", ("flash-attn is not installed", "remove that key")),
        ("nonsense", ("'nonsense', which cannot be used here; known: eager, sdpa, flex_attention", "remove that key")),
        ("kernels-community/flash-attn", ("'kernels-community/flash-attn'", "remove that key")),
    ],
)
def test_an_attention_that_is_not_installed(key: str, value: str, says: tuple[str, ...], copy: Path, cli: Cli) -> None:
    """The last one is the name of a repository, from which transformers would fetch code and run it."""
    changed(copy, **{key: value})
    result = cli("prune", "--model", copy, *QUICK, code=2)
    refused(result, f"model={copy}: its config.json names {key}=", *says)
    assert "lottery does not use" not in result.stderr
    changed(copy, **{key: "eager"})
    cli("prune", "--model", copy, "--measure", "none", "--register", "none")


def test_an_attention_of_a_part_of_the_model(copy: Path, cli: Cli) -> None:
    changed(copy, text_config={"attn_implementation": "kernels-community/flash-attn"})
    said = "text_config.attn_implementation='kernels-community/flash-attn', which cannot be used here"
    refused(cli("plan", "--model", copy, code=2), f"model={copy}: ", said)


def test_a_key_that_transformers_computes_itself(
    copy: Path, cli: Cli, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers also logs the whole config, which is not for the user."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    changed(copy, use_return_dict=False)
    result = cli("plan", "--model", copy, code=2)
    refused(result, f"model={copy}: config.json is not usable", "use_return_dict")
    assert len(result.stderr.splitlines()) == 1 and not caplog.records


def test_the_quantization_config_of_another_library_beside_16_bit_weights(
    copy: Path, tiny: Path, tmp_path: Path, cli: Cli, lottery_json: Json
) -> None:
    """As a model has it that was saved after loading in 8 bits and widening again."""
    changed(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    said = cli("prune", "--model", copy, *QUICK, "--measure", "perplexity", "--out", tmp_path / "t").stderr
    assert said.count("quantization_config (bitsandbytes), which is ignored") == 1
    found = lottery_json("evaluate", tmp_path / "t", *QUICK[:-2], "--measure", "perplexity")
    plain = lottery_json("prune", "--model", tiny, *QUICK, "--measure", "perplexity")
    assert found["metrics"]["perplexity"] == plain["metrics"]["perplexity"]
    cli("export", tmp_path / "t", "--to", tmp_path / "e")
    assert "quantization_config" not in json.loads((tmp_path / "e" / "config.json").read_text())
    exported = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "e", dtype=torch.float32)
    assert torch.equal(logits(exported.eval()), logits(lottery.load(tmp_path / "t", dtype="float32")[0]))
    assert json.loads((tmp_path / "t" / "config.json").read_text()) == json.loads((copy / "config.json").read_text())


def test_weights_that_another_library_has_quantized(copy: Path, tmp_path: Path, cli: Cli) -> None:
    state = load_file(copy / "model.safetensors")
    for name in [n for n in state if "proj" in n]:
        state[name], state[name.replace("weight", "SCB")] = state[name].to(torch.int8), torch.ones(len(state[name]))
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    changed(copy, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    for command in (("prune", "--measure", "none", "--register", "none", "--out", tmp_path / "t"), ("plan",)):
        result = cli(*command, "--model", copy, code=2)
        refused(result, "model=", "bitsandbytes", "quantized", "down_proj.weight' is of type I8", "16 or 32 bits")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("label", ["llama", "gpt2", "opt_projected"])
@pytest.mark.parametrize("names", ["saved", "published"])
def test_a_tied_matrix_under_the_name_of_the_head(
    label: str, names: str, tmp_path: Path, cli: Cli, lottery_json: Json
) -> None:
    """Some tools write a tied matrix once, as the head. plain is what transformers makes of such files."""
    model = changed(make(label, tmp_path / "m", names), tie_word_embeddings=True)
    state = load_file(model / "model.safetensors")
    state.pop("lm_head.weight", None)
    (table,) = (n for n in state if n.endswith(("embed_tokens.weight", "wte.weight")))
    state["lm_head.weight"] = state.pop(table)
    save_file(state, model / "model.safetensors", {"format": "pt"})
    plan = lottery_json("plan", "--model", model, "--target", "embeddings")
    assert plan["tied"] and table in plan["tensors"] and "lm_head.weight" not in plan["dropped"]
    for storage in ("packed", "mask"):
        out = tmp_path / storage
        how = ("--target", "embeddings", "--sparsity", 0, "--measure", "none", "--register", "none")
        cli("prune", "--model", model, *how, "--storage", storage, "--out", out)
        plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        found, _ = lottery.load(out, dtype="float32")
        assert found.get_input_embeddings().weight is found.get_output_embeddings().weight
        assert torch.equal(logits(found), logits(plain))


def test_a_head_alone_is_not_enough_where_nothing_is_tied(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    state = load_file(model / "model.safetensors")
    del state["model.embed_tokens.weight"]
    save_file(state, model / "model.safetensors", {"format": "pt"})
    refused(cli("plan", "--model", model, code=2), "missing keys", "embed_tokens")
