"""A base on disk: a folder in Hugging Face layout, its files with their hashes, its tensors one at a time."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lottery.spec import InputError

BUILTIN = Path(__file__).parent / "assets" / "builtin"
INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)  # carried into the ticket as they are

# safetensors' name of a type -> torch's; of the types a weight may have, the integer type of its bits and its infinity
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
BITS = {"BF16": (torch.uint16, 0x7F80), "F16": (torch.uint16, 0x7C00), "F32": (torch.uint32, 0x7F800000)}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise InputError(f"{path}: there is no such file") from e
    except (ValueError, OSError) as e:
        raise InputError(f"{path}: not readable as JSON ({e})") from e
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content


def plain_name(name: str, where: Path) -> str:
    """A file name out of a file: it must name something in the same folder. Raises InputError otherwise."""
    if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InputError(f"{where}: it names the file {name!r}, which lies outside of its folder")
    return name


def open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as e:
        raise InputError(f"{path}: there is no such file") from e
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path}: truncated or not a safetensors file ({e}); fetch it again") from e


@dataclass(frozen=True)
class TensorInfo:
    """What a shard's header says of a tensor; `dtype` by safetensors' name."""

    shard: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize


def shard_headers(folder: Path, shards: list[str]) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
    """The open shards by file name, and every tensor in them, in file order."""
    files: dict[str, Any] = {}
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        files[shard] = open_shard(folder / shard)
        for name in files[shard].offset_keys():
            view = files[shard].get_slice(name)
            if view.get_dtype() not in DTYPES:
                raise InputError(f"{folder / shard}: tensor {name!r} has the unknown type {view.get_dtype()}")
            if name in tensors:
                raise InputError(f"{folder}: tensor {name!r} stands in {tensors[name].shard} and in {shard}")
            tensors[name] = TensorInfo(shard, view.get_dtype(), tuple(view.get_shape()))
    return files, tensors


class Base:
    """A dense model to prune: where its files lie, and what is in them.

    Raises InputError, naming the parameter `model`, for a folder that is not a causal LM in safetensors.
    """

    def __init__(self, model: str) -> None:
        self.folder = BUILTIN if model == "builtin" else Path(model).expanduser().resolve()
        self.id = "builtin" if model == "builtin" else self.folder.name
        if not self.folder.is_dir():
            raise InputError(
                f"model={model}: neither builtin nor a local folder; "
                f"download a model of the hub first (hf download ORG/NAME --local-dir DIR) and give the folder"
            )
        if not (self.folder / "config.json").exists():
            raise InputError(f"model={model}: it has no config.json; give a folder in Hugging Face layout")
        self.config = read_json(self.folder / "config.json")
        self.model_type = str(self.config.get("model_type", ""))
        self._shards, self.tensors = shard_headers(self.folder, self._shard_names(model))
        if self.config.get("tie_word_embeddings") and "lm_head.weight" in self.tensors:
            raise InputError(
                f"model={model}: config.json ties the head to the embeddings, yet the file holds lm_head.weight too; "
                f"save the model again with the current transformers"
            )

    def _shard_names(self, model: str) -> list[str]:
        if (self.folder / "model.safetensors").exists():
            return ["model.safetensors"]
        if (self.folder / INDEX).exists():
            shards = read_json(self.folder / INDEX).get("weight_map")
            if not isinstance(shards, dict) or not shards:
                raise InputError(f"{self.folder / INDEX}: it has no weight_map; fetch the model again")
            return sorted({plain_name(str(s), self.folder / INDEX) for s in shards.values()})
        if any(self.folder.glob("*.bin")):
            raise InputError(
                f"model={model}: it holds pickled weights (.bin) only, which are never read; "
                f"convert them to safetensors first, or take a revision that has them"
            )
        raise InputError(f"model={model}: it has no model.safetensors and no {INDEX}")

    @property
    def small_files(self) -> list[str]:
        return [name for name in SMALL_FILES if (self.folder / name).is_file()]

    @property
    def dtype(self) -> str:
        """The type of most weights, by safetensors' name."""
        counts: dict[str, int] = {}
        for info in self.tensors.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + info.numel
        return max(counts, key=lambda d: counts[d])

    @property
    def disk_bytes(self) -> int:
        return sum((self.folder / s).stat().st_size for s in self._shards)

    @cached_property
    def files(self) -> dict[str, str]:
        """Name -> sha256 of every file that the model is read from."""
        names = [*self._shards, *self.small_files]
        return {name: file_sha256(self.folder / name) for name in sorted(names)}

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in the type and shape of its file; mapped, not copied."""
        try:
            return self._shards[self.tensors[name].shard].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError) as e:
            raise InputError(f"{self.folder / self.tensors[name].shard}: tensor {name!r} is unreadable ({e})") from e


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
