"""The product of a few tokens and stored weights in plain loops, which numba compiles for any processor.

A row is unpacked into float32 numbers and multiplied by each token.
"""

import functools
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from lottery.kernels.half import float_of_half
from lottery.kernels.parallel import CAN_CACHE
from lottery.kernels.product_rows import (
    C_TOKENS,
    C_X,
    C_X_BYTES,
    ITEMSIZE,
    P_COLUMNS,
    P_MASK,
    P_ROWS,
    P_TABLE,
    P_VALUES,
    SIGNATURE,
    store_result,
)
from lottery.kernels.quantizing import BF16, F8, F16, F32, I8
from lottery.kernels.simd import FLOAT, I16, I32, I64, byte, load, number, word
from lottery.kernels.simd import I8 as BYTE


def table(form: int) -> np.ndarray:
    """Returns the float32 numbers of the 256 float8_e4m3fn codes."""
    if form != F8:
        return np.zeros(1, np.float32)
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    numbers = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    numbers[code & 127 == 127] = np.nan
    return np.where(code > 127, -numbers, numbers).astype(np.float32)


@intrinsic(prefer_literal=True)
def stored_number(typingctx, form, at, table_at):
    """Returns one stored number as float32."""
    kind = form.literal_value

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        at, table_at = arguments[1:]
        if kind == F32:
            return load(builder, at, FLOAT)
        if kind == F16:
            return float_of_half(builder, load(builder, at, I16))
        if kind == BF16:
            wide = builder.zext(load(builder, at, I16), I32)
            return builder.bitcast(builder.shl(wide, ir.Constant(I32, 16)), FLOAT)
        code = load(builder, at, BYTE)
        if kind == I8:
            return builder.sitofp(code, FLOAT)
        index = builder.shl(builder.zext(code, I64), ir.Constant(I64, 2))
        return load(builder, builder.add(table_at, index), FLOAT)

    return types.float32(form, at, table_at), codegen


@njit(nogil=True, cache=CAN_CACHE, fastmath={"reassoc", "contract"})
def dot(weights_I, x_at):
    result = np.float32(0)
    for c in range(weights_I.size):
        result += weights_I[c] * number(x_at + np.uint64(4) * np.uint64(c))
    return result


@functools.cache
def rows_function(form: int, masked: bool) -> Any:
    """Returns the compiled function for matrices whose values are of `form`, with or without a mask.

    Where there is a mask, one number behind the last survivor may be read too.
    """
    itemsize, one = np.uint64(ITEMSIZE[form]), np.uint64(1)

    @cfunc(SIGNATURE, cache=CAN_CACHE)
    def rows(part, call):
        columns, at, mask = word(part, P_COLUMNS), word(part, P_VALUES), word(part, P_MASK)
        row_bytes = (columns + np.uint64(7)) >> np.uint64(3)
        weights_I = np.empty(columns, np.float32)
        for row in range(word(part, P_ROWS)):
            if masked:
                # Every weight is written, and the position moves on only after a survivor: no branch is mispredicted.
                for c in range(columns):
                    bit = (byte(mask + (np.uint64(c) >> np.uint64(3))) >> (np.uint64(c) & np.uint64(7))) & one
                    weight = stored_number(form, at, word(part, P_TABLE))
                    weights_I[c] = weight if bit else np.float32(0)
                    at += itemsize * bit
                mask += row_bytes
            else:
                for c in range(columns):
                    weights_I[c] = stored_number(form, at + itemsize * np.uint64(c), word(part, P_TABLE))
                at += itemsize * columns
            for token in range(word(call, C_TOKENS)):
                x_at = word(call, C_X) + np.uint64(token) * word(call, C_X_BYTES)
                store_result(part, call, np.uint64(row), np.uint64(token), dot(weights_I, x_at))

    return rows
