"""A GGUF file becomes a model folder in bfloat16: transformers' own loader dequantizes it in memory, and saves it."""

import contextlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from lottery.errors import InputError
from lottery.models import devices
from lottery.models.architecture import MOST_LAYERS, build_meta_model, library_errors
from lottery.models.families import family
from lottery.models.gguf import GgufHeader
from lottery.progress import say

# llama.cpp's names of the architectures that transformers' GGUF loader and lottery both know, each tried with a tiny model.
ARCHITECTURES = (
    "falcon",
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "stablelm",
)
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1 and later: what each frequency is divided by
ENTRY_BYTES = 1000  # that the package gguf keeps of each value, tensor and element of an array
INSTEAD = "give the model in safetensors instead"
# The splitting of texts that transformers does where a byte-level tokenizer names none of its own.
GPT2_SPLITS = ("default", "gpt-2", "gpt2", "smollm")


@dataclass(frozen=True)
class Converted:
    """What was made of a GGUF file."""

    model_type: str
    parameters: int
    notes: list[str]


def convert(source: Path, header: GgufHeader, folder: Path) -> Converted:
    """Writes the model of the GGUF file `source` into `folder`: weights in bfloat16, config.json,
    generation_config.json, tokenizer files.

    Raises InputError, naming the parameter `file`, for a file that makes no model that lottery knows, or that does not
    fit into memory.
    """
    what = f"file={header.path}"
    check_architecture(header)
    config = read_config(source, header)
    check_memory(header)
    notes: list[str] = []
    with library_errors(f"{what}: its tokenizer is not usable"), silent():
        tokenizer = read_tokenizer(source, header, notes)
    say(f"dequantize {header.path.name} into bfloat16")
    with library_errors(f"{what}: its weights are not usable"), silent():
        model = load(source, config)
    check_weights(model, what)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)  # else nobody but this user could read the weights
    return Converted(config.model_type, sum(p.numel() for p in model.parameters()), notes)


def check_architecture(header: GgufHeader) -> None:
    """Raises InputError for an architecture that cannot be converted, or whose positions transformers would read wrongly."""
    what, name = f"file={header.path}", header.values.get("general.architecture")
    if name not in ARCHITECTURES:
        raise InputError(f"{what}: its architecture {name!r} cannot be imported; known: {', '.join(ARCHITECTURES)}")
    scaling = header.values.get(f"{name}.rope.scaling.type", "none")
    odd = [t.name for t in header.tensors if t.name.startswith("rope_") and t.name != ROPE_FACTORS]
    if scaling != "none" or odd:
        named = odd[0] if odd else f"rope scaling {scaling!r}"
        raise InputError(f"{what}: its {named} is not read by transformers' GGUF loader; {INSTEAD}")
    layers = header.values.get(f"{name}.block_count")
    if not isinstance(layers, int) or not 0 < layers <= MOST_LAYERS:
        raise InputError(f"{what}: it says {layers!r} layers; give a model with 1 to {MOST_LAYERS}")


def read_config(source: Path, header: GgufHeader) -> Any:
    """Returns the config of the model. Raises InputError unless it describes as many weights as the file holds, which
    also bounds what will be allocated."""
    what = f"file={header.path}"
    with library_errors(f"{what}: its values describe no model"), silent():
        config = transformers.AutoConfig.from_pretrained(
            source.parent, gguf_file=source.name, local_files_only=True, trust_remote_code=False
        )
        family(config.model_type, what)
        if (factors := read_rope_factors(source, header)) is not None:
            config.rope_parameters = llama3_rope(factors, config, what)
        model = build_meta_model(config, header.path)
    described = sum(p.numel() for p in model.parameters())
    held = sum(t.numel for t in header.tensors if t.name != ROPE_FACTORS)
    if described != held:
        raise InputError(
            f"{what}: its values describe {described:,} weights, its tensors hold {held:,}; it is damaged, or of a kind "
            f"that transformers' GGUF loader does not read: {INSTEAD}"
        )
    return config


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


def check_memory(header: GgufHeader) -> None:
    """Raises InputError where the conversion would certainly exceed the free memory."""
    weights, largest = sum(t.numel for t in header.tensors), max(t.numel for t in header.tensors)
    elements = sum(v for k, v in header.values.items() if k.startswith("tokenizer.") and type(v) is int)
    need = 2 * weights + 12 * largest + ENTRY_BYTES * elements
    if need > (free := devices.free_bytes("cpu")):
        raise InputError(
            f"file={header.path}: its {weights:,} weights take about {need / 1e9:.1f} GB of memory here, {free / 1e9:.1f} GB "
            f"are free; import it on a machine with more memory, and copy the folder"
        )


def read_tokenizer(source: Path, header: GgufHeader, notes: list[str]) -> Any | None:
    """Returns the file's tokenizer, None where it has none, which a note says."""
    kind, split = (header.values.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind in (None, "none", "no_vocab"):
        notes.append("the file has no tokenizer: `lottery prune` takes the folder with measure=none only")
        return None
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if kind == "gpt2" and split not in (*GPT2_SPLITS, *GGUF_PRE_TOKENIZER_SPLITS):
        notes.append(
            f"transformers does not know the tokenizer's rule {split!r} and splits texts by GPT-2's: some texts may get "
            f"other tokens than those that the model was trained on"
        )
    return transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, trust_remote_code=False)


def load(source: Path, config: Any) -> Any:
    """Returns the dequantized model. Raises ValueError if a weight of it is in no tensor of the file."""
    from transformers.utils.quantization_config import GgufConfig

    model, about = transformers.AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        config=config,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),  # without it the weights stay packed, and cannot be saved
        output_loading_info=True,
        local_files_only=True,
        trust_remote_code=False,
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if about[problem]:
            raise ValueError(f"{problem}: {sorted(map(str, about[problem]))[0]}")
    return model


def check_weights(model: Any, what: str) -> None:
    """Raises InputError for a weight that is NaN or infinite, as the scale of a damaged block may be."""
    for name, weight in model.named_parameters():
        if not torch.isfinite(weight).all():
            raise InputError(f"{what}: it is damaged: {name} holds NaN or infinite weights; fetch it again")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides the progress bar of transformers' loader, which has no switch."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
