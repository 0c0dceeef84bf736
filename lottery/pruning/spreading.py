"""Spreads the weights that go over transformer blocks, some of which lose more than others: shares become exact counts.

Legend: B blocks, P tensors.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lottery.models.checkpoint import Source
from lottery.models.families import Place
from lottery.models.targets import format_ranges
from lottery.progress import say
from lottery.pruning.tensors import count_to_prune, tensor_info
from lottery.spec import Spec

HALVINGS = 200  # of the range in which a number is searched; a float has no more digits after about 60


def blocks_of(chosen: Sequence[Place]) -> list[int]:
    """Returns the transformer blocks that have targeted tensors."""
    return sorted({p.layer for p in chosen if p.layer is not None})


def spread(
    spec: Spec, source: Source, chosen: Sequence[Place], shares_at: Callable[[float], np.ndarray], high: float
) -> dict[str, int]:
    """Returns how many weights each targeted tensor loses: together as many as the sparsity asks of all of them.

    `shares_at(x)` is the share that each block [B] would lose, which grows with x from nothing at 0 to everything at
    `high`; the x is taken at which they lose as many weights as asked for. Where a share lies beyond 0..1, the block
    loses nothing or everything, the others make up for it, and a line says so. Embeddings and the head lie in no block
    and lose the sparsity itself.
    """
    numel = {p.name: tensor_info(source, p).numel for p in chosen}
    counts = {p.name: count_to_prune(spec, numel[p.name]) for p in chosen if p.layer is None}
    total = round(spec.sparsity * sum(numel.values())) - sum(counts.values())
    blocks = blocks_of(chosen)
    inside = sorted((p for p in chosen if p.layer is not None), key=lambda p: (p.layer, p.name))
    size_B = np.array([sum(numel[p.name] for p in inside if p.layer == b) for b in blocks], float)
    x = solve(lambda x: float(clipped(shares_at(x)) @ size_B) - total, high)
    share_of = dict(zip(blocks, clipped(shares_at(x)), strict=True))
    warn_of_clipped(spec, blocks, shares_at(x))
    counts_P = round_to(total, [share_of[p.layer] * numel[p.name] for p in inside if p.layer is not None])
    return counts | dict(zip([p.name for p in inside], counts_P, strict=True))


def clipped(share_B: np.ndarray) -> np.ndarray:
    return np.clip(share_B, 0, 1)


def solve(missing_at: Callable[[float], float], high: float) -> float:
    """Returns where a growing function becomes 0, between 0 and `high`, by halving."""
    low = 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if missing_at(middle) < 0 else (low, middle)
    return high


def round_to(total: int, wanted: Sequence[float]) -> list[int]:
    """Returns whole numbers that add up to `total`, as the `wanted` ones do but for rounding: each is rounded down, and
    those of the largest remainders, the first ones among equals, get one more."""
    wanted_P = np.array(wanted)
    count_P = np.floor(wanted_P).astype(np.int64)
    order = np.argsort(count_P - wanted_P, kind="stable")
    count_P[order[: total - int(count_P.sum())]] += 1
    return count_P.tolist()


def warn_of_clipped(spec: Spec, blocks: Sequence[int], share_B: np.ndarray) -> None:
    """Says which blocks lose everything, or nothing, because their share lies beyond that."""
    for beyond_B, would, do in ((share_B > 1, "more than all", "all go"), (share_B < 0, "less than none", "none go")):
        if beyond_B.any():
            layers = [b for b, beyond in zip(blocks, beyond_B, strict=True) if beyond]
            say(
                f"warning: allocation={spec.allocation}: at sparsity={spec.sparsity:g} {would} of the weights of "
                f"layer{'s' if len(layers) > 1 else ''} {format_ranges(layers)} would go; {do}, and the others make up for it"
            )
