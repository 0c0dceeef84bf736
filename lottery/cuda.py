"""Packed weights widened on a GPU in one kernel. Without Triton, or on a GPU that is too old for it, by torch's own."""

import functools
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # torch's builds for the CPU come without it
    triton = tl = None

LEAST = (8, 0)  # the compute capability that Triton asks for

if triton is not None:

    @triton.jit
    def _widen(
        mask, start, values, step, out, columns, mask_columns, MASKED: tl.constexpr, FORM: tl.constexpr, BLOCK: tl.constexpr
    ):  # fmt: skip
        """One program a row: its survivors are numbered by a running sum over the bits of its mask."""
        row = tl.program_id(0).to(tl.int64)
        at = tl.load(start + row) if MASKED else row * columns
        for first in range(0, columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < columns
            if MASKED:
                byte = tl.load(mask + row * mask_columns + (column >> 3), mask=inside, other=0).to(tl.int32)
                lives = (byte >> (column & 7)) & 1
                place = at + tl.cumsum(lives, 0) - lives
                found = tl.load(values + place, mask=inside & (lives != 0), other=0)
                at += tl.sum(lives, 0)
            else:
                found = tl.load(values + at + column, mask=inside, other=0)
            if FORM == 0:
                value = found
            else:
                if FORM == 1:
                    value = found.to(tl.float32)
                else:  # e4m3 from its bits, so that any GPU will do; below 8 there is no leading one
                    low = found.to(tl.int32) & 0x7F
                    normal = ((low << 20) + (120 << 23)).to(tl.float32, bitcast=True)
                    value = tl.where(low < 8, low.to(tl.float32) * 0.001953125, normal)
                    value = tl.where((found.to(tl.int32) & 0x80) != 0, -value, value)
                value = value * tl.load(step + row)
            tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=inside)


@functools.cache
def has_triton() -> bool:
    return triton is not None and torch.cuda.is_available() and torch.cuda.get_device_capability() >= LEAST


def widen(
    bitmask_OB: torch.Tensor | None,
    start_O: torch.Tensor | None,
    values_K: torch.Tensor,
    step_O: torch.Tensor | None,
    out_OI: torch.Tensor,
) -> torch.Tensor:
    """`out_OI` = the dense matrix, zeros where the mask says so; codes are multiplied by their row's step, in float32."""
    if not has_triton() and not interpreted():
        return widen_by_torch(bitmask_OB, values_K, step_O, out_OI)
    rows, columns = out_OI.shape
    eight = values_K.dtype == torch.float8_e4m3fn
    kernel: Any = _widen
    kernel[(rows,)](
        values_K if bitmask_OB is None else bitmask_OB,  # a pointer that is not looked at
        values_K if start_O is None else start_O,
        values_K.view(torch.uint8) if eight else values_K,
        values_K if step_O is None else step_O,
        out_OI,
        columns,
        -(-columns // 8),
        MASKED=bitmask_OB is not None,
        FORM=0 if step_O is None else 2 if eight else 1,
        BLOCK=min(1024, max(16, 1 << (columns - 1).bit_length())),
    )
    return out_OI


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python (TRITON_INTERPRET=1): slow, and without a GPU."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def widen_by_torch(
    bitmask_OB: torch.Tensor | None, values_K: torch.Tensor, step_O: torch.Tensor | None, out_OI: torch.Tensor
) -> torch.Tensor:
    """The same by torch's own operations: several kernels, and a byte a weight of memory for the mask."""
    values_K = values_K.to(torch.float32) if step_O is not None else values_K.to(out_OI.dtype)
    if bitmask_OB is None:
        dense_OI = values_K.view(out_OI.shape)
    else:
        bit_8 = torch.arange(8, device=out_OI.device, dtype=torch.uint8)
        lives_OI = ((bitmask_OB[:, :, None] >> bit_8) & 1).view(len(bitmask_OB), -1)[:, : out_OI.shape[1]].bool()
        dense_OI = torch.zeros(out_OI.shape, dtype=values_K.dtype, device=out_OI.device)
        dense_OI.masked_scatter_(lives_OI, values_K)
    if step_O is not None:
        dense_OI = dense_OI * step_O[:, None]
    return out_OI.copy_(dense_OI)
