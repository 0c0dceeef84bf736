"""A base on disk: a folder in Hugging Face layout, its files with their hashes, its tensors one at a time."""

import errno
import json
import mmap
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from lottery.errors import InputError, MachineError
from lottery.files import disk
from lottery.files.hashes import sha256_of_files
from lottery.models import hub
from lottery.models.families import Place, classify, head_name
from lottery.models.hub import INDEX, WHOLE

BUILTIN = Path(__file__).parent.parent / "assets" / "builtin"
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

# Python has the name from 3.13 on; the number is that of Linux on x86 and ARM
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


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
        return safe_open(path, framework="np")  # for its header: torch's would map the file as memory that is reserved
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
    offset: int = 0  # of its first byte in the file

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize


def from_memory(data: memoryview, info: TensorInfo) -> torch.Tensor:
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
        return from_memory(self.data[info.offset : info.offset + info.nbytes], info)


def shard_headers(folder: Path, shards: list[str]) -> tuple[dict[str, Mapped], dict[str, TensorInfo]]:
    """The shards by file name, none of them mapped yet, and every tensor in them, in file order."""
    files: dict[str, Mapped] = {}
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        header = open_shard(folder / shard)
        files[shard] = Mapped(folder / shard)
        with open(folder / shard, "rb") as f:
            at = 8 + int.from_bytes(f.read(8), "little")  # tensors follow the header without a gap
        for name in header.offset_keys():
            view = header.get_slice(name)
            if view.get_dtype() not in DTYPES:
                raise InputError(f"{folder / shard}: tensor {name!r} has the unknown type {view.get_dtype()}")
            if name in tensors:
                raise InputError(f"{folder}: tensor {name!r} stands in {tensors[name].shard} and in {shard}")
            tensors[name] = TensorInfo(shard, view.get_dtype(), tuple(view.get_shape()), at)
            at += tensors[name].nbytes
    return files, tensors


class Source(Protocol):
    """What a ticket can be made of: a dense base, or another ticket."""

    @property
    def folder(self) -> Path: ...
    @property
    def ticket(self) -> str | None:
        """The ticket that it is; None of a base."""

    @property
    def origin(self) -> dict[str, Any]:
        """The record of the dense base: id, revision, dtype, disk_bytes, files with their sha256."""

    @property
    def dtype(self) -> str: ...
    @property
    def places(self) -> list[Place]: ...
    @property
    def dropped(self) -> list[str]: ...
    @property
    def tied_head(self) -> str | None: ...
    @property
    def small_files(self) -> list[str]: ...
    def info(self, name: str) -> TensorInfo: ...
    def tensor(self, name: str) -> torch.Tensor: ...
    def original_name(self, name: str) -> str:
        """What the dense base calls the tensor that this one comes from."""

    def original(self, name: str) -> torch.Tensor:
        """That tensor."""

    def kept(self, name: str) -> int | None:
        """How many weights of a matrix an earlier ticket left alive; None where none was removed."""

    def stream(self, names: Sequence[str], budget: int) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
        """(tensor, how to give its memory back) of each in turn; a base reads the next ones while one is worked on,
        as many as fit into `budget` bytes.

        Until it is given back the memory is the caller's, to overwrite too: it is nobody else's."""


