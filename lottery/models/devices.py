"""The devices of this machine: which one computes, which number types it supports, and how much memory is free."""

import contextlib
import functools
import gc
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

import torch

from lottery.errors import InputError
from lottery.models.tensors import DTYPES
from lottery.progress import say

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def pick_device(device: str) -> str:
    """Returns `cpu` or `cuda`; for `auto` the GPU if torch can use it.

    Raises InputError when device=cuda is given and torch cannot use the GPU.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no GPU here (lottery doctor says why); give device=cpu")
    if (reason := unsupported_gpu()) is None:
        return "cuda"
    if device == "cuda":
        raise InputError(f"device=cuda: {reason}; or give device=cpu")
    say(f"warning: {reason}; everything runs on the CPU")
    return "cpu"


@functools.cache
def unsupported_gpu() -> str | None:
    """Returns why the installed torch cannot compute on this GPU, with the way out; None when it can."""
    if torch.version.hip:  # AMD's architectures have names of another kind
        return None
    major, minor = torch.cuda.get_device_capability()
    if supports(torch.cuda.get_arch_list(), major, minor):
        return None
    way = "install the cu126 build, as conda.yaml does" if major < 8 else "install a newer torch"
    return f"{torch.cuda.get_device_name()} is sm_{major}{minor}; torch (CUDA {torch.version.cuda}) has no code for it: {way}"


def supports(architectures: list[str], major: int, minor: int) -> bool:
    """Returns whether a build for these architectures runs on a device of capability `major`.`minor`.

    It runs when it holds binary code of the device's generation, or PTX of that or an older one.
    """
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        has = int("".join(c for c in number if c.isdigit()))
        if kind == "sm" and has // 10 == major and has % 10 <= minor:
            return True
        if kind == "compute" and has <= 10 * major + minor:
            return True
    return False


def computes_bfloat16(device: str) -> bool:
    """Returns whether the device computes bfloat16 itself. Emulation has a fraction of the speed of float32."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def pick_compute_dtype(dtype: str, source: str, device: str) -> str:
    """Returns the type to compute in, by its name in torch.

    `auto` means the checkpoint's own type when the device computes it well, else float16 on a GPU and float32 on a CPU.
    `source` is the checkpoint's own type, by its name in safetensors.
    """
    own = str(DTYPES[source]).removeprefix("torch.")
    if dtype not in ("auto", "source"):
        return dtype
    if dtype == "source" or own == "float32" or (own == "bfloat16" and computes_bfloat16(device)):
        return own
    return "float16" if device == "cuda" else "float32"


def free_bytes(device: str) -> int:
    """Returns the bytes of memory that are free on the device now."""
    if device == "cuda":
        gc.collect()
        with contextlib.suppress(RuntimeError):  # it fails after a failed capture of a CUDA graph
            torch.cuda.empty_cache()  # else the memory that torch keeps from earlier models counts as used
        return torch.cuda.mem_get_info()[0]
    try:
        line = next(s for s in (PROC / "meminfo").read_text().splitlines() if s.startswith("MemAvailable"))
        left = [
            int(line.split()[1]) * 1024,
            *(room for folder in cgroups() if (room := cgroup_room(folder)) is not None),
        ]
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            left.append(limit - int((PROC / "self/statm").read_text().split()[0]) * resource.getpagesize())
        return max(0, min(left))
    except (OSError, StopIteration):  # not Linux
        return 4 * 2**30


def cgroups() -> Iterator[Path]:
    """Yields the cgroups of this process that can limit memory, its own first, the root last. Slurm uses one."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP / "memory" if controllers else CGROUP
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def cgroup_room(folder: Path) -> int | None:
    """Returns the bytes that a cgroup may still use, or None when it has no limit. File cache that the kernel would
    drop counts as free."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # cgroup version 1
    ):
        with contextlib.suppress(OSError, ValueError):  # the other version, not visible in a container, or "max"
            room = int((folder / limit).read_text()) - int((folder / usage).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return room + int(stat.get(cache, 0))
    return None


@functools.cache
def hardware(device: str) -> str:
    """Returns the name of the GPU, or of the CPU with its number of threads. Speeds are comparable only within one
    name."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
