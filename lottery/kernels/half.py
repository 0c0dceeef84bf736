"""Conversions between float16 and float32 in compiled code, also for x86-64 processors without instructions for it.

There LLVM calls functions of the compiler's library, which numba does not have, and ends the process.
"""

import platform
from typing import Any

from llvmlite import ir

from lottery.kernels.avx512 import FEATURES

NATIVE = "+f16c" in FEATURES.split(",") or platform.machine().lower() not in ("x86_64", "amd64")
FLOAT, HALF, I16, I32 = ir.FloatType(), ir.HalfType(), ir.IntType(16), ir.IntType(32)


def float_of_half(builder: Any, bits: Any) -> Any:
    """Returns the float16 number that has these 16 bits, as float32."""
    if NATIVE:
        return builder.fpext(builder.bitcast(bits, HALF), FLOAT)
    bits = builder.zext(bits, I32)
    sign = builder.shl(builder.and_(bits, I32(0x8000)), I32(16))
    # Exponent and mantissa take their places in float32; the product then corrects the exponent, of subnormal numbers too.
    moved = builder.shl(builder.and_(bits, I32(0x7FFF)), I32(13))
    scaled = builder.bitcast(builder.fmul(builder.bitcast(moved, FLOAT), ir.Constant(FLOAT, 2.0**112)), I32)
    is_finite = builder.icmp_unsigned("<", moved, I32(0x7C00 << 13))
    size = builder.select(is_finite, scaled, builder.or_(moved, I32(0x7F800000)))
    return builder.bitcast(builder.or_(size, sign), FLOAT)


def half_of_float(builder: Any, value: Any) -> Any:
    """Returns the 16 bits of the float16 number that is nearest to a float32 number; of two, that with an even last bit."""
    if NATIVE:
        return builder.bitcast(builder.fptrunc(value, HALF), I16)
    bits = builder.bitcast(value, I32)
    sign = builder.and_(builder.lshr(bits, I32(16)), I32(0x8000))
    size = builder.and_(bits, I32(0x7FFFFFFF))
    # Half of 2^-24, the least float16 number, is lost in a sum with 0.5: the sum's mantissa is the rounded subnormal.
    summed = builder.bitcast(builder.fadd(builder.bitcast(size, FLOAT), ir.Constant(FLOAT, 0.5)), I32)
    subnormal = builder.sub(summed, I32(0x3F000000))
    odd = builder.and_(builder.lshr(size, I32(13)), I32(1))
    normal = builder.lshr(builder.add(builder.add(size, I32((15 - 127 << 23) + 0xFFF)), odd), I32(13))
    is_subnormal = builder.icmp_unsigned("<", size, I32(127 - 14 << 23))
    found = builder.select(is_subnormal, subnormal, normal)
    is_nan = builder.icmp_unsigned(">", size, I32(0x7F800000))
    beyond = builder.select(is_nan, I32(0x7E00), I32(0x7C00))
    is_beyond = builder.icmp_unsigned(">=", size, I32(0x477FF000))  # 65,520 and what is greater
    found = builder.select(is_beyond, beyond, found)
    return builder.trunc(builder.or_(found, sign), I16)
