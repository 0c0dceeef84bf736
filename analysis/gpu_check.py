"""Checks a GPU in ten minutes: `make gpu-check`. It needs torch, transformers and Triton, but no MLflow and no network.

It runs the tests marked `cuda`; times the kernel that unpacks weights against torch's operations and the memory's
bandwidth, and the one that multiplies a token by packed weights against cuBLAS; says whether decoding runs as CUDA graphs; and compares whole models in the shape of Mistral 7B: dense, packed,
int8 and fp8. It prints tables and writes gpu-check.json after each part, so that an interrupted check keeps its figures.
What is not installed is named and left out. Exit code 1 says that a test failed, or that a part broke.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # lottery need not be installed

import click
import torch

from benchmarks.model import bench_model
from benchmarks.product import bench_product
from lottery.errors import InputError, MachineError
from lottery.files.atomic import atomic_write

PACKAGES = ("torch", "transformers", "triton", "bitsandbytes", "numba", "numpy")
ROWS, COLUMNS = 14336, 4096
LAUNCHES = 10  # timed together: waiting for a single one would take a part of its time
TESTS_S = 300
FORMS = ("BF16", "I8", "F8_E4M3")


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--out", type=click.Path(path_type=Path), default="gpu-check.json", show_default=True)
@click.option("--minutes", default=10.0, show_default=True, help="Begin nothing new after this time.")
@click.option("--layers", default=4, show_default=True, help="Layers of the Mistral-shaped models; Mistral 7B has 32.")
def main(out: Path, minutes: float, layers: int) -> None:
    if not torch.cuda.is_available():
        raise click.UsageError("torch finds no GPU; run this on a machine with one (nvidia-smi lists it)")
    deadline = time.monotonic() + 60 * minutes
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "machine": describe_machine,
        "tests": run_tests,
        "kernel": lambda: time_kernel("cuda"),
        "product": bench_product,
        "graphs": lambda: find_graphs("cuda"),
        "model": lambda: bench_models(layers, deadline),
    }
    found: dict[str, Any] = {}
    failed = []
    for name, part in parts.items():
        begin = time.monotonic()
        if begin > deadline:
            found[name] = {"error": f"not begun within {minutes:g} minutes"}
        else:
            try:
                found[name] = part()
            except (InputError, MachineError, RuntimeError, OSError) as e:  # the other parts are still worth their time
                found[name] = {"error": f"{type(e).__name__}: {str(e).strip().splitlines()[0][:300]}"}
        if problem := found[name].get("error"):
            failed.append(name)
            click.echo(f"{name}: {problem}")
        found[name]["seconds"] = round(time.monotonic() - begin, 1)
        atomic_write(out, (json.dumps(found, indent=1) + "\n").encode())
    click.echo(f"\nfigures: {out.absolute()}")
    if failed:
        click.echo(f"failed: {', '.join(failed)}")
        sys.exit(1)


def describe_machine() -> dict[str, Any]:
    """Returns the GPU, its memory bandwidth in bytes per second, and the versions of the packages that matter."""
    from lottery.measuring.speed import memory_bandwidth

    device = torch.cuda.get_device_properties(0)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    found: dict[str, Any] = {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "memory_gib": round(device.total_memory / 2**30, 1),
        "bandwidth": memory_bandwidth("cuda"),
        "python": sys.version.split()[0],
        **versions,
    }
    click.echo(f"{device.name}, {found['memory_gib']} GiB, reads {found['bandwidth'] / 1e12:.2f} TB/s")
    click.echo(", ".join(f"{name} {found[name]}" for name in ("python", *PACKAGES)))
    return found


def run_tests() -> dict[str, Any]:
    """Runs the tests marked `cuda`. tests/conftest.py is left out, as it needs MLflow."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.cuda" in path.read_text())
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "-m", "cuda", "-ra", *files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if not torch.cuda.is_available():
        environment["TRITON_INTERPRET"] = "1"
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TESTS_S)
    except subprocess.TimeoutExpired:
        return {"error": f"the tests did not end within {TESTS_S} seconds"}
    last = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout)}
    click.echo(f"tests marked cuda: {last}")
    for line in re.findall(r"^SKIPPED.*", done.stdout, re.MULTILINE):
        click.echo(f"  {line}")
    if not counts.get("passed"):
        return {**counts, "error": f"no test passed: {last}"}
    if done.returncode:
        click.echo(done.stdout[-4000:] + done.stderr[-2000:])
        return {**counts, "error": f"pytest ended with {done.returncode}: {last}"}
    return counts


