"""The Triton kernel that unpacks weights on a GPU. It is imported only for use: Triton takes time and memory."""

import triton
import triton.language as tl


@triton.jit
def unpack_kernel(
    mask, start, values, step, out, columns, mask_columns, chunks, MASKED: tl.constexpr, FORM: tl.constexpr, WARPS: tl.constexpr
):  # fmt: skip
    """A warp unpacks a chunk of 256 columns, and each of its lanes unpacks one byte of the mask.

    The place of a survivor is the start of its chunk, plus the survivors of the lanes before, plus those of the lower
    bits of its byte. Two multiplications compute the last number for all eight bits at once, one in each of eight
    bytes.

    FORM 0: values are weights. FORM 1: int8 codes. FORM 2: float8 codes. Codes are multiplied by their row's step.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1) * WARPS + tl.arange(0, WARPS)
    byte_at = chunk[:, None] * 32 + tl.arange(0, 32)[None, :]
    bit = tl.arange(0, 8)[None, None, :]
    column = byte_at[:, :, None] * 8 + bit
    inside = column < columns
    if MASKED:
        byte = tl.load(mask + row * mask_columns + byte_at, mask=byte_at < mask_columns, other=0).to(tl.int32)
        first = values + tl.load(start + row * chunks + chunk, mask=chunk < chunks, other=0)
        low = ((byte & 15) * 0x00204081) & 0x01010101  # bits 0 to 3, each in its own byte
        high = ((byte >> 4) * 0x00204081) & 0x01010101
        count = ((low + high) * 0x01010101) >> 24
        before = tl.cumsum(count, 1) - count
        four = (low * 0x01010101) >> 24
        low = low * 0x01010100  # each byte counts the set bits below its own
        high = high * 0x01010100 + four * 0x01010101
        within = (tl.where(bit < 4, low[:, :, None], high[:, :, None]) >> ((bit & 3) * 8)) & 0xFF
        lives = (byte[:, :, None] & (1 << bit)) != 0
        found = tl.load((first[:, None] + before)[:, :, None] + within, mask=lives, other=0)
    else:
        found = tl.load(values + row * columns + column, mask=inside, other=0)
    if FORM == 0:
        value = found
    elif FORM == 1:
        value = found.to(tl.float32) * tl.load(step + row)
    else:  # any GPU can decode float8_e4m3fn by its bits, which are those of a float16 that is 256 times smaller
        half = (found.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4080
        value = half.to(tl.float16, bitcast=True).to(tl.float32) * (tl.load(step + row) * 256)
    tl.store(out + row * columns + column, value.to(out.dtype.element_ty), mask=inside)
