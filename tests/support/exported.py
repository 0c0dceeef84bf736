"""An exported folder, read by the libraries that it is for."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors.torch import load_file


def vanilla(folder: Path, dtype: str) -> Any:
    """The library's own door, and nothing to report."""
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not any(found.values()), found
    return model.eval()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All that lies in the weight files of a folder, found by the index as readers do."""
    if not (folder / "model.safetensors.index.json").exists():
        return load_file(folder / "model.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {file: load_file(folder / file) for file in set(index["weight_map"].values())}
    assert {p.name for p in folder.glob("*.safetensors")} == files.keys()
    assert sum(map(len, files.values())) == len(index["weight_map"])
    found = {key: files[file][key] for key, file in index["weight_map"].items()}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    return found


def codes_and_scale(state: dict[str, torch.Tensor], name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What an exported folder holds of a quantized matrix, unpacked by compressed-tensors' own function."""
    if name in state:
        return state[name], state[f"{name}_scale"]
    shape = torch.Size(state[f"{name}_shape"].tolist())
    return unpack_from_int32(state[f"{name}_packed"], 8, shape), state[f"{name}_scale"]


def widened(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Plain weights of a quantized folder, with the scale in the type that is computed in, as transformers has it."""
    names = [key.removesuffix("_scale") for key in state if key.endswith(".weight_scale")]
    found = {n: t for n, t in state.items() if not any(n.startswith(f"{name}_") for name in names)}
    for name in names:
        codes, scale = codes_and_scale(state, name)
        found[name] = codes.to(dtype) * scale.to(dtype)
    return found


def twin(folder: Path, state: dict[str, torch.Tensor], dtype: str) -> Any:
    """A model of these weights, in transformers' own layers."""
    config = transformers.AutoConfig.from_pretrained(folder)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model, found = getattr(transformers, config.architectures[0]).from_pretrained(
        None, config=config, state_dict=state, dtype=getattr(torch, dtype), output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    return model.eval()


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    return one.dtype == two.dtype and torch.equal(
        one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8)
    )
