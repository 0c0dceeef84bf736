"""The slow, obvious twin of 8-bit weights."""

import torch

GREATEST = {"int8": 127, "fp8": 448}


def slow_weight(codes: torch.Tensor, scale_O: torch.Tensor, kind: str) -> torch.Tensor:
    return codes.float() * (scale_O / torch.full_like(scale_O, GREATEST[kind]))[:, None]
