"""8-bit codes of weights, and any stored weights widened to what is multiplied. Arrays only: numpy in, numpy out.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.

A row's scale is its greatest magnitude, as bitsandbytes keeps it (LLM.int8(), Dettmers et al. 2022, section 2): weight =
code * (scale / 127) in int8, code * (scale / 448) in float8_e4m3fn, computed in float32. Zeros stay zeros; survivors too
small for the row's scale become zeros, and are counted apart. Weights come as their bits, as in kernels.py.
"""

import numpy as np
from numba import njit

from lottery.kernels import avx512
from lottery.kernels.avx512 import compress, expand
from lottery.kernels.bitmask import _bit, avx512_lanes, survivors_per_row, unpack_row
from lottery.kernels.parallel import parallel_for

# quantize= -> safetensors' name of its codes, and the code of a row's greatest weight
QUANTIZED_DTYPES = {"int8": ("I8", 127), "fp8": ("F8_E4M3", 448)}
BF16, F16, F32, I8, F8 = range(5)
FORMS = {"BF16": BF16, "F16": F16, "F32": F32, "I8": I8, "F8_E4M3": F8}


@njit(nogil=True, cache=True, inline="always")
def _to_float(row_I, form, step, bits_I):
    """bits_I (uint32) = the float32 bits of what a row holds; codes are multiplied by their step."""
    floats_I = bits_I.view(np.float32)
    if form == BF16:
        for c in range(row_I.size):
            bits_I[c] = np.uint32(row_I[c]) << np.uint32(16)
    elif form == F16:  # the exponent's bias moved by a multiplication, which is right for subnormal numbers too
        for c in range(row_I.size):
            bits_I[c] = np.uint32(row_I[c] & 0x7FFF) << np.uint32(13)
        for c in range(row_I.size):
            floats_I[c] *= np.float32(2.0**112)
        for c in range(row_I.size):
            bits_I[c] |= np.uint32(row_I[c] & 0x8000) << np.uint32(16)
    elif form == F32:
        for c in range(row_I.size):
            bits_I[c] = np.uint32(row_I[c])
    elif form == I8:
        for c in range(row_I.size):
            floats_I[c] = np.float32(np.int8(row_I[c])) * step
    else:
        for c in range(row_I.size):
            low = np.uint32(row_I[c] & 0x7F)
            normal = (low << np.uint32(20)) + np.uint32(120 << 23)
            bits_I[c] = normal if low >= 8 else np.uint32(0)
            # below 8 there is no leading one: multiples of 2^-9
            floats_I[c] += np.float32(low if low < 8 else np.uint32(0)) * np.float32(2.0**-9)
        for c in range(row_I.size):
            floats_I[c] *= -step if row_I[c] & 0x80 else step


@njit(nogil=True, cache=True)
def _quantize(bits_OI, bitmask_OB, masked, first, last, form, fp8, wide, flat, scale_O, ends):
    """In place: the codes of a block of rows lie one behind the other in the block's own memory, from its beginning."""
    columns = bits_OI.shape[1]
    bits_I, codes_I = np.empty(columns, np.uint32), np.empty(columns, np.uint8)
    floats_I = bits_I.view(np.float32)
    at = np.uint64(first * columns * bits_OI.itemsize)
    lost = 0
    for r in range(first, last):
        mask_B = bitmask_OB[r if masked else 0]
        _to_float(bits_OI[r], form, np.float32(1), bits_I)
        if masked:
            for b in range(columns >> 3):
                byte = np.uint32(mask_B[b])
                for j in range(8):
                    floats_I[8 * b + j] *= np.float32((byte >> np.uint32(j)) & np.uint32(1))
            for c in range(columns & ~7, columns):
                floats_I[c] *= np.float32(_bit(mask_B[c >> 3], c & 7))
        most = np.uint32(0)
        for c in range(columns):  # ordered as magnitudes are
            most = max(most, bits_I[c] & np.uint32(0x7FFFFFFF))
        bits_I_of_most = np.empty(1, np.uint32)
        bits_I_of_most[0] = most
        scale = bits_I_of_most.view(np.float32)[0]
        scale_O[r] = scale
        # of a row so small that its reciprocal would overflow both sides are multiplied
        boost = np.float32(2.0**64) if scale < np.float32(1e-30) else np.float32(1)
        factor = np.float32(0) if scale == 0 else np.float32(448 if fp8 else 127) / (scale * boost)
        zeros = 0
        if fp8:
            for c in range(columns):
                floats_I[c] = min(max(floats_I[c] * boost * factor, np.float32(-448)), np.float32(448))
            for c in range(columns):
                # nearest, ties to even: of a normal number by carrying into its last bit, of a small one by adding 2^14
                low = bits_I[c] & np.uint32(0x7FFFFFFF)
                normal = (
                    low + np.uint32(0x7FFFF) + ((low >> np.uint32(20)) & np.uint32(1)) - np.uint32(120 << 23)
                ) >> np.uint32(20)
                small = np.uint32(np.rint(abs(floats_I[c]) * np.float32(512)))
                code = small if low < np.uint32(121 << 23) else normal
                codes_I[c] = np.uint8(code | ((bits_I[c] >> np.uint32(24)) & np.uint32(0x80) if code else np.uint32(0)))
                zeros += code == 0
        else:
            for c in range(columns):
                code = np.int32(np.rint(floats_I[c] * boost * factor))
                codes_I[c] = np.uint8(code)
                zeros += code == 0
        begin = at
        if not masked:
            flat[at : at + np.uint64(columns)] = codes_I
            at += np.uint64(columns)
        else:
            done = 0
            if wide:
                step = avx512_lanes(1)
                done = columns - columns % step
                for c in range(0, done, step):
                    at += compress(codes_I, np.uint64(c), mask_B, np.uint64(c >> 3), flat, at)
            for c in range(done, columns):  # written always, kept only where the weight lives: no branch to mispredict
                flat[at] = codes_I[c]
                at += _bit(mask_B[c >> 3], c & 7)
        lost += zeros - (columns - np.int64(at - begin))
    ends[0], ends[1] = at, lost


