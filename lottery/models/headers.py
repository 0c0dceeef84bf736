"""The headers of safetensors files, which list the tensors, are read here without torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lottery.errors import InputError

# safetensors' name of a type -> bytes of one number
ITEM_BYTES = {
    "BF16": 2,
    "F16": 2,
    "F32": 4,
    "F64": 8,
    "F8_E4M3": 1,
    "U8": 1,
    "I8": 1,
    "I16": 2,
    "I32": 4,
    "I64": 8,
    "BOOL": 1,
}
WEIGHT_TYPES = ("BF16", "F16", "F32")  # the types of matrices that can be pruned or quantized


def open_shard(path: Path) -> Any:
    """Opens a safetensors file for its header. Raises InputError when the file is missing or damaged."""
    try:
        return safe_open(path, framework="np")  # framework="pt" would reserve memory for the whole file
    except FileNotFoundError as e:
        raise InputError(f"{path}: there is no such file") from e
    except (SafetensorError, OSError) as e:
        raise InputError(f"{path}: truncated or not a safetensors file ({e}); fetch it again") from e


@dataclass(frozen=True)
class TensorInfo:
    """The entry of a tensor in a shard's header. `dtype` is the name in safetensors."""

    shard: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0  # of the first byte, in the file

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]


def read_headers(folder: Path, shards: list[str]) -> dict[str, TensorInfo]:
    """Returns name -> entry of every tensor in these files, in file order.

    Raises InputError for a damaged file, an unknown type, and a tensor that two files hold.
    """
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        header = open_shard(folder / shard)
        with open(folder / shard, "rb") as f:
            at = 8 + int.from_bytes(f.read(8), "little")  # tensors follow the header without a gap
        for name in header.offset_keys():
            view = header.get_slice(name)
            if view.get_dtype() not in ITEM_BYTES:
                raise InputError(f"{folder / shard}: tensor {name!r} has the unknown type {view.get_dtype()}")
            if name in tensors:
                raise InputError(f"{folder}: tensor {name!r} is both in {tensors[name].shard} and in {shard}")
            tensors[name] = TensorInfo(shard, view.get_dtype(), tuple(view.get_shape()), at)
            at += tensors[name].nbytes
    return tensors
