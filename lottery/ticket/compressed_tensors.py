"""Writes a ticket's matrices in 8 bits, in the format of the library compressed-tensors.

Legend: O outputs (rows), I inputs (columns), K stored values.
"""

from typing import Any

import numpy as np
import torch

from lottery.errors import InputError
from lottery.kernels import quantizing
from lottery.models import architecture
from lottery.models.tensors import DTYPES, FLOAT_BITS
from lottery.ticket.packing import as_bytes, tensor_bytes
from lottery.ticket.stored import StoredTicket

# format= -> (compressed-tensors' name of the format, its name of the kind of number)
EIGHT_BIT_FORMATS = {"fp8": ("float-quantized", "float"), "int8": ("pack-quantized", "int")}
BLOCK = 2**20  # weights that are quantized at once


def choose_8_bit_matrices(stored: StoredTicket, format: str) -> tuple[list[str], list[str]]:
    """Returns the matrices to write in 8 bits, and the modules that a reader must ignore since they are not.

    The matrices are the linear layers of attention and MLP. The format has no place for GPT-2's transposed matrices,
    and few readers know 8-bit heads or embeddings. vLLM takes int8 experts, but it refuses float8 experts whose
    activations are not quantized. transformers 5.23 loads the int8 format only if the experts are in it too, and it
    does not load the int8 format of a layer class that is not torch's own (Falcon's).

    Raises InputError for a ticket that holds other codes, and for a model without such a matrix.
    """
    kind = stored.record["spec"]["quantize"]
    if kind not in ("none", format):
        raise InputError(
            f"format={format}: this ticket holds {kind} codes, and rounding them again would give weights that nobody "
            f"measured; give format={kind}, or dense"
        )
    linear = architecture.linear_layers(stored.folder)
    held: list[str] = []
    others: set[str] = set()
    experts = False
    for name, entry in stored.entries.items():
        module, info = name.removesuffix(".weight"), stored.info(name)
        able = (
            entry["role"] in ("attention", "mlp")
            and len(info.shape) == 2
            and info.dtype in FLOAT_BITS
            and info.numel > 0
        )
        if ".experts." in name:
            able = able and format == "int8"
            experts = experts or not able
        else:
            _, layer = linear.get(module, ("", ""))
            able = able and (layer == "Linear" if format == "int8" else layer != "")
            if not able and len(info.shape) > 1 and entry["role"] not in ("embeddings", "norm"):
                others.add(module)  # some readers name their modules as the checkpoint does
        held += [name] if able and (kind == "none" or "quantized" in entry) else []
    if not held:
        raise InputError(
            f"format={format}: none of this model's matrices is a linear layer that this format holds; give format=dense"
        )
    quantized = {linear[module][0] for name in held if (module := name.removesuffix(".weight")) in linear}
    others |= {path for path, _ in linear.values()} - quantized
    return held, [*sorted(others), *([r"re:.*\.experts\..*"] if experts else [])]


def scale_type(stored: StoredTicket, name: str) -> str:
    """Returns safetensors' name of the type in which the scales of a matrix are written.

    A ticket's own scales stay in float32. Scales that are made here have the model's type, because transformers casts
    scales to that type at loading. All scales of experts have the model's type: transformers does not cast those, and
    the weights would get the type of their scale.
    """
    own = "quantized" in stored.entries[name] and ".experts." not in name
    return "F32" if own else stored.info(name).dtype


class Rounding:
    """Records what rounding does to the weights of one export.

    `zeros` counts the weights that became zero. `experts` and `others` hold the greatest relative change of a ticket's
    own scales: those of experts change when they are written, the others in a reader that computes in the base's type.
    """

    def __init__(self) -> None:
        self.zeros, self.others, self.experts = 0, 0.0, 0.0

    def cast(self, name: str, step_O: torch.Tensor, dtype: torch.dtype) -> None:
        """Records the greatest relative change of `step_O` when it is cast to `dtype`."""
        off = float(
            ((step_O.to(dtype).float() - step_O) / step_O.clamp_min(torch.finfo(torch.float32).tiny)).abs().max()
        )
        if ".experts." in name:
            self.experts = max(self.experts, off)
        else:
            self.others = max(self.others, off)


