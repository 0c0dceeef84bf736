"""How x86-64 processors with AVX2 decode stored weights, eight at once: a byte of the mask chooses one of 256 shuffles,
which puts the survivors in their lanes and zeros between them.

Activations are float32.
"""

from typing import Any

import numpy as np
from llvmlite import ir

from lottery.kernels.avx512 import FEATURES
from lottery.kernels.quantizing import BF16, F8, F16, F32, I8
from lottery.kernels.simd import FLOAT, I32, I64, Instructions, call, constant, load, multiply_add
from lottery.kernels.simd import I8 as BYTE
from lottery.kernels.simd import I16 as WORD

AVAILABLE = {"+avx2", "+fma", "+f16c"} <= set(FEATURES.split(","))
LANES = 8
ZERO = 0x80  # a shuffle writes a zero where its index has this bit


def lanes(form: int) -> int:
    return LANES


def order(form: int, bfloat: bool) -> list[int]:
    return list(range(LANES))


def table(form: int) -> np.ndarray:
    """Returns the shuffle of each mask byte.

    Numbers of bfloat16 go to the upper half of a 32-bit lane, which makes float32 of them, and int8 codes to its upper
    byte. float8 codes go to the upper byte of a 16-bit lane. Indices are of bytes; of 32-bit numbers for float32.
    """
    alive = (np.arange(256)[:, None] >> np.arange(LANES)) & 1
    index = np.cumsum(alive, axis=1) - alive
    if form == F32:
        return np.where(alive, index, -1).astype(np.int32).view(np.uint8).reshape(-1)
    zero = np.full_like(index, ZERO)
    one, low, high = (np.where(alive, i, ZERO) for i in (index, 2 * index, 2 * index + 1))
    lane = {BF16: [zero, zero, low, high], I8: [zero, zero, zero, one], F16: [low, high], F8: [zero, one]}[form]
    return np.stack(lane, axis=2).astype(np.uint8).reshape(-1)


def decode(builder: Any, form: int, bfloat: bool, masked: bool, at: Any, bits: Any, table_at: Any) -> Any:
    """Returns the weights of one step as float32 numbers.

    16 bytes are read (32 of float32, 8 of codes); so many must lie behind the last survivor. Codes come multiplied by
    a power of two, which `code_scale` undoes.
    """
    floats = ir.VectorType(FLOAT, LANES)
    if form == F32:
        return decode_float32(builder, at, bits, table_at)
    width = 32 if form in (BF16, I8) else 16
    source = load(builder, at, ir.VectorType(BYTE, 8 if form in (I8, F8) else 16))
    copies = ir.Constant(ir.VectorType(I32, width), [i % source.type.count for i in range(width)])
    source = builder.shuffle_vector(source, ir.Constant(source.type, ir.Undefined), copies)
    index = load(builder, builder.add(table_at, builder.mul(bits, ir.Constant(I64, width))), source.type)
    name = "llvm.x86.avx2.pshuf.b" if width == 32 else "llvm.x86.ssse3.pshuf.b.128"
    spread = call(builder, name, source.type, [source, index])
    if form == BF16:
        return builder.bitcast(spread, floats)
    if form == I8:
        return builder.sitofp(builder.bitcast(spread, ir.VectorType(I32, LANES)), floats)
    words = builder.bitcast(spread, ir.VectorType(WORD, LANES))
    if form == F8:  # with its exponent in the place of float16's, the number is 256 times too small
        words = builder.and_(builder.ashr(words, constant(words.type, 1)), constant(words.type, 0xBFFF))
    return builder.fpext(builder.bitcast(words, ir.VectorType(ir.HalfType(), LANES)), floats)


def decode_float32(builder: Any, at: Any, bits: Any, table_at: Any) -> Any:
    kind = ir.VectorType(I32, LANES)
    index = load(builder, builder.add(table_at, builder.shl(bits, ir.Constant(I64, 5))), kind)
    spread = call(builder, "llvm.x86.avx2.permd", kind, [load(builder, at, kind), index])
    dead = builder.ashr(index, constant(kind, 31))  # all ones where the index is -1
    return builder.bitcast(builder.and_(spread, builder.not_(dead)), ir.VectorType(FLOAT, LANES))


def add_products(builder: Any, sums: Any, weights: Any, x_at: Any) -> Any:
    return multiply_add(builder, weights, load(builder, x_at, weights.type), sums)


def code_scale(form: int) -> float:
    """Returns by what `decode`'s numbers of codes are to be multiplied."""
    return {I8: 2.0**-24, F8: 2.0**8}.get(form, 1.0)


INSTRUCTIONS = Instructions(8, lanes, order, decode, add_products, table)
