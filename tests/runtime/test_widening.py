"""Products of bfloat16 in float32: those of torch, but for the last bit of a few."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from lottery.models.devices import computes_bfloat16
from lottery.runtime.widening import FEW, WideProducts, wide_products

SIZES = st.integers(1, 40)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def rounded_once(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> torch.Tensor:
    """The slow twin: float64, rounded once."""
    out = x.double() @ weight_OI.double().T
    return (out if bias_O is None else out + bias_O.double()).bfloat16()


@settings(deadline=None)  # the first product takes a second on a busy core
@given(SIZES, SIZES, SIZES, st.booleans())
def test_a_linear_layer(rows: int, columns: int, outputs: int, has_bias: bool) -> None:
    x, weight_OI, bias_O = drawn(rows, columns), drawn(outputs, columns), drawn(outputs) if has_bias else None
    with WideProducts():
        out = functional.linear(x, weight_OI, bias_O)
    assert out.dtype == torch.bfloat16
    if rows < FEW:
        assert torch.equal(out, functional.linear(x, weight_OI, bias_O))
        return
    torch.testing.assert_close(out, rounded_once(x, weight_OI, bias_O), rtol=2**-7, atol=1e-5)


@torch.inference_mode()
def test_every_kind_of_product_in_a_module() -> None:
    x, weight_IO, bias_O = drawn(2, 8, 16), drawn(16, 24), drawn(24)
    linear = nn.Linear(16, 24).bfloat16()
    expected = rounded_once(x, weight_IO.T, None)
    with WideProducts():
        for out in (x @ weight_IO, torch.matmul(x, weight_IO), torch.bmm(x, weight_IO.expand(2, 16, 24))):
            torch.testing.assert_close(out, expected, rtol=2**-7, atol=1e-5)
        flat = torch.addmm(bias_O, x.view(16, 16), weight_IO)
        torch.testing.assert_close(flat, rounded_once(x.view(16, 16), weight_IO.T, bias_O), rtol=2**-7, atol=1e-5)
        torch.testing.assert_close(linear(x), rounded_once(x, linear.weight, linear.bias), rtol=2**-7, atol=1e-5)
        assert torch.equal(x.float() @ weight_IO.float(), torch.matmul(x.float(), weight_IO.float()))
        assert functional.linear(x, linear.weight).dtype == torch.bfloat16
        named = functional.linear(input=x, weight=linear.weight)  # left to torch
    assert torch.equal(named, functional.linear(x, linear.weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_where_it_is_used(dtype: torch.dtype) -> None:
    slow = dtype == torch.bfloat16 and not computes_bfloat16("cpu")
    assert isinstance(wide_products(dtype, "cpu"), WideProducts if slow else nullcontext)
    assert isinstance(wide_products(dtype, "cuda"), nullcontext)
