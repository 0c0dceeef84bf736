"""The methods that look at the data. Each is a function: a weight, statistics of its inputs, how many to remove ->
the new weight, and which weights stay.

To add one, write such a function, add it to `METHODS`, and add a line to `METHODS` of spec.py.

A weight may be of any floating-point type; the methods compute in the type of the statistics, and return weights in the
type that was given.

Legend: O rows (outputs), I columns (inputs), C columns of a block.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lottery.kernels import select
from lottery.kernels.rows import select_rows
from lottery.kernels.sweep import sweep
from lottery.pruning.linear_algebra import inverse_factor
from lottery.pruning.products import matmul
from lottery.pruning.statistics import Statistics, nonzero

RIDGE = 0.01  # added to the unit diagonal of a Gram matrix
STEPS = 20  # of conjugate gradients
ORTHOGONAL = 12  # of their residuals, to which later ones are made orthogonal
CHUNK_BYTES = 2**23  # of one matrix of the rows that are solved together
BLOCK = 128  # columns among which sparsegpt chooses


@dataclass(frozen=True)
class Ask:
    """How many weights of a matrix go: `remove` of them, or all but `keep` in each `group` neighbours of a row."""

    remove: int
    groups: tuple[int, int] | None = None


@dataclass
class Solved:
    """A pruned matrix [O, I], and which of its weights stay (bool). `damping` is the ridge where it had to be raised."""

    weight_OI: torch.Tensor
    stays_OI: torch.Tensor
    damping: float | None = None


def wanda(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Removes, in each row, the weights of the smallest magnitude times norm of their input.

    Sun et al., A Simple and Effective Pruning Approach for Large Language Models (ICLR 2024), equation 1. The published
    code rounds the number of each row down; here the matrix loses exactly as many as asked for.
    """
    stays_OI = wanda_mask(weight_OI, statistics, ask)
    return Solved(weight_OI * stays_OI, stays_OI)


