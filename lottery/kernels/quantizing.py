"""Quantizes weights to 8-bit codes, and unpacks stored weights to the type that is multiplied. The functions take and
return numpy arrays.

Legend: O outputs (rows), I inputs (columns), B = ceil(I/8) bytes of a row's bitmask, K survivors.

The scale of a row is its greatest magnitude, as bitsandbytes stores it (LLM.int8(), Dettmers et al. 2022, section 2). A
weight is code * (scale / 127) in int8 and code * (scale / 448) in float8_e4m3fn, computed in float32. Zeros stay zeros.
Survivors that are too small for the scale of their row become zeros too, and are counted. Weights come as their bits,
as in select.py.
"""

import numpy as np
from numba import njit

from lottery.kernels import avx512
from lottery.kernels.avx512 import compress, expand
from lottery.kernels.bitmask import _bit, avx512_lanes, survivors_per_row, unpack_row, unpack_rows
from lottery.kernels.parallel import CAN_CACHE, parallel_for

# value of quantize= -> safetensors' name of the codes' type, and the code of the greatest weight of a row
QUANTIZED_DTYPES = {"int8": ("I8", 127), "fp8": ("F8_E4M3", 448)}
BF16, F16, F32, I8, F8 = range(5)
FORMS = {"BF16": BF16, "F16": F16, "F32": F32, "I8": I8, "F8_E4M3": F8}


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def _to_float(row_I, form, step, bits_I):
    """Writes the weights of a row as float32 bits into bits_I (uint32). Codes are multiplied by `step`."""
    floats_I = bits_I.view(np.float32)
    if form == BF16:
        for c in range(row_I.size):
            bits_I[c] = np.uint32(row_I[c]) << np.uint32(16)
    elif form == F16:  # a multiplication moves the exponent's bias, also of subnormal numbers
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
            # Codes below 8 have no leading one: they are multiples of 2^-9.
            floats_I[c] += np.float32(low if low < 8 else np.uint32(0)) * np.float32(2.0**-9)
        for c in range(row_I.size):
            floats_I[c] *= -step if row_I[c] & 0x80 else step


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def _mask_row(floats_I, mask_B):
    """Writes zeros for the weights that the mask removes."""
    columns = floats_I.size
    for b in range(columns >> 3):
        byte = np.uint32(mask_B[b])
        for j in range(8):
            floats_I[8 * b + j] *= np.float32((byte >> np.uint32(j)) & np.uint32(1))
    for c in range(columns & ~7, columns):
        floats_I[c] *= np.float32(_bit(mask_B[c >> 3], c & 7))


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def _row_scale(bits_I):
    """Returns the greatest magnitude of a row. Without the sign, float32 bits have the order of the magnitudes."""
    most_1 = np.zeros(1, np.uint32)
    most = np.uint32(0)
    for c in range(bits_I.size):
        most = max(most, bits_I[c] & np.uint32(0x7FFFFFFF))
    most_1[0] = most
    return most_1.view(np.float32)[0]


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def _fp8_codes(bits_I, boost, factor, codes_I):
    """Writes the float8_e4m3fn codes of a row, rounded to nearest, ties to even. Returns how many are zero."""
    floats_I = bits_I.view(np.float32)
    zeros = 0
    for c in range(bits_I.size):
        floats_I[c] = min(max(floats_I[c] * boost * factor, np.float32(-448)), np.float32(448))
    for c in range(bits_I.size):
        # A normal number is rounded by a carry into its last bit; rint rounds a subnormal one, a multiple of 2^-9.
        low = bits_I[c] & np.uint32(0x7FFFFFFF)
        normal = (
            low + np.uint32(0x7FFFF) + ((low >> np.uint32(20)) & np.uint32(1)) - np.uint32(120 << 23)
        ) >> np.uint32(20)
        small = np.uint32(np.rint(abs(floats_I[c]) * np.float32(512)))
        code = small if low < np.uint32(121 << 23) else normal
        codes_I[c] = np.uint8(code | ((bits_I[c] >> np.uint32(24)) & np.uint32(0x80) if code else np.uint32(0)))
        zeros += code == 0
    return zeros


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def _int8_codes(bits_I, boost, factor, codes_I):
    """Writes the int8 codes of a row, rounded to nearest, ties to even. Returns how many are zero."""
    floats_I = bits_I.view(np.float32)
    zeros = 0
    for c in range(bits_I.size):
        code = np.int32(np.rint(floats_I[c] * boost * factor))
        codes_I[c] = np.uint8(code)
        zeros += code == 0
    return zeros


@njit(nogil=True, cache=CAN_CACHE, inline="always")
def _append_survivors(codes_I, mask_B, wide, flat, at):
    """Writes the codes that survive into `flat`, from `at` on. Returns where they end."""
    columns, done = codes_I.size, 0
    if wide:
        step = avx512_lanes(1)
        done = columns - columns % step
        for c in range(0, done, step):
            at += compress(codes_I, np.uint64(c), mask_B, np.uint64(c >> 3), flat, at)
    # Every code is written, and `at` moves on only after a survivor: there is no branch to mispredict.
    for c in range(done, columns):
        flat[at] = codes_I[c]
        at += _bit(mask_B[c >> 3], c & 7)
    return at


