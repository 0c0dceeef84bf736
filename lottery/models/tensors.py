"""Tensors of safetensors files: their types in torch, their bytes mapped one at a time."""

import errno
import mmap
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lottery.models.headers import TensorInfo

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
FLOAT_BITS = {"BF16": (torch.uint16, 0x7F80), "F16": (torch.uint16, 0x7C00), "F32": (torch.uint32, 0x7F800000)}

# Python has the name from 3.13 on; the number is that of Linux on x86 and ARM
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def tensor_from_buffer(data: memoryview, info: TensorInfo) -> torch.Tensor:
    """The tensor whose bytes lie there; not copied, unless it begins at an odd address."""
    dtype = DTYPES[info.dtype]
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    if info.offset % dtype.itemsize:
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=dtype).reshape(info.shape)


@dataclass(frozen=True)
class Mapped:
    """A file that is mapped when its first tensor is asked for. Who writes to a tensor gets a page of his own; none is
    reserved before: the kernel would refuse that of a file larger than the memory."""

    path: Path

    @cached_property
    def data(self) -> memoryview:
        with open(self.path, "rb") as f:
            flags, prot = mmap.MAP_PRIVATE | NO_RESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            try:
                return memoryview(mmap.mmap(f.fileno(), 0, flags=flags, prot=prot))
            except OSError as e:
                if e.errno != errno.ENOMEM:
                    raise
                raise MemoryError(f"{self.path} cannot be mapped") from e  # not the fault of a disk, as others are

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """Raises OSError and MemoryError."""
        return tensor_from_buffer(self.data[info.offset : info.offset + info.nbytes], info)
