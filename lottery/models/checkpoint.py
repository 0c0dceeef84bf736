"""The base model on disk: a folder in Hugging Face layout, the hashes of its files, and its tensors one at a time."""

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from lottery.errors import InputError, MachineError
from lottery.files import disk
from lottery.files.hashes import sha256_of_files
from lottery.files.reading import read_json
from lottery.models import hub
from lottery.models.families import Place, classify, embeddings_name, head_name, is_buffer
from lottery.models.headers import WEIGHT_TYPES, TensorInfo, read_headers
from lottery.models.hub import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from lottery.models.tensors import Mapped, tensor_from_buffer
from lottery.progress import say

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
SMALL_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)  # a ticket gets unchanged copies of them


class Source(Protocol):
    """The model that a ticket is made of: a dense base, or another ticket."""

    @property
    def folder(self) -> Path: ...
    @property
    def ticket(self) -> str | None:
        """The id of the ticket that the source is; None for a base."""

    @property
    def has_new_values(self) -> bool:
        """Whether weights that stay have other values than in the dense base."""

    @property
    def base_record(self) -> dict[str, Any]:
        """The record of the dense base: id, revision, dtype, disk_bytes, and files with their sha256."""

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
    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...
    def info(self, name: str) -> TensorInfo: ...
    def tensor(self, name: str) -> torch.Tensor: ...
    def original_name(self, name: str) -> str:
        """Returns the name, in the dense base, of the tensor that this one comes from."""

    def original(self, name: str) -> torch.Tensor:
        """Returns that tensor of the dense base."""

    def kept(self, name: str) -> int | None:
        """Returns how many weights of a matrix an earlier ticket kept; None when it removed none."""

    def stream(self, names: Sequence[str], budget: int) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
        """Yields (tensor, function that gives its memory back) of each name in turn.

        A base reads the next tensors while the caller works on one, as many as fit into `budget` bytes, and none ahead
        where that is 0. Until the caller gives the memory back, it may overwrite it: nobody else uses it.
        """


