"""The Triton kernel that multiplies a few tokens by packed weights on a GPU. It is imported only for use: Triton takes
time and memory.

Every tensor in its loop has one element for each thread, [warps, lanes], so that there is one way to lay it out and no
value moves between threads but for the count of survivors. Bits, rows and tokens are unrolled.
"""
# mypy: disable-error-code="assignment"
# Tuples grow while loops are unrolled.

import triton
import triton.language as tl


@triton.jit
def eight_columns(tile):
    """Returns the eight tensors [warps, lanes] of a tensor [warps, lanes, 8]."""
    warps: tl.constexpr = tile.shape[0]
    even, odd = tl.split(tl.reshape(tile, [warps, 32, 4, 2]))
    zero_four, two_six = tl.split(tl.reshape(even, [warps, 32, 2, 2]))
    one_five, three_seven = tl.split(tl.reshape(odd, [warps, 32, 2, 2]))
    zero, four = tl.split(zero_four)
    one, five = tl.split(one_five)
    two, six = tl.split(two_six)
    three, seven = tl.split(three_seven)
    return zero, one, two, three, four, five, six, seven


@triton.jit
def to_float(found, FORM: tl.constexpr):
    if FORM == 2:  # float8_e4m3fn by its bits, which are those of a float16 that is 256 times smaller
        half = (found.to(tl.int8, bitcast=True).to(tl.int16) << 7) & -0x4080
        found = half.to(tl.float16, bitcast=True)
    return found.to(tl.float32)


@triton.jit
def spread(byte):
    """Returns the bits 0 to 3 of each byte and its bits 4 to 7, each bit in a byte of its own."""
    return ((byte & 15) * 0x00204081) & 0x01010101, ((byte >> 4) * 0x00204081) & 0x01010101


@triton.jit
def unpack_eight(byte, first, before, FORM: tl.constexpr):
    """Returns the weights of the eight columns of each lane. `byte` is its byte of the mask, `first` points to the first
    survivor of its chunk, and `before` of them belong to the lanes before it."""
    low, high = spread(byte)
    # each byte counts the survivors before its own column: those of the lower bits, and those of the lanes before
    low_place = low * 0x01010100 + before * 0x01010101
    high_place = high * 0x01010100 + (before + ((low * 0x01010101) >> 24)) * 0x01010101
    # seven equal bits for each column: to test several bits takes the GPU one instruction, a single one takes two
    low_lives, high_lives = low * 0x7F, high * 0x7F
    weights = ()
    for bit in tl.static_range(8):
        lives = ((low_lives if bit < 4 else high_lives) & (0x7F << (bit % 4 * 8))) != 0
        place = ((low_place if bit < 4 else high_place) >> (bit % 4 * 8)) & 0xFF
        weights += (to_float(tl.load(first + place, mask=lives, other=0), FORM),)
    return weights


@triton.jit
def product_kernel(
    x, mask, start, values, step, bias, out, tokens, rows, columns, mask_columns, chunks,
    MASKED: tl.constexpr, FORM: tl.constexpr, BIASED: tl.constexpr,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, WARPS: tl.constexpr,
):  # fmt: skip
    """A program multiplies the tokens by ROWS rows. In every turn each of its warps takes a chunk of 256 columns of all
    these rows, and each lane one byte of the mask. Nothing is unpacked to memory.

    The sums are float32 and stay in registers until the last turn, one for each token, row and thread. The step of a row
    multiplies its sum and not each of its codes.

    FORM 0: values are weights. FORM 1: int8 codes. FORM 2: float8 codes.
    """
    first_row = tl.program_id(0).to(tl.int64) * ROWS
    token, index = tl.arange(0, TOKENS), tl.arange(0, ROWS)
    sums = tl.zeros((TOKENS, ROWS, WARPS, 32), tl.float32)
    for turn in range(0, chunks, WARPS):
        chunk = turn + tl.arange(0, WARPS)[:, None]
        byte_at = chunk * 32 + tl.arange(0, 32)[None, :]
        column = byte_at[:, :, None] * 8 + tl.arange(0, 8)[None, None, :]
        weights = ()
        if MASKED:
            masks = ()
            counts = tl.zeros((WARPS, 32), tl.int32)  # a byte for each row, which holds at most 31 * 8 before a lane
            for r in tl.static_range(ROWS):
                row = tl.minimum(first_row + r, rows - 1)
                byte = tl.load(mask + row * mask_columns + byte_at, mask=byte_at < mask_columns, other=0).to(tl.int32)
                low, high = spread(byte)
                counts += (((low + high) * 0x01010101) >> 24) << (8 * r)
                masks += (byte,)
            before = tl.cumsum(counts, 1) - counts
            for r in tl.static_range(ROWS):
                row = tl.minimum(first_row + r, rows - 1)
                first = values + tl.load(start + row * chunks + chunk, mask=chunk < chunks, other=0)
                weights += (unpack_eight(masks[r], first, (before >> (8 * r)) & 0xFF, FORM),)
        else:
            for r in tl.static_range(ROWS):
                row = tl.minimum(first_row + r, rows - 1)
                found = tl.load(values + row * columns + column, mask=column < columns, other=0)
                weights += (eight_columns(to_float(found, FORM)),)
        for t in tl.static_range(TOKENS):
            x_t = tl.load(x + t * columns + column, mask=(column < columns) & (t < tokens), other=0)
            x_8 = eight_columns(x_t.to(tl.float32))
            for r in tl.static_range(ROWS):
                part = x_8[0] * weights[r][0]
                for bit in tl.static_range(1, 8):
                    part += x_8[bit] * weights[r][bit]
                its = (token == t)[:, None, None, None] & (index == r)[None, :, None, None]
                sums += tl.where(its, part[None, None], 0.0)
    total = tl.sum(tl.sum(sums, 3), 2)
    row = first_row + index
    there = row < rows
    if FORM != 0:
        total *= (tl.load(step + row, mask=there, other=0) * (256 if FORM == 2 else 1))[None, :]
    if BIASED:
        total += tl.load(bias + row, mask=there, other=0).to(tl.float32)[None, :]
    out_at = token[:, None] * rows + row[None, :]
    tl.store(out + out_at, total.to(out.dtype.element_ty), mask=(token < tokens)[:, None] & there[None, :])
