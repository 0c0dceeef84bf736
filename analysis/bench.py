"""How fast and how small, each beside a peer or a floor that the same run measures: python analysis/bench.py

files     a Mistral-7B-shaped bfloat16 checkpoint of random weights (a slice of 3 GB; --full: all 7.24 B parameters), all
          of it pruned to 50%: against cp and fsync of the same files; the ticket loaded, against the dense files
kernels   one 14336 x 4096 bfloat16 matrix at 50%: against torch's own pruning, a k-th value, a plain copy
packed    one linear layer, 14336 x 4096 at 50%, whose weights stay packed in memory: against a dense layer in the type that
          is fastest here, for one token (decode) and for 512 (prefill)
model     the same checkpoint (one layer of it; --full: all 32) dense, and pruned to 50% and in 8 bits by either runtime: bytes
          of the weights and peak memory, prefill, decoding against the dense model and against what memory allows; on a
          GPU where there is one
evaluate  the embedded model's perplexity: against a bare forward loop over the same windows
study     `lottery study locate` on the embedded model, everything measured: against its tickets as so many main jobs, each a
          process of its own; six of them, in turn with the rest (10 minutes)

A table for people; the last line of stdout is one JSON object. What is timed runs in a process of its own, its imports
done, its kernels compiled and memory at hand before the clock starts; what is written is on the disk (fsync) when the
clock stops. Tickets are read past the page cache, dense files are mapped as their library does. Peak memory is
the process's anonymous memory (RssAnon and RssShmem), sampled every 10 ms, imports included.
"""

import gc
import hashlib
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import click
import torch

MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SLICE_LAYERS, FULL_LAYERS = 6, 32
SHARD_LAYERS = 6
COMMIT = "0" * 40
PAGE, HUGE_PAGE = 4096, 2**21  # bytes: read one of each and all of it is resident
READERS = 3 * (os.cpu_count() or 1)  # threads that load tensors: some wait for the disk while others compute


# --- the checkpoint


def layer_shapes(layer: int) -> dict[str, tuple[int, ...]]:
    hidden, ffn = 4096, 14336
    at = f"model.layers.{layer}"
    return {
        f"{at}.self_attn.q_proj.weight": (hidden, hidden),
        f"{at}.self_attn.k_proj.weight": (1024, hidden),
        f"{at}.self_attn.v_proj.weight": (1024, hidden),
        f"{at}.self_attn.o_proj.weight": (hidden, hidden),
        f"{at}.mlp.gate_proj.weight": (ffn, hidden),
        f"{at}.mlp.up_proj.weight": (ffn, hidden),
        f"{at}.mlp.down_proj.weight": (hidden, ffn),
        f"{at}.input_layernorm.weight": (hidden,),
        f"{at}.post_attention_layernorm.weight": (hidden,),
    }


