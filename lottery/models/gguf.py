"""The header of a GGUF file, as llama.cpp writes it, is read and checked here before anything trusts its numbers.

The readers of `gguf` and transformers allocate what a header says. Here every count, length, offset and size is first
compared with the size of the file. The values of arrays, such as the vocabulary, are skipped.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lottery.errors import InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FIXED_SIZE = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
ALIGNMENT = 32  # bytes, where a file does not say
MOST_ENTRIES = 4_000_000  # values, tensors and elements of arrays; the largest vocabularies make 1.5 million
LONGEST_TEXT = 2**24  # bytes of a value, such as a chat template
LONGEST_NAME = 2**14  # bytes of a key, of a tensor's name, and of a token
MOST_DIMENSIONS = 4
FLOATS = ("F32", "F16", "BF16")  # the types that are not quantized
AGAIN = "fetch it again"
ALL = "or, if it is one piece of a file, give all pieces in their order"
PROVENANCE = "provenance.json"  # in a folder that `lottery import` made


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file. `shape` is in torch's order, `type` is llama.cpp's name, such as Q4_K."""

    name: str
    shape: tuple[int, ...]
    type: str
    type_id: int
    offset: int  # from the start of the file's tensor data
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What the header of one file says. `values` holds numbers and texts, and of an array its number of elements."""

    path: Path
    values: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]
    values_end: int  # the offset of the first byte after the values
    data: int  # the offset of the tensor data
    alignment: int


def read_header(path: Path, shown: Path | None = None) -> GgufHeader:
    """Returns the checked header of a GGUF file. Raises InputError, which names the file as `shown`, for anything that
    is not whole and sound."""
    with open(path, "rb") as file:
        return Reader(file, shown or path).header()


def is_gguf(path: Path) -> bool:
    """Returns whether a file begins as a GGUF file does."""
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def quantized_types(tensors: tuple[GgufTensor, ...]) -> list[str]:
    """Returns the quantized types of a file's tensors, the one of most weights first."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + tensor.numel
    return sorted((t for t in weights if t not in FLOATS), key=lambda t: -weights[t])


def bits_per_weight(tensors: tuple[GgufTensor, ...]) -> float:
    """Returns how many bits of the file each weight takes, scales of blocks included."""
    return 8 * sum(t.nbytes for t in tensors) / sum(t.numel for t in tensors)


class Reader:
    """Reads a header from front to back. Every method raises InputError where the file cannot hold what it says."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size, self.at, self.entries = os.fstat(file.fileno()).st_size, 0, 0

    def header(self) -> GgufHeader:
        tensor_count, value_count = self.start()
        values: dict[str, Any] = {}
        for _ in range(self.count(value_count, 13, "values")):
            key = self.text(LONGEST_NAME)
            if key in values:
                raise self.bad(f"its value {key!r} stands there twice")
            values[key] = self.value()
        values_end = self.at
        table = [self.tensor() for _ in range(self.count(tensor_count, 24, "tensors"))]
        alignment = values.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self.bad(f"its general.alignment is {alignment!r}, not a power of two")
        data = -(-self.at // alignment) * alignment
        self.check_tensors(table, data)
        return GgufHeader(self.path, values, tuple(table), values_end, data, alignment)

    def start(self) -> tuple[int, int]:
        """Reads magic, version and counts, and returns the numbers of tensors and of values."""
        if self.size < 24 or self.take(4) != MAGIC:
            raise InputError(f"file={self.path}: it is not a GGUF file; give one as llama.cpp writes it")
        version, tensor_count, value_count = struct.unpack("<IQQ", self.take(20))
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            what = "it is written for a big-endian processor" if swapped else f"it is of GGUF version {version}"
            raise InputError(f"file={self.path}: {what}; give a little-endian file of version 2 or 3")
        return tensor_count, value_count

    def value(self) -> Any:
        kind = self.number("I")
        if kind in FIXED_SIZE:
            return self.number(FIXED_SIZE[kind])
        if kind == STRING:
            return self.text(LONGEST_TEXT)
        if kind != ARRAY:
            raise self.bad(f"it holds a value of the unknown type {kind}")
        element, count = self.number("I"), self.number("Q")
        if element in FIXED_SIZE:
            width = struct.calcsize(FIXED_SIZE[element])
            self.skip(self.count(count, width, "elements") * width)
        elif element == STRING:
            for _ in range(self.count(count, 8, "elements")):
                self.skip(self.length(LONGEST_NAME))
        else:
            raise self.bad(f"it holds an array of the unknown type {element}")
        return count

    def tensor(self) -> GgufTensor:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name, dimensions = self.text(LONGEST_NAME), self.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.bad(f"its tensor {name!r} has {dimensions} dimensions")
        shape = struct.unpack(f"<{dimensions}Q", self.take(8 * dimensions))[::-1]
        type_id, offset = self.number("I"), self.number("Q")
        try:
            kind = GGMLQuantizationType(type_id)
        except ValueError as e:
            raise self.bad(f"its tensor {name!r} is of the unknown type {type_id}", "or update the package gguf") from e
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not all(shape) or shape[-1] % block:
            raise self.bad(f"its tensor {name!r} has the shape {list(shape)}, which {kind.name} cannot hold")
        return GgufTensor(name, shape, kind.name, type_id, offset, math.prod(shape) // block * block_bytes)

    def check_tensors(self, tensors: list[GgufTensor], data: int) -> None:
        """Each tensor must lie within the file, and all together must fit, each with bytes of its own."""
        names = {t.name for t in tensors}
        if len(names) < len(tensors):
            raise self.bad("two of its tensors have one name")
        end = data + max((t.offset + t.nbytes for t in tensors), default=0)
        if end > self.size:
            raise InputError(
                f"file={self.path}: it is cut or damaged: it has {self.size:,} bytes, its tensors end at {end:,}; {AGAIN}, {ALL}"
            )
        if sum(t.nbytes for t in tensors) > self.size - data:
            raise self.bad("its tensors overlap")

    def count(self, number: int, least: int, what: str) -> int:
        """Returns a count of things that take at least `least` bytes each."""
        self.entries += number
        if number * least > self.size - self.at or self.entries > MOST_ENTRIES:
            raise self.bad(f"its header says {number:,} {what}", ALL)
        return number

    def length(self, most: int) -> int:
        length = self.number("Q")
        if length > min(most, self.size - self.at):
            raise self.bad(f"its header says a text of {length:,} bytes", ALL)
        return length

    def text(self, most: int) -> str:
        raw = self.take(self.length(most))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as e:
            raise self.bad("a text in its header is not UTF-8") from e

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def take(self, count: int) -> bytes:
        raw = self.file.read(count)
        self.at += count
        if len(raw) < count:
            raise InputError(f"file={self.path}: it is cut: it ends within its header; {AGAIN}, {ALL}")
        return raw

    def skip(self, count: int) -> None:
        self.file.seek(count, os.SEEK_CUR)
        self.at += count

    def bad(self, problem: str, *more: str) -> InputError:
        return InputError(f"file={self.path}: it is cut or damaged: {problem}; {', '.join([AGAIN, *more])}")
