"""The config of the model that a GGUF file holds: as transformers reads it, and completed where its reader leaves out
what changes the model."""

import contextlib
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lottery.errors import InputError
from lottery.models.architecture import MOST_LAYERS, library_errors
from lottery.models.families import family
from lottery.models.gguf import GgufHeader

# llama.cpp's names of the architectures that transformers' GGUF loader and lottery both know, each tried with a tiny model.
ARCHITECTURES = (
    "falcon",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "stablelm",
)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1 and later: what each frequency is divided by
GEMMA_27B = (
    ("gemma2", 46),
    ("gemma3", 62),
)  # architecture and layers; llama.cpp scales their attention by another size
INSTEAD = "give the model in safetensors instead"


def check_architecture(header: GgufHeader) -> None:
    """Raises InputError for an architecture that cannot be converted, or whose positions transformers would read wrongly."""
    what, name = f"file={header.path}", header.values.get("general.architecture")
    if name not in ARCHITECTURES:
        raise InputError(f"{what}: its architecture {name!r} cannot be imported; known: {', '.join(ARCHITECTURES)}")
    scaling = header.values.get(f"{name}.rope.scaling.type", "none")
    odd = [t.name for t in header.tensors if t.name.startswith("rope_") and t.name != ROPE_FACTORS]
    if odd or (scaling != "none" and (name, scaling) != ("gemma3", "linear")):
        named = odd[0] if odd else f"rope scaling {scaling!r}"
        raise InputError(f"{what}: its {named} is not read by transformers' GGUF loader; {INSTEAD}")
    layers = header.values.get(f"{name}.block_count")
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        said = f"{layers:,}" if isinstance(layers, int) else repr(layers)
        raise InputError(f"{what}: it says {said} layers; give a model with 1 to {MOST_LAYERS}")


def read_config(source: Path, header: GgufHeader) -> Any:
    """Returns the config of the model. Raises InputError unless it describes as many weights as the file holds, which
    also bounds what will be allocated."""
    what = f"file={header.path}"
    with library_errors(f"{what}: its values describe no model"), silent():
        config = transformers.AutoConfig.from_pretrained(
            source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
        )
        family(config.model_type, what)
        complete_config(config, source, header)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
    described = sum(p.numel() for p in model.parameters())
    held = sum(t.numel for t in header.tensors if t.name != ROPE_FACTORS)
    if described != held:
        raise InputError(
            f"{what}: its values describe {described:,} weights, its tensors hold {held:,}; it is damaged, or of a kind "
            f"that transformers' GGUF loader does not read: {INSTEAD}"
        )
    return config


def complete_config(config: Any, source: Path, header: GgufHeader) -> None:
    """Sets what transformers' GGUF loader leaves at a default, although the file, or llama.cpp, says it.

    Raises InputError where the positions would still be read wrongly.
    """
    values, arch = header.values, header.values["general.architecture"]
    if (factors := read_rope_factors(source, header)) is not None:
        config.rope_parameters = llama3_rope(factors, config, f"file={header.path}")
    if arch == "gemma3" and values.get("gemma3.rope.scaling.type") == "linear":
        scaled = {"rope_type": "linear", "factor": values["gemma3.rope.scaling.factor"]}
        config.rope_parameters["full_attention"] |= scaled  # the layers of the sliding window are not scaled
    if (arch, config.num_hidden_layers) in GEMMA_27B:
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads
    if arch == "phi3":
        config.sliding_window = values.get("phi3.attention.sliding_window")
    rotary = values.get(f"{arch}.rope.dimension_count")
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    read = int(head * (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1))
    if rotary not in (None, read):
        raise InputError(
            f"file={header.path}: its positions turn {rotary} of {head} dimensions of a head, transformers' GGUF loader "
            f"would turn {read}; {INSTEAD}"
        )


def read_rope_factors(source: Path, header: GgufHeader) -> np.ndarray | None:
    """Returns what each frequency of the positions is divided by, None where the file does not say."""
    tensor = next((t for t in header.tensors if t.name == ROPE_FACTORS), None)
    if tensor is None:
        return None
    if tensor.type != "F32":
        raise InputError(f"file={header.path}: its {ROPE_FACTORS} is of type {tensor.type}; {INSTEAD}")
    return np.fromfile(source, "<f4", tensor.numel, offset=header.data + tensor.offset)


def llama3_rope(factors: np.ndarray, config: Any, what: str) -> dict[str, Any]:
    """Returns the rope_parameters of Llama 3.1 and later that give these factors. Raises InputError if none do.

    transformers' GGUF loader leaves the factors out, and without them the model is another one.
    """
    theta, head = config.rope_parameters["rope_theta"], config.head_dim
    found = LLAMA3 | {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max())}
    low, high, context = (float(LLAMA3[name]) for name in LLAMA3)
    length = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)  # of each wave, in tokens
    share = np.clip((context / length - low) / (high - low), 0, 1)  # of the unscaled frequency
    expected = 1 / ((1 - share) / found["factor"] + share)
    if len(factors) != len(expected) or not np.allclose(factors, expected, rtol=1e-3):
        raise InputError(f"{what}: its {ROPE_FACTORS} are not those of Llama 3; {INSTEAD}")
    return found


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides the progress bar of transformers' loader, which has no switch."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
