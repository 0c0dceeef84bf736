"""A few tokens are multiplied by packed weights on a GPU, straight from bitmask and survivors, in one Triton kernel.

Legend: T tokens, O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, C = ceil(I/CHUNK) chunks of
a row, K survivors.
"""

import functools
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import torch

from lottery.kernels import cuda

MOST_TOKENS = 8
WARPS = 4
ROWS = {1: 4, 2: 4, 4: 4, 8: 2}  # tokens -> rows of a program: at most four, and as many as its registers allow

kernel: Any = None  # set by `is_triton_available`


def is_triton_available() -> bool:
    """Imports the Triton kernel. Returns whether Triton is installed."""
    global kernel
    with suppress(ImportError):  # torch's CPU builds come without Triton
        from lottery.kernels import triton_product

        kernel = triton_product.product_kernel
    return kernel is not None


@functools.cache
def can_use_product(index: int, stored: torch.dtype, masked: bool, dtype: torch.dtype) -> bool:
    """Returns whether the kernel works on the GPU of that index for weights of type `stored`, with or without a mask, and
    tokens of type `dtype`. It is tried once for each combination; a failure prints a warning."""
    if torch.cuda.get_device_capability(index) < cuda.LEAST or not is_triton_available():
        return False
    attempt = partial(kernel_matches_torch, torch.device("cuda", index), stored, masked, dtype)
    return cuda.succeeds(attempt, "packed weights are unpacked before each product instead, which is slower")


def kernel_matches_torch(device: torch.device, stored: torch.dtype, masked: bool, dtype: torch.dtype) -> bool:
    """Returns whether the kernel equals torch's product of the unpacked weights in float64, up to rounding, for a small
    matrix and every number of tokens that it is compiled for."""
    bitmask_OB, start_OC, values_K, step_O = cuda.example_matrix(device, stored, masked)
    weight_OI = torch.empty(2, 1100, device=device)
    weight_IO = cuda.unpack_weights_with_torch(bitmask_OB, values_K, step_O, weight_OI).T.double()
    bias_O = torch.tensor([3, -5], dtype=dtype, device=device)
    for tokens in ROWS:
        x_TI = ((torch.arange(tokens * 1100, device=device) % 97 - 48) / 256).to(dtype).view(tokens, 1100)
        expected_TO = x_TI.double() @ weight_IO + bias_O
        found_TO = multiply(x_TI, bitmask_OB, start_OC, values_K, step_O, bias_O)
        allowed_TO = 1e-6 * (x_TI.double().abs() @ weight_IO.abs()) + torch.finfo(dtype).eps * expected_TO.abs()
        if not ((found_TO.double() - expected_TO).abs() <= allowed_TO).all():
            return False
    return True


def launch_arguments(
    x_TI: torch.Tensor,
    bitmask_OB: torch.Tensor | None,
    start_OC: torch.Tensor | None,
    values_K: torch.Tensor,
    step_O: torch.Tensor | None,
    bias_O: torch.Tensor | None,
    out_TO: torch.Tensor,
) -> tuple[tuple[int], dict[str, Any]]:
    """Returns the kernel's grid and its arguments."""
    tokens, columns = x_TI.shape
    rows = out_TO.shape[1]
    eight = values_K.dtype == torch.float8_e4m3fn
    values = values_K.view(torch.uint8) if eight else values_K  # Triton knows float8 only from capability 8.9 on
    padded = next(count for count in ROWS if count >= tokens)
    return (-(-rows // ROWS[padded]),), {
        "x": x_TI,
        "mask": values if bitmask_OB is None else bitmask_OB,  # a pointer that the kernel does not read
        "start": values if start_OC is None else start_OC,
        "values": values,
        "step": values if step_O is None else step_O,
        "bias": x_TI if bias_O is None else bias_O,
        "out": out_TO,
        "tokens": tokens,
        "rows": rows,
        "columns": columns,
        "mask_columns": -(-columns // 8),
        "chunks": -(-columns // cuda.CHUNK),
        "MASKED": bitmask_OB is not None,
        "FORM": 0 if step_O is None else 2 if eight else 1,
        "BIASED": bias_O is not None,
        "TOKENS": padded,
        "ROWS": ROWS[padded],
        "WARPS": WARPS,
    }


def multiply(
    x_TI: torch.Tensor,
    bitmask_OB: torch.Tensor | None,
    start_OC: torch.Tensor | None,
    values_K: torch.Tensor,
    step_O: torch.Tensor | None,
    bias_O: torch.Tensor | None,
) -> torch.Tensor:
    """Returns x W' + b in the type of x. The sum is float32, and so is the bias in it; it is rounded once.

    x has 1 to MOST_TOKENS tokens. W is given as `cuda.unpack_weights` takes it, codes as int8 or float8_e4m3fn. The caller
    must have asked `can_use_product`.
    """
    x_TI = x_TI.contiguous()
    rows = values_K.numel() // x_TI.shape[1] if bitmask_OB is None else len(bitmask_OB)
    out_TO = x_TI.new_empty(len(x_TI), rows)
    grid, given = launch_arguments(x_TI, bitmask_OB, start_OC, values_K, step_O, bias_O, out_TO)
    elsewhere = out_TO.is_cuda and not torch.compiler.is_compiling()
    with torch.cuda.device(out_TO.device) if elsewhere else nullcontext():  # Triton launches on the current GPU
        kernel[grid](**given, num_warps=WARPS)
    return out_TO
