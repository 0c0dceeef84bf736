"""The methods that look at the data. Each is a function: a weight, statistics of its inputs, how many to remove ->
the new weight, and which weights stay.

To add one, write such a function, add it to `METHODS`, and add a line to `METHODS` of spec.py.

A weight may be of any floating-point type; the methods compute in the type of the statistics, and return weights in the
type that was given.

Legend: O rows (outputs), I columns (inputs).
"""

from collections.abc import Callable

import torch

from lottery.kernels.swaps import swap
from lottery.pruning.alps import alps
from lottery.pruning.choosing import Ask, Solved, choose_in_rows
from lottery.pruning.least_squares import least_squares
from lottery.pruning.products import matmul
from lottery.pruning.sparsegpt import sparsegpt
from lottery.pruning.statistics import Statistics

MOST_SWAPS = 1000  # in a row; all of a row of 1,536 weights that lower its error are fewer than 200


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


def swaps(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Removes what wanda removes, then exchanges removed weights for kept ones, one for one in each row, for as long as
    that brings the row's outputs nearer to the dense ones. Values stay as they are.

    The exchange of SparseSwaps (2025): what a pair of weights changes follows from the Gram matrix alone. Here the best
    8 of the removed weights of a row are compared with every kept one; N:M patterns exchange within a group.
    """
    stays_OI = wanda_mask(weight_OI, statistics, ask)
    if ask.remove or ask.groups:
        assert statistics.gram_II is not None
        scaled_OI = weight_OI * statistics.norm_I
        image_OI = matmul(scaled_OI * ~stays_OI, statistics.gram_II)
        scaled, gram, image, stays = (
            x.cpu().contiguous().numpy() for x in (scaled_OI, statistics.gram_II, image_OI, stays_OI)
        )
        swap(scaled, gram, image, stays, MOST_SWAPS, group=ask.groups[1] if ask.groups else 0)
        stays_OI = torch.from_numpy(stays).to(weight_OI.device)
    return Solved(weight_OI * stays_OI, stays_OI)


def refit(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Removes what wanda removes, then finds the weights on that support whose outputs are nearest to the dense ones.

    It minimizes ||X(w' - w)||^2 of each row, with a ridge, by conjugate gradients on the Gram matrix of unit diagonal:
    the last step of ALPS (Meng et al., NeurIPS 2024) on another mask.
    """
    stays_OI = wanda_mask(weight_OI, statistics, ask)
    if not (ask.remove or ask.groups):  # the weights are what they were, to the last bit
        return Solved(weight_OI, stays_OI)
    return Solved(least_squares(weight_OI, stays_OI, statistics), stays_OI)


def repair(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Solves as `alps` does, for the outputs that the statistics ask for, where they ask for any.

    `statistics.goal_OI` is given for a matrix that writes to the residual stream. It asks for the outputs after which the
    stream is that of the dense model, which makes up for all that earlier matrices lost (lottery/pruning/repairing.py).
    Layer-wise least squares with other outputs than the layer's own are known from quantization: GPTAQ (Li et al., ICML
    2025), QEP (Arai and Ichikawa, 2025).
    """
    return alps(weight_OI, statistics, ask)


METHODS: dict[str, Callable[[torch.Tensor, Statistics, Ask], Solved]] = {
    "wanda": wanda,
    "swaps": swaps,
    "refit": refit,
    "sparsegpt": sparsegpt,
    "alps": alps,
    "repair": repair,
}
