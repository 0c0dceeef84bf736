"""Tiny models of every family, under the names that transformers gives and under those of the files on the hub."""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from lottery.models.checkpoint import BUILTIN
from tests.support.published import TINY


def make_config(values: dict[str, Any]) -> Any:
    """The transformers configuration for what a config.json holds."""
    return CONFIG_MAPPING[values["model_type"]].from_dict(deepcopy(values))


def causal_class(config: Any) -> Any:
    """The concrete ForCausalLM class of a configuration."""
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def tiny_config(label: str) -> Any:
    return make_config(TINY[label])


def tiny_class(label: str) -> Any:
    return causal_class(tiny_config(label))


def real_buffers(model_type: str, config: Any) -> dict[str, Tensor]:
    """The masks and rotary tables that published files of the family carry beside the parameters."""
    if model_type == "gpt2":
        # openai-community/gpt2 has the mask alone; many fine-tuned files, saved later, have both
        mask = torch.ones(config.n_positions, config.n_positions).tril()[None, None]
        return {
            f"h.{layer}.attn.{name}": tensor.clone()
            for layer in range(config.n_layer)
            for name, tensor in (("bias", mask), ("masked_bias", torch.tensor(-10000.0)))
        }
    if model_type == "gpt_neox":
        length = config.max_position_embeddings
        buffers = {
            "bias": torch.ones(length, length, dtype=torch.bool).tril()[None, None],
            "masked_bias": torch.tensor(-1e9),
            "rotary_emb.inv_freq": _inverse_frequencies(config),
        }
        prefix = "gpt_neox.layers.{}.attention."
    elif model_type == "llama":  # files that old transformers wrote
        buffers = {"rotary_emb.inv_freq": _inverse_frequencies(config)}
        prefix = "model.layers.{}.self_attn."
    else:
        return {}
    return {
        prefix.format(layer) + name: tensor.clone()
        for layer in range(config.num_hidden_layers)
        for name, tensor in buffers.items()
    }


def _inverse_frequencies(config: Any) -> Tensor:
    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rotated = int(head * rope.get("partial_rotary_factor", 1.0))
    return rope["rope_theta"] ** -(torch.arange(0, rotated, 2, dtype=torch.float32) / rotated)


def published_names(
    model_type: str, state: dict[str, Tensor], config: Any, *, duplicate_head: bool = False
) -> dict[str, Tensor]:
    """What `save_pretrained` writes, under the names and with the extra tensors of the family's files on the hub.

    OPT has two layouts: `decoder.…` (350m, 6.7b, 13b, 30b), and with `duplicate_head` `model.decoder.…` beside a
    second copy of the embeddings as `lm_head.weight` (125m, 1.3b, 2.7b, 66b). Falcon-7b always has that copy, the new decoder (40b) never.
    """
    published = {_published_name(model_type, name, duplicate_head): tensor for name, tensor in state.items()}
    if model_type == "falcon" and not config.new_decoder_architecture:
        published["lm_head.weight"] = state["transformer.word_embeddings.weight"].clone()
    elif model_type == "opt" and duplicate_head:
        published["lm_head.weight"] = state["model.decoder.embed_tokens.weight"].clone()
    return published | real_buffers(model_type, config)


def _published_name(model_type: str, name: str, duplicate_head: bool) -> str:
    if model_type == "gpt2":
        return name.removeprefix("transformer.")
    if model_type == "opt" and not duplicate_head:
        return name.removeprefix("model.")
    if model_type == "gpt_neox" and name == "lm_head.weight":
        return "embed_out.weight"
    return name


LABELS = list(TINY)
RENAMED = ("gpt2", "gpt_neox", "llama", "opt", "opt_projected", "falcon")  # of all others the two kinds of file are one


def make(label: str, folder: Path, names: str) -> Path:
    """A tiny model with random values in every parameter, under the names that `save_pretrained` gives or published ones."""
    torch.manual_seed(0)
    config = tiny_config(label)
    model = tiny_class(label)(config)
    for p in {id(p): p for p in model.parameters()}.values():
        p.data.normal_(0, 0.05)
    model.to(torch.bfloat16).save_pretrained(folder)
    if names == "published":
        state = load_file(folder / "model.safetensors")
        double = label in ("opt_projected", "falcon")
        saved = state.keys()
        state = published_names(config.model_type, state, config, **({"duplicate_head": True} if double else {}))
        assert (state.keys() != saved) == (label in RENAMED), label
        save_file({n: t.contiguous().clone() for n, t in state.items()}, folder / "model.safetensors", {"format": "pt"})
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / file, folder / file)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(5, 37)[None], use_cache=False).logits
