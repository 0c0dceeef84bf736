"""The likeliest token beside torch's own search in the type of the logits."""

import math

import pytest
import torch

from lottery.runtime.decoding import likeliest


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_likeliest_token_is_the_first_of_the_greatest(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):  # among 3000 rounded numbers many are equal
        logits_11W = torch.randn(1, 1, 3000, generator=generator).mul(2).round().to(dtype)
        row = logits_11W.flatten().tolist()
        assert likeliest(logits_11W).tolist() == [[row.index(max(row))]] == logits_11W.argmax(-1).tolist()
    logits_11W[0, 0, 7] = math.nan  # overflow: torch takes the NaN
    assert likeliest(logits_11W).tolist() == logits_11W.argmax(-1).tolist() == [[7]]
