"""The machine code of unpacking with AVX-512, and what it reads."""

import ctypes
import mmap

import numpy as np
import pytest
from numba import njit

from lottery.kernels import avx512, bitmask, quantizing

WIDTHS = {"vpexpandb": np.uint8, "vpexpandw": np.uint16, "vpexpandd": np.uint32}
needs_avx512 = pytest.mark.skipif(not avx512.AVAILABLE, reason="needs a processor with AVX-512 VBMI2")


@needs_avx512
@pytest.mark.parametrize("instruction", WIDTHS)
def test_expanding_waits_for_no_old_register_and_fetches_ahead(instruction: str) -> None:
    kernel = njit(nogil=True)(bitmask._unpack_wide.py_func)  # compiled anew: a cached kernel does not show its code
    kernel(
        np.full((1, 64), 255, np.uint8),
        0,
        1,
        np.zeros(1, np.int64),
        np.ones(512, WIDTHS[instruction]),
        np.empty((1, 512), WIDTHS[instruction]),
    )
    (code,) = kernel.inspect_asm().values()
    lines = [line.split() for line in code.splitlines()]
    found = [line for line in lines if line and line[0] == instruction]
    assert found and not any("{z}" in word for line in found for word in line)
    assert any(line and line[0] == "prefetcht0" and line[1].startswith("1024(") for line in lines)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(("form", "dtype"), [("BF16", np.uint16), ("F32", np.uint32), ("I8", np.uint8)])
def test_nothing_is_read_beyond_the_last_survivor(form: str, dtype: type, wide: bool) -> None:
    """The survivors end where a page ends, and the next page may not be read: the process would end."""
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    forbid, allow = 0, mmap.PROT_READ | mmap.PROT_WRITE
    assert libc.mprotect(ctypes.c_void_p(at + mmap.PAGESIZE), mmap.PAGESIZE, forbid) == 0
    try:
        lives_OI = np.random.default_rng(0).random((3, 193)) < 0.4
        count = int(lives_OI.sum())
        page: np.ndarray = np.frombuffer(memory, dtype, mmap.PAGESIZE // np.dtype(dtype).itemsize)
        values_K = page[len(page) - count :]
        values_K[:] = np.arange(1, count + 1)
        twin_OI: np.ndarray = np.zeros(lives_OI.shape, dtype)
        twin_OI[lives_OI] = values_K
        mask_OB = np.packbits(lives_OI, axis=1, bitorder="little")
        assert np.array_equal(bitmask.unpack(mask_OB, values_K, 193, wide), twin_OI)
        out_OI = np.empty((3, 193), np.uint32)
        step_O = np.ones(3, np.float32) if form == "I8" else None
        quantizing.unpack_weights(mask_OB, quantizing.row_offsets(mask_OB), values_K, form, step_O, out_OI, wide)
        assert np.array_equal(out_OI != 0, lives_OI)
    finally:
        libc.mprotect(ctypes.c_void_p(at + mmap.PAGESIZE), mmap.PAGESIZE, allow)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_bfloat16_keeps_its_bits_whatever_they_are(masked: bool, wide: bool) -> None:
    """Also those of a NaN, with one row whose weights are all removed."""
    bits_OI = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    lives_OI = np.ones((257, 256), bool)
    lives_OI[-1] = False
    twin_OI = np.vstack([bits_OI, np.zeros((1, 256), np.uint16)])
    mask_OB = np.packbits(lives_OI, axis=1, bitorder="little") if masked else None
    start_O = quantizing.row_offsets(mask_OB) if mask_OB is not None else None
    out_OI = np.empty((257, 256), np.uint16)
    values_K = bits_OI.reshape(-1) if masked else twin_OI.reshape(-1)
    quantizing.unpack_weights(mask_OB, start_O, values_K, "BF16", None, out_OI, wide)
    assert np.array_equal(out_OI, twin_OI)
