"""The ticket directory, read back with every hash checked.

Legend: O rows (all dimensions of a matrix but the last; of a Conv1D its outputs), I columns, B = ceil(I/8), K survivors.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError, MachineError
from lottery.files import disk
from lottery.files.hashes import file_sha256
from lottery.kernels import quantizing, select
from lottery.models.checkpoint import (
    BITS,
    DTYPES,
    SMALL_FILES,
    Base,
    TensorInfo,
    from_memory,
    plain_name,
    read_json,
    shard_headers,
)
from lottery.models.families import Place, classify, head_name
from lottery.spec import FORMAT, digest
from lottery.ticket.packing import from_bits, header_sha256, matrix_bits, sha256_of, tensor_bytes
from lottery.ticket.record import MEASUREMENTS, RECORD, misfit


@dataclass
class Matrix:
    """A matrix as it is stored, [O, I]: bitmask and survivors, or without a mask all of it; 8-bit codes with their scale.

    `values_K`: bits of `dtype`, or uint8 codes where it is `quantized`. A whole Conv1D's are [I, O], one behind the other.
    """

    rows: int
    columns: int
    dtype: str
    transposed: bool
    quantized: str | None
    values_K: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    bitmask_OB: np.ndarray | None = None
    scale_O: np.ndarray | None = None

    def fits(self, kept: int | None, info: TensorInfo) -> bool:
        """Whether the parts belong together."""
        if self.quantized:
            if self.scale_O is None or self.scale_O.shape != (self.rows,):
                return False
            if not np.isfinite(self.scale_O).all() or (self.scale_O < 0).any():
                return False
            # codes that are never written: -128, and float8's NaN
            wrong = self.values_K == 0x80 if self.quantized == "int8" else (self.values_K & 0x7F) == 0x7F
            if wrong.any():
                return False
        return self.values_K.shape == (info.shape if self.bitmask_OB is None else (kept,))

    def mask_fits(self, kept: int) -> bool:
        """Whether the bitmask is of this matrix, with so many survivors, and 0 beyond the last column."""
        mask_OB = self.bitmask_OB
        if mask_OB is None or mask_OB.shape != (self.rows, -(-self.columns // 8)):
            return False
        beyond = self.columns % 8 and (mask_OB[:, -1] >> (self.columns % 8)).any()
        return not beyond and int(select.row_counts(mask_OB).sum()) == kept

    @property
    def flat(self) -> np.ndarray:
        """`values_K` in the order of [O, I]."""
        if self.bitmask_OB is None and self.transposed:
            return np.ascontiguousarray(self.values_K.T).reshape(-1)
        return self.values_K.reshape(-1)

    def whole(self) -> "Matrix":
        """The same without a mask: zeros among the values."""
        if self.bitmask_OB is None:
            return self
        values_OI = select.unpack(self.bitmask_OB, self.values_K, self.columns)
        return replace(self, values_K=values_OI, bitmask_OB=None, transposed=False)

    @property
    def form(self) -> str:
        """safetensors' name of what `values_K` are."""
        return quantizing.CODES[self.quantized][0] if self.quantized else self.dtype

    def dense(self, info: TensorInfo, dtype: str = "F32") -> torch.Tensor:
        """The weights that 8-bit codes mean, in the shape of the model's tensor (a Conv1D's a view); computed in float32,
        and rounded with `dtype` BF16."""
        assert self.quantized and self.scale_O is not None
        out_OI = np.empty((self.rows, self.columns), np.uint16 if dtype == "BF16" else np.uint32)
        start_O = quantizing.starts(self.bitmask_OB) if self.bitmask_OB is not None else None
        step_O = quantizing.steps(self.scale_O, self.quantized)
        quantizing.widen(self.bitmask_OB, start_O, self.flat, self.form, step_O, out_OI)
        return from_bits(out_OI, TensorInfo("", dtype, info.shape), self.transposed)