class Base:
    """A dense model to prune: where its files lie, and which tensors they hold.

    `tied` says whether the head is the embedding matrix itself. `outline` (name -> shape and type) replaces the files
    of a folder that has only config.json; it is enough for a plan. Raises InputError, naming the parameter `model`,
    when the folder is not a causal language model in safetensors.
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
        self._shards: dict[str, Mapped] = {}
        if outline is None:
            shards = shard_names(folder, f"model={id}")
            self._shards = {shard: Mapped(folder / shard) for shard in shards}
            tensors = read_headers(folder, shards)
            self._check_index(tensors)
        else:
            tensors = dict(outline)
        if self.config.get("quantization_config"):
            self._check_quantization(tensors)
        if tied:
            tensors = embeddings_from_head(tensors, self.model_type)
        places = classify({name: info.shape for name, info in tensors.items()}, self.model_type)
        self.dropped = [p.name for p in places if p.role == "buffer"]
        heads = [p for p in places if p.role == "lm_head"]
        if tied:
            self.dropped += [p.name for p in heads]
            self._check_tied(places, heads, tensors)
        self.tied_head = head_name(self.model_type) if tied else None
        self.places = [p for p in places if p.name not in self.dropped]
        self.tensors = {p.name: tensors[p.name] for p in self.places}
        if not any(p.prunable for p in self.places):
            raise InputError(f"model={id}: it holds no weight matrix; give a causal language model")

    def _check_index(self, tensors: Mapping[str, TensorInfo]) -> None:
        if (self.folder / SAFE_WEIGHTS_NAME).exists():
            return
        for name, shard in read_json(self.folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"].items():
            if name not in tensors or tensors[name].shard != shard:
                raise InputError(
                    f"model={self.id}: {SAFE_WEIGHTS_INDEX_NAME} says that {name!r} is in {shard}, but it is not there"
                )
        if unlisted := sorted(tensors.keys() - read_json(self.folder / SAFE_WEIGHTS_INDEX_NAME)["weight_map"].keys()):
            raise InputError(
                f"model={self.id}: {tensors[unlisted[0]].shard} holds {unlisted[0]!r}, which {SAFE_WEIGHTS_INDEX_NAME} does not list"
            )

    def _check_quantization(self, tensors: Mapping[str, TensorInfo]) -> None:
        """Raises InputError where another library has quantized the weights; its `quantization_config` alone, which is
        left in config.json after loading in 8 bits, says nothing and is ignored with a line."""
        settings = self.config["quantization_config"]
        by = settings.get("quant_method") if isinstance(settings, dict) else None
        what = f"model={self.id}: its config.json has a quantization_config ({by or 'of an unknown method'})"
        for name, info in tensors.items():
            if info.dtype not in WEIGHT_TYPES and not is_buffer(name, self.model_type):
                raise InputError(
                    f"{what}, and its weights are quantized: {name!r} is of type {info.dtype}; "
                    f"give the model that it was made of, in 16 or 32 bits"
                )
        say(f"{what}, which is ignored: its weights are not quantized")

    def _check_tied(self, places: Sequence[Place], heads: Sequence[Place], tensors: Mapping[str, TensorInfo]) -> None:
        """Published files may hold a tied head a second time. Raises InputError when that copy is not the same."""
        tables = [p for p in places if p.role == "embeddings"]
        for head, table in ((h, t) for h in heads for t in tables if self._shards):
            one, two = (self._read(tensors[p.name], p.name) for p in (head, table))
            same = one.dtype == two.dtype and one.shape == two.shape
            if not same or not torch.equal(one.view(torch.uint8), two.view(torch.uint8)):
                raise InputError(
                    f"model={self.id}: its config.json ties the head to the embeddings, but {head.name} and {table.name} "
                    f"differ in its files; set tie_word_embeddings to false in config.json to keep both"
                )

    @property
    def ticket(self) -> None:
        return None

    @property
    def has_new_values(self) -> bool:
        return False

    @property
    def small_files(self) -> list[str]:
        return [name for name in SMALL_FILES if (self.folder / name).is_file()]

    @property
    def dtype(self) -> str:
        """The type that most weights have, by its name in safetensors."""
        counts: dict[str, int] = {}
        for info in self.tensors.values():
            counts[info.dtype] = counts.get(info.dtype, 0) + info.numel
        return max(counts, key=lambda d: counts[d])

    @property
    def disk_bytes(self) -> int:
        """The bytes of the weight files, or of the tensors when the base has only config.json."""
        if not self._shards:
            return sum(info.nbytes for info in self.tensors.values())
        return sum((self.folder / s).stat().st_size for s in self._shards)

    @cached_property
    def files(self) -> dict[str, str]:
        """File name -> sha256 of every file that the model is read from."""
        return sha256_of_files([self.folder / name for name in sorted([*self._shards, *self.small_files])])

    @property
    def is_config_only(self) -> bool:
        """Whether the folder has config.json and no weights."""
        return not self._shards

    @property
    def base_record(self) -> dict[str, Any]:
        """What a ticket records of its base."""
        about = {"id": self.id, "revision": self.revision, "dtype": self.dtype, "disk_bytes": self.disk_bytes}
        return about | {"files": self.files}

    @property
    def name_or_path(self) -> str:
        """The name or path that opens the base again from any folder of this machine.

        It is never `builtin`, because the code that a ticket carries has no embedded model.
        """
        return f"{self.id}@{self.revision}" if self.revision else str(self.folder)

    def info(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def tensor(self, name: str) -> torch.Tensor:
        """Returns one tensor in the type and shape of its file, mapped and not copied. Raises InputError."""
        return self._read(self.tensors[name], name)

    def original_name(self, name: str) -> str:
        return name

    def original(self, name: str) -> torch.Tensor:
        return self.tensor(name)

    def kept(self, name: str) -> int | None:
        return None

    def stream(self, names: Sequence[str], budget: int) -> Generator[tuple[torch.Tensor, Callable[[], None]]]:
        if not budget:
            yield from ((self.tensor(name).clone(), lambda: None) for name in names)
            return
        infos = [self.tensors[name] for name in names]
        parts = [disk.ByteRange(self.folder / info.shard, info.offset, info.nbytes) for info in infos]
        try:
            for info, (data, give_back) in zip(infos, disk.prefetch(parts, budget), strict=True):
                yield tensor_from_buffer(data, info), give_back
        except OSError as e:
            raise MachineError(f"model={self.folder}: its files cannot be read ({e.strerror or e})") from e

    def _read(self, info: TensorInfo, name: str) -> torch.Tensor:
        try:
            return self._shards[info.shard].tensor(info)
        except OSError as e:
            raise InputError(f"{self.folder / info.shard}: tensor {name!r} cannot be read ({e})") from e


def embeddings_from_head(tensors: Mapping[str, TensorInfo], model_type: str) -> dict[str, TensorInfo]:
    """Returns the tensors of a tied model. Where its files hold the shared matrix only under the head's name, it gets
    the name of the embeddings, in the same place of the file."""
    head, table = head_name(model_type), embeddings_name(model_type, tensors)
    if head not in tensors or table in tensors:
        return dict(tensors)
    return {table if name == head else name: info for name, info in tensors.items()}


def shard_names(folder: Path, what: str) -> list[str]:
    """Returns the files that hold a model's weights: those that the index names, and never copies in other formats.

    Raises InputError, which begins with `what`, when the folder has no weights in safetensors.
    """
    if (folder / SAFE_WEIGHTS_NAME).exists():
        return [SAFE_WEIGHTS_NAME]
    if (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        return hub.indexed_shards(what, folder / SAFE_WEIGHTS_INDEX_NAME)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"{what}: it has its weights only as pickles (.bin), which lottery never reads; "
            f"convert them to safetensors first, or give a revision that has safetensors files"
        )
    raise InputError(f"{what}: it has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}")