class Base:
    """A dense model to prune: where its files lie, and what is in them.

    `tied`: whether its head is the embedding matrix itself. `outline`: its tensors where no file holds them (a folder
    with config.json alone), enough to plan with. Raises InputError, naming the parameter `model`, for a folder that is
    not a causal LM in safetensors.
    """

    def __init__(
        self,
        folder: Path,
        id: str,
        *,
        tied: bool,
        revision: str | None = None,
        outline: Mapping[str, TensorInfo] | None = None,
    ) -> None:
        self.folder, self.id, self.revision = folder, id, revision
        self.config = read_json(folder / "config.json")
        self.model_type = str(self.config.get("model_type", ""))
        self._shards, every = (
            shard_headers(folder, shard_names(folder, f"model={id}")) if outline is None else ({}, dict(outline))
        )
        if outline is None:
            self._check_index(every)
        places = classify({name: info.shape for name, info in every.items()}, self.model_type)
        self.dropped = [p.name for p in places if p.role == "buffer"]
        heads = [p for p in places if p.role == "lm_head"]
        if tied:
            self.dropped += [p.name for p in heads]
            self._check_tied(places, heads, every)
        self.tied_head = head_name(self.model_type) if tied else None
        self.places = [p for p in places if p.name not in self.dropped]
        self.tensors = {p.name: every[p.name] for p in self.places}
        if not any(p.prunable for p in self.places):
            raise InputError(f"model={id}: it holds no weight matrix; give a causal language model")

    def _check_index(self, tensors: Mapping[str, TensorInfo]) -> None:
        if (self.folder / WHOLE).exists():
            return
        for name, shard in read_json(self.folder / INDEX)["weight_map"].items():
            if name not in tensors or tensors[name].shard != shard:
                raise InputError(f"model={self.id}: {INDEX} says that {name!r} is in {shard}, where it is not")
        if strangers := sorted(tensors.keys() - read_json(self.folder / INDEX)["weight_map"].keys()):
            raise InputError(
                f"model={self.id}: {tensors[strangers[0]].shard} holds {strangers[0]!r}, which {INDEX} does not know"
            )

    def _check_tied(self, places: Sequence[Place], heads: Sequence[Place], tensors: Mapping[str, TensorInfo]) -> None:
        """Published files may hold a tied head a second time; it is the same, or it is not tied."""
        tables = [p for p in places if p.role == "embeddings"]
        for head, table in ((h, t) for h in heads for t in tables if self._shards):
            one, two = (self._read(tensors[p.name], p.name) for p in (head, table))
            same = one.dtype == two.dtype and one.shape == two.shape
            if not same or not torch.equal(one.view(torch.uint8), two.view(torch.uint8)):
                raise InputError(
                    f"model={self.id}: its config.json ties the head to the embeddings, yet {head.name} and {table.name} "
                    f"differ in its files; set tie_word_embeddings to false there to keep both"
                )

    @property
    def ticket(self) -> None:
        return None

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
        """Of its weight files; of a mere outline, of the tensors that it has."""
        if not self._shards:
            return sum(info.nbytes for info in self.tensors.values())
        return sum((self.folder / s).stat().st_size for s in self._shards)

    @cached_property
    def files(self) -> dict[str, str]:
        """Name -> sha256 of every file that the model is read from."""
        return sha256_of_files([self.folder / name for name in sorted([*self._shards, *self.small_files])])

    @property
    def is_outline(self) -> bool:
        return not self._shards

    @property
    def origin(self) -> dict[str, Any]:
        """What a ticket records of its base."""
        about = {"id": self.id, "revision": self.revision, "dtype": self.dtype, "disk_bytes": self.disk_bytes}
        return about | {"files": self.files}

    @property
    def place(self) -> str:
        """What opens it again from anywhere on this machine; also from code without the embedded model, as tickets carry it."""
        return f"{self.id}@{self.revision}" if self.revision else str(self.folder)

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in the type and shape of its file; mapped, not copied."""
        return self._read(self.tensors[name], name)

    def original_name(self, name: str) -> str:
        return name

    def original(self, name: str) -> torch.Tensor:
        return self.tensor(name)

    def kept(self, name: str) -> int | None:
        return None

    def stream(self, names: Sequence[str], budget: int) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
        infos = [self.tensors[name] for name in names]
        parts = [disk.Part(self.folder / info.shard, info.offset, info.nbytes) for info in infos]
        try:
            for info, (data, give_back) in zip(infos, disk.stream(parts, budget), strict=True):
                yield from_memory(data, info), give_back
        except OSError as e:
            raise MachineError(f"model={self.folder}: its files cannot be read ({e.strerror or e})") from e

    def _read(self, info: TensorInfo, name: str) -> torch.Tensor:
        try:
            return self._shards[info.shard].tensor(info)
        except OSError as e:
            raise InputError(f"{self.folder / info.shard}: tensor {name!r} is unreadable ({e})") from e


def shard_names(folder: Path, what: str) -> list[str]:
    """The files that hold a model's weights: those that its index names, never copies in other formats beside them.

    Raises InputError, beginning with `what`, where there are none in safetensors.
    """
    if (folder / WHOLE).exists():
        return [WHOLE]
    if (folder / INDEX).exists():
        return hub.shard_names(what, folder / INDEX)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{what}: it holds pickled weights (.bin) only, which are never read; "
            f"convert them to safetensors first, or take a revision that has them"
        )
    raise InputError(f"{what}: it has no {WHOLE} and no {INDEX}")
