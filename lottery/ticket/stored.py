"""Reads a ticket's folder back, and checks every hash.

Legend: O rows (all dimensions but the last; for a Conv1D its outputs), I columns, B = ceil(I/8), K survivors.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lottery.errors import InputError, MachineError
from lottery.files import disk
from lottery.files.reading import read_json
from lottery.kernels import bitmask
from lottery.models.checkpoint import SMALL_FILES, Base
from lottery.models.families import Place, classify, head_name
from lottery.models.headers import TensorInfo
from lottery.models.tensors import DTYPES, FLOAT_BITS, Mapped, tensor_from_buffer
from lottery.ticket.folder import TicketFolder
from lottery.ticket.matrix import StoredMatrix
from lottery.ticket.packing import from_bits, matrix_bits, sha256_of, tensor_bytes


class StoredTicket(TicketFolder):
    """A ticket on disk with its tensors. Each tensor is checked when it is read.

    A ticket that holds masks alone reads its weights from `base`. Raises InputError as `TicketFolder` does, and where
    `base` is not the one that the ticket was made of.
    """

    def __init__(self, path: Path, base: Base | None = None) -> None:
        super().__init__(path)
        self._files = {shard.name: Mapped(shard) for shard in self.shards}
        self._large = {
            shard.name: disk.DirectReader(shard) for shard in self.shards if shard.stat().st_size >= disk.LARGE
        }
        self._buffers = threading.local()
        self.tensors = {name: self.info(name) for name in self.entries}
        self.base = base
        if base:
            self.check_base(base)

    def check_base(self, base: Base) -> None:
        """Raises InputError that names a file, where `base` is not the one that the ticket was made of."""
        files: dict[str, str] = self.record["base"]["files"]
        for name, sha256 in files.items():
            if base.files.get(name) != sha256:
                revision = self.record["base"]["revision"]
                made_of = f"the ticket {self.id} was made of"
                problem = f"is not the one that {made_of}" if name in base.files else f"is missing, and {made_of} it"
                way_out = f"{self.record['base']['id']}{f' at revision {revision}' if revision else ', unchanged'}"
                raise InputError(f"{base.folder}: its file {name} {problem}; give {way_out}")

    @property
    def small_files(self) -> list[str]:
        return [name for name in SMALL_FILES if name in self.record["files"]]

    @cached_property
    def places(self) -> list[Place]:
        model_type = str(read_json(self.folder / "config.json").get("model_type", ""))
        return classify({name: info.shape for name, info in self.tensors.items()}, model_type)

    @property
    def tied_head(self) -> str | None:
        """Returns the name of the head if the embedding matrix serves as the head, else None; as `Base.tied_head`."""
        if any(entry["role"] == "lm_head" for entry in self.entries.values()):
            return None
        return head_name(str(read_json(self.folder / "config.json").get("model_type", "")))

    def kept(self, name: str) -> int | None:
        return self.entries[name].get("kept")

    def stream(self, names: Sequence[str], budget: int) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
        for name in names:
            entry = self.entries[name]  # never holds 8-bit codes: a quantized ticket cannot be pruned
            unpacked = "kept" in entry and (self.is_mask_only or entry["packed"])
            # A tensor that was not unpacked is mapped from the file; the caller needs a copy that it may overwrite.
            yield self._unpacked(name) if unpacked else self._unpacked(name).clone(), lambda: None
        self._buffers = threading.local()

    def parts(self, name: str) -> list[torch.Tensor]:
        """Returns the stored parts of one tensor, with its hash checked. The base's tensor follows a mask.

        A single part is mapped. Several parts lie in memory that the next call in this thread may use again.
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
                f"ticket={self.folder}: it holds masks alone; give its base {self.base_record['id']} as base"
            )
        return self.base.tensor(self.original_name(name))

    @property
    def has_new_values(self) -> bool:
        return bool(self.record.get("updated", False))

    def info(self, name: str) -> TensorInfo:
        entry = self.entries[name]
        shard = self._stored[self._keys(name)[-1]].shard if self._keys(name) else ""
        return TensorInfo(shard, entry["dtype"], tuple(entry["shape"]))

    def tensor(self, name: str) -> torch.Tensor:
        """Returns one tensor as the model has it: dense, with zeros for removed weights.

        Raises InputError where it is damaged.
        """
        return self._unpacked(name).contiguous()

    def matrix(self, name: str) -> "StoredMatrix":
        """Returns a pruned or quantized matrix as it is stored, with its hash checked, in the memory of `parts`."""
        info, entry, parts = self.tensors[name], self.entries[name], self.parts(name)
        columns = info.shape[0] if entry.get("transposed") else info.shape[-1]
        stored_matrix = StoredMatrix(
            info.numel // columns, columns, info.dtype, entry.get("transposed", False), entry.get("quantized")
        )
        types = {"bitmask": torch.uint8, "scale": torch.float32, "values": DTYPES[stored_matrix.values_dtype]}
        if any(part.dtype != types[key.rpartition(".")[2]] for key, part in zip(self._keys(name), parts, strict=False)):
            self._damaged(f"tensor {name!r}")
        if entry.get("packed"):
            stored_matrix.bitmask_OB = parts.pop(0).numpy()
            if not stored_matrix.mask_fits(entry["kept"]):
                self._damaged(f"tensor {name!r}")
        if self.is_mask_only and stored_matrix.bitmask_OB is not None:
            bits_OI = matrix_bits(parts.pop(), stored_matrix.transposed)
            stored_matrix.values_K = np.concatenate(bitmask.compact(bits_OI.copy(), stored_matrix.bitmask_OB))
            return stored_matrix
        if stored_matrix.quantized:
            stored_matrix.scale_O = parts.pop().numpy()
        values = parts.pop()
        width = torch.uint8 if stored_matrix.quantized else FLOAT_BITS[info.dtype][0]
        stored_matrix.values_K = values.view(width).numpy()
        if not stored_matrix.fits(entry.get("kept"), info):
            self._damaged(f"tensor {name!r}")
        return stored_matrix

    def _unpacked(self, name: str) -> torch.Tensor:
        """Does what `tensor` does, but the tensor of a Conv1D may be a transposed view."""
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
                bits_OI = matrix_bits(rest, transposed)  # the base's own memory, unless it had to be transposed
                bits_OI = bitmask.apply_mask(bits_OI, mask_OB, bits_OI if transposed else None)
            else:
                bits_OI = bitmask.unpack(mask_OB, rest.view(FLOAT_BITS[info.dtype][0]).numpy(), columns)
        except ValueError:
            self._damaged(f"tensor {name!r}")
        return from_bits(bits_OI, info, transposed)

    def verify(self) -> None:
        """Reads everything once. Raises InputError that names the first tensor that is not as it was written."""
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
