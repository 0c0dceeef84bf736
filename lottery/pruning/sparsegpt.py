"""SparseGPT: columns go from left to right, and what stays makes up for them.

Legend: O rows (outputs), I columns (inputs), C columns of a block.
"""

from collections.abc import Sequence

import torch

from lottery.kernels.sweep import sweep
from lottery.pruning.choosing import Ask, Solved, choose, share_out
from lottery.pruning.least_squares import RIDGE
from lottery.pruning.linear_algebra import inverse_factor
from lottery.pruning.products import matmul
from lottery.pruning.statistics import Statistics

BLOCK = 128  # columns among which it chooses


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