@njit(nogil=True, cache=CAN_CACHE)
def _quantize(bits_OI, bitmask_OB, masked, first, last, form, fp8, wide, flat, scale_O, ends):
    """Quantizes a block of rows in place: the codes follow each other in the block's own memory, from its beginning.

    Writes to `ends` where the codes end, in bytes of `flat`, and how many survivors became zeros.
    """
    columns = bits_OI.shape[1]
    bits_I, codes_I = np.empty(columns, np.uint32), np.empty(columns, np.uint8)
    at = np.uint64(first * columns * bits_OI.itemsize)
    lost = 0
    for r in range(first, last):
        mask_B = bitmask_OB[r if masked else 0]
        _to_float(bits_OI[r], form, np.float32(1), bits_I)
        if masked:
            _mask_row(bits_I.view(np.float32), mask_B)
        scale = _row_scale(bits_I)
        scale_O[r] = scale
        # The reciprocal of a very small scale would overflow, so `boost` multiplies both the weights and the scale.
        boost = np.float32(2.0**64) if scale < np.float32(1e-30) else np.float32(1)
        factor = np.float32(0) if scale == 0 else np.float32(448 if fp8 else 127) / (scale * boost)
        zeros = _fp8_codes(bits_I, boost, factor, codes_I) if fp8 else _int8_codes(bits_I, boost, factor, codes_I)
        begin = at
        if masked:
            at = _append_survivors(codes_I, mask_B, wide, flat, at)
        else:
            flat[at : at + np.uint64(columns)] = codes_I
            at += np.uint64(columns)
        lost += zeros - (columns - np.int64(at - begin))
    ends[0], ends[1] = at, lost


def quantize(
    bits_OI: np.ndarray, bitmask_OB: np.ndarray | None, dtype: str, kind: str, wide: bool = avx512.AVAILABLE
) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Returns (codes, scale_O, number of survivors that became zeros).

    The codes are those of the survivors in row order, as uint8 pieces that follow each other; they lie in the memory of
    `bits_OI`, which is overwritten. scale_O is float32. `dtype` is safetensors' name of the type of the bits, `kind` is
    int8 or fp8, and `wide` uses AVX-512. Raises ValueError when mask and matrix do not belong together.
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
    ordered = [pieces[first] for first in sorted(pieces)]
    return [piece for piece, _ in ordered], scale_O, sum(lost for _, lost in ordered)


@njit(nogil=True, cache=CAN_CACHE)
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
        if bfloat:  # round to nearest, ties to even
            for c in range(columns):
                out_I[c] = (bits_I[c] + np.uint32(0x7FFF) + ((bits_I[c] >> np.uint32(16)) & np.uint32(1))) >> np.uint32(
                    16
                )
        else:
            for c in range(columns):
                out_I[c] = bits_I[c]


def step_sizes(scale_O: np.ndarray, kind: str) -> np.ndarray:
    """Returns the factor by which the codes of each row are multiplied, float32 [O]."""
    return scale_O / np.float32(QUANTIZED_DTYPES[kind][1])


def row_offsets(bitmask_OB: np.ndarray) -> np.ndarray:
    """Returns where the survivors of each row begin, int64 [O]."""
    kept_O = survivors_per_row(bitmask_OB)
    return np.cumsum(kept_O) - kept_O


def chunk_offsets(bitmask_OB: np.ndarray, chunk: int) -> np.ndarray:
    """Returns where the survivors of every `chunk` columns (a multiple of 8) of each row begin: int32 [O, C], or int64
    when int32 is too small."""
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
    """Writes the dense matrix into `out_OI`, with zeros for the weights that the mask removes.

    `out_OI` holds the bits of float32 (uint32) or of bfloat16 (uint16). `values_K` holds the survivors' bits, or uint8
    codes, which are multiplied by `step_O`; without a mask it is the whole matrix. `form` is safetensors' name of its
    type. `start_O` is what `row_offsets` returns. Mask and values must belong together, which is not checked.
    """
    rows, columns = out_OI.shape
    masked = bitmask_OB is not None
    mask_OB = bitmask_OB if bitmask_OB is not None else np.zeros((1, 1), np.uint8)
    start_O = start_O if start_O is not None else np.zeros(1, np.int64)
    step_O = step_O if step_O is not None else np.zeros(1, np.float32)
    bfloat = out_OI.dtype == np.uint16
    unchanged = form == ("BF16" if bfloat else "F32")

    def work(first: int, last: int) -> None:
        if unchanged and masked:
            return unpack_rows(mask_OB, first, last, start_O, values_K, out_OI, wide)
        if unchanged:
            return np.copyto(out_OI[first:last], values_K.reshape(out_OI.shape)[first:last])
        row_I = np.empty(columns, values_K.dtype)
        _unpack_weights(
            mask_OB, masked, first, last, start_O, values_K, FORMS[form], step_O, wide, bfloat, row_I, out_OI
        )  # fmt: skip

    parallel_for(rows, work, out_OI.size)
