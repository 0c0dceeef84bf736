"""Compares the products of one token and one layer: sparse, dense by torch, and dense by the sparse kernel's own loop.

The peers of a product are torch's own product of the dense matrix, in the faster of two types, and the sparse kernel's
loop over a dense matrix of the same type of weights. At 0% a ticket stores no mask, so there the sparse product is that
loop.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from torch.nn import functional

from benchmarks.bandwidth import Reader
from benchmarks.turns import BLOCK_BYTES, Conditions, Turns, Way, show, stopwatch, take_turns
from lottery.kernels import bitmask, quantizing, select
from lottery.kernels.product import Product, Stored, spare
from lottery.runtime.sparse import multiply

SPARSITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.9)
TITLES = {"none": "16 bits", "int8": "int8", "fp8": "fp8"}  # the values of quantize=, and what the tables call them
TORCH = ("torch bfloat16", "torch float32")
Groups = list[list[torch.Tensor]]  # matrices that take the same activations stand together


def layer_shapes(hidden: int, keys: int, ffn: int) -> list[list[tuple[int, int]]]:
    """Returns the shapes of a layer's seven matrices, [outputs, inputs]."""
    return [
        [(hidden, hidden), (keys, hidden), (keys, hidden)],
        [(hidden, hidden)],
        [(ffn, hidden), (ffn, hidden)],
        [(hidden, ffn)],
    ]


class Layer(NamedTuple):
    title: str
    shapes: list[list[tuple[int, int]]]
    copies: int  # that are timed together: a single small layer would stay in the cache


LAYERS = {
    "mistral": Layer("Mistral 7B", layer_shapes(4096, 1024, 14336), 1),
    "smollm2": Layer("SmolLM2-135M", layer_shapes(576, 192, 1536), 30),
}


class Products(NamedTuple):
    """The products of one token with all matrices, and the bytes of these."""

    work: Callable[[], list[torch.Tensor]]
    nbytes: int


def make_weights(layer: Layer) -> Groups:
    """Returns random bfloat16 weights for all copies of a layer."""
    random = torch.Generator().manual_seed(0)

    def weight(shape: tuple[int, int]) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=random)

    return [[weight(shape) for shape in group] for group in layer.shapes * layer.copies]


def activations(weights: Groups, dtype: torch.dtype = torch.bfloat16) -> dict[int, torch.Tensor]:
    """Returns one token's activations for each number of columns."""
    random = torch.Generator().manual_seed(1)
    columns = sorted({group[0].shape[1] for group in weights})
    return {count: torch.randn(1, count, generator=random).bfloat16().to(dtype) for count in columns}


def torch_products(weights: Groups) -> dict[str, Products]:
    found = {}
    for name, dtype in zip(TORCH, (torch.bfloat16, torch.float32), strict=True):
        held = [weight_OI.to(dtype) for group in weights for weight_OI in group]
        x = activations(weights, dtype)
        found[name] = Products(
            lambda held=held, x=x: [functional.linear(x[w.shape[1]], w) for w in held],  # type: ignore[misc]  # mypy cannot type defaults
            sum(w.nbytes for w in held),
        )
    return found


def stored_products(weights: Groups, kind: str, sparsity: float, given: Conditions) -> Products:
    """Returns the products with weights that are pruned and quantized as a ticket's, through the kernel."""
    x = activations(weights)
    groups = [[store(weight_OI, kind, sparsity) for weight_OI in group] for group in weights]
    calls = [
        (Product(group, given.threads, given.kernel), x[group[0].columns], [matrix.rows for matrix in group])
        for group in groups
    ]
    arrays = (a for g in groups for m in g for a in (m.values_K, m.bitmask_OB, m.start_O, m.step_O) if a is not None)
    return Products(lambda: [out for work, x, rows in calls for out in multiply(work, x, rows)], total_bytes(arrays))


def total_bytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


