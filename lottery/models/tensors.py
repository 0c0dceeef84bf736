"""The tensors of safetensors files: their types in torch, and their bytes, which are mapped one tensor at a time."""

import errno
import mmap
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from lottery.models.headers import TensorInfo

# safetensors' name of a type -> torch's type
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
# safetensors' name of a type that weights may have -> the integer type of its bits, and the bits of its infinity
FLOAT_BITS = {"BF16": (torch.uint16, 0x7F80), "F16": (torch.uint16, 0x7C00), "F32": (torch.uint32, 0x7F800000)}

# Python has this name since 3.13; 0x4000 is its value in Linux on x86 and ARM.
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def tensor_from_buffer(data: memoryview, info: TensorInfo) -> torch.Tensor:
    """Returns the tensor that these bytes hold. They are copied only when the tensor begins at an unaligned address."""
    dtype = DTYPES[info.dtype]
    if not info.nbytes:
        return torch.empty(info.shape, dtype=dtype)
    if info.offset % dtype.itemsize:
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=dtype).reshape(info.shape)


@dataclass(frozen=True)
class Mapped:
    """A file that is mapped when its first tensor is read.

    Code that writes to a tensor gets private pages. No memory is reserved for them in advance, because the kernel would
    refuse that for a file larger than the memory.
    """

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
                raise MemoryError(f"{self.path} cannot be mapped") from e  # any other error is the fault of a disk

    def tensor(self, info: TensorInfo) -> torch.Tensor:
        """Returns one tensor of the file. Raises OSError and MemoryError."""
        return tensor_from_buffer(self.data[info.offset : info.offset + info.nbytes], info)
