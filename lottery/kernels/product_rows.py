"""The loops that multiply a few tokens by rows of stored weights, with the vector instructions of one kind of
processor.

A row's weights are decoded and multiplied in steps, and nothing is written in between. The survivors of all rows follow
each other, so that memory is read in one stream. A compiled function takes two addresses: of a `Part` (which rows of
which matrix) and of a `Call` (which activations, and where the results go).
"""

import functools
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from lottery.kernels import product_avx2, product_avx512
from lottery.kernels.parallel import CAN_CACHE
from lottery.kernels.quantizing import BF16, F16
from lottery.kernels.simd import (
    I64,
    bits_of_float,
    byte,
    half_bits_of_float,
    load,
    number,
    prefetch,
    store_16,
    store_32,
    total,
    word,
    zero_sums,
)

INSTRUCTIONS = {"avx512": product_avx512.INSTRUCTIONS, "avx2": product_avx2.INSTRUCTIONS}
ITEMSIZE = product_avx512.ITEMSIZE
AHEAD = 4096  # bytes; how far ahead survivors are asked for
SUMS = 8
TOKENS = 4  # that a decoded step is multiplied by
SIGNATURE = types.void(types.uint64, types.uint64)


class Part(IntEnum):
    """The 64-bit words that describe some rows of one matrix. Addresses are those of the first of these rows."""

    FUNCTION = 0  # address of the compiled function
    ROWS = 1
    COLUMNS = 2
    MASK = 3
    VALUES = 4
    STEP = 5  # address of one float32 per row, or 0
    BIAS = 6  # address of one float32 per row, or 0
    TABLE = 7
    ROW = 8  # the number of the first of these rows in its matrix
    MATRIX_ROWS = 9
    RESULTS_BEFORE = 10  # rows of the matrices before this one in the same call


class Call(IntEnum):
    """The 64-bit words that describe one call."""

    TOKENS = 0
    X = 1  # address of the activations, in the order that the function wants; of whole steps, padded with zeros
    X_BYTES = 2  # from one token to the next
    OUT = 3  # address of the results: those of the first matrix [T, O], then those of the second, ...
    OUT_FORM = 4  # BF16, F16 or F32


P_ROWS, P_COLUMNS, P_MASK, P_VALUES, P_STEP, P_BIAS, P_TABLE, P_ROW, P_MATRIX_ROWS, P_RESULTS_BEFORE = map(
    int, list(Part)[1:]
)
C_TOKENS, C_X, C_X_BYTES, C_OUT, C_OUT_FORM = map(int, Call)


class Kernel(NamedTuple):
    """What a compiled function is made for. Numba passes it around as a text, which it knows as a constant."""

    name: str
    form: int
    masked: bool
    bfloat: bool

    def text(self) -> str:
        return f"{self.name} {self.form} {self.masked:d} {self.bfloat:d}"

    @classmethod
    def of(cls, kind: Any) -> "Kernel":
        name, *numbers = kind.literal_value.split()
        form, masked, bfloat = map(int, numbers)
        return cls(name, form, bool(masked), bool(bfloat))


def emit_step(
    builder: Any,
    given: "Kernel",
    tokens: int,
    vectors: list[Any],
    at: Any,
    bits: Any,
    x_at: Any,
    x_bytes: Any,
    table_at: Any,
) -> Any:
    """Adds the products of one step to `vectors`, one for each token, and returns the address of what is stored next."""
    instructions = INSTRUCTIONS[given.name]
    weights = instructions.decode(builder, given.form, given.bfloat, given.masked, at, bits, table_at)
    for token in range(tokens):
        vectors[token] = instructions.add_products(builder, vectors[token], weights, x_at)
        x_at = builder.add(x_at, x_bytes)
    size = ir.Constant(I64, ITEMSIZE[given.form])
    return builder.add(at, builder.mul(builder.ctpop(bits), size))


