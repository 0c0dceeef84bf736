"""Two instructions of AVX-512 VBMI2 that a compiler does not choose by itself: `expand` spreads survivors out over a
row, `compress` moves them together.

They are LLVM intrinsics inside numba's functions. On a processor without them LLVM replaces the first by code that is
slower than the plain loops of bitmask.py, and ends the process at the second. There both names stand for plain loops,
and no other code calls them.

Legend: I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.
"""

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

# numba compiles for this processor, or for the one that NUMBA_CPU_NAME and NUMBA_CPU_FEATURES describe.
FEATURES = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
AVAILABLE = "+avx512vbmi2" in FEATURES.split(",")
BITS = 512
AHEAD = (
    1024  # bytes; `expand` asks for survivors so early, because its loads do not start the processor's own prefetching
)

binding.initialize_native_asmparser()  # without it LLVM ends the process at the first inline assembly


def lanes(itemsize: int) -> int:
    """Returns how many weights of `itemsize` bytes one instruction takes."""
    return BITS // (8 * itemsize)


def address(context: Any, builder: Any, kind: Any, array: Any, at: Any, pointee: Any) -> Any:
    """Returns LLVM's pointer to the element `at` of an array, as a pointer to a `pointee`."""
    data = context.make_array(kind)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [at]), pointee.as_pointer())


def shapes(width: int) -> tuple[Any, Any, Any]:
    """Returns LLVM's types of a vector of weights, of their bits in the mask, and of these bits as one integer."""
    count = BITS // width
    return ir.VectorType(ir.IntType(width), count), ir.VectorType(ir.IntType(1), count), ir.IntType(count)


def fetch(builder: Any, source: Any) -> None:
    """Brings what lies AHEAD bytes behind `source` into the cache. An address outside of the array does no harm."""
    number = ir.IntType(32)
    pointer = builder.bitcast(source, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read_into_every_cache = [ir.Constant(number, flag) for flag in (0, 3, 1)]
    builder.call(function, [builder.gep(pointer, [ir.Constant(ir.IntType(64), AHEAD)]), *read_into_every_cache])


@intrinsic
def expand(typingctx, values_K, at, mask_B, byte, out_I, column):
    """Writes one vector of out_I, from `column` on: the next survivor of values_K, from `at` on, for every bit of
    mask_B, from `byte` on, that is 1, and 0 for every other bit.

    Returns how many survivors were taken. No more are read.

    The zeros are those of a register that a line of assembly sets to zero, so that LLVM does not know them. If it knew
    them, it would choose the form of the instruction that writes zeros itself. That form waits for the old value of its
    register, which it does not use: a vector would take five cycles instead of two and a half (Zen 4 and Zen 5).
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        width = kinds[0].dtype.bitwidth
        vector, bits, integer = shapes(width)
        source = address(context, builder, kinds[0], arguments[0], arguments[1], ir.IntType(width))
        mask = builder.load(address(context, builder, kinds[2], arguments[2], arguments[3], integer), align=1)
        fetch(builder, source)
        name = f"llvm.masked.expandload.v{vector.count}i{width}"
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [source.type, bits, vector]), name
        )
        zeros = builder.asm(ir.FunctionType(vector, []), "vpxor ${0:x}, ${0:x}, ${0:x}", "=x", [], side_effect=False)
        spread = builder.call(function, [source, builder.bitcast(mask, bits), zeros])
        builder.store(spread, address(context, builder, kinds[4], arguments[4], arguments[5], vector), align=width // 8)
        return builder.zext(builder.ctpop(mask), ir.IntType(64))

    return types.uint64(values_K, at, mask_B, byte, out_I, column), codegen


@intrinsic
def compress(typingctx, bits_I, column, mask_B, byte, out_K, at):
    """Writes one vector of out_K, from `at` on: the weights of bits_I, from `column` on, whose bits of mask_B, from
    `byte` on, are 1, followed by zeros.

    Returns how many weights survive.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds = signature.args
        width = kinds[0].dtype.bitwidth
        vector, bits, integer = shapes(width)
        source = address(context, builder, kinds[0], arguments[0], arguments[1], vector)
        mask = builder.load(address(context, builder, kinds[2], arguments[2], arguments[3], integer), align=1)
        name = f"llvm.x86.avx512.mask.compress.v{vector.count}i{width}"
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vector, [vector, vector, bits]), name)
        weights = builder.load(source, align=width // 8)
        # The result goes to a register first. The instruction that writes it to memory itself takes hundreds of cycles
        # on some processors.
        survivors = builder.call(function, [weights, ir.Constant(vector, None), builder.bitcast(mask, bits)])
        builder.store(
            survivors, address(context, builder, kinds[4], arguments[4], arguments[5], vector), align=width // 8
        )
        return builder.zext(builder.ctpop(mask), ir.IntType(64))

    return types.uint64(bits_I, column, mask_B, byte, out_K, at), codegen


def expand_by_loop(values_K, at, mask_B, byte, out_I, column):
    """Does what `expand` does, in a loop."""
    taken = np.uint64(0)
    for j in range(BITS // (8 * out_I.itemsize)):
        out_I[column + np.uint64(j)] = 0
        if mask_B[byte + np.uint64(j >> 3)] >> (j & 7) & 1:
            out_I[column + np.uint64(j)] = values_K[at + taken]
            taken += np.uint64(1)
    return taken


def compress_by_loop(bits_I, column, mask_B, byte, out_K, at):
    """Does what `compress` does, in a loop, but leaves what follows the survivors as it was."""
    taken = np.uint64(0)
    for j in range(BITS // (8 * bits_I.itemsize)):
        if mask_B[byte + np.uint64(j >> 3)] >> (j & 7) & 1:
            out_K[at + taken] = bits_I[column + np.uint64(j)]
            taken += np.uint64(1)
    return taken


if not AVAILABLE:
    expand, compress = njit(nogil=True)(expand_by_loop), njit(nogil=True)(compress_by_loop)
