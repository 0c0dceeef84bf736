"""Exports a ticket as a folder that other libraries load: a model in 16 bits, or in 8 bits for compressed-tensors.

Legend: O outputs (rows), I inputs (columns).
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from lottery.errors import InputError, MachineError, path_error
from lottery.files.atomic import atomic_folder, atomic_write
from lottery.files.home import resolve_path
from lottery.files.reading import read_json
from lottery.models.headers import read_headers
from lottery.models.hub import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from lottery.models.tensors import DTYPES
from lottery.progress import progress_bar
from lottery.ticket.compressed_tensors import (
    EIGHT_BIT_FORMATS,
    Rounding,
    choose_8_bit_matrices,
    quantization_config,
    quantized_parts,
    scale_type,
)
from lottery.ticket.packing import Writer, tensor_bytes
from lottery.ticket.record import sparsities
from lottery.ticket.stored import StoredTicket

ENTRY_BYTES = 500  # more than a tensor takes in a header and in the index
Part = tuple[str, str, Sequence[int]]  # key, safetensors' name of the type, shape


def export(stored: StoredTicket, to: str | Path, format: str = "dense", card: str | None = None) -> dict[str, Any]:
    """Writes a ticket into the new folder `to`, and returns what was written, with the keys of `--json`.

    A ticket that holds masks alone must be opened together with its base. `card` is the text of a README.md. One tensor
    at a time is in memory: as it is stored, unpacked, and in its new form (at most four times a 16-bit matrix), plus
    two buffers of the writer. Raises InputError for a folder that cannot be written to, a format that cannot hold the
    ticket, and a damaged ticket; MachineError for a full disk.
    """
    dest = check_destination(stored, to)
    if format != "dense" and format not in EIGHT_BIT_FORMATS:
        raise InputError(f"format={format}: give dense, {', '.join(EIGHT_BIT_FORMATS)}")
    held, ignored = ([], []) if format == "dense" else choose_8_bit_matrices(stored, format)
    eight = set(held)
    layout = {name: parts_of(stored, name, format if name in eight else "dense") for name in stored.tensors}
    every = [part for parts in layout.values() for part in parts]
    need = sum(torch.Size(shape).numel() * DTYPES[dtype].itemsize + ENTRY_BYTES for _, dtype, shape in every)
    need += sum((stored.folder / name).stat().st_size for name in stored.small_files)
    with atomic_folder(dest, "to") as folder:
        if folder is None:
            raise taken(dest)
        if need > (free := shutil.disk_usage(folder).free):
            raise MachineError(
                f"to={dest}: the model takes {need:,} bytes, the disk has {free:,} free; make room, or give another folder"
            )
        try:
            rounding = write_weights(stored, folder, layout, format, eight)
            write_rest(stored, folder, format, ignored, card)
        except OSError as e:
            raise path_error(e, f"to={dest}: {e.strerror}; make room, or give another folder") from e
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    size = sum(files.values())
    result = {"ticket": stored.id, "path": str(dest), "format": format, "files": files, "disk_bytes": size}
    result |= {"disk_ratio": size / stored.base_record["disk_bytes"], **sparsities(stored.record)}
    if eight:
        result |= {"quantized": len(eight), "rounding_zeros": rounding.zeros}
    return result | {"notes": notes(stored, format, eight, rounding), "load": load_line(dest, format)}


def check_destination(stored: StoredTicket, to: str | Path) -> Path:
    """Returns the absolute path of `to`. Raises InputError if it is a file, not empty, or in the ticket's folder."""
    dest = resolve_path(to, "to")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise taken(dest)
    if dest.is_relative_to(stored.folder.resolve()):
        raise InputError(f"to={dest}: it lies in the ticket's own folder, which must not change; give another folder")
    return dest


def taken(dest: Path) -> InputError:
    """Returns the error for a destination that exists already."""
    return InputError(f"to={dest}: {'it is not empty' if dest.is_dir() else 'it is a file'}; give a new folder")