@intrinsic(prefer_literal=True)
def add_steps(typingctx, kernel, steps, tokens, sums, at, mask_at, x_at, x_bytes, table_at):
    """Adds the products of some whole steps, and returns the sums and the address of what is stored next.

    The sum of a step and a token is number step * tokens + token.
    """
    given, count, width = Kernel.of(kernel), steps.literal_value, tokens.literal_value
    lanes = INSTRUCTIONS[given.name].lanes(given.form)
    result = types.Tuple([sums, types.uint64])

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, at, mask_at, x_at, x_bytes, table_at = arguments[3:]
        for step in range(count):
            bits = ir.Constant(I64, (1 << lanes) - 1)
            if given.masked:
                stored = load(builder, builder.add(mask_at, ir.Constant(I64, step * lanes // 8)), ir.IntType(lanes))
                bits = stored if lanes == 64 else builder.zext(stored, I64)
            if step % 2 == 0:
                prefetch(builder, builder.add(at, ir.Constant(I64, AHEAD)))
            vectors = [builder.extract_value(sums, step * width + token) for token in range(width)]
            x = builder.add(x_at, ir.Constant(I64, step * lanes * (2 if given.bfloat else 4)))
            at = emit_step(builder, given, width, vectors, at, bits, x, x_bytes, table_at)
            for token, vector in enumerate(vectors):
                sums = builder.insert_value(sums, vector, step * width + token)
        return context.make_tuple(builder, signature.return_type, [sums, at])

    return result(kernel, steps, tokens, sums, at, mask_at, x_at, x_bytes, table_at), codegen


@intrinsic(prefer_literal=True)
def add_last_step(typingctx, kernel, tokens, sums, at, bits, x_at, x_bytes, table_at):
    """Does the same with a shorter step, of which `bits` says where weights are."""
    given, width = Kernel.of(kernel), tokens.literal_value
    result = types.Tuple([sums, types.uint64])

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, at, bits, x_at, x_bytes, table_at = arguments[2:]
        vectors = [builder.extract_value(sums, token) for token in range(width)]
        at = emit_step(builder, given, width, vectors, at, bits, x_at, x_bytes, table_at)
        for token, vector in enumerate(vectors):
            sums = builder.insert_value(sums, vector, token)
        return context.make_tuple(builder, signature.return_type, [sums, at])

    return result(kernel, tokens, sums, at, bits, x_at, x_bytes, table_at), codegen


@njit(nogil=True, inline="always")
def last_bits(at, count):
    """Returns the bits of the last, shorter step of a row, of `count` columns. No byte beyond the row is read."""
    bits = np.uint64(0)
    for b in range((count + np.uint64(7)) >> np.uint64(3)):
        bits |= byte(at + np.uint64(b)) << (np.uint64(8) * np.uint64(b))
    return bits


@njit(nogil=True, inline="always")
def store_result(part, call, row, token, value):
    """Multiplies a row's sum by its step, adds its bias, and writes it in the type of the results."""
    if word(part, P_STEP):
        value *= number(word(part, P_STEP) + np.uint64(4) * row)
    if word(part, P_BIAS):
        value += number(word(part, P_BIAS) + np.uint64(4) * row)
    index = word(call, C_TOKENS) * word(part, P_RESULTS_BEFORE) + token * word(part, P_MATRIX_ROWS)
    index += word(part, P_ROW) + row
    form = word(call, C_OUT_FORM)
    if form == np.uint64(BF16):
        bits = bits_of_float(value)
        # round to nearest, ties to even; the bits of a NaN would overflow
        rounded = (bits + np.uint64(0x7FFF) + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
        store_16(word(call, C_OUT) + np.uint64(2) * index, rounded if value == value else np.uint64(0x7FC0))
    elif form == np.uint64(F16):
        store_16(word(call, C_OUT) + np.uint64(2) * index, half_bits_of_float(value))
    else:
        store_32(word(call, C_OUT) + np.uint64(4) * index, bits_of_float(value))


@functools.cache
def rows_function(name: str, form: int, masked: bool, bfloat: bool) -> Any:
    """Returns the compiled function for matrices whose values are of `form`, with or without a mask.

    Where there is a mask, 64 bytes behind the last survivor are read too (and not used): they must exist.
    """
    kernel = Kernel(name, form, masked, bfloat).text()
    floats, lanes = INSTRUCTIONS[name].floats, np.uint64(INSTRUCTIONS[name].lanes(form))
    mask_bytes, step_bytes = lanes >> np.uint64(3), lanes * np.uint64(2 if bfloat else 4)
    one, two, three, four, eight = map(np.uint64, (1, 2, 3, 4, 8))

    @cfunc(SIGNATURE, cache=CAN_CACHE)
    def rows(part, call):
        columns, tokens, table = word(part, P_COLUMNS), word(call, C_TOKENS), word(part, P_TABLE)
        x_bytes = word(call, C_X_BYTES)
        steps, rest = columns // lanes, columns % lanes
        row_bytes = (columns + np.uint64(7)) >> three
        end = word(part, P_VALUES)
        for r in range(word(part, P_ROWS)):
            row, start, token = np.uint64(r), end, np.uint64(0)
            while token < tokens:
                at, m, x = start, word(part, P_MASK) + row * row_bytes, word(call, C_X) + token * x_bytes
                sums = zero_sums(SUMS, floats)
                last = last_bits(m + steps * mask_bytes, rest) if masked else (one << rest) - one
                if tokens - token == one:
                    for _ in range(steps >> three):
                        sums, at = add_steps(kernel, 8, 1, sums, at, m, x, x_bytes, table)
                        m += eight * mask_bytes
                        x += eight * step_bytes
                    for _ in range(steps & np.uint64(7)):
                        sums, at = add_steps(kernel, 1, 1, sums, at, m, x, x_bytes, table)
                        m += mask_bytes
                        x += step_bytes
                    if rest:
                        sums, at = add_last_step(kernel, 1, sums, at, last, x, x_bytes, table)
                    store_result(part, call, row, token, total(sums, 0, 1))
                else:  # four tokens, of which those beyond the last are zeros
                    for _ in range(steps >> one):
                        sums, at = add_steps(kernel, 2, 4, sums, at, m, x, x_bytes, table)
                        m += two * mask_bytes
                        x += two * step_bytes
                    if steps & one:
                        sums, at = add_steps(kernel, 1, 4, sums, at, m, x, x_bytes, table)
                        m += mask_bytes
                        x += step_bytes
                    if rest:
                        sums, at = add_last_step(kernel, 4, sums, at, last, x, x_bytes, table)
                    store_result(part, call, row, token, total(sums, 0, 4))
                    store_result(part, call, row, token + one, total(sums, 1, 4))
                    if tokens - token > two:
                        store_result(part, call, row, token + two, total(sums, 2, 4))
                    if tokens - token > three:
                        store_result(part, call, row, token + three, total(sums, 3, 4))
                token += four
                end = at

    return rows


@functools.cache
def table(name: str, form: int) -> np.ndarray:
    """Returns the numbers that the function for `form` looks up, at an address that is a multiple of 64."""
    numbers = np.ascontiguousarray(INSTRUCTIONS[name].table(form)).view(np.uint8)
    room = np.zeros(len(numbers) + 64, np.uint8)
    first = -room.ctypes.data % 64
    room[first : first + len(numbers)] = numbers
    return room[first : first + len(numbers)]
