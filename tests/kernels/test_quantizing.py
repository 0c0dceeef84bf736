"""8 bits: codes and wide values beside a slow, obvious twin."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.kernels import cuda, quantizing
from lottery.models.checkpoint import BITS, DTYPES
from tests.support.quantized import GREATEST, slow_weight


def slow_codes(weight_OI: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes as torch has them, scale_O) of a matrix whose removed weights are zero."""
    x = weight_OI.float()
    scale_O = x.abs().amax(1)
    factor_O = torch.where(scale_O > 0, torch.full_like(scale_O, GREATEST[kind]) / scale_O, 0)
    x = x * factor_O[:, None]
    if kind == "int8":
        return x.round().to(torch.int8), scale_O
    codes = x.clamp(-448, 448).to(torch.float8_e4m3fn)
    return torch.where(codes.float() == 0, 0, codes.float()).to(torch.float8_e4m3fn), scale_O  # no -0


def packed_mask(mask_OI: torch.Tensor) -> np.ndarray:
    return np.packbits(mask_OI.numpy(), axis=1, bitorder="little")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 200), st.sampled_from(["BF16", "F16", "F32"]), st.sampled_from(["int8", "fp8"]),
    st.floats(0, 1), st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_codes_are_those_of_the_slow_twin(
    rows: int, columns: int, dtype: str, kind: str, share: float, masked: bool, wide: bool, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    spread = torch.exp(-12 * torch.rand(rows, columns, generator=rng))  # small ones too, that round to zero
    weight = (torch.randn(rows, columns, generator=rng) * spread).to(DTYPES[dtype])
    if share > 0.8:
        weight[0] = 0
    mask = torch.rand(rows, columns, generator=rng) < share if masked else torch.ones(rows, columns, dtype=torch.bool)
    mask_OB = packed_mask(mask) if masked else None
    bits = weight.view(BITS[dtype][0]).numpy().copy()
    pieces, scale_O, lost = quantizing.quantize(bits, mask_OB, dtype, kind, wide)
    codes, scale = slow_codes(torch.where(mask, weight, 0), kind)
    found = np.concatenate(pieces)
    assert np.array_equal(scale_O, scale.numpy())
    assert np.array_equal(found, codes.view(torch.uint8)[mask].numpy())
    assert lost == int((codes.float()[mask] == 0).sum())

    start_O = quantizing.starts(mask_OB) if mask_OB is not None else None
    for out_dtype, integer in ((torch.float32, np.uint32), (torch.bfloat16, np.uint16)):
        out = np.empty((rows, columns), integer)
        quantizing.widen(
            mask_OB, start_O, found, quantizing.CODES[kind][0], quantizing.steps(scale_O, kind), out, wide
        )  # fmt: skip
        twin = slow_weight(codes, scale, kind).to(out_dtype)
        assert torch.equal(torch.from_numpy(out).view(out_dtype), torch.where(mask, twin, 0))
        if dtype != "F16" or out_dtype == torch.float32:
            values = weight[mask].view(BITS[dtype][0]).numpy()
            quantizing.widen(mask_OB, start_O, values, dtype, None, out, wide)
            assert torch.equal(torch.from_numpy(out).view(out_dtype), torch.where(mask, weight, 0).to(out_dtype))


@pytest.mark.parametrize("scale", [1e-38, 1e-44, 3e38])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rows_of_extreme_size(kind: str, scale: float) -> None:
    weight = torch.tensor([[1.0, -1.0, 0.5, 0.0]]) * scale
    codes = quantizing.quantize(weight.view(torch.uint32).numpy().copy(), None, "F32", kind)[0][0]
    full = {"int8": [127, 256 - 127], "fp8": [0x7E, 0xFE]}[kind]
    assert list(codes[:2]) == full and codes[3] == 0


def test_every_float8_is_widened_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes.view(torch.float8_e4m3fn).float().isfinite()]
    out = np.empty((1, len(codes)), np.uint32)
    quantizing.widen(None, None, codes.numpy(), "F8_E4M3", np.ones(1, np.float32), out)
    assert torch.equal(torch.from_numpy(out).view(torch.float32)[0], codes.view(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", ["BF16", "I8", "F8_E4M3"])
def test_torch_alone_widens_the_same(form: str, masked: bool) -> None:
    """What a GPU without Triton does, here on the CPU."""
    torch.manual_seed(1)
    rows, columns = 19, 77
    mask = torch.rand(rows, columns) < 0.4 if masked else torch.ones(rows, columns, dtype=torch.bool)
    values = torch.randn(int(mask.sum()))
    stored = (values * 40).to(torch.int8) if form == "I8" else values.to(DTYPES[form])
    step_O = torch.rand(rows) if form != "BF16" else None
    mask_OB = torch.from_numpy(packed_mask(mask)) if masked else None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        twin = torch.zeros(rows, columns)
        twin[mask] = stored.float()
        twin = (twin * step_O[:, None] if step_O is not None else twin).to(dtype)
        out = torch.full((rows, columns), torch.nan, dtype=dtype)
        assert torch.equal(cuda.widen_by_torch(mask_OB, stored, step_O, out), twin)
