"""Says beforehand how many seconds a method that looks at data takes.

Products as the calibration computes them are timed here on matrices in the model's own shapes, cut down to what takes a
second or two, and the seconds are extrapolated by the number of multiplications.

Legend: N samples, T tokens of a sample, H heads, D width of a head, O rows, I columns.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.tensors import DTYPES
from lottery.pruning import least_squares, methods
from lottery.pruning.choosing import Ask
from lottery.pruning.cost import FACTORIZED, Group, Text, active_experts, groups_of, parts_of
from lottery.pruning.linear_algebra import inverse_factor
from lottery.pruning.products import matmul
from lottery.pruning.statistics import Accumulator
from lottery.spec import METHODS, Spec

ROWS, COLUMNS, TOKENS = 512, 1024, 1024  # of what is timed, at most
REPEATS = 3
BESIDE = 1.2  # what a pass takes, as a multiple of its products and attention: norms, activations, rotations
CALL_S = 0.002  # seconds of a call of a block, however small it is
COMPARED = 4  # samples that go through all blocks before the first is solved: two in the whole model, two one by one
# How often a method multiplies a whole weight by a Gram matrix; the layer error does it twice.
ITERATIONS = 36  # of alps, about; each solves with a factor of the Gram matrix, which takes as long as a product
PRODUCTS = {
    "swaps": 3,
    "refit": least_squares.STEPS + 3,
    "sparsegpt": 2.5,
    "alps": ITERATIONS + least_squares.STEPS + 3,
    "repair": ITERATIONS + least_squares.STEPS + 3,
}
PART = 0.5  # of a pass that ends at an input of the block, on average


@dataclass(frozen=True)
class Rates:
    """What was timed: multiplications per second of each kind, and seconds."""

    product: float  # of a layer, in the source's type
    attention_s: float  # of one sample in one block
    adding: float  # of inputs by inputs: I x I a token for a Gram matrix, I for norms
    multiplying: float  # of a row of a weight by a Gram matrix: I x I
    factorizing: float  # of a Gram matrix: I x I x I
    weight_s: float  # what else a method does, for one weight


def seconds(
    source: Source, spec: Spec, chosen: Sequence[Place], text: Text, config: Any, rates: Rates
) -> dict[str, float]:
    """Returns `calibrate_s`, the seconds of the samples in the blocks, and `prune_s`, those of the rest."""
    active = active_experts(config)
    matrices = [p for p in source.places if p.layer is not None and p.prunable]
    blocks = {part[0].layer: groups_of(source, part, active) for part in parts_of(matrices)}
    targeted = {part[0].layer: groups_of(source, part, active) for part in parts_of(chosen)}

    def pass_s(groups: Sequence[Group]) -> float:
        products = text.seqlen * sum(g.numel * g.share for g in groups) / rates.product
        return BESIDE * (products + rates.attention_s) + CALL_S

    last = len(blocks) - 1 if None in targeted else max(layer for layer in targeted if layer is not None)

    def passes_of(block: int) -> float:
        if METHODS[spec.method].in_order and block in targeted:
            return 2 + PART * len(targeted[block])
        return 2 if text.propagate == "pruned" and block in targeted and block < last else 1

    passes = sum(pass_s(blocks[b]) * passes_of(b) for b in range(last + 1))
    with_gram = METHODS[spec.method].gram
    adding = solving = 0.0
    for group in (g for groups in targeted.values() for g in groups):
        rows, columns = sum(group.rows) * group.count, group.columns
        adding += text.seqlen * group.share * group.count * columns ** (2 if with_gram else 1) / rates.adding
        solving += rows * columns * (PRODUCTS.get(spec.method, 0) * columns / rates.multiplying + rates.weight_s)
        if spec.method in FACTORIZED:
            solving += len(group.rows) * group.count * columns**3 / rates.factorizing
    compared = COMPARED * sum(pass_s(groups) for groups in blocks.values())
    return {"calibrate_s": text.nsamples * (passes + adding), "prune_s": compared + solving}


def measure(source: Source, spec: Spec, chosen: Sequence[Place], text: Text, config: Any, device: str) -> Rates:
    """Times each kind of product."""
    targeted = [g for part in parts_of(chosen) for g in groups_of(source, part, 1)]
    dtype, random = DTYPES[source.dtype], torch.Generator().manual_seed(0)
    rows = min(ROWS, max(max(g.rows) for g in targeted))
    columns = min(COLUMNS, max(g.columns for g in targeted))
    tokens = min(TOKENS, text.seqlen)
    weight_OI = torch.randn(rows, columns, generator=random).to(device, dtype)
    x_TI = torch.randn(tokens, columns, generator=random).to(device, dtype)
    product_s = timed(lambda: functional.linear(x_TI, weight_OI), device)
    with_gram, method = METHODS[spec.method].gram, methods.METHODS[spec.method]
    inputs = Accumulator(columns, with_gram, device)
    adding_s = timed(lambda: inputs.add(x_TI), device)
    statistics = inputs.finish()

    def solve() -> None:
        solved = method(weight_OI, statistics, Ask(weight_OI.numel() // 2))
        if with_gram:
            least_squares.layer_error(weight_OI, solved.weight_OI, statistics)

    solve()  # the first one compiles its kernels
    solve_s, known_s, multiply_s, factor_s = timed(solve, device), 0.0, 1.0, 1.0
    if (gram_II := statistics.gram_II) is not None:
        given_OI = weight_OI.float()
        multiply_s = timed(lambda: matmul(given_OI, gram_II), device)
        known_s = PRODUCTS.get(spec.method, 0) * multiply_s
    if spec.method in FACTORIZED:
        factor_s = timed(lambda: inverse_factor(statistics, least_squares.RIDGE), device)
        known_s += factor_s
    return Rates(
        product=tokens * rows * columns / product_s,
        attention_s=time_attention(config, tokens, dtype, device) * (text.seqlen / tokens) ** 2,
        adding=tokens * columns ** (2 if with_gram else 1) / adding_s,
        multiplying=rows * columns**2 / multiply_s,
        factorizing=columns**3 / factor_s,
        weight_s=max(0.0, solve_s - known_s) / (rows * columns),
    )


def time_attention(config: Any, tokens: int, dtype: torch.dtype, device: str) -> float:
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    x_1HTD = torch.ones(1, heads, tokens, size, dtype=dtype, device=device)
    return timed(lambda: functional.scaled_dot_product_attention(x_1HTD, x_1HTD, x_1HTD, is_causal=True), device)


def timed(work: Callable[[], Any], device: str) -> float:
    """Returns the seconds of the quickest of a few repeats."""
    taken = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken)
