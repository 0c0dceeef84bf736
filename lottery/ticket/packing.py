"""Packs a tensor into what a ticket stores of it (bitmask and survivors, or 8-bit codes), and writes the shards.

Legend: O rows (all dimensions but the last; for a Conv1D its outputs), I columns, B = ceil(I/8), K survivors.
"""

import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.files import disk
from lottery.kernels import bitmask, quantizing
from lottery.models.families import Place
from lottery.models.headers import TensorInfo
from lottery.models.tensors import DTYPES, FLOAT_BITS

SHARD_BYTES = 5 * 10**9


def as_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    return as_bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def matrix_bits(tensor: torch.Tensor, transposed: bool) -> np.ndarray:
    """Returns the bits of a weight as [O, I], which the kernels take. The weight of a Conv1D is stored as [I, O]."""
    bits = tensor.view(BITS_OF[tensor.dtype]).reshape(-1, tensor.shape[-1]).numpy()
    if not transposed:
        return bits
    if not bits.flags.c_contiguous:  # the tensor of an unpacked ticket lies as [O, I] already
        return bits.T
    # This buffer goes back to the system together with the array. Small arrays would stay with the process when freed.
    turned = np.frombuffer(disk.new_buffer(bits.nbytes)[: bits.nbytes], bits.dtype).reshape(bits.shape[::-1])
    np.copyto(turned, bits.T)
    return turned


def from_bits(bits_OI: np.ndarray, info: TensorInfo, transposed: bool) -> torch.Tensor:
    """Undoes `matrix_bits` in the same memory. The tensor of a Conv1D is a transposed view."""
    bits = bits_OI.T if transposed else bits_OI
    return torch.from_numpy(bits).view(DTYPES[info.dtype]).reshape(info.shape)


BITS_OF = {DTYPES[dtype]: integer for dtype, (integer, _) in FLOAT_BITS.items()}


class Shard:
    """One safetensors file, written tensor by tensor. Its header goes into space that is reserved at the front.

    The library's own writer needs all tensors of a file in memory at once.
    """

    def __init__(self, path: Path, header_bytes: int, large: bool, chunk: int) -> None:
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.header_bytes = header_bytes
        self.offset = 0
        self.file = disk.Appender(path, 8 + header_bytes, large, chunk)

    def add(self, name: str, dtype: str, shape: Sequence[int], pieces: Sequence[memoryview]) -> None:
        begin = self.offset
        for piece in pieces:
            self.file.write(piece)
            self.offset += len(piece)
        self.header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, self.offset]}

    def close(self) -> None:
        header = json.dumps(self.header, separators=(",", ":")).encode()
        assert len(header) <= self.header_bytes, "the space reserved for the header is too small"
        self.file.close(struct.pack("<Q", self.header_bytes) + header.ljust(self.header_bytes))