def quantized_parts(stored: StoredTicket, name: str, format: str, rounding: Rounding) -> list[memoryview]:
    """Returns the bytes of the parts of one matrix: the ticket's own codes, or new codes made from 16-bit weights."""
    dtype = DTYPES[scale_type(stored, name)]
    if "quantized" in stored.entries[name]:
        matrix = stored.matrix(name).unpack()
        assert matrix.scale_O is not None
        codes_OI = matrix.values_K.reshape(matrix.rows, matrix.columns)
        step_O = torch.from_numpy(quantizing.step_sizes(matrix.scale_O, format))
        step_O[torch.from_numpy(~codes_OI.any(1))] = (
            1  # the step of a row of zeros is 0, and a reader might divide by it
        )
        rounding.cast(name, step_O, DTYPES[stored.info(name).dtype])
        step_O = step_O.to(dtype)
        rounding.zeros += stored.entries[name]["rounding_zeros"]
    else:
        codes_OI, step_O, lost = quantize(stored.tensor(name), format, dtype)
        rounding.zeros += lost
    scale = tensor_bytes(step_O)
    if format == "fp8":
        return [as_bytes(codes_OI), scale]
    return [as_bytes(pack_to_int32(codes_OI)), scale, as_bytes(np.array(codes_OI.shape, np.int64))]


def quantize(weight_OI: torch.Tensor, kind: str, dtype: torch.dtype) -> tuple[np.ndarray, torch.Tensor, int]:
    """Quantizes a matrix, so that weight = code * step.

    Returns codes_OI (uint8), step_O (of `dtype`), and the number of weights that became zero.

    The step is first rounded up to its type. Codes made for the unrounded step would be wrong by as much as the
    rounding changes it.
    """
    codes_OI = np.empty(weight_OI.shape, np.uint8)
    steps, lost, most = [], 0, quantizing.QUANTIZED_DTYPES[kind][1]
    rows = -(-BLOCK // weight_OI.shape[1])
    for first in range(0, len(weight_OI), rows):
        block_OI = weight_OI[first : first + rows].to(torch.float32, copy=True)
        greatest_O = torch.linalg.vector_norm(block_OI, torch.inf, dim=1)
        step_O = (greatest_O / most).to(dtype)
        bits_O = step_O.view(torch.int16 if dtype.itemsize == 2 else torch.int32)
        bits_O += step_O.float() * most < greatest_O  # takes the next larger number of the type
        step_O[greatest_O == 0] = 1
        steps.append(step_O)
        lost += int(torch.count_nonzero(block_OI))
        block_OI.div_(step_O.float()[:, None]).clamp_(-most, most)
        codes = block_OI.to(torch.float8_e4m3fn) if kind == "fp8" else block_OI.round_().to(torch.int8)
        out_OI = codes_OI[first : first + rows]
        out_OI[:] = codes.view(torch.uint8).numpy()
        if kind == "fp8":
            out_OI[out_OI == 0x80] = 0  # 0x80 is -0
        lost -= int(np.count_nonzero(out_OI))
    return codes_OI, torch.cat(steps), lost


def pack_to_int32(codes_OI: np.ndarray) -> np.ndarray:
    """Packs int8 codes as compressed-tensors does: four to an int32, the first in the low byte, each plus 128."""
    rows, columns = codes_OI.shape
    padded_OI = np.zeros((rows, -(-columns // 4) * 4), np.uint8)
    np.bitwise_xor(codes_OI, 0x80, out=padded_OI[:, :columns])
    return padded_OI


def quantization_config(format: str, ignored: list[str]) -> dict[str, Any]:
    """Returns compressed-tensors' description of 8-bit weights with a scale per row; activations are not quantized."""
    name, number = EIGHT_BIT_FORMATS[format]
    weights = {"num_bits": 8, "type": number, "strategy": "channel", "symmetric": True, "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
    }