class Stored:
    """A ticket on disk. Opening it checks everything but the tensors; each of those is checked when it is read.

    One that holds masks alone reads its tensors out of `base`. Raises InputError where the folder is no whole ticket, or
    differs in any byte from the one that was written, or the base from the one that it was made of.
    """

    def __init__(self, path: Path, base: Base | None = None) -> None:
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
        if misfitting := misfit(claimed):
            raise InputError(
                f"ticket={path}: {RECORD} is not one that lottery writes ({misfitting}); fetch or make it again"
            )
        self.id: str = self.record["ticket"]
        self.entries: dict[str, dict[str, Any]] = self.record["tensors"]
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
        self._large = {shard.name: disk.File(shard) for shard in self.shards if shard.stat().st_size >= disk.LARGE}
        self._buffers = threading.local()
        expected = {key for name in self.entries for key in self._keys(name)}
        if wrong := sorted(expected ^ self._stored.keys()):
            self._damaged(wrong[0])
        self.tensors = {name: self.info(name) for name in self.entries}
        self.base = base
        if base:
            self.check_base(base)

    def _damaged(self, what: str) -> None:
        raise InputError(
            f"ticket={self.folder}: {what} is damaged or missing (its hash differs from the one in {RECORD}); "
            f"fetch or make the ticket again"
        )

    def check_base(self, base: Base) -> None:
        """Raises InputError, naming the file, where it is not the base that the ticket was made of."""
        files: dict[str, str] = self.record["base"]["files"]
        for name, sha256 in files.items():
            if base.files.get(name) != sha256:
                revision = self.record["base"]["revision"]
                raise InputError(
                    f"{base.folder}: its file {name} is {'not the one' if name in base.files else 'missing'} that "
                    f"the ticket {self.id} was made of; give {self.record['base']['id']}"
                    f"{f' at revision {revision}' if revision else ' as it was'}"
                )

    def _keys(self, name: str) -> list[str]:
        entry = self.entries[name]
        if self.is_mask:
            return [f"{name}.bitmask"] if "kept" in entry else []
        if "kept" not in entry and "quantized" not in entry:
            return [name]
        mask = [f"{name}.bitmask"] if entry.get("packed") else []
        return [*mask, f"{name}.values", *([f"{name}.scale"] if "quantized" in entry else [])]

    @property
    def is_mask(self) -> bool:
        """Whether it holds masks alone, over a base that is to be found elsewhere."""
        return self.record["spec"]["storage"] == "mask"

    @property
    def dtype(self) -> str:
        """The base's, by safetensors' name."""
        return self.record["base"]["dtype"]

    @property
    def disk_bytes(self) -> int:
        return sum(shard.stat().st_size for shard in self.shards)

    @property
    def ticket(self) -> str:
        return self.id

    @property
    def origin(self) -> dict[str, Any]:
        """The dense base's record."""
        return self.record["base"]

    @property
    def dropped(self) -> list[str]:
        return self.record["dropped"]

    @property
    def small_files(self) -> list[str]:
        return [name for name in SMALL_FILES if name in self.record["files"]]

    @cached_property
    def places(self) -> list[Place]:
        model_type = str(read_json(self.folder / "config.json").get("model_type", ""))
        return classify({name: info.shape for name, info in self.tensors.items()}, model_type)

    @property
    def tied_head(self) -> str | None:
        """As `Base.tied_head`: the head's name where it is the embedding matrix itself."""
        if any(entry["role"] == "lm_head" for entry in self.entries.values()):
            return None
        return head_name(str(read_json(self.folder / "config.json").get("model_type", "")))

    def kept(self, name: str) -> int | None:
        return self.entries[name].get("kept")

    def stream(self, names: Sequence[str], budget: int) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
        for name in names:
            entry = self.entries[name]  # never one of 8 bits: a quantized ticket is no source
            unpacked = "kept" in entry and (self.is_mask or entry["packed"])
            yield self._unpacked(name) if unpacked else self._unpacked(name).clone(), lambda: None  # else mapped
        self._buffers = threading.local()

    def parts(self, name: str) -> list[torch.Tensor]:
        """What is stored of one tensor, its hash checked; of a mask, with the base's tensor at its end.

        A tensor in one part is mapped. Several lie in memory that this thread's next call may use again.
        """
        keys = self._keys(name)
        parts = [self._mapped(keys[0])] if len(keys) == 1 else [self._read(key, i) for i, key in enumerate(keys)]
        if self.is_mask:
            parts.append(self.original(name))
        if sha256_of(*map(tensor_bytes, parts)) != self.entries[name]["sha256"]:
            self._damaged(f"tensor {name!r}")
        return parts

    def _mapped(self, key: str) -> torch.Tensor:
        info = self._stored[key]
        if file := self._large.get(info.shard):
            file.read_ahead(info.offset, info.nbytes)
        return self._files[info.shard].tensor(info)

    def _read(self, key: str, slot: int) -> torch.Tensor:
        info = self._stored[key]
        if info.shard not in self._large:
            return self._mapped(key)
        buffers: dict[int, memoryview] = self._buffers.__dict__.setdefault("slots", {})
        if len(buffers.get(slot, b"")) < disk.space_for(info.nbytes):
            buffers[slot] = disk.new_buffer(disk.space_for(info.nbytes))
        try:
            return from_memory(self._large[info.shard].read(info.offset, info.nbytes, buffers[slot]), info)
        except OSError as e:
            raise MachineError(f"ticket={self.folder}: {info.shard} cannot be read ({e.strerror or e})") from e

    def original_name(self, name: str) -> str:
        return self.entries[name].get("copy_of", name)

    def original(self, name: str) -> torch.Tensor:
        if self.base is None:
            raise InputError(f"ticket={self.folder}: its masks lie over {self.origin['id']}; give that model as base")
        return self.base.tensor(self.original_name(name))

    def info(self, name: str) -> TensorInfo:
        entry = self.entries[name]
        shard = self._stored[self._keys(name)[-1]].shard if self._keys(name) else ""
        return TensorInfo(shard, entry["dtype"], tuple(entry["shape"]))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as the model has it: dense, zeros where weights were removed. Raises InputError where damaged."""
        return self._unpacked(name).contiguous()

    def matrix(self, name: str) -> "Matrix":
        """A pruned or quantized matrix as it is stored, its hash checked; in memory as of `parts`."""
        info, entry, parts = self.tensors[name], self.entries[name], self.parts(name)
        columns = info.shape[0] if entry.get("transposed") else info.shape[-1]
        found = Matrix(
            info.numel // columns, columns, info.dtype, entry.get("transposed", False), entry.get("quantized")
        )
        want = {"bitmask": torch.uint8, "scale": torch.float32, "values": DTYPES[found.form]}
        if any(part.dtype != want[key.rpartition(".")[2]] for key, part in zip(self._keys(name), parts, strict=False)):
            self._damaged(f"tensor {name!r}")
        if entry.get("packed"):
            found.bitmask_OB = parts.pop(0).numpy()
            if not found.mask_fits(entry["kept"]):
                self._damaged(f"tensor {name!r}")
        if self.is_mask and found.bitmask_OB is not None:
            bits_OI = matrix_bits(parts.pop(), found.transposed)
            found.values_K = np.concatenate(select.compact(bits_OI.copy(), found.bitmask_OB))
            return found
        if found.quantized:
            found.scale_O = parts.pop().numpy()
        values = parts.pop()
        width = torch.uint8 if found.quantized else BITS[info.dtype][0]
        found.values_K = values.view(width).numpy()
        if not found.fits(entry.get("kept"), info):
            self._damaged(f"tensor {name!r}")
        return found

    def _unpacked(self, name: str) -> torch.Tensor:
        """As `tensor`, but a Conv1D's may be a transposed view of what was unpacked."""
        info, entry = self.tensors[name], self.entries[name]
        if "quantized" in entry:
            return self.matrix(name).dense(info)
        parts, transposed = self.parts(name), entry.get("transposed", False)
        if len(parts) == 1:
            whole = parts[0]
            if whole.shape != info.shape or whole.dtype != DTYPES[info.dtype]:
                self._damaged(f"tensor {name!r}")
            return whole
        mask_OB, rest = parts[0].numpy(), parts[1]
        columns = info.shape[0] if transposed else info.shape[-1]
        try:
            if self.is_mask:
                bits_OI = matrix_bits(rest, transposed)  # the base's own, unless it had to be turned around
                bits_OI = select.masked(bits_OI, mask_OB, bits_OI if transposed else None)
            else:
                bits_OI = select.unpack(mask_OB, rest.view(BITS[info.dtype][0]).numpy(), columns)
        except ValueError:
            self._damaged(f"tensor {name!r}")
        return from_bits(bits_OI, info, transposed)

    def verify(self) -> None:
        """Read everything once. Raises InputError naming the first thing that is not as it was written."""
        for name, entry in self.entries.items():
            if "quantized" not in entry:
                self.tensor(name)
                continue
            matrix = self.matrix(name)
            zeros = int((matrix.values_K == 0).sum())
            if "kept" in entry and not entry["packed"]:
                zeros -= self.tensors[name].numel - entry["kept"]
            if zeros < entry["rounding_zeros"] or ("kept" in entry and zeros != entry["rounding_zeros"]):
                self._damaged(f"tensor {name!r}")
