"""Packed weights widened on a GPU in one kernel. Without Triton, or on a GPU that is too old for it, by torch's own."""

import functools
from contextlib import nullcontext, suppress
from typing import Any

import torch

from lottery.errors import is_out_of_memory
from lottery.kernels import quantizing
from lottery.progress import say

LEAST = (7, 0)  # the compute capability of a V100. Triton promises 8.0 and up; for older ones it compiles, and is tried
CHUNK = 256  # columns: 8 for each lane of a warp, a byte of the mask
WARPS = 4

kernel: Any = None  # once `is_triton_available` has found Triton


def is_triton_available() -> bool:
    global kernel
    with suppress(ImportError):  # torch's builds for the CPU come without Triton
        from lottery.kernels import triton_kernel

        kernel = triton_kernel.unpack_kernel
    return kernel is not None


@functools.cache
def can_use_triton(index: int, stored: torch.dtype, masked: bool, dtype: torch.dtype) -> bool:
    """Whether Triton works on the GPU of that index for what is stored so and widened to `dtype`: tried once."""
    if torch.cuda.get_device_capability(index) < LEAST or not is_triton_available():
        return False
    try:
        if kernel_matches_torch(torch.device("cuda", index), stored, masked, dtype):
            return True
        reason = "it computes something else than torch"
    except Exception as e:  # it needs a C compiler and Python's headers, and says in many ways that one is missing
        if is_out_of_memory(e):
            raise
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    say(f"warning: Triton does not work here ({reason}); packed layers are widened by torch, slowly")
    return False


def kernel_matches_torch(device: torch.device, stored: torch.dtype, masked: bool, dtype: torch.dtype) -> bool:
    """Whether the kernel gives what torch's own operations give, to the bit, of two rows of 1,100 columns."""
    bitmask_OB = (torch.arange(2 * 138) * 37 % 256).to(torch.uint8).view(2, 138)
    bitmask_OB[:, -1] &= 0x0F
    start_OC = torch.from_numpy(quantizing.chunk_offsets(bitmask_OB.numpy(), CHUNK)).to(device)
    count = int(quantizing.row_offsets(bitmask_OB.numpy().reshape(-1, 1))[-1]) + int(bitmask_OB[-1, -1]).bit_count()
    codes = torch.arange(count if masked else 2200, device=device) % 127
    eight = stored.itemsize == 1
    values_K = codes.to(torch.uint8).view(stored) if eight else codes.to(stored)
    step_O = torch.tensor([1 / 3, -0.7], device=device) if eight else None
    there = (bitmask_OB.to(device), start_OC) if masked else (None, None)
    found, twin = (torch.empty(2, 1100, dtype=dtype, device=device) for _ in range(2))
    unpack_weights(there[0], there[1], values_K, step_O, found)
    return torch.equal(found, unpack_weights_with_torch(there[0], values_K, step_O, twin))


def launch_arguments(
    bitmask_OB: torch.Tensor | None,
    start_OC: torch.Tensor | None,
    values_K: torch.Tensor,
    step_O: torch.Tensor | None,
    out_OI: torch.Tensor,
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The kernel's grid and arguments."""
    rows, columns = out_OI.shape
    chunks = -(-columns // CHUNK)
    eight = values_K.dtype == torch.float8_e4m3fn
    values = values_K.view(torch.uint8) if eight else values_K  # float8 itself is known from capability 8.9 on alone
    return (rows, -(-chunks // WARPS)), {
        "mask": values if bitmask_OB is None else bitmask_OB,  # a pointer that is not looked at
        "start": values if start_OC is None else start_OC,
        "values": values,
        "step": values if step_O is None else step_O,
        "out": out_OI,
        "columns": columns,
        "mask_columns": -(-columns // 8),
        "chunks": chunks,
        "MASKED": bitmask_OB is not None,
        "FORM": 0 if step_O is None else 2 if eight else 1,
        "WARPS": WARPS,
    }


def unpack_weights(
    bitmask_OB: torch.Tensor | None,
    start_OC: torch.Tensor | None,
    values_K: torch.Tensor,
    step_O: torch.Tensor | None,
    out_OI: torch.Tensor,
) -> torch.Tensor:
    """`out_OI` = the dense matrix, zeros where the mask says so; codes are multiplied by their row's step, in float32.

    `start_OC`: where the survivors of every CHUNK columns of a row begin. Needs Triton, as `can_use_triton` finds it.
    """
    grid, given = launch_arguments(bitmask_OB, start_OC, values_K, step_O, out_OI)
    elsewhere = out_OI.is_cuda and not torch.compiler.is_compiling()
    with torch.cuda.device(out_OI.device) if elsewhere else nullcontext():  # Triton launches on the current one
        kernel[grid](**given, num_warps=WARPS)
    return out_OI


def unpack_weights_with_torch(
    bitmask_OB: torch.Tensor | None, values_K: torch.Tensor, step_O: torch.Tensor | None, out_OI: torch.Tensor
) -> torch.Tensor:
    """The same by torch's own operations: several kernels, and on a GPU some 15 bytes a weight of memory meanwhile."""
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
