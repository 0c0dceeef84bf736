"""What a calibrated method knows of the inputs of a matrix: their norms, and their Gram matrix.

Legend: T tokens, I columns of the matrix (its inputs), O rows.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lottery.pruning.products import matmul

MIRROR = 1024  # rows and columns of the squares in which a triangle is mirrored
TOKENS_AT_ONCE = 64  # of which squares are summed: a copy of all the inputs takes most of the time of large ones


@dataclass
class Statistics:
    """Statistics of the inputs of one matrix, or of several that share their inputs. Their type is that in which the
    methods compute.

    `norm_I` is the Euclidean norm of each column over all tokens, 0 where a column is always zero.
    `goal_OI` is the sum of y^T x over all tokens, its columns divided by these norms, where the outputs y are asked for and
    not the matrix's own.
    `gram_II` is the Gram matrix of the inputs (the sum of x^T x) with row and column divided by these norms: its
    diagonal is 1, also for a column that is always zero, and it is as well conditioned as a change of scale can make it.
    None where only norms were asked for.
    """

    norm_I: torch.Tensor
    gram_II: torch.Tensor | None
    tokens: int
    goal_OI: torch.Tensor | None = None

    @property
    def scale(self) -> torch.Tensor:
        """The norms, with 1 where a column is always zero: what rows and columns of the Gram matrix were divided by."""
        return nonzero(self.norm_I)


class Accumulator:
    """Sums the statistics of inputs in float32, sample after sample, in a fixed order.

    Without a Gram matrix it sums the squares of each column. With `both` it sums them beside the Gram matrix, for a
    later run that wants the same norms to the last bit.
    """

    def __init__(self, columns: int, with_gram: bool, device: str, both: bool = False) -> None:
        self.tokens = 0
        self.both = both
        self.square_I = torch.zeros(columns, device=device)
        self.gram_II = torch.zeros(columns, columns, device=device) if with_gram else None
        self.goal_OI: torch.Tensor | None = None

    def add(self, x_TI: torch.Tensor, goal_TO: torch.Tensor | None = None) -> None:
        """Adds the inputs of some tokens, of any type, and the outputs that are asked for."""
        if goal_TO is not None:
            goal_OI = matmul(goal_TO.float().T, x_TI.float())
            self.goal_OI = goal_OI if self.goal_OI is None else self.goal_OI.add_(goal_OI)
        self.tokens += len(x_TI)
        if self.gram_II is None or self.both:
            for part_TI in x_TI.split(TOKENS_AT_ONCE):
                self.square_I += part_TI.float().square().sum(0)
        if self.gram_II is None:
            return
        if x_TI.is_cuda:
            x_TI = x_TI.float()
            self.gram_II.addmm_(x_TI.T, x_TI)
        else:
            add_gram(self.gram_II.numpy(), x_TI.float().numpy())

    def merge(self, other: "Accumulator") -> "Accumulator":
        """Adds the sums of other samples to these."""
        self.tokens += other.tokens
        self.square_I += other.square_I
        if self.gram_II is not None and other.gram_II is not None:
            self.gram_II += other.gram_II
        return self

    def to(self, device: str) -> "Accumulator":
        """Moves the sums to a device."""
        self.square_I = self.square_I.to(device)
        self.gram_II = None if self.gram_II is None else self.gram_II.to(device)
        return self

    def finish(self) -> Statistics:
        """Returns the statistics. The Gram matrix is made in the memory of the sums, which then are gone."""
        if self.gram_II is None:
            return Statistics(self.square_I.sqrt(), None, self.tokens)
        gram_II, self.gram_II = self.gram_II, None
        norm_I = gram_II.diagonal().sqrt()
        gram_II /= nonzero(norm_I)
        gram_II /= nonzero(norm_I)[:, None]
        if gram_II.is_cuda:
            mirror_on_gpu(gram_II)
        else:
            mirror(gram_II.numpy())
        gram_II.diagonal().fill_(1)
        goal_OI, self.goal_OI = self.goal_OI, None
        if goal_OI is not None:
            goal_OI /= nonzero(norm_I)
        return Statistics(norm_I, gram_II, self.tokens, goal_OI)


def nonzero(x: torch.Tensor) -> torch.Tensor:
    """Returns numbers by which can be divided: 1 where `x` is not positive."""
    return torch.where(x > 0, x, 1)


def add_gram(gram_II: np.ndarray, x_TI: np.ndarray) -> None:
    """Adds x^T x to the upper triangle. BLAS computes one triangle in half of the time of a whole product."""
    from scipy.linalg import blas

    syrk = blas.ssyrk if gram_II.dtype == np.float32 else blas.dsyrk
    syrk(1.0, x_TI.T, beta=1.0, c=gram_II.T, overwrite_c=1, lower=1)


def mirror_on_gpu(gram_II: torch.Tensor) -> None:
    """Copies the upper triangle to the lower one, in place: what a product gave there, or nothing where sums were kept."""
    lower_II = gram_II.triu(1).T
    gram_II.triu_().add_(lower_II)


def mirror(gram_II: np.ndarray) -> None:
    """Copies the upper triangle to the lower one, in place."""
    for a in range(0, len(gram_II), MIRROR):
        corner = gram_II[a : a + MIRROR, a : a + MIRROR]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        gram_II[a + MIRROR :, a : a + MIRROR] = gram_II[a : a + MIRROR, a + MIRROR :].T
