"""The ticket directory, read back with every hash checked.

Legend: O rows (all dimensions of a matrix but the last; of a Conv1D its outputs), I columns, B = ceil(I/8), K survivors.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError, MachineError
from lottery.files import disk
from lottery.files.hashes import file_sha256
from lottery.files.reading import check_file_name, read_json
from lottery.kernels import bitmask
from lottery.models.checkpoint import SMALL_FILES, Base
from lottery.models.families import Place, classify, head_name
from lottery.models.tensors import DTYPES, FLOAT_BITS, TensorInfo, shard_headers, tensor_from_buffer
from lottery.spec import FORMAT_VERSION, json_sha256
from lottery.ticket.matrix import StoredMatrix
from lottery.ticket.packing import from_bits, header_sha256, matrix_bits, sha256_of, tensor_bytes
from lottery.ticket.record import MEASUREMENTS, RECORD, find_invalid_field


class StoredTicket:
    """A ticket on disk. Opening it checks everything but the tensors; each of those is checked when it is read.

    One that holds masks alone reads its tensors out of `base`. Raises InputError where the folder is no whole ticket, or
    differs in any byte from the one that was written, or the base from the one that it was made of.
    """

    def __init__(self, path: Path, base: Base | None = None) -> None:
        self.folder = path
        if not (path / RECORD).is_file():
            raise InputError(f"ticket={path}: no {RECORD} there; give a ticket's folder or models:/NAME/VERSION")
        self.record = read_json(path / RECORD)
        if self.record.get("format") != FORMAT_VERSION:
            raise InputError(
                f"ticket={path}: it has format {self.record.get('format')}, this version reads {FORMAT_VERSION}; "
                f"use the version of lottery that wrote it"
            )
        claimed = {k: v for k, v in self.record.items() if k != "checksum"}
        if self.record.get("checksum") != json_sha256(claimed):
            self._damaged(RECORD)
        if misfitting := find_invalid_field(claimed):
            raise InputError(
                f"ticket={path}: {RECORD} is not one that lottery writes ({misfitting}); fetch or make it again"
            )
        self.id: str = self.record["ticket"]
        self.entries: dict[str, dict[str, Any]] = self.record["tensors"]
        for name, sha256 in self.record["files"].items():
            if not (path / check_file_name(name, path / RECORD)).is_file() or file_sha256(path / name) != sha256:
                self._damaged(name)
        shards = [check_file_name(name, path / RECORD) for name in self.record["shards"]]
        known = {RECORD, MEASUREMENTS, *self.record["files"], *shards}
        if strangers := sorted(p.name for p in path.iterdir() if p.name not in known and not p.name.startswith(".")):
            raise InputError(f"ticket={path}: {strangers[0]} is no part of the ticket; take it out of the folder")
        for name, sha256 in self.record["shards"].items():
            if not (path / name).is_file() or header_sha256(path / name) != sha256:
                self._damaged(name)
        self.shards = [path / name for name in shards]
        self._files, self._stored = shard_headers(path, shards)
        self._large = {
            shard.name: disk.DirectReader(shard) for shard in self.shards if shard.stat().st_size >= disk.LARGE
        }
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
        if self.is_mask_only:
            return [f"{name}.bitmask"] if "kept" in entry else []
        if "kept" not in entry and "quantized" not in entry:
            return [name]
        mask = [f"{name}.bitmask"] if entry.get("packed") else []
        return [*mask, f"{name}.values", *([f"{name}.scale"] if "quantized" in entry else [])]

    @property
    def is_mask_only(self) -> bool:
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
    def base_record(self) -> dict[str, Any]:
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
            unpacked = "kept" in entry and (self.is_mask_only or entry["packed"])
            yield self._unpacked(name) if unpacked else self._unpacked(name).clone(), lambda: None  # else mapped
        self._buffers = threading.local()

    def parts(self, name: str) -> list[torch.Tensor]:
        """What is stored of one tensor, its hash checked; of a mask, with the base's tensor at its end.

        A tensor in one part is mapped. Several lie in memory that this thread's next call may use again.
        """
        keys = self._keys(name)
        parts = [self._mapped(keys[0])] if len(keys) == 1 else [self._read(key, i) for i, key in enumerate(keys)]
        if self.is_mask_only:
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
            return tensor_from_buffer(self._large[info.shard].read(info.offset, info.nbytes, buffers[slot]), info)
        except OSError as e:
            raise MachineError(f"ticket={self.folder}: {info.shard} cannot be read ({e.strerror or e})") from e

    def original_name(self, name: str) -> str:
        return self.entries[name].get("copy_of", name)

    def original(self, name: str) -> torch.Tensor:
        if self.base is None:
            raise InputError(
                f"ticket={self.folder}: its masks lie over {self.base_record['id']}; give that model as base"
            )
        return self.base.tensor(self.original_name(name))

    def info(self, name: str) -> TensorInfo:
        entry = self.entries[name]
        shard = self._stored[self._keys(name)[-1]].shard if self._keys(name) else ""
        return TensorInfo(shard, entry["dtype"], tuple(entry["shape"]))

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor as the model has it: dense, zeros where weights were removed. Raises InputError where damaged."""
        return self._unpacked(name).contiguous()

    def matrix(self, name: str) -> "StoredMatrix":
        """A pruned or quantized matrix as it is stored, its hash checked; in memory as of `parts`."""
        info, entry, parts = self.tensors[name], self.entries[name], self.parts(name)
        columns = info.shape[0] if entry.get("transposed") else info.shape[-1]
        found = StoredMatrix(
            info.numel // columns, columns, info.dtype, entry.get("transposed", False), entry.get("quantized")
        )
        want = {"bitmask": torch.uint8, "scale": torch.float32, "values": DTYPES[found.values_dtype]}
        if any(part.dtype != want[key.rpartition(".")[2]] for key, part in zip(self._keys(name), parts, strict=False)):
            self._damaged(f"tensor {name!r}")
        if entry.get("packed"):
            found.bitmask_OB = parts.pop(0).numpy()
            if not found.mask_fits(entry["kept"]):
                self._damaged(f"tensor {name!r}")
        if self.is_mask_only and found.bitmask_OB is not None:
            bits_OI = matrix_bits(parts.pop(), found.transposed)
            found.values_K = np.concatenate(bitmask.compact(bits_OI.copy(), found.bitmask_OB))
            return found
        if found.quantized:
            found.scale_O = parts.pop().numpy()
        values = parts.pop()
        width = torch.uint8 if found.quantized else FLOAT_BITS[info.dtype][0]
        found.values_K = values.view(width).numpy()
        if not found.fits(entry.get("kept"), info):
            self._damaged(f"tensor {name!r}")
        return found

    def _unpacked(self, name: str) -> torch.Tensor:
        """As `tensor`, but a Conv1D's may be a transposed view of what was unpacked."""
        info, entry = self.tensors[name], self.entries[name]
        if "quantized" in entry:
            return self.matrix(name).dequantize(info)
        parts, transposed = self.parts(name), entry.get("transposed", False)
        if len(parts) == 1:
            whole = parts[0]
            if whole.shape != info.shape or whole.dtype != DTYPES[info.dtype]:
                self._damaged(f"tensor {name!r}")
            return whole
        mask_OB, rest = parts[0].numpy(), parts[1]
        columns = info.shape[0] if transposed else info.shape[-1]
        try:
            if self.is_mask_only:
                bits_OI = matrix_bits(rest, transposed)  # the base's own, unless it had to be turned around
                bits_OI = bitmask.apply_mask(bits_OI, mask_OB, bits_OI if transposed else None)
            else:
                bits_OI = bitmask.unpack(mask_OB, rest.view(FLOAT_BITS[info.dtype][0]).numpy(), columns)
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
