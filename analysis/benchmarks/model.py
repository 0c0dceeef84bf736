"""The part `model` compares a whole dense model with pruned and 8-bit tickets of it: memory, prefill and decoding.

It uses files and tensors alone and no tracking store, so it also runs where MLflow is not installed.
"""

import gc
import importlib.util
import math
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.checkpoint import find_or_make_checkpoint

TICKETS = (("none", 0.5), ("int8", 0.0), ("int8", 0.5), ("fp8", 0.0), ("fp8", 0.5))  # quantize, sparsity


def bench_model(folder: Path, layers: int, deadline: float = math.inf) -> dict[str, Any]:
    """Returns the metrics of each model, and whether both runtimes of a ticket give the same logits.

    A ticket that is not begun when time.monotonic() reaches `deadline` is left out, with a line.
    """
    os.environ["LOTTERY_HOME"] = str(folder / "home")
    from lottery.models import architecture, devices
    from lottery.models.sources import open_base
    from lottery.progress import quiet_libraries

    quiet_libraries()
    model = make_model(folder, layers)
    base, tokenizer, device = open_base(str(model)), architecture.read_tokenizer(model), devices.pick_device("auto")
    dtype = devices.pick_compute_dtype("auto", base.dtype, device)
    source_bytes = sum(base.info(name).nbytes for name in base.tensors)
    measure = partial(measure_model, tokenizer=tokenizer, dtype=dtype, device=device, source_bytes=source_bytes)
    rows: dict[str, dict[str, float]] = {}
    rows["dense"], _ = measure(base, "dense")
    if device == "cuda":  # bitsandbytes' layers run without a graph, so they compare with a dense model that does, too
        rows["dense, step by step"], _ = measure(base, "dense", eager=True)
    same = measure_tickets(base, folder, device, measure, rows, deadline)
    click.echo(
        f"model: {layers} layers of Mistral 7B, random weights, computed in {dtype} on {devices.hardware(device)}; medians"
    )
    print_model(rows, same)
    return {"rows": rows, "same_logits": same}


def make_model(folder: Path, layers: int) -> Path:
    """Returns the checkpoint's folder, with the embedded model's tokenizer in it."""
    from lottery.models.checkpoint import BUILTIN

    model = find_or_make_checkpoint(folder / "hub", layers)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BUILTIN / name, model / name)
    return model


def measure_tickets(
    base: Any,
    folder: Path,
    device: str,
    measure: Callable[..., tuple[dict[str, float], torch.Tensor]],
    rows: dict[str, dict[str, float]],
    deadline: float,
) -> dict[str, bool]:
    """Adds the metrics of each ticket to `rows`, in either runtime. Returns for each whether both give the same
    logits."""
    from lottery.ticket.stored import StoredTicket

    same = {}
    for quantize, sparsity in TICKETS:
        if time.monotonic() > deadline:
            click.echo(f"  left out, as the time is over: quantize={quantize} at {sparsity:.0%}")
            continue
        stored = StoredTicket(find_or_make_ticket(base, folder, quantize, sparsity), None)
        name = f"{'16 bits' if quantize == 'none' else quantize}, {sparsity:.0%} pruned"
        if quantize == "int8":
            # bitsandbytes' layers round activations, too, so their logits differ. On a CPU they would take ten minutes, so
            # there only the part `packed` times such a layer.
            if device == "cuda" and importlib.util.find_spec("bitsandbytes") is None:
                click.echo(f"  left out, as bitsandbytes is not installed: {name}")
            elif device == "cuda":
                rows[name], _ = measure(stored, "dense", eager=True)
            rows[f"{name}, packed"], _ = measure(stored, "packed")
        else:
            rows[name], logits = measure(stored, "dense")
            rows[f"{name}, packed"], packed_logits = measure(stored, "packed")
            same[name] = torch.equal(logits, packed_logits)
    return same


def find_or_make_ticket(base: Any, folder: Path, quantize: str, sparsity: float) -> Path:
    """Returns the ticket's folder. The ticket is made if the folder does not exist yet."""
    from lottery.models.targets import resolve_target
    from lottery.pruning.stream import prune_source
    from lottery.spec import Spec

    ticket = folder / f"{quantize}-{sparsity}"
    if not ticket.exists():
        spec = Spec.parse(model=str(base.folder), quantize=quantize, sparsity=sparsity)
        shutil.rmtree(partial_ticket := folder / "partial", ignore_errors=True)
        partial_ticket.mkdir()
        prune_source(base, spec, resolve_target(spec.target, base.places, base.tied_head), partial_ticket)
        partial_ticket.rename(ticket)
    return ticket


def measure_model(
    source: Any, runtime: str, eager: bool = False, *, tokenizer: Any, dtype: str, device: str, source_bytes: int
) -> tuple[dict[str, float], torch.Tensor]:
    """Loads a base or a ticket, and returns its metrics and its logits of 64 tokens."""
    from lottery.measuring import memory, speed
    from lottery.runtime import load

    gc.collect()
    speed.memory_bandwidth(device)
    memory.reset_peak(device)
    loaded = load.load_model(source, list(source.tensors), dtype, device, runtime)
    with torch.inference_mode():
        logits: torch.Tensor = loaded(torch.arange(64, device=device)[None]).logits.cpu()
    metrics = memory.memory_metrics(loaded, source_bytes) | speed.speed_metrics(loaded, tokenizer, eager)
    return metrics | {"peak_bytes": memory.peak_bytes(device)}, logits


def print_model(rows: dict[str, dict[str, float]], same: dict[str, bool]) -> None:
    """Prints a row per model, each speed as a share of the dense model that runs in the same way."""
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
