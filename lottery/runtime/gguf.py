"""A GGUF file becomes a model folder in bfloat16: transformers' own loader dequantizes it in memory, and saves it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from lottery.errors import InputError
from lottery.models import devices
from lottery.models.architecture import library_errors
from lottery.models.gguf import GgufHeader
from lottery.progress import say
from lottery.runtime.gguf_config import check_architecture, read_config, silent

ENTRY_BYTES = 1000  # that the package gguf keeps of each value, tensor and element of an array
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


def check_memory(header: GgufHeader) -> None:
    """Raises InputError where the conversion would certainly exceed the free memory."""
    weights, largest = sum(t.numel for t in header.tensors), max(t.numel for t in header.tensors)
    elements = sum(v for k, v in header.values.items() if k.startswith("tokenizer.") and type(v) is int)
    experts = sum(t.numel for t in header.tensors if "_exps." in t.name)  # the loader keeps them in float32
    need = 2 * weights + 4 * experts + 12 * largest + ENTRY_BYTES * elements
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
