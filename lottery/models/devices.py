"""What this machine computes on: its devices, the types at home on them, the memory that is left."""

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
    """`auto`: the GPU where torch can use one. Raises InputError where device=cuda and it cannot."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no GPU here (lottery doctor says why); give device=cpu")
    if (reason := unsupported_gpu()) is None:
        return "cuda"
    if device == "cuda":
        raise InputError(f"device=cuda: {reason}; or give device=cpu")
    say(f"warning: {reason}; all runs on the CPU")
    return "cpu"


@functools.cache
def unsupported_gpu() -> str | None:
    """Why the installed torch cannot compute on this GPU, and the way out; None where it can."""
    if torch.version.hip:  # AMD's have names of another kind
        return None
    major, minor = torch.cuda.get_device_capability()
    if supports(torch.cuda.get_arch_list(), major, minor):
        return None
    way = "install the cu126 build, as conda.yaml does" if major < 8 else "install a newer torch"
    return f"{torch.cuda.get_device_name()} is sm_{major}{minor}; torch (CUDA {torch.version.cuda}) has no code for it: {way}"


def supports(architectures: list[str], major: int, minor: int) -> bool:
    """Whether a build for these architectures runs on the device: binary code of its generation, or PTX of an older one."""
    for architecture in architectures:
        kind, _, number = architecture.partition("_")
        has = int("".join(c for c in number if c.isdigit()))
        if kind == "sm" and has // 10 == major and has % 10 <= minor:
            return True
        if kind == "compute" and has <= 10 * major + minor:
            return True
    return False


def computes_bfloat16(device: str) -> bool:
    """Whether bfloat16 arithmetic is at home on the device, rather than emulated at a fraction of float32's speed."""
    if device == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    able = torch.cpu.get_capabilities()
    return bool(able.get("amx_bf16") or able.get("avx512_bf16"))


def pick_compute_dtype(dtype: str, source: str, device: str) -> str:
    """The type to compute in, `source`'s own where the device computes it well; names as torch has them."""
    own = str(DTYPES[source]).removeprefix("torch.")
    if dtype not in ("auto", "source"):
        return dtype
    if dtype == "source" or own == "float32" or (own == "bfloat16" and computes_bfloat16(device)):
        return own
    return "float16" if device == "cuda" else "float32"


def free_bytes(device: str) -> int:
    """Memory that is left on the device now."""
    if device == "cuda":
        gc.collect()
        with contextlib.suppress(RuntimeError):  # refused where the capture of a graph has failed
            torch.cuda.empty_cache()  # what earlier models have left with torch counts as taken
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
    """The memory groups that this process is in, its own first, the root last: Slurm confines a job by one of them."""
    for line in (PROC / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUP / "memory" if controllers else CGROUP
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root))


def cgroup_room(folder: Path) -> int | None:
    """What a group may still take; None where it has no limit. The file cache that the kernel would drop is free."""
    for limit, usage, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
    ):
        with contextlib.suppress(OSError, ValueError):  # of the other version, not visible in a container, or "max"
            room = int((folder / limit).read_text()) - int((folder / usage).read_text())
            said = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return room + int(said.get(cache, 0))
    return None


@functools.cache
def hardware(device: str) -> str:
    """The name of the GPU, or of the CPU with the threads that compute: speeds compare within one such name only."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):  # not Linux, or not x86
        name = platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
