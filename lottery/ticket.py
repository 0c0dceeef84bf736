"""The ticket directory: its layout, written whole or not at all, read back with every hash checked.

Legend: O rows (all dimensions of a matrix but the last), I columns, B = ceil(I/8), K survivors.
"""

import hashlib
import json
import os
import struct
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from lottery import kernels
from lottery.checkpoint import BITS, DTYPES, TensorInfo, file_sha256, plain_name, read_json, shard_headers
from lottery.home import write_file
from lottery.spec import FORMAT, InputError, digest
from lottery.targets import PRUNABLE

SHARD_BYTES = 5 * 10**9
RECORD = "ticket.json"
MEASUREMENTS = "measurements.json"  # beside the ticket, not of it: written after measuring, not hashed


def as_bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


class Shard:
    """One safetensors file, written tensor by tensor: its header goes into space kept for it at the front.

    The library's own writer needs all tensors of a file in memory at once.
    """

    def __init__(self, path: Path, header_bytes: int) -> None:
        self.path = path
        self.header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self.header_bytes = header_bytes
        self.at = 0
        self.file: BinaryIO = open(path, "wb")  # noqa: SIM115 (closed by `close`)
        self.file.seek(8 + header_bytes)

    def add(self, name: str, dtype: str, shape: Sequence[int], data: memoryview) -> None:
        self.header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [self.at, self.at + len(data)]}
        self.file.write(data)
        self.at += len(data)

    def close(self) -> None:
        header = json.dumps(self.header, separators=(",", ":")).encode()
        assert len(header) <= self.header_bytes, "the space kept for the header is too small"
        self.file.seek(0)
        self.file.write(struct.pack("<Q", self.header_bytes) + header.ljust(self.header_bytes))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class Writer:
    """The shards of one ticket. Types of different width go to different shards: so every tensor is aligned for mapping,
    though nobody knows how many survivors precede it before they are written."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo], targeted: Collection[str]) -> None:
        self.folder = folder
        self.open: dict[int, Shard] = {}
        self.done: list[Path] = []
        end = str(sum(info.nbytes for info in tensors.values()))  # no offset has more digits than this
        self.header_bytes: dict[int, int] = {}
        for name, info in tensors.items():
            keys = (
                [(f"{name}.bitmask", "U8"), (f"{name}.values", info.dtype)]
                if name in targeted
                else [(name, info.dtype)]
            )
            for key, dtype in keys:
                entry = {key: {"dtype": dtype, "shape": [*info.shape, int(end)], "data_offsets": [int(end), int(end)]}}
                width = DTYPES[dtype].itemsize
                self.header_bytes[width] = self.header_bytes.get(width, 40) + len(json.dumps(entry))

    def add(self, name: str, dtype: str, shape: Sequence[int], data: memoryview) -> None:
        width = DTYPES[dtype].itemsize
        shard = self.open.get(width)
        if shard and shard.at + len(data) > SHARD_BYTES:
            shard.close()
            shard = None
        if shard is None:
            path = self.folder / f"shard-{len(self.done)}"
            self.done.append(path)
            shard = self.open[width] = Shard(path, -(-self.header_bytes[width] // 8) * 8)
        shard.add(name, dtype, shape, data)

    def close(self) -> None:
        for shard in self.open.values():
            shard.close()
        for i, path in enumerate(self.done, 1):
            final = self.folder / f"ticket-{i:05d}-of-{len(self.done):05d}.safetensors"
            os.rename(path, final)
            final.chmod(0o444)  # it may come to share its bytes with a registered model's file (hard link)


def write_packed(
    writer: Writer, name: str, dtype: str, shape: Sequence[int], bitmask_OB: np.ndarray, values_K: np.ndarray
) -> dict[str, Any]:
    """One pruned matrix as bitmask and survivors, or dense where that is not larger; its entry in the record."""
    numel = torch.Size(shape).numel()
    packed = bitmask_OB.nbytes + values_K.nbytes < numel * values_K.itemsize
    if packed:
        parts = [("bitmask", "U8", bitmask_OB), ("values", dtype, values_K)]
    else:
        parts = [("values", dtype, kernels.unpack(bitmask_OB, values_K, shape[-1]).reshape(shape))]
    sha = hashlib.sha256()
    for part, part_dtype, array in parts:
        sha.update(as_bytes(array))
        writer.add(f"{name}.{part}", part_dtype, array.shape, as_bytes(array))
    return {"kept": len(values_K), "packed": packed, "sha256": sha.hexdigest()}


def write_whole(writer: Writer, name: str, dtype: str, tensor: torch.Tensor) -> dict[str, Any]:
    """One tensor as it was; its entry in the record."""
    data = as_bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    writer.add(name, dtype, tensor.shape, data)
    return {"sha256": hashlib.sha256(data).hexdigest()}


def header_sha256(shard: Path) -> str:
    """Of a safetensors file's header, its length included: with the tensors' own hashes, every byte is covered."""
    with open(shard, "rb") as f:
        length = f.read(8)
        size = min(int.from_bytes(length, "little"), shard.stat().st_size)  # a damaged length may say anything
        return hashlib.sha256(length + f.read(size)).hexdigest()


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """The last file of a ticket: it holds the hashes of all others, and its own as `checksum`."""
    record = {**record, "checksum": digest(record)}
    write_file(folder / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


class Stored:
    """A ticket on disk. Opening it checks everything but the tensors; each of those is checked when it is read.

    Raises InputError where the folder is no whole ticket, or differs in any byte from the one that was written.
    """

    def __init__(self, path: Path) -> None:
        self.folder = path
        if not (path / RECORD).is_file():
            raise InputError(f"ticket={path}: no {RECORD} there; give a ticket's folder or models:/NAME/VERSION")
        self.record = read_json(path / RECORD)
        if self.record.get("format") != FORMAT:
            raise InputError(
                f"ticket={path}: it has format {self.record.get('format')}, this version reads {FORMAT}; "
                f"use the version of lottery that wrote it"
            )
        claimed = {k: v for k, v in self.record.items() if k != "checksum"}
        if self.record.get("checksum") != digest(claimed):
            self._damaged(RECORD)
        self.id: str = self.record["ticket"]
        self.tensors: dict[str, dict[str, Any]] = self.record["tensors"]
        for name, sha256 in self.record["files"].items():
            if not (path / plain_name(name, path / RECORD)).is_file() or file_sha256(path / name) != sha256:
                self._damaged(name)
        shards = [plain_name(name, path / RECORD) for name in self.record["shards"]]
        known = {RECORD, MEASUREMENTS, *self.record["files"], *shards}
        if strangers := sorted(p.name for p in path.iterdir() if p.name not in known and not p.name.startswith(".")):
            raise InputError(f"ticket={path}: {strangers[0]} is no part of the ticket; take it out of the folder")
        for name, sha256 in self.record["shards"].items():
            if not (path / name).is_file() or header_sha256(path / name) != sha256:
                self._damaged(name)
        self.shards = [path / name for name in shards]
        self._files, self._stored = shard_headers(path, shards)
        expected = {key for name in self.tensors for key in self._keys(name)}
        if wrong := sorted(expected ^ self._stored.keys()):
            self._damaged(wrong[0])

    def _damaged(self, what: str) -> None:
        raise InputError(
            f"ticket={self.folder}: {what} is damaged or missing (its hash differs from the one in {RECORD}); "
            f"fetch or make the ticket again"
        )

    def _keys(self, name: str) -> list[str]:
        entry = self.tensors[name]
        if "kept" not in entry:
            return [name]
        return [f"{name}.bitmask", f"{name}.values"] if entry["packed"] else [f"{name}.values"]

    @property
    def dtype(self) -> str:
        """The base's, by safetensors' name."""
        return self.record["base"]["dtype"]

    @property
    def disk_bytes(self) -> int:
        return sum(shard.stat().st_size for shard in self.shards)

    def parts(self, name: str) -> list[torch.Tensor]:
        """What is stored of one tensor, mapped, its hash checked."""
        sha, parts = hashlib.sha256(), []
        for key in self._keys(name):
            part = self._files[self._stored[key].shard].get_tensor(key)
            sha.update(as_bytes(part.reshape(-1).view(torch.uint8).numpy()))
            parts.append(part)
        if sha.hexdigest() != self.tensors[name]["sha256"]:
            self._damaged(f"tensor {name!r}")
        return parts

    def info(self, name: str) -> TensorInfo:
        entry = self.tensors[name]
        return TensorInfo(self._stored[self._keys(name)[-1]].shard, entry["dtype"], tuple(entry["shape"]))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as the model has it: dense, zeros where weights were removed. Raises InputError where damaged."""
        info, parts = self.info(name), self.parts(name)
        if len(parts) == 1:
            whole = parts[0]
            if whole.shape != info.shape or whole.dtype != DTYPES[info.dtype]:
                self._damaged(f"tensor {name!r}")
            return whole
        bitmask_OB, values_K = parts
        bits_K = values_K.view(BITS[info.dtype][0]).numpy()
        try:
            bits_OI = kernels.unpack(bitmask_OB.numpy(), bits_K, info.shape[-1])
        except ValueError:
            self._damaged(f"tensor {name!r}")
        return torch.from_numpy(bits_OI).view(DTYPES[info.dtype]).reshape(info.shape)

    def verify(self) -> None:
        """Read everything once. Raises InputError naming the first thing that is not as it was written."""
        for name in self.tensors:
            self.tensor(name)


def sparsities(record: dict[str, Any]) -> dict[str, float]:
    """Shares of the masks' zeros over the targeted, over all prunable and over all weights; a tied matrix counts once."""
    removed = targeted = prunable = total = 0
    for entry in record["tensors"].values():
        numel = torch.Size(entry["shape"]).numel()
        total += numel
        prunable += numel if entry["role"] in PRUNABLE else 0
        if "kept" in entry:
            targeted += numel
            removed += numel - entry["kept"]
    return {
        "sparsity_target": removed / targeted,
        "sparsity_prunable": removed / prunable,
        "sparsity_model": removed / total,
    }