def parts_of(stored: StoredTicket, name: str, format: str) -> list[Part]:
    """Returns the parts of one tensor that are written in `format`."""
    info = stored.info(name)
    if format == "dense":
        return [(name, info.dtype, info.shape)]
    rows, columns = info.shape
    scale = (f"{name}_scale", scale_type(stored, name), (rows, 1))
    if format == "fp8":
        return [(name, "F8_E4M3", info.shape), scale]
    return [(f"{name}_packed", "I32", (rows, -(-columns // 4))), scale, (f"{name}_shape", "I64", (2,))]


def write_weights(
    stored: StoredTicket, folder: Path, layout: dict[str, list[Part]], format: str, eight: set[str]
) -> Rounding:
    """Writes every tensor, into files that from_pretrained finds. Types of different width go to different files."""
    rounding = Rounding()
    writer = Writer(folder, [part for parts in layout.values() for part in parts])
    total = sum(stored.info(name).nbytes for name in layout)
    with closing(writer), progress_bar(f"export {stored.id} as {format}", total, "bytes") as advance:
        for name, parts in layout.items():
            data = (
                quantized_parts(stored, name, format, rounding)
                if name in eight
                else [tensor_bytes(dense_tensor(stored, name))]
            )
            for (key, dtype, shape), piece in zip(parts, data, strict=True):
                writer.add(key, dtype, shape, [piece])
            advance(stored.info(name).nbytes)
        shards = writer.finish("model", 0o644)
    if len(shards) == 1:
        os.rename(folder / shards[0], folder / SAFE_WEIGHTS_NAME)
        return rounding
    tensors = read_headers(folder, shards)
    index = {
        "metadata": {"total_size": sum(info.nbytes for info in tensors.values())},
        "weight_map": {key: tensors[key].shard for key in sorted(tensors)},
    }
    atomic_write(folder / SAFE_WEIGHTS_INDEX_NAME, (json.dumps(index, indent=2) + "\n").encode())
    return rounding


def dense_tensor(stored: StoredTicket, name: str) -> torch.Tensor:
    """Returns one tensor in the base's own type. Weights that are stored as 8-bit codes are rounded to that type."""
    info = stored.info(name)
    if "quantized" not in stored.entries[name]:
        return stored.tensor(name)
    wide = stored.matrix(name).dequantize(info, "BF16" if info.dtype == "BF16" else "F32")
    return wide.to(DTYPES[info.dtype]).contiguous()


def write_rest(stored: StoredTicket, folder: Path, format: str, ignored: list[str], card: str | None) -> None:
    """Writes config.json, the other small files, and the card."""
    for name in stored.small_files:
        shutil.copyfile(stored.folder / name, folder / name)
    config = read_json(folder / "config.json")
    if format == "dense":
        if "quantization_config" in config:  # of the base's files; a reader would quantize the weights by it
            del config["quantization_config"]
            write_config(folder, config)
    else:
        if not config.get("dtype") and not config.get(
            "torch_dtype"
        ):  # otherwise a reader guesses the type from the codes
            config["dtype"] = str(DTYPES[stored.dtype]).removeprefix("torch.")
        config["quantization_config"] = quantization_config(format, ignored)
        write_config(folder, config)
    if card is not None:
        atomic_write(folder / "README.md", card.encode())


def write_config(folder: Path, config: dict[str, Any]) -> None:
    atomic_write(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def notes(stored: StoredTicket, format: str, eight: set[str], rounding: Rounding) -> list[str]:
    """Returns notes for the user: which weights differ from the ticket's, and which matrices are not in 8 bits."""
    kind, own = stored.record["spec"]["quantize"], str(DTYPES[stored.dtype]).removeprefix("torch.")
    dequantized = [n for n, e in stored.entries.items() if "quantized" in e and n not in eight and e["dtype"] != "F32"]
    lines = []
    if format != "dense":
        reasons: dict[str, list[str]] = {}
        for name, entry in stored.entries.items():
            if name not in eight and (why := reason(name, entry)):
                reasons.setdefault(why, []).append(name)
        lines += [f"not in 8 bits: {named(names)} ({why})" for why, names in reasons.items()]
        if kind == "none":
            lines.append(
                f"quantized at export: the ticket's measurements are of its own weights, not of these; "
                f"`lottery prune --quantize {format}` makes a quantized ticket and measures it"
            )
    if dequantized:
        way_out = f"; format={kind} keeps the codes" if format == "dense" else ""
        lines.append(
            f"rounded to {own}: {named(dequantized)}, which the ticket holds as {kind} codes times a scale{way_out}"
        )
    if rounding.others:
        lines.append(
            f"the codes are the ticket's own: read in float32 they give its weights to the bit; in a reader that "
            f"rounds their scales to {own}, as transformers does when it computes in {own}, a row is off by at most "
            f"{rounding.others:.2%}"
        )
    if rounding.experts:
        lines.append(
            f"the scales of the experts are rounded to {own}, by at most {rounding.experts:.2%}: with scales in "
            f"float32, transformers would hold the experts' weights in float32 too"
        )
    return lines


def reason(name: str, entry: dict[str, Any]) -> str:
    """Returns why a matrix is not in 8 bits; the empty string for a tensor that never is."""
    if entry["role"] == "embeddings":
        return "looked up, not multiplied"
    if entry["role"] == "lm_head":
        return "the head, which few readers take in 8 bits"
    if entry["role"] not in ("attention", "mlp"):
        return ""
    if ".experts." not in name:
        return "no plain linear layers"
    fused = len(entry["shape"]) > 2
    return "the experts of a layer in one tensor" if fused else "experts, for which vLLM has no such format"


def named(names: Sequence[str]) -> str:
    """Returns the first name, and how many others there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def load_line(dest: Path, format: str) -> str:
    """Returns the line of Python that loads the folder."""
    needs = "" if format == "dense" else "  # needs the package compressed-tensors"
    return f"model = transformers.AutoModelForCausalLM.from_pretrained({str(dest)!r}){needs}"
