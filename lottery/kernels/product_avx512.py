"""How x86-64 processors with AVX-512 (VBMI2) decode stored weights: `vpexpand` puts 64 bytes of survivors in their
lanes, 16 to 64 weights at once.

bfloat16 activations are multiplied as they are (`vdpbf16ps`) where the processor can do it.
"""

from typing import Any

import numpy as np
from llvmlite import ir

from lottery.kernels.avx512 import FEATURES
from lottery.kernels.quantizing import BF16, F8, F16, F32, I8
from lottery.kernels.simd import FLOAT, I1, I32, I64, Instructions, call, constant, load, multiply_add, pick
from lottery.kernels.simd import I16 as WORD

AVAILABLE = {"+avx512bw", "+avx512vl", "+avx512vbmi", "+avx512vbmi2"} <= set(FEATURES.split(","))
BFLOAT = "+avx512bf16" in FEATURES.split(",")  # the processor multiplies bfloat16 numbers
ITEMSIZE = {BF16: 2, F16: 2, F32: 4, I8: 1, F8: 1}


def lanes(form: int) -> int:
    return 64 // ITEMSIZE[form]


def order(form: int, bfloat: bool) -> list[int]:
    """Returns which column of a step each lane holds.

    Bytes become 16-bit numbers by interleaving, which works within each quarter of a register; even and odd bfloat16
    numbers become float32 by a shift and by a mask.
    """
    columns = np.arange(lanes(form))
    if form in (I8, F8):
        columns = columns.reshape(4, 2, 8).transpose(1, 0, 2).reshape(-1)  # first halves of the quarters, then second
    if form in (BF16, I8, F8) and not bfloat:
        columns = columns.reshape(-1, 16, 2).transpose(0, 2, 1).reshape(-1)
    return columns.tolist()


def table(form: int) -> np.ndarray:
    """Returns the bfloat16 bits of the 128 codes that are not negative: 128 lower bytes, then 128 upper bytes.

    Both int8 codes (magnitudes up to 127) and float8_e4m3fn codes are exact in bfloat16.
    """
    if form == I8:
        numbers = np.arange(128, dtype=np.float32)
    elif form == F8:
        code = np.arange(128)
        exponent, mantissa = code >> 3, code & 7
        numbers = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
        numbers[127] = np.nan
    else:
        return np.zeros(256, np.uint8)
    bits = (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return np.concatenate([bits & 0xFF, bits >> 8]).astype(np.uint8)


def spread(builder: Any, form: int, masked: bool, at: Any, bits: Any) -> Any:
    """Returns a register with the stored weights in their lanes.

    Without a mask the lanes whose bit is 0 are not read. With one, 64 bytes are read, so as many must lie behind the
    last survivor.
    """
    count, width = lanes(form), 8 * ITEMSIZE[form]
    vector = ir.VectorType(ir.IntType(width), count)
    alive = builder.bitcast(builder.trunc(bits, ir.IntType(count)), ir.VectorType(I1, count))
    if not masked:
        return call(
            builder, f"llvm.masked.load.v{count}i{width}.p0v{count}i{width}", vector,
            [builder.inttoptr(at, vector.as_pointer()), ir.Constant(I32, 1), alive, ir.Constant(vector, None)],
        )  # fmt: skip
    letter = {8: "b", 16: "w", 32: "d"}[width]
    # On Zen 4 the instruction waits for the old value of its result; a register that was just set to zero has none.
    text = f"vpxorq $0, $0, $0\nvpexpand{letter} $1, $0 {{$2}}"
    # 8-bit masks are not needed; 16-, 32- and 64-bit ones lie in a mask register as they are.
    kind = ir.FunctionType(vector, [vector, ir.IntType(count)])
    expand = ir.InlineAsm(kind, text, "=&v,v,^Yk", side_effect=False)
    return builder.call(expand, [load(builder, at, vector), builder.trunc(bits, ir.IntType(count))])


def codes_to_bfloat16(builder: Any, form: int, codes: Any, table_at: Any) -> Any:
    """Returns the bfloat16 bits of 64 codes as 64 words, in the order that `order` describes."""
    kind = codes.type
    parts = [load(builder, builder.add(table_at, ir.Constant(I64, 64 * i)), kind) for i in range(4)]
    # The lookup takes the lower seven bits of a code. int8 codes are negative as two's complement.
    magnitude = call(builder, "llvm.abs.v64i8", kind, [codes, ir.Constant(I1, 0)]) if form == I8 else codes
    # LLVM would choose the form that overwrites a table, and load the tables again and again.
    text, constraints = "vpermi2b $3, $2, $0", "=v,0,v,v"
    lookup = ir.InlineAsm(ir.FunctionType(kind, [kind] * 3), text, constraints, side_effect=False)
    low = builder.call(lookup, [magnitude, parts[0], parts[1]])
    high = builder.call(lookup, [magnitude, parts[2], parts[3]])
    high = builder.or_(high, builder.and_(codes, constant(kind, 0x80)))
    words = []
    for half in (0, 8):
        pairs = [index for q in range(4) for j in range(8) for index in (16 * q + half + j, 64 + 16 * q + half + j)]
        both = builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, 64), pairs))
        words.append(builder.bitcast(both, ir.VectorType(WORD, 32)))
    return builder.shuffle_vector(*words, ir.Constant(ir.VectorType(I32, 64), list(range(64))))


