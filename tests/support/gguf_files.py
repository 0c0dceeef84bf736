"""Tiny GGUF files, written as llama.cpp's converter writes them: with `gguf.GGUFWriter`, from a tiny model's own weights."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from gguf.tensor_mapping import get_tensor_name_map
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from lottery.models.checkpoint import BUILTIN

F32, F16, BF16, Q8_0, Q4_1 = (GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_1"))
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def tiny_dense(kind: str, **changes: Any) -> Any:
    """A random model of the real transformers class, in bfloat16, with norms and biases that do something."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(SIZES | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return model.to(torch.bfloat16).eval()


def write_gguf(
    path: Path,
    model: Any,
    arch: str = "llama",
    type: GGMLQuantizationType = F32,
    tokenizer: bool = True,
    per_part: int = 0,
    pre: str = "gpt-2",
    more: dict[str, Any] | None = None,
    factors: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Writes a model as llama.cpp's `arch`, matrices of `type`; with `per_part` in parts of so many tensors. Returns
    the tensors under the names of the file, as they were before they were quantized."""
    writer = GGUFWriter(path, arch, split_max_tensors=per_part)
    more, known = dict(more or {}), GGUF_CONFIG_MAPPING[model.config.model_type.removesuffix("_text")]
    for key, attribute in known.items():
        value = getattr(model.config, attribute or "", None)
        if attribute == "rope_theta":
            rope = model.config.rope_parameters
            value = rope.get("full_attention", rope)["rope_theta"]
        if value is not None:
            add_value(writer, f"{arch}.{key}", more.pop(f"{arch}.{key}", value))
    writer.add_string("general.name", "A tiny model")
    writer.add_string("general.license", "apache-2.0")
    for key, value in more.items():
        add_value(writer, key, value)
    if tokenizer:
        add_tokenizer(writer, pre)
    tensors = llama_cpp_tensors(model, arch) | ({} if factors is None else {"rope_freqs.weight": factors})
    for name, tensor in tensors.items():
        kind = type if tensor.ndim > 1 and name.endswith(".weight") else F32
        writer.add_tensor(name, quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def add_value(writer: GGUFWriter, key: str, value: Any) -> None:
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}[type(value)]
    add(key, value)


def add_tokenizer(writer: GGUFWriter, pre: str) -> None:
    """The embedded model's tokenizer; `pre` names its rule of splitting texts."""
    model = json.loads((BUILTIN / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def llama_cpp_tensors(model: Any, arch: str) -> dict[str, np.ndarray]:
    """The weights of a model under llama.cpp's names, turned as its converter turns them."""
    number = next(a for a in MODEL_ARCH if MODEL_ARCH_NAMES[a] == arch)
    names = get_tensor_name_map(number, model.config.num_hidden_layers)
    config, tensors = model.config, dict[str, np.ndarray]()
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        stem, _, suffix = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "weight")
        if tied and stem == "lm_head":
            continue
        array = weight.float().numpy()
        if name.endswith("experts.gate_up_proj"):
            layer = re.search(r"\d+", name)
            assert layer
            for part, half in zip(("gate", "up"), np.split(array, 2, axis=1), strict=True):
                tensors[f"blk.{layer[0]}.ffn_{part}_exps.weight"] = np.ascontiguousarray(half)
            continue
        if arch == "llama" and stem.endswith(("q_proj", "k_proj")):
            heads = config.num_attention_heads if stem.endswith("q_proj") else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        if arch in ("gemma2", "gemma3") and name.endswith("norm.weight"):
            array = array + 1
        if arch == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        if stem.endswith("shared_expert_gate"):
            array = array[0]
        found = names.get_name(stem)
        assert found, f"llama.cpp has no name for {stem}"
        tensors[f"{found}.{suffix}"] = np.ascontiguousarray(array)
    return tensors
