"""The part `evaluate` compares the embedded model's perplexity with a bare forward loop over the same windows."""

import statistics
from typing import Any

import click
import torch

from benchmarks.timing import best, print_ratio


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
    # in turn: the machine's speed changes by the minute
    pairs = [(best(bare, 1), best(perplexity, 1)) for _ in range(9)]
    floor, ours = (statistics.median(times) for times in zip(*pairs, strict=True))
    click.echo(f"evaluate: {base.id}, {protocol.describe()}, {batch} windows at once, medians of {len(pairs)} in turn")
    print_ratio("bare forward loop (floor)", floor, floor, "floor")
    print_ratio("perplexity", ours, floor, "floor")
    return {"perplexity_to_forward": ours / floor}