def bfloat16_to_floats(builder: Any, words: Any) -> Any:
    """Returns the float32 numbers of bfloat16 bits: of every 32 first the even ones, then the odd ones."""
    parts = []
    for first in range(0, words.type.count, 32):
        pairs = builder.bitcast(pick(builder, words, list(range(first, first + 32))), ir.VectorType(I32, 16))
        even = builder.shl(pairs, constant(pairs.type, 16))
        odd = builder.and_(pairs, constant(pairs.type, 0xFFFF0000))
        parts.append(builder.shuffle_vector(even, odd, ir.Constant(ir.VectorType(I32, 32), list(range(32)))))
    bits = parts[0]
    if len(parts) == 2:
        bits = builder.shuffle_vector(*parts, ir.Constant(ir.VectorType(I32, 64), list(range(64))))
    return builder.bitcast(bits, ir.VectorType(FLOAT, bits.type.count))


def decode(builder: Any, form: int, bfloat: bool, masked: bool, at: Any, bits: Any, table_at: Any) -> Any:
    """Returns the weights of one step: bfloat16 bits if `bfloat`, else float32 numbers."""
    stored = spread(builder, form, masked, at, bits)
    if form == F32:
        return builder.bitcast(stored, ir.VectorType(FLOAT, 16))
    if form == F16:
        return builder.fpext(builder.bitcast(stored, ir.VectorType(ir.HalfType(), 32)), ir.VectorType(FLOAT, 32))
    words = stored if form == BF16 else codes_to_bfloat16(builder, form, stored, table_at)
    return words if bfloat else bfloat16_to_floats(builder, words)


def add_products(builder: Any, sums: Any, weights: Any, x_at: Any) -> Any:
    """Returns the 16 sums with the products of the weights and the activations at `x_at` added to them."""
    bfloat = weights.type.element == WORD
    step = 32 if bfloat else 16
    for first in range(0, weights.type.count, step):
        part = pick(builder, weights, list(range(first, first + step)))
        x = load(builder, builder.add(x_at, ir.Constant(I64, 64 * first // step)), part.type)
        if bfloat:  # llvmlite has no type for bfloat16, so that LLVM's own function cannot be named
            kind = ir.FunctionType(sums.type, [sums.type, part.type, x.type])
            sums = builder.call(
                ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", side_effect=False), [sums, part, x]
            )
        else:
            sums = multiply_add(builder, part, x, sums)
    return sums


INSTRUCTIONS = Instructions(16, lanes, order, decode, add_products, table)
