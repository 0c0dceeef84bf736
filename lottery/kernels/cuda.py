"""Packed weights are unpacked on a GPU, in one Triton kernel, or by torch's operations where Triton does not work.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, C = ceil(I/CHUNK) chunks of a row,
K survivors.
"""

import functools
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch

from lottery.errors import is_out_of_memory
from lottery.kernels import quantizing
from lottery.progress import say

LEAST = (7, 0)  # compute capability of a V100; Triton promises 8.0 and up, but compiles for older GPUs, so it is tried
CHUNK = 256  # columns; each of the 32 lanes of a warp takes 8 of them, which is one byte of the mask
WARPS = 4

kernel: Any = None  # set by `is_triton_available`


def is_triton_available() -> bool:
    """Imports the Triton kernel. Returns whether Triton is installed."""
    global kernel
    with suppress(ImportError):  # torch's CPU builds come without Triton
        from lottery.kernels import triton_kernel

        kernel = triton_kernel.unpack_kernel
    return kernel is not None


@functools.cache
def can_use_triton(index: int, stored: torch.dtype, masked: bool, dtype: torch.dtype) -> bool:
    """Returns whether Triton works on the GPU of that index for weights of type `stored`, with or without a mask, that
    are unpacked to `dtype`. It is tried once for each combination; a failure prints a warning."""
    if torch.cuda.get_device_capability(index) < LEAST or not is_triton_available():
        return False
    attempt = partial(kernel_matches_torch, torch.device("cuda", index), stored, masked, dtype)
    return succeeds(attempt, "torch unpacks packed layers instead, which is slow")


def succeeds(attempt: Callable[[], bool], instead: str) -> bool:
    """Returns whether an attempt to use Triton gives what torch gives. A failure prints a warning, which ends with what is
    done `instead`."""
    try:
        if attempt():
            return True
        reason = "its results differ from torch's"
    except Exception as e:  # Triton raises many classes when its C compiler or Python's headers are missing
        if is_out_of_memory(e):
            raise
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    say(f"warning: Triton does not work here ({reason}); {instead}")
    return False


def example_matrix(
    device: torch.device, stored: torch.dtype, masked: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """Returns bitmask_OB, start_OC, values_K and step_O of two rows of 1,100 columns."""
    bitmask_OB = (torch.arange(2 * 138) * 37 % 256).to(torch.uint8).view(2, 138)
    bitmask_OB[:, -1] &= 0x0F
    start_OC = torch.from_numpy(quantizing.chunk_offsets(bitmask_OB.numpy(), CHUNK)).to(device)
    count = int(quantizing.row_offsets(bitmask_OB.numpy().reshape(-1, 1))[-1]) + int(bitmask_OB[-1, -1]).bit_count()
    codes = torch.arange(count if masked else 2200, device=device) % 127
    eight = stored.itemsize == 1
    values_K = codes.to(torch.uint8).view(stored) if eight else codes.to(stored)
    step_O = torch.tensor([1 / 3, -0.7], device=device) if eight else None
    return (bitmask_OB.to(device), start_OC, values_K, step_O) if masked else (None, None, values_K, step_O)


def kernel_matches_torch(device: torch.device, stored: torch.dtype, masked: bool, dtype: torch.dtype) -> bool:
    """Returns whether the kernel and torch's own operations agree to the bit, for a small matrix."""
    mask_OB, start_OC, values_K, step_O = example_matrix(device, stored, masked)
    out_OI, expected_OI = (torch.empty(2, 1100, dtype=dtype, device=device) for _ in range(2))
    unpack_weights(mask_OB, start_OC, values_K, step_O, out_OI)
    return torch.equal(out_OI, unpack_weights_with_torch(mask_OB, values_K, step_O, expected_OI))


def launch_arguments(
    bitmask_OB: torch.Tensor | None,
    start_OC: torch.Tensor | None,
    values_K: torch.Tensor,
    step_O: torch.Tensor | None,
    out_OI: torch.Tensor,
) -> tuple[tuple[int, int], dict[str, Any]]:
    """Returns the kernel's grid and its arguments."""
    rows, columns = out_OI.shape
    chunks = -(-columns // CHUNK)
    eight = values_K.dtype == torch.float8_e4m3fn
    values = values_K.view(torch.uint8) if eight else values_K  # Triton knows float8 only from capability 8.9 on
    return (rows, -(-chunks // WARPS)), {
        "mask": values if bitmask_OB is None else bitmask_OB,  # a pointer that the kernel does not read
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
    """Writes the dense matrix into `out_OI`, with zeros for the weights that the mask removes, and returns it.

    Codes are multiplied by the step of their row, in float32. `start_OC` says where the survivors of every CHUNK
    columns of a row begin. The caller must have asked `can_use_triton`.
    """
    grid, given = launch_arguments(bitmask_OB, start_OC, values_K, step_O, out_OI)
    elsewhere = out_OI.is_cuda and not torch.compiler.is_compiling()
    with torch.cuda.device(out_OI.device) if elsewhere else nullcontext():  # Triton launches on the current GPU
        kernel[grid](**given, num_warps=WARPS)
    return out_OI


def unpack_weights_with_torch(
    bitmask_OB: torch.Tensor | None, values_K: torch.Tensor, step_O: torch.Tensor | None, out_OI: torch.Tensor
) -> torch.Tensor:
    """Does the same with several operations of torch. On a GPU they take about 15 bytes a weight meanwhile."""
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
