"""Measures the bytes that a loaded model takes."""

import contextlib
import ctypes
import resource
from pathlib import Path
from typing import Any

import torch

from lottery.runtime.layers import resident_tensors, workspaces


def weights_bytes(model: Any) -> int:
    """Returns the bytes of parameters, buffers and workspace on the device. A shared tensor counts once.

    The workspace counts although it is allocated only when a layer first needs it.
    """
    return tensor_bytes(model) + sum(workspace.nbytes for workspace in workspaces(model))


def tensor_bytes(model: Any) -> int:
    """Returns the bytes of parameters and buffers on the device, without the workspace."""
    return sum(tensor.nbytes for tensor in resident_tensors(model).values())


def reset_peak(device: str) -> None:
    """Begins a new peak of CUDA's allocator, or of the process's resident set."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError, AttributeError):  # returns memory that glibc kept after earlier work
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):  # without Linux, or without permission, the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """Returns the peak since `reset_peak`, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_metrics(model: Any, source_bytes: int) -> dict[str, float]:
    """Returns the bytes of the weights, and their ratio to `source_bytes`, the base's tensors in their own type."""
    metrics = {"weights_bytes": weights_bytes(model), "weights_ratio": weights_bytes(model) / source_bytes}
    if model.device.type == "cuda":
        metrics["cuda_bytes"] = torch.cuda.memory_allocated()
    return metrics