class Writer:
    """Writes the shards of one ticket. The caller ends with `finish`, or drops the files with `close`.

    Types of different width go to different shards. Every tensor is then aligned for mapping, although nobody knows how
    many survivors precede it before they are written. `parts` lists everything that may be written: its key, its type,
    and the shape of the whole tensor.
    """

    def __init__(self, folder: Path, parts: Sequence[tuple[str, str, Sequence[int]]]) -> None:
        self.folder = folder
        self.open: dict[int, Shard] = {}
        self.done: list[Path] = []
        # No offset can be greater than this.
        end = sum(torch.Size(shape).numel() * DTYPES[dtype].itemsize for _, dtype, shape in parts)
        self.header_bytes: dict[int, int] = {}
        for key, dtype, shape in parts:
            entry = {key: {"dtype": dtype, "shape": [*shape, end], "data_offsets": [end, end]}}
            width = DTYPES[dtype].itemsize
            self.header_bytes[width] = self.header_bytes.get(width, 40) + len(json.dumps(entry))
        self.large = end >= disk.LARGE
        self.chunk = disk.request_bytes(
            max((torch.Size(shape).numel() * DTYPES[dtype].itemsize for _, dtype, shape in parts), default=0)
        )

    def add(self, name: str, dtype: str, shape: Sequence[int], pieces: Sequence[memoryview]) -> None:
        width = DTYPES[dtype].itemsize
        shard = self.open.get(width)
        if shard and 8 + shard.header_bytes + shard.offset + sum(map(len, pieces)) > SHARD_BYTES:
            shard.close()
            shard = None
        if shard is None:
            path = self.folder / f"shard-{len(self.done)}"
            self.done.append(path)
            shard = self.open[width] = Shard(
                path, -(-self.header_bytes[width] // 8) * 8, self.large, self.chunk if width > 1 else disk.HUGE_PAGE
            )
        shard.add(name, dtype, shape, pieces)

    def finish(self, stem: str = "ticket", mode: int = 0o444) -> list[str]:
        """Writes everything to the disk, and returns the names of the shards, which begin with `stem`.

        A ticket's shards are read-only, because a shard may share its bytes with a registered model's file (hard link).
        """
        for shard in self.open.values():
            shard.close()
        names = [f"{stem}-{i:05d}-of-{len(self.done):05d}.safetensors" for i in range(1, len(self.done) + 1)]
        for path, name in zip(self.done, names, strict=True):
            os.rename(path, self.folder / name)
            (self.folder / name).chmod(mode)
        return names

    def close(self) -> None:
        for shard in self.open.values():
            shard.file.drop()


# key, type, shape, and the bytes in pieces
PackedPart = tuple[str, str, Sequence[int], list[memoryview]]


def pack_pruned(
    place: Place, info: TensorInfo, tensor: torch.Tensor, bits_OI: np.ndarray, mask_OB: np.ndarray
) -> tuple[dict[str, Any], list[PackedPart]]:
    """Packs one pruned matrix as bitmask and survivors, or dense where that is not larger.

    Returns what the record says of it, and its parts. The parts lie in the memory of `bits_OI`, or of the `tensor` that
    the bits were taken from; both are overwritten.
    """
    kept = int(bitmask.survivors_per_row(mask_OB).sum())
    smaller = mask_OB.nbytes + kept * bits_OI.itemsize < bits_OI.nbytes
    if smaller:
        values = [as_bytes(piece) for piece in bitmask.compact(bits_OI, mask_OB)]
        parts: list[PackedPart] = [
            (f"{place.name}.bitmask", "U8", mask_OB.shape, [as_bytes(mask_OB)]),
            (f"{place.name}.values", info.dtype, (kept,), values),
        ]
    else:
        dense = from_bits(bitmask.apply_mask(bits_OI, mask_OB, bits_OI), info, place.transposed)
        if not dense.is_contiguous() and tensor.is_contiguous():  # transposed back into the memory that it came from
            dense = tensor.copy_(dense)
        parts = [(f"{place.name}.values", info.dtype, info.shape, [tensor_bytes(dense)])]
    return {"kept": kept, "packed": smaller, "sha256": sha256_of_parts(parts)}, parts


def pack_quantized(
    place: Place,
    info: TensorInfo,
    tensor: torch.Tensor,
    bits_OI: np.ndarray,
    mask_OB: np.ndarray | None,
    zeros: int,
    kind: str,
) -> tuple[dict[str, Any], list[PackedPart]]:
    """Packs one matrix in 8 bits, pruned (`mask_OB`) or not; as bitmask and survivors where that is smaller.

    `zeros` is the number of zeros that the matrix held at first. Returns what the record says of it, and its parts. The
    parts lie in the memory of `bits_OI` or of `tensor`; both are overwritten.
    """
    entry: dict[str, Any] = {"quantized": kind}
    dtype = quantizing.QUANTIZED_DTYPES[kind][0]
    parts: list[PackedPart] = []
    if mask_OB is not None:
        entry["kept"] = int(bitmask.survivors_per_row(mask_OB).sum())
        entry["packed"] = mask_OB.nbytes + entry["kept"] < info.numel
        zeros = info.numel - entry["kept"]
    if mask_OB is not None and entry["packed"]:
        parts = [(f"{place.name}.bitmask", "U8", mask_OB.shape, [as_bytes(mask_OB)])]
        codes, scale_O, entry["rounding_zeros"] = quantizing.quantize(bits_OI, mask_OB, info.dtype, kind)
        parts.append((f"{place.name}.values", dtype, (entry["kept"],), [as_bytes(piece) for piece in codes]))
    else:
        if mask_OB is not None:
            bitmask.apply_mask(bits_OI, mask_OB, bits_OI)
        codes, scale_O, every = quantizing.quantize(bits_OI, None, info.dtype, kind)
        entry["rounding_zeros"] = every - zeros
        if place.transposed:
            codes = [turned_back(codes, bits_OI.shape, tensor)]
        parts.append((f"{place.name}.values", dtype, info.shape, [as_bytes(piece) for piece in codes]))
    parts.append((f"{place.name}.scale", "F32", scale_O.shape, [as_bytes(scale_O)]))
    return entry | {"sha256": sha256_of_parts(parts)}, parts


def pack_mask(place: Place, original: torch.Tensor, mask_OB: np.ndarray) -> tuple[dict[str, Any], list[PackedPart]]:
    """Packs the bitmask of one pruned matrix. The hash in its entry covers the base's whole tensor too."""
    data = as_bytes(mask_OB)
    kept = int(bitmask.survivors_per_row(mask_OB).sum())
    entry = {"kept": kept, "packed": True, "sha256": sha256_of(data, tensor_bytes(original))}
    return entry, [(f"{place.name}.bitmask", "U8", mask_OB.shape, [data])]


def pack_unchanged(name: str, dtype: str, tensor: torch.Tensor) -> tuple[dict[str, Any], list[PackedPart]]:
    """Packs one tensor unchanged."""
    data = tensor_bytes(tensor)
    return {"sha256": sha256_of(data)}, [(name, dtype, tensor.shape, [data])]


def turned_back(codes: Sequence[np.ndarray], shape_OI: tuple[int, ...], tensor: torch.Tensor) -> np.ndarray:
    """Returns the codes as [I, O], in the memory of the tensor that they were taken from.

    If that tensor is a view of the memory in which the codes lie, the result gets memory of its own.
    """
    rows, columns = shape_OI
    if tensor.is_contiguous():
        out_IO = tensor.reshape(-1).view(torch.uint8).numpy()[: rows * columns].reshape(columns, rows)
    else:
        out_IO = np.empty((columns, rows), np.uint8)
    first = 0
    for piece in codes:
        last = first + len(piece) // columns
        out_IO[:, first:last] = piece.reshape(-1, columns).T
        first = last
    return out_IO.reshape(-1)


def sha256_of_parts(parts: Sequence[PackedPart]) -> str:
    return sha256_of(*(piece for *_, pieces in parts for piece in pieces))


def sha256_of(*parts: memoryview) -> str:
    sha = hashlib.sha256()
    for data in parts:
        sha.update(data)
    return sha.hexdigest()
