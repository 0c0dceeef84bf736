"""Vector registers for numba's functions: types for vectors, and the few operations on memory and vectors that numba
itself lacks. Addresses are plain integers.

A kernel's file says which instructions decode stored weights and multiply them (`Instructions`); the loops over rows
are written once, in product_rows.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from lottery.kernels.half import float_of_half, half_of_float

llvmlite.binding.initialize_native_target()
llvmlite.binding.initialize_native_asmparser()  # without it LLVM ends the process at the first inline assembly

FLOAT = ir.FloatType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))


class Sums(types.Type):
    """Some vectors of float32 numbers, to which products are added. Several, since an addition must wait for the one
    before it."""

    def __init__(self, count: int, floats: int) -> None:
        self.count, self.floats = count, floats
        super().__init__(name=f"Sums({count}, {floats})")


@register_model(Sums)
class SumsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Sums) -> None:
        super().__init__(manager, kind, ir.ArrayType(ir.VectorType(FLOAT, kind.floats), kind.count))


@dataclass(frozen=True)
class Instructions:
    """How one kind of processor decodes stored weights and multiplies them.

    A `form` is one of quantizing.py's (BF16, F16, F32, I8, F8). `bfloat` says that bfloat16 activations are multiplied
    as they are; otherwise they are float32.
    """

    floats: int  # float32 numbers in a register
    lanes: Callable[[int], int]  # (form) -> weights in one step
    order: Callable[[int, bool], list[int]]  # (form, bfloat) -> the columns of a step, in the order of the lanes
    decode: Callable[..., Any]  # (builder, form, bfloat, masked, at, bits, table) -> a vector with the lanes
    add_products: Callable[..., Any]  # (builder, sum, lanes, x address) -> sum
    table: Callable[[int], Any]  # (form) -> the numbers that `decode` looks up, a numpy array


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def load(builder: Any, address: Any, kind: Any) -> Any:
    return builder.load(pointer(builder, address, kind), align=1)


def constant(kind: Any, value: int | float) -> Any:
    """Returns a vector that holds `value` in each lane."""
    return ir.Constant(kind, [value] * kind.count)


def call(builder: Any, name: str, result: Any, arguments: list[Any], fastmath: tuple[str, ...] = ()) -> Any:
    """Calls an intrinsic function of LLVM."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments, fastmath=fastmath)


def prefetch(builder: Any, address: Any) -> None:
    """Asks for the memory at an address, which need not exist."""
    numbers = [ir.Constant(I32, n) for n in (0, 3, 1)]  # for reading, into all caches, data
    call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [pointer(builder, address, I8), *numbers])


def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return call(builder, f"llvm.fma.v{a.type.count}f32", a.type, [a, b, c])


def pick(builder: Any, vector: Any, indices: list[int]) -> Any:
    """Returns the lanes of `vector` at these indices."""
    return builder.shuffle_vector(
        vector, ir.Constant(vector.type, ir.Undefined), ir.Constant(ir.VectorType(I32, len(indices)), indices)
    )


@intrinsic
def word(typingctx, address, index):
    """Returns the 64-bit integer number `index` behind an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at = builder.add(arguments[0], builder.shl(arguments[1], ir.Constant(I64, 3)))
        return load(builder, at, I64)

    return types.uint64(types.uint64, types.uint64), codegen


@intrinsic
def byte(typingctx, address):
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(load(builder, arguments[0], I8), I64)

    return types.uint64(types.uint64), codegen


@intrinsic
def number(typingctx, address):
    """Returns the float32 number at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return load(builder, arguments[0], FLOAT)

    return types.float32(types.uint64), codegen


@intrinsic
def word_16(typingctx, address):
    """Returns the 16-bit integer at an address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(load(builder, arguments[0], I16), I64)

    return types.uint64(types.uint64), codegen


@intrinsic
def float_of_bits(typingctx, bits):
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.trunc(arguments[0], I32), FLOAT)

    return types.float32(types.uint64), codegen


@intrinsic
def half_of_bits(typingctx, bits):
    """Returns the float16 number that has these bits, as float32."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return float_of_half(builder, builder.trunc(arguments[0], I16))

    return types.float32(types.uint64), codegen


@intrinsic
def bits_of_float(typingctx, value):
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(builder.bitcast(arguments[0], I32), I64)

    return types.uint64(types.float32), codegen


@intrinsic
def half_bits_of_float(typingctx, value):
    """Returns the bits of the float16 number that is nearest."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.zext(half_of_float(builder, arguments[0]), I64)

    return types.uint64(types.float32), codegen


@intrinsic
def store_32(typingctx, address, value):
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(builder.trunc(arguments[1], I32), pointer(builder, arguments[0], I32), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic
def store_16(typingctx, address, value):
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(builder.trunc(arguments[1], I16), pointer(builder, arguments[0], I16), align=1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@intrinsic(prefer_literal=True)
def zero_sums(typingctx, count, floats):
    kind = Sums(count.literal_value, floats.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.ArrayType(ir.VectorType(FLOAT, kind.floats), kind.count), None)

    return kind(count, floats), codegen


@intrinsic(prefer_literal=True)
def total(typingctx, sums, first, step):
    """Returns the sum of all numbers in the vectors first, first + step, ..."""
    indices = range(first.literal_value, sums.count, step.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = [builder.extract_value(arguments[0], i) for i in indices]
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=True)
            vectors = [builder.fadd(a, b) for a, b in pairs]
        name = f"llvm.vector.reduce.fadd.v{sums.floats}f32"
        return call(builder, name, FLOAT, [ir.Constant(FLOAT, 0.0), vectors[0]], fastmath=("reassoc",))

    return types.float32(sums, first, step), codegen
