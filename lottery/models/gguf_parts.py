"""A GGUF file in parts becomes one file: parts as llama.cpp's gguf-split writes them, each with a header of its own, or
plain pieces of the bytes."""

import errno
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from lottery.errors import InputError
from lottery.models.gguf import MAGIC, GgufHeader, GgufTensor, is_gguf, read_header

SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
BLOCK = 4 * 2**20  # bytes that are copied at once


def find_parts(files: Sequence[Path]) -> list[Path]:
    """Returns all files that make one model, in order. Of a file that gguf-split named, the other parts are found
    beside it. Raises InputError for a file that is not there."""
    for path in files:
        if not path.is_file():
            problem = "it is a folder" if path.is_dir() else "there is no such file"
            raise InputError(f"file={path}: {problem}; give a GGUF file, or all of its parts")
    if not is_gguf(files[0]):
        raise InputError(f"file={files[0]}: it is not a GGUF file; give one, or all pieces of one in their order")
    match = SPLIT_NAME.fullmatch(files[0].name)
    if len(files) > 1 or not match or not (count := int(match[3])):
        return list(files)
    parts = [files[0].with_name(f"{match[1]}-{i:05}-of-{match[3]}.gguf") for i in range(1, count + 1)]
    for i, path in enumerate(parts, 1):
        if not path.is_file():
            raise InputError(
                f"file={files[0]}: part {i} of {count} is missing: {path.name}; put all parts into one folder"
            )
    return parts


def assemble(parts: Sequence[Path], target: Path) -> GgufHeader:
    """Makes the one file `target` of all parts, and returns its checked header. A file that is whole is only linked.

    Raises InputError for parts that make no sound model, and OSError where the disk fails.
    """
    if len(parts) > 1 and all(is_gguf(path) for path in parts):
        merge(in_order([read_header(path) for path in parts]), target)
        header = read_header(target, shown=parts[0])
    else:
        if len(parts) == 1:
            target.symlink_to(parts[0])
        else:
            join(parts, target)
        header = read_header(target, shown=parts[0])
        if (count := split_value(header, "split.count", 1)) > 1:
            number = split_value(header, "split.no", 0) + 1
            raise InputError(
                f"file={parts[0]}: it is part {number} of {count}, but not named so; give all parts, or name each as "
                f"gguf-split does: NAME-{number:05}-of-{count:05}.gguf"
            )
    if not header.tensors:
        raise InputError(f"file={parts[0]}: it holds no tensors; give the file that holds the weights")
    return header


def split_value(header: GgufHeader, key: str, default: int) -> int:
    """Returns a number with which gguf-split describes a part. Raises InputError for anything else."""
    value = header.values.get(key, default)
    if not isinstance(value, int) or value < 0:
        raise InputError(f"file={header.path}: it is damaged: its {key} is {value!r}; fetch it again")
    return value


def in_order(headers: Sequence[GgufHeader]) -> list[GgufHeader]:
    """Returns the headers of all parts by their number. Raises InputError if one is missing or of another model."""
    first, count = headers[0], split_value(headers[0], "split.count", 0)
    for header in headers:
        if not count or split_value(header, "split.count", 0) != count:
            raise InputError(
                f"file={header.path}: it and {first.path.name} are no parts of one model; give its parts only"
            )
    numbered = {split_value(header, "split.no", 0): header for header in headers}
    missing = next((number for number in range(count) if number not in numbered), None)
    if missing is not None or len(headers) != count:
        problem = "a part is given twice" if missing is None else f"part {missing + 1} of {count} is missing"
        raise InputError(f"file={first.path}: {problem}; give every part once")
    ordered = [numbered[number] for number in range(count)]
    total, names = split_value(ordered[0], "split.tensors.count", 0), [t.name for h in ordered for t in h.tensors]
    if len(names) != total or len(set(names)) != total:
        raise InputError(
            f"file={first.path}: its parts hold {len(names)} tensors instead of {total}; they are no parts of one model"
        )
    return ordered


def join(pieces: Sequence[Path], target: Path) -> None:
    """Writes the bytes of all pieces into one file."""
    with open(target, "wb") as joined:
        for path in pieces:
            with open(path, "rb") as piece:
                shutil.copyfileobj(piece, joined, BLOCK)


def merge(headers: Sequence[GgufHeader], target: Path) -> None:
    """Writes one file with the values of the first part and the tensors of all."""
    first = headers[0]
    alignment = first.alignment
    tensors = [(header, tensor) for header in headers for tensor in header.tensors]
    with open(first.path, "rb") as file:
        version, _, value_count = struct.unpack("<4xIQQ", file.read(24))
        values = file.read(first.values_end - 24)
    with open(target, "wb") as merged:
        merged.write(MAGIC + struct.pack("<IQQ", version, len(tensors), value_count) + values)
        offset = 0
        for _, tensor in tensors:
            merged.write(table_entry(tensor, offset))
            offset += -(-tensor.nbytes // alignment) * alignment
        for header, tensor in tensors:
            merged.seek(-(-merged.tell() // alignment) * alignment)
            with open(header.path, "rb") as part:
                part.seek(header.data + tensor.offset)
                copy(part, merged, tensor.nbytes)


def copy(source: BinaryIO, target: BinaryIO, nbytes: int) -> None:
    while nbytes:
        block = source.read(min(nbytes, BLOCK))
        if not block:
            raise OSError(errno.EIO, "a part became shorter while it was read")
        target.write(block)
        nbytes -= len(block)


def table_entry(tensor: GgufTensor, offset: int) -> bytes:
    """Returns the bytes of a tensor in the table of a header."""
    name, shape = tensor.name.encode(), tensor.shape[::-1]
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type_id, offset)
    )
