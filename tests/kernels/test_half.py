"""float16 in compiled code, with the processor's instructions and without them, beside numpy's."""

import numpy as np
import pytest
from numba import njit

from lottery.kernels import half
from lottery.kernels.simd import half_bits_of_float, half_of_bits


@pytest.mark.parametrize("native", [True, False] if half.NATIVE else [False])
def test_float16_to_float32_and_back(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half, "NATIVE", native)

    @njit
    def widen(bits_N, out_N):
        for i in range(bits_N.size):
            out_N[i] = half_of_bits(np.uint64(bits_N[i]))

    @njit
    def narrow(x_N, out_N):
        for i in range(x_N.size):
            out_N[i] = half_bits_of_float(x_N[i])

    bits = np.arange(2**16, dtype=np.uint16)
    want, got = bits.view(np.float16).astype(np.float32), np.empty(2**16, np.float32)
    widen(bits, got)
    number = ~np.isnan(want)
    assert np.array_equal(got.view(np.uint32)[number], want.view(np.uint32)[number])  # -0 too
    assert np.isnan(got[~number]).all()

    exact = want[number]
    nearby = [(exact.view(np.uint32) + np.uint32(step)).view(np.float32) for step in (1, 2**32 - 1)]
    ties = np.sort(exact)[:-1] / 2 + np.sort(exact)[1:] / 2
    random = np.random.default_rng(0).integers(0, 2**32, 10**6, dtype=np.uint32).view(np.float32)
    x = np.concatenate(
        [exact, *nearby, ties, random, np.array([65519.996, 65520, -65520, 1e30, 2**-25, 0], np.float32)]
    )
    with np.errstate(all="ignore"):
        rounded = x.astype(np.float16)
    out = np.empty(x.size, np.uint16)
    narrow(x, out)
    number = ~np.isnan(x)
    assert np.array_equal(out[number], rounded.view(np.uint16)[number])
    assert np.isnan(out.view(np.float16)[~number]).all()