def time_kernel(device: str, rows: int = ROWS, columns: int = COLUMNS) -> dict[str, Any]:
    """Times unpacking one matrix at 50%: in one kernel, and by torch's operations, in seconds.

    The floor is the time in which a plain copy moves as many bytes as must move: mask, survivors and the dense matrix.
    """
    from lottery.kernels import cuda, quantizing
    from lottery.models.tensors import DTYPES

    random = torch.Generator().manual_seed(0)
    lives_OI = torch.rand(rows, columns, generator=random) < 0.5
    packed = packbits(lives_OI)
    start_OC = torch.from_numpy(quantizing.chunk_offsets(packed.numpy(), cuda.CHUNK)).to(device)
    mask_OB, count = packed.to(device), int(lives_OI.sum())
    out_OI = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    copied = copy_bandwidth(device)
    found: dict[str, Any] = {"copy_bandwidth": copied}
    click.echo(
        f"unpacking {rows} x {columns} at 50% to bfloat16; a copy moves {copied / 1e12:.2f} TB/s, read and written"
    )
    for form in FORMS:
        stored = DTYPES[form]
        codes = torch.randint(0, 127, (count,), generator=random, dtype=torch.uint8)
        values_K = (codes.to(stored) if form == "BF16" else codes.view(stored)).to(device)
        step_O = None if form == "BF16" else torch.rand(rows, generator=random).to(device)
        found[form] = times = {
            "floor": (mask_OB.nbytes + start_OC.nbytes + values_K.nbytes + out_OI.nbytes) / copied,
            "torch": median_seconds(partial(cuda.unpack_weights_with_torch, mask_OB, values_K, step_O, out_OI)),
        }
        told = "does not work here"
        if device == "cuda" and cuda.can_use_triton(0, stored, True, torch.bfloat16):
            kernel = median_seconds(partial(cuda.unpack_weights, mask_OB, start_OC, values_K, step_O, out_OI))
            times["kernel"] = kernel
            told = f"{1e6 * kernel:.0f} us, {times['floor'] / kernel:.2f} of a copy's speed, {times['torch'] / kernel:.1f} times as fast as torch"
        click.echo(f"  {form}: kernel {told}; torch {1e6 * times['torch']:.0f} us")
    if device == "cuda" and any("kernel" not in found[form] for form in FORMS):
        found["error"] = "the Triton kernel does not work here"
    return found


def packbits(lives_OI: torch.Tensor) -> torch.Tensor:
    import numpy as np

    return torch.from_numpy(np.packbits(lives_OI.numpy(), axis=1, bitorder="little"))


def copy_bandwidth(device: str) -> float:
    """Returns the bytes per second that a copy of 512 MB reads and writes."""
    source = torch.ones(2**27, dtype=torch.float32, device=device)
    dest = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(lambda: dest.copy_(source))


def median_seconds(work: Callable[[], Any]) -> float:
    """Returns the seconds of a call: the median of 7 times of ten calls each, after one that is not counted."""
    times = []
    for _ in range(8):
        synchronize()
        begin = time.perf_counter()
        for _ in range(LAUNCHES):
            work()
        synchronize()
        times.append((time.perf_counter() - begin) / LAUNCHES)
    return median(times[1:])


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def find_graphs(device: str) -> dict[str, Any]:
    """Says whether decoding the embedded model runs as a CUDA graph, and how fast it is with and without."""
    from lottery.models.checkpoint import BUILTIN
    from lottery.models.sources import open_base
    from lottery.runtime import load
    from lottery.runtime.decoding import Decoder

    base = open_base(str(BUILTIN))
    model = load.load_model(base, list(base.tensors), "bfloat16", device, "dense")
    ids_1T = torch.arange(5, 69, device=device)[None]
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for name, graphs in (("step by step", False), ("graph", None)):
            decoder = Decoder(model, 256, graphs=graphs)
            token_11 = decoder.begin(ids_1T)
            for _ in range(8):
                token_11 = decoder.next(token_11)
            synchronize()
            begin = time.perf_counter()
            for _ in range(100):
                token_11 = decoder.next(token_11)
            synchronize()
            found[name] = 100 / (time.perf_counter() - begin)
        found["in_use"] = decoder.graph is not None or decoder.step is not model
    click.echo(
        f"CUDA graphs in use: {'yes' if found['in_use'] else 'no'}; the embedded model decodes {found['graph']:,.0f} tok/s "
        f"with them, {found['step by step']:,.0f} step by step"
    )
    if not found["in_use"]:
        found["error"] = "decoding does not run as a CUDA graph"
    return found


def bench_models(layers: int, deadline: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return bench_model(Path(folder), layers, deadline)


if __name__ == "__main__":
    main()
