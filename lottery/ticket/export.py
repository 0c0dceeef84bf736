"""A ticket -> a folder that other libraries load: an ordinary model in 16 bits, or in 8 as compressed-tensors has it.

Legend: O outputs (rows), I inputs (columns).
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError, MachineError, blame
from lottery.files.home import new_folder, resolved, write_file
from lottery.kernels import quantizing
from lottery.models import architecture
from lottery.models.checkpoint import BITS, DTYPES, read_json, shard_headers
from lottery.models.hub import INDEX, WHOLE
from lottery.progress import stage
from lottery.ticket.packing import Writer, as_bytes, tensor_bytes
from lottery.ticket.record import sparsities
from lottery.ticket.stored import Stored

# format= -> compressed-tensors' name of it, and of the kind of number
EIGHT = {"fp8": ("float-quantized", "float"), "int8": ("pack-quantized", "int")}
BLOCK = 2**20  # weights that are quantized at once
ENTRY_BYTES = 500  # that a tensor takes in a header and in the index, generously
Part = tuple[str, str, Sequence[int]]  # key, safetensors' name of the type, shape


def export(stored: Stored, to: str | Path, format: str = "dense", card: str | None = None) -> dict[str, Any]:
    """Write a ticket (opened together with its base, if it holds masks alone) into the new folder `to`; what was written,
    in the words of `--json`. `card`: the text of a README.md.

    One tensor is in memory at a time, as it is stored, unpacked and in its new form (four times a 16-bit matrix at the
    most), beside two buffers of the writer. Raises InputError for a folder that is no place to write to, a format that
    cannot hold the ticket, and a ticket that is damaged; MachineError for a disk that is full.
    """
    dest = check_destination(stored, to)
    if format != "dense" and format not in EIGHT:
        raise InputError(f"format={format}: give dense, {', '.join(EIGHT)}")
    held, ignored = ([], []) if format == "dense" else choose(stored, format)
    eight = set(held)
    layout = {name: parts_of(stored, name, format if name in eight else "dense") for name in stored.tensors}
    every = [part for parts in layout.values() for part in parts]
    need = sum(torch.Size(shape).numel() * DTYPES[dtype].itemsize + ENTRY_BYTES for _, dtype, shape in every)
    need += sum((stored.folder / name).stat().st_size for name in stored.small_files)
    with new_folder(dest, "to") as folder:
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
            raise blame(e, f"to={dest}: {e.strerror}; make room, or give another folder") from e
        files = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
    size = sum(files.values())
    found = {"ticket": stored.id, "path": str(dest), "format": format, "files": files, "disk_bytes": size}
    found |= {"disk_ratio": size / stored.origin["disk_bytes"], **sparsities(stored.record)}
    if eight:
        found |= {"quantized": len(eight), "rounding_zeros": rounding.zeros}
    return found | {"notes": notes(stored, format, eight, rounding), "load": load_line(dest, format)}


def check_destination(stored: Stored, to: str | Path) -> Path:
    """The folder to write, absolute. Raises InputError where something is there, or where it would spoil the ticket."""
    dest = resolved(to, "to")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise taken(dest)
    if dest.is_relative_to(stored.folder.resolve()):
        raise InputError(f"to={dest}: it lies in the ticket's own folder, which must not change; give another one")
    return dest


def taken(dest: Path) -> InputError:
    return InputError(f"to={dest}: {'it is not empty' if dest.is_dir() else 'it is a file'}; give a new folder")


def choose(stored: Stored, format: str) -> tuple[list[str], list[str]]:
    """(the matrices that go into 8 bits, what is to be ignored: the modules that do not), for one of the 8-bit formats.

    They are the linear layers of attention and MLP. The format has no place for GPT-2's transposed matrices, and a reader
    that knows of 8-bit heads or embeddings is rare. Of experts, vLLM takes int8 ones and refuses float8 ones whose
    activations are not quantized, while transformers 5.23 loads the int8 format only if they are in it too. It does not
    load the int8 format of a class that is not torch's own (Falcon's).
    """
    kind = stored.record["spec"]["quantize"]
    if kind not in ("none", format):
        raise InputError(
            f"format={format}: this ticket holds {kind} codes, and rounding them once more would make weights that nobody "
            f"measured; give format={kind}, or dense"
        )
    linear = architecture.linear_layers(stored.folder)
    held: list[str] = []
    others: set[str] = set()
    experts = False
    for name, entry in stored.entries.items():
        module, info = name.removesuffix(".weight"), stored.info(name)
        able = entry["role"] in ("attention", "mlp") and len(info.shape) == 2 and info.dtype in BITS and info.numel > 0
        if ".experts." in name:
            able = able and format == "int8"
            experts = experts or not able
        else:
            _, layer = linear.get(module, ("", ""))
            able = able and (layer == "Linear" if format == "int8" else layer != "")
            if not able and len(info.shape) > 1 and entry["role"] not in ("embeddings", "norm"):
                others.add(module)  # for readers whose modules are called as in the checkpoint
        held += [name] if able and (kind == "none" or "quantized" in entry) else []
    if not held:
        raise InputError(
            f"format={format}: none of this model's matrices is a linear layer that this format can hold; give format=dense"
        )
    quantized = {linear[module][0] for name in held if (module := name.removesuffix(".weight")) in linear}
    others |= {path for path, _ in linear.values()} - quantized
    return held, [*sorted(others), *([r"re:.*\.experts\..*"] if experts else [])]


def scale_type(stored: Stored, name: str) -> str:
    """A ticket's own scales are kept as they are, in float32. Those made here are of the model's type, to which transformers
    casts them at loading; those of experts too: there it does not, and the weights would get the type of their scale."""
    own = "quantized" in stored.entries[name] and ".experts." not in name
    return "F32" if own else stored.info(name).dtype


def parts_of(stored: Stored, name: str, format: str) -> list[Part]:
    """What is written of one tensor."""
    info = stored.info(name)
    if format == "dense":
        return [(name, info.dtype, info.shape)]
    rows, columns = info.shape
    scale = (f"{name}_scale", scale_type(stored, name), (rows, 1))
    if format == "fp8":
        return [(name, "F8_E4M3", info.shape), scale]
    return [(f"{name}_packed", "I32", (rows, -(-columns // 4))), scale, (f"{name}_shape", "I64", (2,))]


class Rounding:
    """What became of weights on their way: how many zeros are new, and the greatest share by which a ticket's own scale
    changes: of `experts` as written, of others in a reader that computes in the base's type."""

    def __init__(self) -> None:
        self.zeros, self.others, self.experts = 0, 0.0, 0.0

    def cast(self, name: str, step_O: torch.Tensor, dtype: torch.dtype) -> None:
        off = float(
            ((step_O.to(dtype).float() - step_O) / step_O.clamp_min(torch.finfo(torch.float32).tiny)).abs().max()
        )
        if ".experts." in name:
            self.experts = max(self.experts, off)
        else:
            self.others = max(self.others, off)


