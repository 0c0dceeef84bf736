"""Checks whether this machine can do the work: versions, GPU, CPU, kernels, int8, tracking store, disk.

Each check says what it found and, if that is not fine, what to do.
"""

import platform
import shutil
from dataclasses import dataclass
from importlib import metadata

import torch

from lottery.errors import InputError, MachineError
from lottery.files.home import home, make_folder
from lottery.models.devices import computes_bfloat16, unsupported_gpu
from lottery.registry.store import connect, store_name
from lottery.runtime.layers import check_int8

PACKAGES = ("lottery", "torch", "transformers", "mlflow", "safetensors", "datasets", "bitsandbytes", "numba", "numpy")
LOW_DISK = 10 * 10**9


@dataclass(frozen=True)
class Check:
    name: str
    fine: bool
    found: str


def checks() -> list[Check]:
    return [versions(), gpu(), cpu(), kernel(), int8(), store(), disk()]


def versions() -> Check:
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    absent = f"; not installed: {', '.join(missing)}" if missing else ""
    return Check(
        "versions", not set(missing) - {"lottery"}, f"Python {platform.python_version()}, {', '.join(found)}{absent}"
    )


def gpu() -> Check:
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
        return Check("GPU", True, f"none that torch sees (torch is {built}); everything runs on the CPU")
    if (reason := unsupported_gpu()) is not None:
        return Check("GPU", False, reason)
    name, (major, minor) = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    return Check("GPU", True, f"{name}, sm_{major}{minor}, supported by torch (CUDA {torch.version.cuda})")


def cpu() -> Check:
    arithmetic = (
        "native bfloat16" if computes_bfloat16("cpu") else "bfloat16 is emulated, so 16-bit models compute in float32"
    )
    return Check("CPU", True, f"{torch.get_num_threads()} threads, {arithmetic}")


def kernel() -> Check:
    """Says which kernel multiplies few tokens with runtime=sparse on this CPU, and which others it can run."""
    from lottery.kernels.product import available_kernels, pick_kernel

    try:
        chosen = pick_kernel()
    except InputError as e:
        return Check("kernel", False, str(e))
    others = [name for name in available_kernels() if name != chosen]
    rest = (
        f"; LOTTERY_KERNEL can also name {', '.join(others)}"
        if others
        else ", the only one that this processor can run"
    )
    return Check("kernel", True, f"runtime=sparse multiplies few tokens with {chosen}{rest}")


def int8() -> Check:
    device = "cuda" if torch.cuda.is_available() and unsupported_gpu() is None else "cpu"
    try:
        check_int8(device)
    except InputError as e:
        # bitsandbytes has no build for some devices: where it is not installed, everything else works
        return Check("int8", isinstance(e.__cause__, ModuleNotFoundError), str(e))
    return Check("int8", True, f"bitsandbytes computes on {device}")


def store() -> Check:
    try:
        connect()
        return Check("tracking store", True, store_name())
    except (InputError, MachineError) as e:
        return Check("tracking store", False, str(e))


def disk() -> Check:
    try:
        folder = make_folder(home(), "LOTTERY_HOME")
    except (InputError, MachineError) as e:
        return Check("disk", False, str(e))
    free = shutil.disk_usage(folder).free
    low = "" if free >= LOW_DISK else "; a 7B ticket takes about 9 GB: set LOTTERY_HOME to a larger disk"
    return Check("disk", free >= 10**8, f"{free / 1e9:.1f} GB free in {folder}{low}")
