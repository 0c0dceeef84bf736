"""A GPU, and whether torch was built for it."""

import pytest
import torch


def test_a_gpu_that_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from lottery.models.devices import supports, unsupported_gpu

    of_cuda_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]
    assert not supports(of_cuda_13, 7, 0)  # V100
    assert supports(of_cuda_13, 8, 0) and supports(of_cuda_13, 8, 9) and supports(of_cuda_13, 9, 0)
    assert supports(of_cuda_13, 12, 1) and supports(of_cuda_13, 13, 0)  # by the instructions of an older one
    assert supports(["sm_70", "sm_75"], 7, 0) and not supports(["sm_90a"], 8, 0)
    monkeypatch.setattr(torch.version, "hip", "7.0")  # AMD's architectures have other names: gfx90a
    unsupported_gpu.cache_clear()
    assert unsupported_gpu() is None
    unsupported_gpu.cache_clear()