def write_weights(
    stored: Stored, folder: Path, layout: dict[str, list[Part]], format: str, eight: set[str]
) -> Rounding:
    """Every tensor, in files as from_pretrained finds them. Types of different width lie in different files."""
    rounding = Rounding()
    writer = Writer(folder, [part for parts in layout.values() for part in parts])
    total = sum(stored.info(name).nbytes for name in layout)
    with closing(writer), stage(f"export {stored.id} as {format}", total, "bytes") as advance:
        for name, parts in layout.items():
            data = eight_bits(stored, name, format, rounding) if name in eight else [tensor_bytes(dense(stored, name))]
            for (key, dtype, shape), piece in zip(parts, data, strict=True):
                writer.add(key, dtype, shape, [piece])
            advance(stored.info(name).nbytes)
        shards = writer.finish("model", 0o644)
    if len(shards) == 1:
        os.rename(folder / shards[0], folder / WHOLE)
        return rounding
    _, tensors = shard_headers(folder, shards)
    index = {
        "metadata": {"total_size": sum(info.nbytes for info in tensors.values())},
        "weight_map": {key: tensors[key].shard for key in sorted(tensors)},
    }
    write_file(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return rounding


def dense(stored: Stored, name: str) -> torch.Tensor:
    """One tensor in the base's own type: as it is, or of 8-bit codes the nearest to what they mean."""
    info = stored.info(name)
    if "quantized" not in stored.entries[name]:
        return stored.tensor(name)
    wide = stored.matrix(name).dense(info, "BF16" if info.dtype == "BF16" else "F32")
    return wide.to(DTYPES[info.dtype]).contiguous()


def eight_bits(stored: Stored, name: str, format: str, rounding: Rounding) -> list[memoryview]:
    """The bytes of the parts of one matrix: the ticket's codes, or new ones of 16-bit weights."""
    dtype = DTYPES[scale_type(stored, name)]
    if "quantized" in stored.entries[name]:
        matrix = stored.matrix(name).whole()
        assert matrix.scale_O is not None
        codes_OI = matrix.values_K.reshape(matrix.rows, matrix.columns)
        step_O = torch.from_numpy(quantizing.steps(matrix.scale_O, format))
        step_O[torch.from_numpy(~codes_OI.any(1))] = 1  # a row of zeros has 0, by which a reader might divide
        rounding.cast(name, step_O, DTYPES[stored.info(name).dtype])
        step_O = step_O.to(dtype)
        rounding.zeros += stored.entries[name]["rounding_zeros"]
    else:
        codes_OI, step_O, lost = quantize(stored.tensor(name), format, dtype)
        rounding.zeros += lost
    scale = tensor_bytes(step_O)
    if format == "fp8":
        return [as_bytes(codes_OI), scale]
    return [as_bytes(packed(codes_OI)), scale, as_bytes(np.array(codes_OI.shape, np.int64))]


def quantize(weight_OI: torch.Tensor, kind: str, dtype: torch.dtype) -> tuple[np.ndarray, torch.Tensor, int]:
    """(codes_OI as uint8; step_O, of `dtype`; how many weights became zeros), so that weight = code * step.

    The step is rounded to its type first, upwards: codes made for another one would be off by as much as it is.
    """
    codes_OI = np.empty(weight_OI.shape, np.uint8)
    steps, lost, most = [], 0, quantizing.CODES[kind][1]
    rows = -(-BLOCK // weight_OI.shape[1])
    for first in range(0, len(weight_OI), rows):
        block_OI = weight_OI[first : first + rows].to(torch.float32, copy=True)
        greatest_O = torch.linalg.vector_norm(block_OI, torch.inf, dim=1)
        step_O = (greatest_O / most).to(dtype)
        bits_O = step_O.view(torch.int16 if dtype.itemsize == 2 else torch.int32)
        bits_O += step_O.float() * most < greatest_O  # the next number of the type
        step_O[greatest_O == 0] = 1
        steps.append(step_O)
        lost += int(torch.count_nonzero(block_OI))
        block_OI.div_(step_O.float()[:, None]).clamp_(-most, most)
        codes = block_OI.to(torch.float8_e4m3fn) if kind == "fp8" else block_OI.round_().to(torch.int8)
        out_OI = codes_OI[first : first + rows]
        out_OI[:] = codes.view(torch.uint8).numpy()
        if kind == "fp8":
            out_OI[out_OI == 0x80] = 0  # -0
        lost -= int(np.count_nonzero(out_OI))
    return codes_OI, torch.cat(steps), lost


def packed(codes_OI: np.ndarray) -> np.ndarray:
    """int8 codes as compressed-tensors packs them: four to an int32, the first in its low byte, 128 more than they are."""
    rows, columns = codes_OI.shape
    padded_OI = np.zeros((rows, -(-columns // 4) * 4), np.uint8)
    np.bitwise_xor(codes_OI, 0x80, out=padded_OI[:, :columns])
    return padded_OI


def write_rest(stored: Stored, folder: Path, format: str, ignored: list[str], card: str | None) -> None:
    """config.json and the other small files, and the card."""
    for name in stored.small_files:
        shutil.copyfile(stored.folder / name, folder / name)
    if format != "dense":
        config = read_json(folder / "config.json")
        if not config.get("dtype") and not config.get("torch_dtype"):  # else a reader would guess it from the codes
            config["dtype"] = str(DTYPES[stored.dtype]).removeprefix("torch.")
        config["quantization_config"] = quantization_config(format, ignored)
        write_file(folder / "config.json", (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    if card is not None:
        write_file(folder / "README.md", card.encode())


def quantization_config(format: str, ignored: list[str]) -> dict[str, Any]:
    """compressed-tensors' description: 8-bit weights with a scale a row, activations as they are."""
    name, number = EIGHT[format]
    weights = {"num_bits": 8, "type": number, "strategy": "channel", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
    }


def notes(stored: Stored, format: str, eight: set[str], rounding: Rounding) -> list[str]:
    """What a person must know: where weights are not those of the ticket to the bit, and what is not in 8 bits, and why."""
    kind, own = stored.record["spec"]["quantize"], str(DTYPES[stored.dtype]).removeprefix("torch.")
    widened = [n for n, e in stored.entries.items() if "quantized" in e and n not in eight and e["dtype"] != "F32"]
    said = []
    if format != "dense":
        reasons: dict[str, list[str]] = {}
        for name, entry in stored.entries.items():
            if name not in eight and (why := reason(name, entry)):
                reasons.setdefault(why, []).append(name)
        said += [f"not in 8 bits: {named(names)} ({why})" for why, names in reasons.items()]
        if kind == "none":
            said.append(
                f"quantized at export: the ticket's measurements are of its own weights; `lottery prune --quantize {format}` "
                f"measures such a model"
            )
    if widened:
        way_out = f"; format={kind} keeps the codes" if format == "dense" else ""
        said.append(
            f"rounded to {own}: {named(widened)}, which the ticket holds as {kind} codes times a scale{way_out}"
        )
    if rounding.others:
        said.append(
            f"the codes are the ticket's own: read in float32 they mean its weights to the bit; where a reader rounds their "
            f"scales to {own}, as transformers does when it computes in that, a row is off by {rounding.others:.2%} at most"
        )
    if rounding.experts:
        said.append(
            f"the scales of the experts are rounded to {own}, by {rounding.experts:.2%} at most: in float32 transformers "
            f"would hold these weights in float32"
        )
    return said


def reason(name: str, entry: dict[str, Any]) -> str:
    """Why a matrix stays out of the 8-bit formats; nothing for what never goes there."""
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
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def load_line(dest: Path, format: str) -> str:
    """The line of Python that loads the folder."""
    needs = "" if format == "dense" else "  # needs the package compressed-tensors"
    return f"model = transformers.AutoModelForCausalLM.from_pretrained({str(dest)!r}){needs}"
