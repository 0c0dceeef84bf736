"""The tasks of the part `files` that are timed. Each runs in a process of its own: `python analysis/bench.py --work`.

Imports of lottery and safetensors stay inside the functions: a process's peak memory counts its imports.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkpoint import weight_files
from benchmarks.timing import peak_anonymous

BENCH = Path(__file__).resolve().parent.parent / "bench.py"
PAGE = 4096  # bytes: after one byte of each page is read, all of a mapping is in memory
READERS = 3 * (os.cpu_count() or 1)  # threads that load tensors: some wait for the disk while others compute


def read_every_page(tensor: torch.Tensor) -> int:
    """Reads one byte of each page of a tensor, so that all of it is in memory."""
    return int(tensor.reshape(-1).view(torch.uint8)[::PAGE].sum(dtype=torch.int64))


def read_all(names: list[str], read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns every tensor, in memory and read once."""

    def one(name: str) -> torch.Tensor:
        tensor = read(name)
        read_every_page(tensor)
        return tensor

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def work_prune(model: Path, ticket: Path) -> dict[str, float]:
    """From the base model's folder to a whole ticket on the disk: headers are read, weights selected and packed, files
    hashed, written and synced."""
    from lottery.files.atomic import atomic_folder
    from lottery.models.sources import open_base
    from lottery.models.targets import resolve_target
    from lottery.pruning.stream import prune_source, warm_up
    from lottery.spec import Spec
    from lottery.ticket.record import sparsities
    from lottery.ticket.stored import StoredTicket

    spec = Spec.parse(model=str(model))
    base = open_base(str(model))
    warm_up(base, spec, resolve_target("all", base.places, base.tied_head))
    with peak_anonymous() as peak:
        begin = time.perf_counter()
        base = open_base(str(model))
        chosen = resolve_target("all", base.places, base.tied_head)
        with atomic_folder(ticket, "out") as partial:
            assert partial
            prune_source(base, spec, chosen, partial)
        seconds = time.perf_counter() - begin
    stored = StoredTicket(ticket)
    targeted = {p.name for p in chosen}
    dense_bytes = sum(base.info(name).nbytes for name in targeted)
    rest_bytes = sum(base.info(p.name).nbytes for p in base.places if p.name not in targeted)
    largest = max(base.info(p.name).nbytes for p in base.places)
    return {
        "seconds": seconds,
        "peak_anon_mb": peak(),
        "peak_anon_allowed_mb": (2 * largest + 500e6) / 1e6,
        "largest_tensor_mb": largest / 1e6,
        "base_bytes": base.disk_bytes,
        "ticket_bytes": stored.disk_bytes,
        "targeted_bytes": dense_bytes,
        "packed_ratio": (stored.disk_bytes - rest_bytes) / dense_bytes,
        "sparsity_target": sparsities(stored.record)["sparsity_target"],
    }


def work_command(model: Path, ticket: Path) -> dict[str, float]:
    """The whole command `lottery prune --measure none`, from the start of its process to its end, with a store of its
    own."""
    store = f"sqlite:///{ticket.parent / 'bench.db'}"
    command = [sys.executable, "-m", "lottery", "prune", "--model", str(model), "--measure", "none"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    subprocess.run(
        [*command, "--register", "none", "--out", str(ticket)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"MLFLOW_TRACKING_URI": store},
    )
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_s": cpu}


def work_hash(model: Path, _: Path) -> dict[str, float]:
    """The sha256 of the weight files: a local folder costs this once more, as its file names do not hold the hash."""
    from lottery.files.hashes import compute_hashes

    begin = time.perf_counter()
    compute_hashes(weight_files(model))
    return {"seconds": time.perf_counter() - begin}


def work_copy(model: Path, copy: Path) -> dict[str, float]:
    """cp and fsync of the same files."""
    copy.mkdir()
    begin = time.perf_counter()
    subprocess.run(["cp", *map(str, weight_files(model)), str(copy)], check=True)
    for path in [*copy.iterdir(), copy]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return {"seconds": time.perf_counter() - begin}


def work_load_dense(model: Path, _: Path) -> dict[str, float]:
    from safetensors import safe_open

    with peak_anonymous() as peak:
        begin = time.perf_counter()
        file_of: dict[str, Any] = {}
        for path in weight_files(model):
            file: Any = safe_open(path, framework="pt")
            file_of |= dict.fromkeys(file.offset_keys(), file)
        state = read_all(list(file_of), lambda name: file_of[name].get_tensor(name))
        seconds = time.perf_counter() - begin
        time.sleep(0.05)
    return {"seconds": seconds, "tensors": len(state), "peak_anon_mb": peak()}


def work_load_ticket(_: Path, ticket: Path) -> dict[str, float]:
    from lottery.kernels import select
    from lottery.ticket.stored import StoredTicket

    select.compile_kernels(select.np.dtype("uint16"))
    with peak_anonymous() as peak:
        begin = time.perf_counter()
        stored = StoredTicket(ticket)
        state = read_all(list(stored.tensors), stored.tensor)
        seconds = time.perf_counter() - begin
        time.sleep(0.05)
    return {"seconds": seconds, "tensors": len(state), "peak_anon_mb": peak()}


WORK: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "prune": work_prune,
    "command": work_command,
    "hash": work_hash,
    "copy": work_copy,
    "load_dense": work_load_dense,
    "load_ticket": work_load_ticket,
}


def run_work(name: str, model: Path, other: Path) -> dict[str, float]:
    """Runs one task of WORK in a new process, and returns what it measured."""
    command = [sys.executable, str(BENCH), "--work", name, str(model), str(other)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])
