"""Compiles a kernel for the GPUs that there are, none of which is needed for it: python tests/support/compiled.py unpack

A JSON list of what each takes: [capability, type of the values, masked, registers, bytes of stack]; of `product`, before the
registers, also the number of tokens.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import mangle_type

from lottery.kernels import cuda, cuda_product

CAPABILITIES = (70, 75, 80, 86, 90, 100, 120)  # V100, T4, A100, RTX 30, H100 and H200, B200, RTX 50
FORMS = {"BF16": torch.bfloat16, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn}


def matrix(dtype: torch.dtype, masked: bool) -> tuple[Any, Any, Any, Any]:
    """bitmask_OB, start_OC, values_K and step_O of 16 rows of 512 columns."""
    mask = torch.zeros(16, 64, dtype=torch.uint8) if masked else None
    start = torch.zeros(16, 2, dtype=torch.int32) if masked else None
    step = None if dtype == torch.bfloat16 else torch.ones(16)
    return mask, start, torch.zeros(16 * 512, dtype=dtype), step


def resources(tokens: int, dtype: torch.dtype, masked: bool, capability: int) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread, for the arguments that the kernel gets for such a matrix. It is the product
    with so many tokens, or, of none, the kernel that unpacks."""
    of: Any = cuda_product if tokens else cuda
    assert of.is_triton_available()
    kernel = of.kernel
    own = torch.bfloat16 if capability >= 80 else torch.float16
    parts = matrix(dtype, masked)
    if tokens:
        x, bias = torch.zeros(tokens, 512, dtype=own), torch.zeros(16, dtype=own)
        _, given = cuda_product.launch_arguments(x, *parts, bias_O=bias, out_TO=torch.zeros(tokens, 16, dtype=own))
    else:
        _, given = cuda.launch_arguments(*parts, out_OI=torch.zeros(16, 512, dtype=own))
    types = {name: "constexpr" if name.isupper() else mangle_type(value) for name, value in given.items()}
    at = kernel.arg_names.index
    source = ASTSource(
        kernel,
        types,
        {(at(name),): value for name, value in given.items() if name.isupper()},
        {
            (at(name),): [["tt.divisibility", 16]]
            for name, value in given.items()
            if is_even(value) and not name.isupper()
        },
    )
    built = compile(source, GPUTarget("cuda", capability, 32), {"num_warps": of.WARPS})
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(built.asm["cubin"])
        command = (knobs.nvidia.cuobjdump.path, "-res-usage", cubin)
        used = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", used)
    assert found, used
    return int(found[1]), int(found[2])


def is_even(value: Any) -> bool:
    """Whether a launch tells the compiler that 16 divides the number, or the address."""
    return isinstance(value, torch.Tensor) or (type(value) is int and value % 16 == 0)


def unpacking() -> list[tuple[Any, ...]]:
    return [
        (capability, name, masked, *resources(0, dtype, masked, capability))
        for capability in CAPABILITIES
        for name, dtype in FORMS.items()
        for masked in (True, False)
        if masked or dtype != torch.bfloat16  # 16 bits that are not packed need no unpacking
    ]


def product() -> list[tuple[Any, ...]]:
    return [
        (capability, name, masked, tokens, *resources(tokens, dtype, masked, capability))
        for capability in CAPABILITIES
        for name, dtype in FORMS.items()
        for masked in (True, False)
        for tokens in (1, cuda_product.MOST_TOKENS)
        if name == "BF16" or (masked and tokens == 1)
    ]


if __name__ == "__main__":
    print(json.dumps({"unpack": unpacking, "product": product}[sys.argv[1]]()))