def quantize(
    bits_OI: np.ndarray, bitmask_OB: np.ndarray | None, dtype: str, kind: str, wide: bool = avx512.AVAILABLE
) -> tuple[list[np.ndarray], np.ndarray, int]:
    """(codes of the survivors in row order, uint8 pieces to be put one behind the other; scale_O float32; how many
    survivors became zeros). `dtype`: what the bits are of; `kind`: int8 or fp8.

    The codes lie in the memory of `bits_OI`, which is overwritten.
    """
    rows, columns = bits_OI.shape
    masked = bitmask_OB is not None
    if bitmask_OB is not None and bitmask_OB.shape != (rows, -(-columns // 8)):
        raise ValueError("bitmask and matrix do not belong together")
    mask_OB = bitmask_OB if bitmask_OB is not None else np.zeros((1, 1), np.uint8)
    flat = bits_OI.reshape(-1).view(np.uint8)
    scale_O = np.empty(rows, np.float32)
    pieces: dict[int, tuple[np.ndarray, int]] = {}

    def work(first: int, last: int) -> None:
        ends = np.zeros(2, np.int64)
        _quantize(bits_OI, mask_OB, masked, first, last, FORMS[dtype], kind == "fp8", wide, flat, scale_O, ends)
        pieces[first] = flat[first * columns * bits_OI.itemsize : int(ends[0])], int(ends[1])

    parallel_for(rows, work, bits_OI.size)
    found = [pieces[first] for first in sorted(pieces)]
    return [piece for piece, _ in found], scale_O, sum(lost for _, lost in found)


@njit(nogil=True, cache=True)
def _unpack_weights(bitmask_OB, masked, first, last, start_O, values, form, step_O, wide, bfloat, row_I, out_OI):
    columns = out_OI.shape[1]
    bits_I = np.empty(columns, np.uint32)
    for r in range(first, last):
        step = step_O[r] if form >= I8 else np.float32(1)
        if masked:
            mask_B = bitmask_OB[r]
            if wide:
                at = np.uint64(start_O[r])
                lanes = avx512_lanes(values.itemsize)
                done = columns - columns % lanes
                for c in range(0, done, lanes):
                    at += expand(values, at, mask_B, np.uint64(c >> 3), row_I, np.uint64(c))
                for c in range(done, columns):
                    row_I[c] = 0
                    if _bit(mask_B[c >> 3], c & 7):
                        row_I[c] = values[at]
                        at += np.uint64(1)
            else:
                unpack_row(mask_B, values, start_O[r], row_I)
            _to_float(row_I, form, step, bits_I)
        else:
            _to_float(values[r * columns : (r + 1) * columns], form, step, bits_I)
        out_I = out_OI[r]
        if bfloat:  # nearest, ties to even
            for c in range(columns):
                out_I[c] = (bits_I[c] + np.uint32(0x7FFF) + ((bits_I[c] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(
                    16
                )
        else:
            for c in range(columns):
                out_I[c] = bits_I[c]


def step_sizes(scale_O: np.ndarray, kind: str) -> np.ndarray:
    """What a code of each row is multiplied by; float32 [O]."""
    return scale_O / np.float32(QUANTIZED_DTYPES[kind][1])


def row_offsets(bitmask_OB: np.ndarray) -> np.ndarray:
    """Where the survivors of each row begin; int64 [O]."""
    kept_O = survivors_per_row(bitmask_OB)
    return np.cumsum(kept_O) - kept_O


def chunk_offsets(bitmask_OB: np.ndarray, chunk: int) -> np.ndarray:
    """Where the survivors of every `chunk` columns (a multiple of 8) of each row begin; int32 [O, C], int64 where that is
    too little."""
    rows, width = bitmask_OB.shape
    whole_OB = np.pad(bitmask_OB, ((0, 0), (0, -width % (chunk // 8))))
    start_OC = row_offsets(whole_OB.reshape(-1, chunk // 8)).reshape(rows, -1)
    return start_OC.astype(np.int32) if not start_OC.size or start_OC[-1, -1] < 2**31 else start_OC


def unpack_weights(
    bitmask_OB: np.ndarray | None,
    start_O: np.ndarray | None,
    values_K: np.ndarray,
    form: str,
    step_O: np.ndarray | None,
    out_OI: np.ndarray,
    wide: bool = avx512.AVAILABLE,
) -> None:
    """The dense matrix in `out_OI`, bits of float32 (uint32) or of bfloat16 (uint16), zeros where the mask says so.

    `values_K`: the survivors' bits, or uint8 codes to be multiplied by `step_O`; `form`: safetensors' name of their type.
    Without a mask they are the whole matrix. `start_O` as of `row_offsets`; mask and values must belong together.
    """
    rows, columns = out_OI.shape
    masked = bitmask_OB is not None
    mask_OB = bitmask_OB if bitmask_OB is not None else np.zeros((1, 1), np.uint8)
    start_O = start_O if start_O is not None else np.zeros(1, np.int64)
    step_O = step_O if step_O is not None else np.zeros(1, np.float32)
    bfloat = out_OI.dtype == np.uint16

    def work(first: int, last: int) -> None:
        row_I = np.empty(columns, values_K.dtype)
        _unpack_weights(
            mask_OB, masked, first, last, start_O, values_K, FORMS[form], step_O, wide, bfloat, row_I, out_OI
        )  # fmt: skip

    parallel_for(rows, work, out_OI.size)
