"""The loss of a token."""

import math

import torch

from lottery.measuring import perplexity


def test_the_cross_entropy_in_place_equals_torch_s() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits_TW = torch.randn(50, 300, generator=torch.manual_seed(1)).mul(20).to(dtype)
        target_T, before = torch.arange(50) * 6, logits_TW.clone()
        expected = torch.nn.functional.cross_entropy(logits_TW.float(), target_T, reduction="none")
        torch.testing.assert_close(perplexity.token_nll(logits_TW, target_T), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(logits_TW, before)
    assert not perplexity.token_nll(torch.tensor([[1.0, math.inf]]), torch.tensor([0])).isfinite().any()