def make_checkpoint(cache: Path, layers: int) -> None:
    """A model as the hub's cache holds it: files named by their sha256, links to them in the snapshot of a commit."""
    from safetensors.torch import save_file

    repo = cache / "models--random--mistral-shaped"
    blobs, snapshot = repo / "blobs", repo / "snapshots" / COMMIT
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    groups = [dict[str, tuple[int, ...]]() for _ in range(-(-layers // SHARD_LAYERS))]
    for layer in range(layers):
        groups[layer // SHARD_LAYERS] |= layer_shapes(layer)
    groups[0]["model.embed_tokens.weight"] = (32000, 4096)
    groups[-1] |= {"lm_head.weight": (32000, 4096), "model.norm.weight": (4096,)}
    random, index = torch.Generator().manual_seed(0), dict[str, str]()
    for i, shapes in enumerate(groups, 1):
        name = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        state = {n: torch.randn(s, generator=random, dtype=torch.bfloat16).mul_(0.02) for n, s in shapes.items()}
        save_file(state, blobs / "new", {"format": "pt"})
        index |= dict.fromkeys(state, name)
        with open(blobs / "new", "rb") as f:
            sha256 = hashlib.file_digest(f, "sha256").hexdigest()
        (blobs / "new").rename(blobs / sha256)
        (snapshot / name).symlink_to(blobs / sha256)
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (snapshot / "config.json").write_text(json.dumps(MISTRAL | {"num_hidden_layers": layers}))


def weight_files(folder: Path) -> list[Path]:
    return sorted(p.resolve() for p in folder.glob("*.safetensors"))


# --- what is timed, each in a process of its own


def touch_memory(nbytes: int) -> float:
    """Have the machine hand out so much memory, and give it back: GB per second. A virtual machine fetches memory that
    lay idle from its host, page by page, and slower than any disk; that is no part of what is compared here."""
    begin = time.perf_counter()
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, nbytes, HUGE_PAGE):
        memory[at] = 1
    memory.close()
    return nbytes / (time.perf_counter() - begin) / 1e9


def free_memory() -> int:
    return 1024 * int(Path("/proc/meminfo").read_text().split("MemFree:")[1].split()[0])


@contextmanager
def peak_anonymous() -> Iterator[Callable[[], float]]:
    """Yields a function that says the most anonymous memory (MB) that the process had."""
    most, stop = 0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not stop.wait(0.01):
            status = Path("/proc/self/status").read_text()
            most = max(most, sum(int(status.split(f"{kind}:")[1].split()[0]) for kind in ("RssAnon", "RssShmem")))

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        yield lambda: most * 1024 / 1e6
    finally:
        stop.set()
        watcher.join()


def work_prune(model: Path, ticket: Path) -> dict[str, float]:
    """From the folder's name to a whole ticket on the disk: headers read, selected, packed, hashed, written, synced."""
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


def work_hash(model: Path, _: Path) -> dict[str, float]:
    """What a local folder costs once more: the sha256 of files whose names do not tell it."""
    from lottery.files.hashes import compute_hashes

    begin = time.perf_counter()
    compute_hashes(weight_files(model))
    return {"seconds": time.perf_counter() - begin}


def work_copy(model: Path, copy: Path) -> dict[str, float]:
    """cp of the same files, and fsync."""
    copy.mkdir()
    begin = time.perf_counter()
    subprocess.run(["cp", *map(str, weight_files(model)), str(copy)], check=True)
    for path in [*copy.iterdir(), copy]:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
    return {"seconds": time.perf_counter() - begin}


def touch(tensor: torch.Tensor) -> int:
    """Read a word of every page."""
    return int(tensor.reshape(-1).view(torch.uint8)[::PAGE].sum(dtype=torch.int64))


def read_all(names: list[str], read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every tensor resident and read once."""

    def one(name: str) -> torch.Tensor:
        tensor = read(name)
        touch(tensor)
        return tensor

    with ThreadPoolExecutor(READERS) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def work_load_dense(model: Path, _: Path) -> dict[str, float]:
    from safetensors import safe_open

    with peak_anonymous() as peak:
        begin = time.perf_counter()
        where: dict[str, Any] = {}
        for path in weight_files(model):
            file: Any = safe_open(path, framework="pt")
            where |= dict.fromkeys(file.offset_keys(), file)
        state = read_all(list(where), lambda name: where[name].get_tensor(name))
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
    "hash": work_hash,
    "copy": work_copy,
    "load_dense": work_load_dense,
    "load_ticket": work_load_ticket,
}


def drop_caches(*folders: Path) -> None:
    """Have the disk asked again: by the kernel's own switch where it may be used, else file by file."""
    os.sync()
    switch = Path("/proc/sys/vm/drop_caches")
    if os.access(switch, os.W_OK):
        switch.write_text("3")
        return
    for path in (p for folder in folders for p in weight_files(folder)):
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_through(files: list[Path]) -> None:
    """Into the page cache."""
    for path in files:
        with open(path, "rb", buffering=0) as f:
            block = bytearray(HUGE_PAGE)
            while f.readinto(block):
                pass


def run_work(name: str, model: Path, other: Path) -> dict[str, float]:
    """One of WORK in a fresh process."""
    command = [sys.executable, __file__, "--work", name, str(model), str(other)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


# --- the three parts


def line(name: str, seconds: float, floor: float, what: str) -> None:
    amount = f"{seconds:10.2f} s " if seconds >= 10 else f"{1000 * seconds:10.1f} ms"
    click.echo(f"  {name:<48} {amount}   {seconds / floor:7.3f} x {what}")


def checkpoint(cache: Path, layers: int) -> Path:
    """Its folder; made where it is not there yet."""
    model = cache / "models--random--mistral-shaped" / "snapshots" / COMMIT
    if not model.exists():
        click.echo("making the checkpoint", err=True)
        make_checkpoint(cache, layers)
    return model


def bench_files(folder: Path, layers: int, rounds: int) -> dict[str, Any]:
    ticket, copy = folder / "ticket", folder / "copy"
    model = checkpoint(folder / "hub", layers)
    times: dict[str, list[float]] = {}
    facts: dict[str, dict[str, float]] = {}

    def measure(kind: str, name: str, other: Path) -> None:
        click.echo(f"{name} ({kind})", err=True)
        facts[name] = run_work(name, model, other)
        times.setdefault(f"{name}_{kind}", []).append(facts[name]["seconds"])

    for _ in range(rounds):  # in turns: a machine that slows down slows both
        drop_caches(model)
        measure("cold", "copy", copy)
        shutil.rmtree(copy)
        shutil.rmtree(ticket, ignore_errors=True)
        drop_caches(model)
        measure("cold", "prune", ticket)
    for _ in range(rounds):
        drop_caches(model, ticket)
        measure("cold", "load_dense", ticket)
        drop_caches(model, ticket)
        measure("cold", "load_ticket", ticket)
        read_through(weight_files(model))
        measure("warm", "load_dense", ticket)
        read_through(weight_files(ticket))
        measure("warm", "load_ticket", ticket)
    drop_caches(model)
    measure("cold", "hash", ticket)

    s = {name: median(values) for name, values in times.items()}
    fact = facts["prune"]
    gb = fact["base_bytes"] / 1e9
    click.echo(f"files: {gb:.2f} GB of bfloat16, {layers} layers of Mistral 7B, target all to 50%, medians of {rounds}")
    line("cp and fsync, cold", s["copy_cold"], s["copy_cold"], "cp")
    line("prune, pack, fsync, cold", s["prune_cold"], s["copy_cold"], "cp")
    line("(a local folder, once: hash of its files, cold)", s["hash_cold"], s["copy_cold"], "cp")
    for kind in ("cold", "warm"):
        line(f"load the dense files, {kind}", s[f"load_dense_{kind}"], s[f"load_dense_{kind}"], "dense")
        line(f"load the ticket, hashes checked, {kind}", s[f"load_ticket_{kind}"], s[f"load_dense_{kind}"], "dense")
    click.echo(
        f"  peak anonymous memory of pruning {fact['peak_anon_mb']:,.0f} MB (allowed: twice the largest tensor + 500 MB = "
        f"{fact['peak_anon_allowed_mb']:,.0f} MB); of loading {facts['load_ticket']['peak_anon_mb']:,.0f} MB, the dense "
        f"files (mapped) {facts['load_dense']['peak_anon_mb']:,.0f} MB"
    )
    click.echo(
        f"  ticket {fact['ticket_bytes'] / 1e9:.3f} GB, {fact['ticket_bytes'] / fact['base_bytes']:.4f} of the base's; "
        f"targeted weights {fact['packed_ratio']:.4f} of their 16 bits, {fact['sparsity_target']:.4%} zeros"
    )
    return {
        "layers": layers,
        "seconds": times,
        "prune_to_copy": s["prune_cold"] / s["copy_cold"],
        "load_cold_to_dense": s["load_ticket_cold"] / s["load_dense_cold"],
        "load_warm_to_dense": s["load_ticket_warm"] / s["load_dense_warm"],
        **{name: value for name, value in fact.items() if name != "seconds"},
        "load_peak_anon_mb": facts["load_ticket"]["peak_anon_mb"],
    }


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the quickest of several: what the machine can do, with the least of what else it was doing."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def bench_kernels() -> dict[str, Any]:
    import numpy as np
    from torch.nn.utils import prune as torch_prune

    from lottery.kernels import bitmask, parallel, select

    weight_OI = torch.randn(14336, 4096, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    bits_OI = weight_OI.view(torch.uint16).numpy()
    k = weight_OI.numel() // 2

    def torch_pruning() -> None:
        module = torch.nn.Linear(1, 1, bias=False)
        module.weight = torch.nn.Parameter(weight_OI)
        torch_prune.l1_unstructured(module, "weight", 0.5)

    select.compile_kernels(bits_OI.dtype)
    mask_OB = select.select(bits_OI, k)
    values_K = np.concatenate(bitmask.compact(bits_OI.copy(), mask_OB))
    spent_OI = bits_OI.copy()
    times = {
        "a plain copy (floor)": best(lambda: np.copyto(spent_OI, bits_OI)),
        "scan for zeros and NaN": best(lambda: select.count_zeros_and_nonfinite(bits_OI, 0x7F80)),
        "select: exact threshold and bitmask": best(lambda: select.select(bits_OI, k)),
        "select, random": best(lambda: select.select(bits_OI, k, 1)),
        "select, 2:4": best(lambda: select.select_groups(bits_OI, 2, 4)),
        "select, 4:8": best(lambda: select.select_groups(bits_OI, 4, 8)),
        "compact: the survivors": best(lambda: bitmask.compact(spent_OI, mask_OB)),
        "unpack": best(lambda: bitmask.unpack(mask_OB, values_K, 4096)),
        "numpy bincount (peer of the histogram)": best(lambda: np.bincount(bits_OI.ravel() & 0x7FFF), 2),
        "torch kthvalue, float32 (peer)": best(lambda: weight_OI.float().abs().flatten().kthvalue(k), 3),
        "torch l1_unstructured (peer of select)": best(torch_pruning, 3),
    }
    floor = times["a plain copy (floor)"]
    click.echo(
        f"kernels: one 14336 x 4096 bfloat16 matrix at 50%, {parallel.THREADS} threads, best of five (torch's: of three)"
    )
    for name, seconds in times.items():
        line(name, seconds, floor, "copy")
    faster = times["torch l1_unstructured (peer of select)"] / times["select: exact threshold and bitmask"]
    click.echo(f"  selection is {faster:.0f} times faster than torch's")
    return {"seconds": times, "select_faster_than_torch": faster}


def bench_packed() -> dict[str, Any]:
    import numpy as np

    from lottery.kernels import bitmask, quantizing, select
    from lottery.models import devices
    from lottery.runtime.layers import PackedLinear, Workspace, int8_linear
    from lottery.ticket.matrix import StoredMatrix

    rows, columns = 14336, 4096
    torch.manual_seed(0)
    weight = torch.randn(rows, columns).bfloat16()
    bits = weight.view(torch.uint16).numpy()
    mask_OB = select.select(bits.copy(), weight.numel() // 2)
    masked = torch.from_numpy(bitmask.apply_mask(bits, mask_OB)).view(torch.bfloat16)
    own = getattr(torch, devices.pick_compute_dtype("auto", "BF16", "cpu"))
    workspace = {dtype: Workspace(weight.numel(), dtype, "cpu") for dtype in (torch.float32, torch.bfloat16)}
    layers: dict[str, torch.nn.Module] = {}
    for dtype in workspace:
        layers[f"dense {str(dtype)[6:]}"] = dense = torch.nn.Linear(columns, rows, bias=False, dtype=dtype)
        dense.weight = torch.nn.Parameter(masked.to(dtype), requires_grad=False)
    for kind in ("none", "int8", "fp8"):
        if kind == "none":
            values, scale_O = np.concatenate(bitmask.compact(bits.copy(), mask_OB)), None
        else:
            pieces, scale_O, _ = quantizing.quantize(bits.copy(), mask_OB, "BF16", kind)
            values = np.concatenate(pieces)
        matrix = StoredMatrix(rows, columns, "BF16", False, None if kind == "none" else kind, values, mask_OB, scale_O)
        layers[f"packed {kind}"] = PackedLinear(matrix, None, workspace[own], "cpu")
        if kind == "int8":
            layers["bitsandbytes int8"] = int8_linear(matrix, None, "cpu")
    seconds: dict[str, dict[str, float]] = {}
    for tokens in (1, 512):
        times: dict[str, list[float]] = {name: [] for name in layers}
        for repeat in range(8):
            for name, layer in layers.items():  # in turn: the machine's speed changes by the minute
                dtype = torch.float32 if name == "dense float32" else own
                if name == "dense bfloat16":
                    dtype = torch.bfloat16
                x = torch.randn(1, tokens, columns, dtype=dtype)
                with torch.inference_mode():
                    taken = best(partial(layer, x), 1)
                times[name] += [taken] if repeat else []  # the first warms up
        seconds[str(tokens)] = {name: median(several) for name, several in times.items()}
        floor = min(found for name, found in seconds[str(tokens)].items() if name.startswith("dense"))
        click.echo(
            f"packed: one layer of {rows} x {columns} at 50%, {tokens} tokens, computed in {str(own)[6:]}, medians of 7"
        )
        for name, found in seconds[str(tokens)].items():
            line(name, found, floor, "the faster dense")
    sizes = {
        name: sum(t.nbytes for t in layer.buffers()) / masked.nbytes
        for name, layer in layers.items()
        if isinstance(layer, PackedLinear)
    }
    click.echo("  resident, of 16-bit dense: " + ", ".join(f"{name} {size:.4f}" for name, size in sizes.items()))
    return {"seconds": seconds, "resident": sizes}


def bench_model(folder: Path, layers: int) -> dict[str, Any]:
    """By tensors alone, without a tracking store: it runs where MLflow is not installed, too."""
    os.environ["LOTTERY_HOME"] = str(folder / "home")
    from lottery.measuring import memory, speed
    from lottery.models import architecture, devices
    from lottery.models.checkpoint import BUILTIN
    from lottery.models.sources import open_base
    from lottery.models.targets import resolve_target
    from lottery.progress import quiet_libraries
    from lottery.pruning.stream import prune_source
    from lottery.runtime import load
    from lottery.spec import Spec
    from lottery.ticket.stored import StoredTicket

    quiet_libraries()
    model = checkpoint(folder / "hub", layers)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, model / name)
    base, tokenizer, device = open_base(str(model)), architecture.read_tokenizer(model), devices.pick_device("auto")
    dtype = devices.pick_compute_dtype("auto", base.dtype, device)
    source_bytes = sum(base.info(name).nbytes for name in base.tensors)
    rows: dict[str, dict[str, float]] = {}

    def measured(name: str, source: Any, runtime: str, eager: bool = False) -> torch.Tensor:
        """Its logits of 64 tokens."""
        gc.collect()
        speed.memory_bandwidth(device)
        memory.reset_peak(device)
        loaded = load.load_model(source, list(source.tensors), dtype, device, runtime)
        with torch.inference_mode():
            logits: torch.Tensor = loaded(torch.arange(64, device=device)[None]).logits.cpu()
        found = memory.memory_metrics(loaded, source_bytes) | speed.speed_metrics(loaded, tokenizer, eager)
        rows[name] = found | {"peak_bytes": memory.peak_bytes(device)}
        return logits

    measured("dense", base, "dense")
    if device == "cuda":
        measured(
            "dense, step by step", base, "dense", eager=True
        )  # what bitsandbytes' layers, without a graph, compare with
    same = {}
    for quantize, sparsity in (("none", 0.5), ("int8", 0.0), ("int8", 0.5), ("fp8", 0.0), ("fp8", 0.5)):
        ticket = folder / f"{quantize}-{sparsity}"
        if not ticket.exists():
            spec = Spec.parse(model=str(model), quantize=quantize, sparsity=sparsity)
            shutil.rmtree(partial := folder / "partial", ignore_errors=True)
            partial.mkdir()
            prune_source(base, spec, resolve_target(spec.target, base.places, base.tied_head), partial)
            partial.rename(ticket)
        stored = StoredTicket(ticket, None)
        name = f"{'16 bits' if quantize == 'none' else quantize}, {sparsity:.0%} pruned"
        if quantize == "int8":
            # bitsandbytes' layers round activations, too: other logits. On a CPU they would take ten minutes: see `packed`.
            if device == "cuda":
                measured(name, stored, "dense", eager=True)
            measured(f"{name}, packed", stored, "packed")
        else:
            logits = measured(name, stored, "dense")
            same[name] = torch.equal(logits, measured(f"{name}, packed", stored, "packed"))
    click.echo(
        f"model: {layers} layers of Mistral 7B, random weights, computed in {dtype} on {devices.hardware(device)}; medians of 5"
    )
    click.echo(
        "  | | weights MB | of dense | peak MB | prefill tok/s | of dense | decode tok/s | of dense | of what memory allows |"
    )
    click.echo("  | --- |" + " --- |" * 8)
    for name, m in rows.items():
        eager = name.startswith("int8") and not name.endswith("packed")
        dense = rows["dense, step by step" if eager else "dense"]
        decode = f"{m['decode_tok_s']:.2f} [{m['decode_tok_s_lo']:.2f}, {m['decode_tok_s_hi']:.2f}]"
        click.echo(
            f"  | {name} | {m['weights_bytes'] / 1e6:,.0f} | {m['weights_bytes'] / dense['weights_bytes']:.3f} "
            f"| {m['peak_bytes'] / 1e6:,.0f} | {m['prefill_tok_s']:,.0f} | {m['prefill_tok_s'] / dense['prefill_tok_s']:.2f} "
            f"| {decode} | {m['decode_tok_s'] / dense['decode_tok_s']:.2f} "
            f"| {m['decode_tok_s'] / m['decode_floor_tok_s']:.2f} |"
        )
    for name, equal in same.items():
        click.echo(f"  {name}: packed gives {'the same logits, bit for bit' if equal else 'OTHER LOGITS'}")
    return {"rows": rows, "same_logits": same}


def bench_evaluate() -> dict[str, Any]:
    from lottery.measuring.perplexity import batch_size, nll_per_window
    from lottery.measuring.text import tokenize_windows
    from lottery.models import architecture, devices
    from lottery.models.sources import open_base
    from lottery.runtime import load

    base = open_base("builtin")
    tokenizer, device = architecture.read_tokenizer(base.folder), devices.pick_device("auto")
    dtype = devices.pick_compute_dtype("auto", base.dtype, device)
    loaded = load.load_model(base, base.tensors, dtype, device)
    ids_NT, protocol = tokenize_windows(
        "builtin", tokenizer, loaded.config.vocab_size, 512, "none", dtype, "dense", device
    )

    batch = batch_size(loaded.config, ids_NT.shape[1], device)

    @torch.inference_mode()
    def bare() -> None:
        for ids in torch.from_numpy(ids_NT).split(batch):
            loaded(ids.to(loaded.device), use_cache=False)

    def perplexity() -> None:
        nll_per_window(loaded, ids_NT, lambda *a, **k: None)

    bare()
    perplexity()
    pairs = [
        (best(bare, 1), best(perplexity, 1)) for _ in range(9)
    ]  # in turn: the machine's speed changes by the minute
    floor, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    click.echo(f"evaluate: {base.id}, {protocol.describe()}, {batch} windows at once, medians of {len(pairs)} in turn")
    line("bare forward loop (floor)", floor, floor, "floor")
    line("perplexity", ours, floor, "floor")
    return {"perplexity_to_forward": ours / floor}


def bench_study() -> dict[str, Any]:
    """The dense baseline is in the store already when the first main job starts, as it is for nineteen of twenty."""
    from lottery.measuring.cache import Cache
    from lottery.study.design import read_study
    from lottery.study.planning import make_plan

    tickets = make_plan(read_study("locate"), Cache()).tickets
    with tempfile.TemporaryDirectory() as folder:

        def seconds(store: str, *arguments: str) -> float:
            place = Path(folder) / store
            place.mkdir(exist_ok=True)
            environment = os.environ | {
                "MLFLOW_TRACKING_URI": f"sqlite:///{place}/mlflow.db",
                "LOTTERY_HOME": str(place / "home"),
                "NUMBA_CACHE_DIR": str(Path(folder) / "kernels"),
            }
            command = [sys.executable, "-m", "lottery", *arguments]
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment, cwd=place)
            return time.perf_counter() - begin

        seconds("jobs", "prune", "--target", "q_proj")  # kernels, tables of the store, the dense baseline
        before = [job(seconds, ticket) for ticket in tickets[0::6]]
        study = seconds("study", "study", "locate")
        after = [job(seconds, ticket) for ticket in tickets[3::6]]
    one = statistics.mean([*before, *after])
    count = len(tickets) + 1
    click.echo(
        f"study: locate on the embedded model, {count} runs; {len(before) + len(after)} main jobs, before and after it"
    )
    line(f"{count} main jobs, one after the other", count * one, count * one, "main jobs")
    line("lottery study locate", study, count * one, "main jobs")
    return {"study_to_main_jobs": study / (count * one)}


def job(seconds: Callable[..., float], ticket: Any) -> float:
    return seconds("jobs", "prune", "--target", ticket.spec.target, "--sparsity", str(ticket.spec.sparsity))


@click.command()
@click.option("--full", is_flag=True, help="All 32 layers: 14.5 GB and as much again, and as much memory.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where the files go, and stay.  [default: a new one]")
@click.option("--rounds", default=3, show_default=True, help="How often what touches the disk is measured.")
@click.option("--work", nargs=3, hidden=True)
@click.argument("parts", nargs=-1, type=click.Choice(["files", "kernels", "packed", "model", "evaluate", "study"]))
def main(
    full: bool, folder: Path | None, rounds: int, work: tuple[str, str, str] | None, parts: tuple[str, ...]
) -> None:
    if work:
        fresh = touch_memory(int(0.75 * free_memory()))
        click.echo(json.dumps(WORK[work[0]](Path(work[1]), Path(work[2])) | {"fresh_memory_gb_s": fresh}))
        return
    found: dict[str, Any] = {}
    for part in parts or ("kernels", "packed", "evaluate", "files"):
        if part == "kernels":
            found[part] = bench_kernels()
        elif part == "packed":
            found[part] = bench_packed()
        elif part == "evaluate":
            found[part] = bench_evaluate()
        elif part == "study":
            found[part] = bench_study()
        else:
            with tempfile.TemporaryDirectory() as temporary:
                where = (folder or Path(temporary)).absolute()
                where.mkdir(parents=True, exist_ok=True)
                if part == "model":
                    found[part] = bench_model(where, FULL_LAYERS if full else 1)
                else:
                    found[part] = bench_files(where, FULL_LAYERS if full else SLICE_LAYERS, rounds)
    click.echo(json.dumps(found))


if __name__ == "__main__":
    main()
