"""Two instructions of AVX-512 VBMI2 that a compiler does not find by itself: spread survivors out, and draw them together.

As intrinsics of LLVM inside numba's functions. Where the processor lacks them LLVM spells the one out, slower than the
plain loops of kernels.py, and gives up on the other: it ends the process. So they are then plain loops too, and not used.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# Of the processor that is compiled for: this one, or the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES describe.
FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
AVAILABLE = "+avx512vbmi2" in FEATURES.split(",")
BITS = 512


def lanes(itemsize: int) -> int:
    """How many weights of so many bytes one instruction takes."""
    return BITS // (8 * itemsize)


def address(context: Any, builder: Any, kind: Any, array: Any, at: Any, pointee: Any) -> Any:
    data = context.make_array(kind)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [at]), pointee.as_pointer())


def shapes(width: int) -> tuple[Any, Any, Any]:
    """LLVM's types of a vector of weights, of their bits in the mask, and of those bits as one integer."""
    count = BITS // width
    return ir.VectorType(ir.IntType(width), count), ir.VectorType(ir.IntType(1), count), ir.IntType(count)


@intrinsic
def expand(typingctx, values_K, at, mask_B, byte, out_I, column):
    """out_I from `column` on = the survivors from `at` on where the bits from mask_B[byte] on are 1, else 0. Returns how
    many were taken; no more are read."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        width = kinds[0].dtype.bitwidth
        vector, bits, integer = shapes(width)
        source = address(context, builder, kinds[0], arguments[0], arguments[1], ir.IntType(width))
        mask = builder.load(address(context, builder, kinds[2], arguments[2], arguments[3], integer), align=1)
        name = f"llvm.masked.expandload.v{vector.count}i{width}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [source.type, bits, vector]), name
        )
        found = builder.call(function, [source, builder.bitcast(mask, bits), ir.Constant(vector, None)])
        builder.store(found, address(context, builder, kinds[4], arguments[4], arguments[5], vector), align=width // 8)
        return builder.zext(builder.ctpop(mask), ir.IntType(64))

    return types.uint64(values_K, at, mask_B, byte, out_I, column), codegen


@intrinsic
def compress(typingctx, bits_I, column, mask_B, byte, out_K, at):
    """out_K from `at` on = the weights from `column` on whose bits from mask_B[byte] on are 1, then zeros: a whole vector
    is written. Returns how many survive."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        width = kinds[0].dtype.bitwidth
        vector, bits, integer = shapes(width)
        source = address(context, builder, kinds[0], arguments[0], arguments[1], vector)
        mask = builder.load(address(context, builder, kinds[2], arguments[2], arguments[3], integer), align=1)
        name = f"llvm.x86.avx512.mask.compress.v{vector.count}i{width}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector, vector, bits]), name)
        weights = builder.load(source, align=width // 8)
        # To a register and then to memory: the instruction that does both takes hundreds of cycles on some processors.
        found = builder.call(function, [weights, ir.Constant(vector, None), builder.bitcast(mask, bits)])
        builder.store(found, address(context, builder, kinds[4], arguments[4], arguments[5], vector), align=width // 8)
        return builder.zext(builder.ctpop(mask), ir.IntType(64))

    return types.uint64(bits_I, column, mask_B, byte, out_K, at), codegen


def expand_by_loop(values_K, at, mask_B, byte, out_I, column):
    """As `expand`."""
    taken = np.uint64(0)
    for j in range(BITS // (8 * out_I.itemsize)):
        out_I[column + np.uint64(j)] = 0
        if mask_B[byte + np.uint64(j >> 3)] >> (j & 7) & 1:
            out_I[column + np.uint64(j)] = values_K[at + taken]
            taken += np.uint64(1)
    return taken


def compress_by_loop(bits_I, column, mask_B, byte, out_K, at):
    """As `compress`, though what was behind the survivors stays."""
    taken = np.uint64(0)
    for j in range(BITS // (8 * bits_I.itemsize)):
        if mask_B[byte + np.uint64(j >> 3)] >> (j & 7) & 1:
            out_K[at + taken] = bits_I[column + np.uint64(j)]
            taken += np.uint64(1)
    return taken


if not AVAILABLE:
    expand, compress = njit(nogil=True)(expand_by_loop), njit(nogil=True)(compress_by_loop)
