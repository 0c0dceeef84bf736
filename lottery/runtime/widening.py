"""Computes products of bfloat16 in float32, on a processor that does not multiply bfloat16 itself.

Such a product sums in float32 and rounds once, as hardware for bfloat16 does. torch's own loop for other processors is six
times slower than its float32 product.
"""

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from lottery.models.devices import computes_bfloat16

PRODUCTS = {functional.linear, torch.bmm, torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__}
SUMS = {torch.addmm, torch.baddbmm}  # a first argument is added to the product of the others
WIDENED = 2**20  # weights of a linear layer that are in float32 at once
FEW = 4  # for fewer rows it takes longer to widen the matrix than to multiply it


class WideProducts(TorchFunctionMode):
    """Within the block of code, the products of bfloat16 tensors are computed in float32 and rounded to bfloat16."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        place = 0 if func in PRODUCTS else 1 if func in SUMS else len(args)
        x = args[place] if place < len(args) else None  # None: another function, or one whose tensors are named
        if x is None or "out" in named or x.dtype != torch.bfloat16 or x.numel() < FEW * x.shape[-1]:
            return func(*args, **named)
        if func is functional.linear:
            return linear(*args, **named)
        wide = func(*map(widened, args), **{name: widened(value) for name, value in named.items()})
        return wide.to(torch.bfloat16)


def linear(x: torch.Tensor, weight_OI: torch.Tensor, bias_O: torch.Tensor | None = None) -> torch.Tensor:
    """Returns x W' + b. A part of the matrix at a time is in memory in float32."""
    wide = x.float()
    out = x.new_empty(*x.shape[:-1], len(weight_OI))
    rows = max(1, WIDENED // weight_OI.shape[1])
    for first in range(0, len(weight_OI), rows):
        part = slice(first, first + rows)
        out[..., part] = functional.linear(
            wide, weight_OI[part].float(), None if bias_O is None else bias_O[part].float()
        )
    return out


def widened(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def wide_products(dtype: torch.dtype, device: str) -> AbstractContextManager[Any]:
    """Returns the mode where a model of this type on this device is faster with it, else one that changes nothing."""
    slow = dtype == torch.bfloat16 and device == "cpu" and not computes_bfloat16(device)
    return WideProducts() if slow else nullcontext()