def wanda_mask(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> torch.Tensor:
    score_OI = weight_OI.to(statistics.norm_I.dtype, copy=True).abs_().mul_(statistics.norm_I)
    return choose_in_rows(score_OI, weight_OI == 0, ask)


def refit(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Removes what wanda removes, then finds the weights on that support whose outputs are nearest to the dense ones.

    It minimizes ||X(w' - w)||^2 of each row, with a ridge, by conjugate gradients on the Gram matrix of unit diagonal:
    the last step of ALPS (Meng et al., NeurIPS 2024) on another mask.
    """
    stays_OI = wanda_mask(weight_OI, statistics, ask)
    if not (ask.remove or ask.groups):  # the weights are what they were, to the last bit
        return Solved(weight_OI, stays_OI)
    return Solved(least_squares(weight_OI, stays_OI, statistics), stays_OI)


def least_squares(
    weight_OI: torch.Tensor,
    stays_OI: torch.Tensor,
    statistics: Statistics,
    start_OI: torch.Tensor | None = None,
    steps: int = STEPS,
) -> torch.Tensor:
    """Returns the weights on a support that give the outputs nearest to those of `weight_OI`, for each row alone, or to
    those that the statistics ask for. The result is of the type of `start_OI`, which is the weight if it is not given.

    With v = w * norm and A = the Gram matrix of unit diagonal plus the ridge, it minimizes (v' - v) A (v' - v)^T by
    steps of conjugate gradients from the masked start. Rows are solved in blocks to bound memory.
    """
    out_OI = torch.empty_like(weight_OI if start_OI is None else start_OI)
    for part in row_blocks(weight_OI, statistics):
        goal_OI = None if statistics.goal_OI is None else statistics.goal_OI[part]
        start_part = weight_OI[part] if start_OI is None else start_OI[part]
        out_OI[part] = least_squares_of_rows(weight_OI[part], stays_OI[part], statistics, goal_OI, start_part, steps)
    return out_OI


def row_blocks(weight_OI: torch.Tensor, statistics: Statistics) -> list[slice]:
    rows = max(1, CHUNK_BYTES // (weight_OI.shape[1] * statistics.norm_I.itemsize))
    return [slice(first, first + rows) for first in range(0, len(weight_OI), rows)]


def least_squares_of_rows(
    weight_OI: torch.Tensor,
    stays_OI: torch.Tensor,
    statistics: Statistics,
    goal_OI: torch.Tensor | None,
    start_OI: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Solves some rows. Each residual is made orthogonal to the first ones, as it is without rounding: inputs have some
    directions that are far stronger than the others, and rounding brings those back, differently on each processor."""
    gram_II, scale_I = statistics.gram_II, statistics.scale
    assert gram_II is not None
    mask_OI = stays_OI.to(scale_I.dtype)  # a product with a bool takes six times as long

    def product(x_OI: torch.Tensor) -> torch.Tensor:
        return matmul(x_OI, gram_II).add_(x_OI, alpha=RIDGE).mul_(mask_OI)

    dense_OI = weight_OI * scale_I
    solution_OI = start_OI * scale_I * mask_OI
    if goal_OI is None:
        residual_OI = product(dense_OI - solution_OI)
    else:
        residual_OI = goal_OI.add(dense_OI, alpha=RIDGE).mul_(mask_OI).sub_(product(solution_OI))
    direction_OI, energy_O = residual_OI.clone(), squares(residual_OI)
    least_O = energy_O * torch.finfo(scale_I.dtype).eps ** 2  # a row with less is solved as well as its type can
    first: list[torch.Tensor] = []
    for _ in range(steps):
        if len(first) < ORTHOGONAL:
            first.append(residual_OI / nonzero(energy_O.sqrt())[:, None])
        image_OI = product(direction_OI)
        step_O = energy_O / nonzero((direction_OI * image_OI).sum(1))
        solution_OI.addcmul_(step_O[:, None], direction_OI)
        residual_OI.addcmul_(step_O[:, None], image_OI, value=-1)
        for unit_OI in first:
            residual_OI.addcmul_((residual_OI * unit_OI).sum(1)[:, None], unit_OI, value=-1)
        after_O = squares(residual_OI)
        after_O *= after_O > least_O
        direction_OI.mul_((after_O / nonzero(energy_O))[:, None]).add_(residual_OI)
        energy_O = after_O
    return solution_OI / scale_I


def squares(x_OI: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x_OI, dim=1).square()


def sparsegpt(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Removes columns of weights from left to right, and corrects the weights to their right for each removed one.

    Frantar and Alistarh, SparseGPT (ICML 2023), algorithm 1: in each block of 128 columns the weights of the smallest
    w^2 / U_jj^2 go, over all rows together, with U the upper Cholesky factor of the inverse of the damped Gram matrix.
    The published code removes one more weight of each block than asked for; here the counts of the blocks are rounded
    so that the matrix loses exactly as many as asked for. What earlier blocks change in a block is summed when the block
    has its turn, in one product of matrices, and not after each of them.
    """
    factor_II, damping = inverse_factor(statistics, RIDGE)
    factor_II.diagonal()[statistics.norm_I == 0] = torch.inf  # weights whose input is always zero go first
    dtype, columns = statistics.norm_I.dtype, weight_OI.shape[1]
    out_OI, error_OI = torch.empty_like(weight_OI), torch.empty_like(weight_OI, dtype=dtype)
    stays_OI = torch.ones_like(weight_OI, dtype=torch.bool)
    blocks = [slice(first, min(first + BLOCK, columns)) for first in range(0, columns, BLOCK)]
    for block, remove in zip(blocks, counts_of(blocks, weight_OI, ask.remove), strict=True):
        block_OC, zero_OC = weight_OI[:, block].to(dtype, copy=True).contiguous(), weight_OI[:, block] == 0
        factor_CC, stays_OC = factor_II[block, block].to(dtype).contiguous(), stays_OI[:, block].contiguous()
        if block.start:
            done = slice(block.start)
            block_OC -= matmul(error_OI[:, done], factor_II[done, block].to(dtype))
        if ask.groups is None:
            stays_OC = choose(block_OC.abs() / factor_CC.diagonal(), zero_OC, remove)
        block_OC, zero_OC, factor_CC, stays_OC = block_OC.cpu(), zero_OC.cpu(), factor_CC.cpu(), stays_OC.cpu()
        error_OC = sweep(block_OC.numpy(), zero_OC.numpy(), factor_CC.numpy(), stays_OC.numpy(), ask.groups)
        error_OI[:, block], out_OI[:, block], stays_OI[:, block] = torch.from_numpy(error_OC), block_OC, stays_OC
    return Solved(out_OI, stays_OI, damping)


def counts_of(blocks: Sequence[slice], weight_OI: torch.Tensor, remove: int) -> list[int]:
    """Returns how many weights each block of columns loses."""
    zeros = [int((weight_OI[:, b] == 0).sum()) for b in blocks]  # of all at once torch would make integers of 8 bytes
    return share_out(remove, zeros, [weight_OI[:, b].numel() for b in blocks])


def share_out(remove: int, zeros: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Returns how many weights each block loses, `remove` in all: in proportion to its size, with running sums that are
    rounded. A block that has more zeros than its share loses all of them, and the others lose fewer."""
    zero_B, size_B = np.array(zeros), np.array(sizes)
    lost_B, free_B = zero_B.copy(), np.ones(len(zeros), bool)
    while True:
        left, total = max(remove, zero_B.sum()) - lost_B[~free_B].sum(), size_B[free_B].sum()
        lost_B[free_B] = np.diff((2 * left * np.cumsum(size_B[free_B]) + total) // (2 * total), prepend=0)
        full_B = lost_B < zero_B
        if not full_B.any():
            return lost_B.tolist()
        lost_B[full_B] = zero_B[full_B]
        free_B &= ~full_B


def repair(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Refits in stages, and aims at the outputs that the statistics ask for, where they ask for any.

    Half of what is to go goes first, then a half of the rest, then all: after each stage the weights that stay are
    refitted, and the next stage removes the smallest of the refitted |w'| * norm of each row. What has gone stays gone.

    `statistics.goal_OI` is given for a matrix that writes to the residual stream. It asks for the outputs after which the
    stream is that of the dense model, which makes up for all that earlier matrices lost (lottery/pruning/repairing.py).
    Layer-wise least squares with other outputs than the layer's own are known from quantization: GPTAQ (Li et al., ICML
    2025), QEP (Arai and Ichikawa, 2025).
    """
    solution_OI = weight_OI.to(statistics.norm_I.dtype)
    stays_OI = weight_OI != 0
    if not (ask.remove or ask.groups):
        return Solved(weight_OI, stays_OI)
    stages = stages_of(ask)
    for i, stage in enumerate(stages):
        stays_OI = choose_in_rows(solution_OI.abs() * statistics.norm_I, ~stays_OI, stage)
        steps = STEPS if i == len(stages) - 1 else STEPS // 2
        solution_OI = least_squares(weight_OI, stays_OI, statistics, solution_OI, steps)
    return Solved(solution_OI.to(weight_OI.dtype), stays_OI)


def stages_of(ask: Ask) -> list[Ask]:
    """Returns what each stage of `repair` removes in all. An N:M pattern goes half of its way first."""
    if ask.groups is None:
        return [Ask(round(ask.remove * share)) for share in (0.5, 0.75, 1.0)]
    keep, group = ask.groups
    return [Ask(0, (group - (group - keep) // 2, group)), ask]


METHODS: dict[str, Callable[[torch.Tensor, Statistics, Ask], Solved]] = {
    "wanda": wanda,
    "refit": refit,
    "sparsegpt": sparsegpt,
    "repair": repair,
}


def choose_in_rows(score_OI: torch.Tensor, zero_OI: torch.Tensor, ask: Ask) -> torch.Tensor:
    """Returns which weights stay (bool [O, I]) when every row loses as many of the lowest scores, or every group."""
    bits_OI = score_bits(score_OI, zero_OI)
    mask_OB = select.select_groups(bits_OI, *ask.groups) if ask.groups else select_rows(bits_OI, ask.remove)
    return as_flags(mask_OB, score_OI.shape[1]).to(score_OI.device)


def choose(score_OC: torch.Tensor, zero_OC: torch.Tensor, remove: int) -> torch.Tensor:
    """Returns which weights stay (bool [O, C]) when the lowest scores of all rows together go."""
    mask_1B = select_rows(score_bits(score_OC, zero_OC).reshape(1, -1), remove)
    return as_flags(mask_1B, score_OC.numel()).reshape(score_OC.shape).to(score_OC.device)


def score_bits(score_OI: torch.Tensor, zero_OI: torch.Tensor) -> np.ndarray:
    """Returns the bits of scores, which must not be negative, as the kernels take them: 0 for weights that are zero, and
    only for them. The scores are changed in place."""
    score_OI.clamp_(min=torch.finfo(score_OI.dtype).tiny).masked_fill_(zero_OI, 0)
    return score_OI.cpu().contiguous().numpy().view(f"u{score_OI.itemsize}")


def as_flags(mask_OB: np.ndarray, columns: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(mask_OB, axis=1, count=columns, bitorder="little").view(bool))


def layer_error(before_OI: torch.Tensor, after_OI: torch.Tensor, statistics: Statistics) -> float:
    """Returns ||X(w' - w)||^2 / ||Xw||^2 over all rows: the relative squared error of the matrix's outputs."""
    assert statistics.gram_II is not None
    lost = total = 0.0
    for part in row_blocks(before_OI, statistics):
        dense_OI = before_OI[part] * statistics.norm_I
        gap_OI = after_OI[part] * statistics.norm_I - dense_OI
        lost += float((matmul(gap_OI, statistics.gram_II) * gap_OI).sum(dtype=torch.float64))
        total += float((matmul(dense_OI, statistics.gram_II) * dense_OI).sum(dtype=torch.float64))
    return lost / total if total else 0.0
