"""Checks that the stored parts of one tensor belong together and to the entry in ticket.json. It needs no torch.

Hashes find what was damaged. These checks find what was written wrongly, with hashes that fit.
Legend: O rows, I columns, B = ceil(I/8), K stored values.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lottery.models.headers import TensorInfo

CODES = {"int8": "I8", "fp8": "F8_E4M3"}  # quantize= -> safetensors' name of the type of its codes


def headers_fit(entry: Mapping[str, Any], headers: Mapping[str, TensorInfo]) -> bool:
    """Returns whether the parts (`bitmask`, `values`, `scale`, or `` for a tensor that is stored unchanged) have the types
    and shapes that the entry calls for."""
    shape = tuple(entry["shape"])
    columns = shape[0] if entry.get("transposed") else shape[-1] if shape else 1
    rows = math.prod(shape) // columns if columns else 0
    values_dtype = CODES[entry["quantized"]] if "quantized" in entry else entry["dtype"]
    expected = {
        "": (entry["dtype"], shape),
        "bitmask": ("U8", (rows, -(-columns // 8))),
        "values": (values_dtype, (entry["kept"],) if entry.get("packed") else shape),
        "scale": ("F32", (rows,)),
    }
    return all((info.dtype, info.shape) == expected[part] for part, info in headers.items())


def values_fit(entry: Mapping[str, Any], parts: Mapping[str, np.ndarray]) -> bool:
    """Returns whether bitmask, codes and scales hold only what pruning and quantizing write. `parts` are bytes (uint8)."""
    if "bitmask" in parts and not mask_fits(entry, parts["bitmask"]):
        return False
    if "quantized" not in entry:
        return True
    scale_O, codes_K = parts["scale"].view(np.float32), parts["values"]
    if not np.isfinite(scale_O).all() or (scale_O < 0).any():
        return False
    # These codes are never written: -128, and float8's NaN.
    if (codes_K == 0x80 if entry["quantized"] == "int8" else (codes_K & 0x7F) == 0x7F).any():
        return False
    zeros = int((codes_K == 0).sum())
    if "kept" in entry and not entry["packed"]:  # the removed weights are zeros among the codes
        zeros -= math.prod(entry["shape"]) - entry["kept"]
    return zeros == entry["rounding_zeros"] if "kept" in entry else zeros >= entry["rounding_zeros"]


def mask_fits(entry: Mapping[str, Any], mask: np.ndarray) -> bool:
    """Returns whether a bitmask has as many survivors as the entry says, and 0 beyond the last column."""
    shape = entry["shape"]
    columns = shape[0] if entry.get("transposed") else shape[-1]
    mask_OB = mask.reshape(-1, -(-columns // 8))
    beyond = columns % 8 and (mask_OB[:, -1] >> (columns % 8)).any()
    return not beyond and int(np.bitwise_count(mask_OB).sum()) == entry["kept"]