def store(weight_OI: torch.Tensor, kind: str, sparsity: float) -> Stored:
    bits_OI = weight_OI.view(torch.uint16).numpy()
    mask_OB = select.select(bits_OI, round(sparsity * bits_OI.size)) if sparsity else None
    start_O = None if mask_OB is None else quantizing.row_offsets(mask_OB)
    if kind == "none":
        form, step_O = "BF16", None
        values_K = bits_OI.reshape(-1) if mask_OB is None else np.concatenate(bitmask.compact(bits_OI.copy(), mask_OB))
    else:
        form = quantizing.QUANTIZED_DTYPES[kind][0]
        pieces, scale_O, _ = quantizing.quantize(bits_OI.copy(), mask_OB, "BF16", kind)
        values_K, step_O = np.concatenate(pieces), quantizing.step_sizes(scale_O, kind)
    values_K = values_K if mask_OB is None else spare(values_K)
    rows, columns = bits_OI.shape
    return Stored(rows, columns, form, values_K, mask_OB, start_O, step_O)


def bench_layer(layer: Layer, given: Conditions, sparsities: Sequence[float]) -> dict[str, Any]:
    """Prints a table of one layer, and returns its figures: a sparsity -> a row -> a column."""
    weights, reader = make_weights(layer), Reader(BLOCK_BYTES, given.threads)
    dense = torch_products(weights)
    dense |= {f"{kind} dense": stored_products(weights, kind, 0.0, given) for kind in given.kinds}
    click.echo(f"decode: one token through the seven matrices of a layer of {layer.title}")
    click.echo("  | weights | ms | times as fast as torch | as its own loop, dense | as 16 bits | of the floor |")
    click.echo("  | --- |" + " --- |" * 5)
    found: dict[str, Any] = {}
    for sparsity in sparsities:
        pruned = {f"{kind} pruned": stored_products(weights, kind, sparsity, given) for kind in given.kinds if sparsity}
        ways = dense | pruned
        turns = take_turns({name: timed(name, way, layer.copies) for name, way in ways.items()}, reader, given.rounds)
        rows = figures(turns, {name: way.nbytes / layer.copies for name, way in ways.items()})
        for name in ways if not found else pruned:
            print_row(name, f"{sparsity:.0%}", rows[name])
        found[f"{sparsity:.0%}"] = {"rows": rows, "read_gb_s": turns.read_gb_s()}
    reads = [f"{zeros}: {show(part['read_gb_s'])}" for zeros, part in found.items()]
    click.echo(f"  memory was read at so many GB/s by {given.threads} threads: {', '.join(reads)}")
    return found


def timed(name: str, products: Products, copies: int) -> Way:
    """Returns a way that multiplies. torch's products are done once before, since its threads wake up slowly; what they
    read does not fit in a cache."""
    return stopwatch(products.work, copies, *([products.work] if name in TORCH else []))


def figures(turns: Turns, nbytes: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Returns the row of each way. The peer of torch is the faster of its two types."""
    peer = min(TORCH, key=turns.milliseconds)
    rows: dict[str, dict[str, Any]] = {}
    for name in nbytes:
        kind, _, form = name.partition(" ")
        rows[name] = row = {"ms": turns.milliseconds(name), "of_floor": turns.of_floor(name, nbytes[name])}
        if name != peer:
            row["torch"] = turns.ratio(peer, name)
        if form == "pruned" and f"{kind} dense" in nbytes:
            row["own_loop"] = turns.ratio(f"{kind} dense", name)
        if kind in ("int8", "fp8") and f"none {form}" in nbytes:
            row["16_bits"] = turns.ratio(f"none {form}", name)
    return rows


def print_row(name: str, zeros: str, row: dict[str, Any]) -> None:
    kind, _, form = name.partition(" ")
    title = f"{name}, dense" if kind not in TITLES else f"{TITLES[kind]}, {zeros if form == 'pruned' else '0%'}"
    cells = [show(row.get(column)) for column in ("torch", "own_loop", "16_bits", "of_floor")]
    click.echo(f"  | {title} | {row['ms']:.3g} | {' | '.join(cells)} |")
