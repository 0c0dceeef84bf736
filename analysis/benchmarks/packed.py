"""The part `packed` compares one linear layer whose weights stay packed in memory with a dense layer."""

from functools import partial
from statistics import median
from typing import Any

import click
import torch

from benchmarks.timing import best, print_ratio

ROWS, COLUMNS = 14336, 4096


def bench_packed() -> dict[str, Any]:
    from lottery.models import devices
    from lottery.runtime.layers import PackedLinear

    torch.manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS).bfloat16()
    own = getattr(torch, devices.pick_compute_dtype("auto", "BF16", "cpu"))
    layers = make_layers(weight, own)
    seconds: dict[str, dict[str, float]] = {}
    for tokens in (1, 512):
        seconds[str(tokens)] = time_layers(layers, tokens, own)
        floor = min(found for name, found in seconds[str(tokens)].items() if name.startswith("dense"))
        click.echo(
            f"packed: one layer of {ROWS} x {COLUMNS} at 50%, {tokens} tokens, computed in {str(own)[6:]}, medians of 7"
        )
        for name, found in seconds[str(tokens)].items():
            print_ratio(name, found, floor, "the faster dense")
    sizes = {
        name: sum(t.nbytes for t in layer.buffers()) / weight.nbytes
        for name, layer in layers.items()
        if isinstance(layer, PackedLinear)
    }
    click.echo("  resident, of 16-bit dense: " + ", ".join(f"{name} {size:.4f}" for name, size in sizes.items()))
    return {"seconds": seconds, "resident": sizes}


def make_layers(weight: torch.Tensor, own: torch.dtype) -> dict[str, torch.nn.Module]:
    """Returns the same pruned layer in each form: dense in two types, packed, and of bitsandbytes. `own`: the type in
    which the packed layers compute."""
    import numpy as np

    from lottery.kernels import bitmask, quantizing, select
    from lottery.runtime.layers import PackedLinear, Workspace, int8_linear
    from lottery.ticket.matrix import StoredMatrix

    bits = weight.view(torch.uint16).numpy()
    mask_OB = select.select(bits.copy(), weight.numel() // 2)
    masked = torch.from_numpy(bitmask.apply_mask(bits, mask_OB)).view(torch.bfloat16)
    workspace = {dtype: Workspace(weight.numel(), dtype, "cpu") for dtype in (torch.float32, torch.bfloat16)}
    layers: dict[str, torch.nn.Module] = {}
    for dtype in workspace:
        layers[f"dense {str(dtype)[6:]}"] = dense = torch.nn.Linear(COLUMNS, ROWS, bias=False, dtype=dtype)
        dense.weight = torch.nn.Parameter(masked.to(dtype), requires_grad=False)
    for kind in ("none", "int8", "fp8"):
        if kind == "none":
            values, scale_O = np.concatenate(bitmask.compact(bits.copy(), mask_OB)), None
        else:
            pieces, scale_O, _ = quantizing.quantize(bits.copy(), mask_OB, "BF16", kind)
            values = np.concatenate(pieces)
        matrix = StoredMatrix(ROWS, COLUMNS, "BF16", False, None if kind == "none" else kind, values, mask_OB, scale_O)
        layers[f"packed {kind}"] = PackedLinear(matrix, None, workspace[own], "cpu")
        if kind == "int8":
            layers["bitsandbytes int8"] = int8_linear(matrix, None, "cpu")
    return layers


def time_layers(layers: dict[str, torch.nn.Module], tokens: int, own: torch.dtype) -> dict[str, float]:
    """Returns the median seconds of each layer for one batch of so many tokens."""
    times: dict[str, list[float]] = {name: [] for name in layers}
    for repeat in range(8):
        for name, layer in layers.items():  # in turn: the machine's speed changes by the minute
            dtype = torch.float32 if name == "dense float32" else own
            if name == "dense bfloat16":
                dtype = torch.bfloat16
            x = torch.randn(1, tokens, COLUMNS, dtype=dtype)
            with torch.inference_mode():
                taken = best(partial(layer, x), 1)
            times[name] += [taken] if repeat else []  # the first repeat warms up
    return {name: median(several) for name, several in times.items()}
