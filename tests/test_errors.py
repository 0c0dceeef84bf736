"""What fails deep inside ends as one line."""

from pathlib import Path

import pytest
import torch


@pytest.mark.parametrize(
    ("error", "said", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112 MiB"), "out of memory; give a smaller", 1),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "out of memory; give", 1),
        (RuntimeError("CUDA error: no kernel image is available"), "the GPU failed (CUDA error: no kernel image", 1),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "the GPU failed (", 1),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), "the GPU failed (", 1),
    ],
)
def test_what_fails_on_a_gpu_is_one_line(error: Exception, said: str, code: int, tmp_path: Path) -> None:
    """Also where transformers was loading a model: it is then no fault of the model's files."""
    from lottery.errors import known_failure
    from lottery.models.architecture import usable

    with pytest.raises(type(error)) as caught, usable(tmp_path, "config.json"):
        raise error
    line, exit_code = known_failure(caught.value) or ("", 0)
    assert line.startswith(said) and exit_code == code and "device=cpu" in line


def test_out_of_memory_off_a_gpu_names_no_other_device() -> None:
    from lottery.errors import known_failure

    for error in (
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GB"),
    ):
        line, code = known_failure(error) or ("", 0)
        assert line == "out of memory; give a smaller window, runtime=packed, or measure=none" and code == 1
