"""Bytes that a loaded model takes."""

import contextlib
import ctypes
import resource
from pathlib import Path
from typing import Any

import torch

from lottery.runtime.layers import resident_tensors


def weights_bytes(model: Any) -> int:
    """Parameters and buffers as they lie on the device, a shared one once; the buffer of packed layers too."""
    return sum(tensor.nbytes for tensor in resident_tensors(model).values())


def reset_peak(device: str) -> None:
    """Begin a new peak: of CUDA's allocator, or of the process's resident set."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # what earlier work has freed and glibc has kept
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # not Linux, or not allowed: the peak is then the whole process's
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_metrics(model: Any, source_bytes: int) -> dict[str, float]:
    """`source_bytes`: the base's tensors in their own type, what `weights_ratio` compares with."""
    metrics = {"weights_bytes": weights_bytes(model), "weights_ratio": weights_bytes(model) / source_bytes}
    if model.device.type == "cuda":
        metrics["cuda_bytes"] = torch.cuda.memory_allocated()
    return metrics
