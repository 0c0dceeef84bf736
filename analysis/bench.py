"""How fast, as ratios to a peer or a floor measured in the same run: python analysis/bench.py

kernels  selecting and packing one 14336 x 4096 bfloat16 matrix at 50%, against torch's own pruning, a k-th value, a copy
prune    a whole model: bytes per second of base read, against a plain copy of its file with its hash
evaluate perplexity windows per second, against a bare forward loop over the same windows
"""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lottery import kernels, measure, models
from lottery.checkpoint import Base
from lottery.pruning import prune_base
from lottery.spec import Spec
from lottery.targets import choose, classify
from lottery.text import windows


def best(work: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the quickest of several: what the machine can do, with the least of what else it was doing."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def row(name: str, seconds: float, floor: float, what: str) -> None:
    click.echo(f"  {name:<44} {1000 * seconds:10.1f} ms   {seconds / floor:8.2f} x {what}")


def bench_kernels() -> None:
    from torch.nn.utils import prune as torch_prune

    weight_OI = torch.randn(14336, 4096, generator=torch.manual_seed(0)).mul_(0.02).bfloat16()
    bits_OI = weight_OI.view(torch.uint16).numpy()
    k = weight_OI.numel() // 2
    copy = best(lambda: bits_OI.copy())
    bitmask_OB, values_K = kernels.pack(bits_OI, k)
    click.echo(
        f"kernels: one {bits_OI.shape[0]} x {bits_OI.shape[1]} bfloat16 matrix at 50%, {kernels.THREADS} threads"
    )
    row("a plain copy (floor)", copy, copy, "copy")
    row("scan for zeros and NaN", best(lambda: kernels.scan(bits_OI, 0x7F80)), copy, "copy")
    row("histogram and threshold", best(lambda: kernels.threshold(bits_OI, k)), copy, "copy")
    row("threshold, bitmask and survivors (pack)", best(lambda: kernels.pack(bits_OI, k)), copy, "copy")
    row("pack, random", best(lambda: kernels.pack(bits_OI, k, 1)), copy, "copy")
    row("unpack", best(lambda: kernels.unpack(bitmask_OB, values_K, 4096)), copy, "copy")
    row("numpy bincount (peer of the histogram)", best(lambda: np.bincount(bits_OI.ravel() & 0x7FFF), 2), copy, "copy")
    row("torch kthvalue, float32 (peer)", best(lambda: weight_OI.float().abs().flatten().kthvalue(k), 1), copy, "copy")
    module = torch.nn.Linear(1, 1, bias=False)
    module.weight = torch.nn.Parameter(weight_OI)
    row(
        "torch l1_unstructured (peer of pack)",
        best(lambda: torch_prune.l1_unstructured(module, "weight", 0.5), 1),
        copy,
        "copy",
    )


def bench_prune(model: str) -> None:
    base, spec = Base(model), Spec.parse(model=model)
    places = classify(base.tensors, base.model_type)
    chosen = choose("all", places)
    with tempfile.TemporaryDirectory() as folder:

        def prune() -> None:
            shutil.rmtree(folder)
            Path(folder).mkdir()
            prune_base(base, spec, places, chosen, Path(folder))

        def floor() -> None:
            for name in base.files:
                shutil.copyfile(base.folder / name, Path(folder) / name)
                hashlib.sha256((base.folder / name).read_bytes())

        copied, pruned = best(floor), best(prune)
    click.echo(f"prune: {base.id}, all to 50%, {base.disk_bytes / 1e6:.1f} MB")
    row("copy and hash the base (floor)", copied, copied, "floor")
    row("prune, pack, hash, write and sync", pruned, copied, "floor")


def bench_evaluate(model: str) -> None:
    base = Base(model)
    tokenizer = models.read_tokenizer(base.folder)
    device = models.pick_device("auto")
    dtype = models.arithmetic("auto", base.dtype, device)
    loaded = models.build(base, base.tensors, dtype, device)
    words = loaded.config.vocab_size
    ids_NT, protocol = windows("builtin", tokenizer, words, 512, "none", dtype, "dense", device)

    @torch.inference_mode()
    def bare() -> None:
        for ids in torch.from_numpy(ids_NT).split(16):
            loaded(ids.to(loaded.device), use_cache=False)

    bare()
    floor = best(bare, 3)
    click.echo(f"evaluate: {base.id}, {protocol.line()}")
    row("bare forward loop (floor)", floor, floor, "floor")
    row("perplexity", best(lambda: measure.nll_per_window(loaded, ids_NT, lambda *a, **k: None), 3), floor, "floor")
    for name, other in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        loaded.to(other)
        row(
            f"perplexity in {name}",
            best(lambda: measure.nll_per_window(loaded, ids_NT, lambda *a, **k: None), 3),
            floor,
            "floor",
        )


@click.command()
@click.option("--model", default="builtin", show_default=True)
@click.argument("what", nargs=-1)
def main(model: str, what: tuple[str, ...]) -> None:
    for name in what or ("kernels", "prune", "evaluate"):
        {"kernels": bench_kernels, "prune": lambda: bench_prune(model), "evaluate": lambda: bench_evaluate(model)}[
            name
        ]()


if __name__ == "__main__":
    main()
