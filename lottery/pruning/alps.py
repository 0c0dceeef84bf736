"""ALPS: a support is found by the alternating direction method of multipliers, then its weights are refitted.

Legend: O rows (outputs), I columns (inputs).
"""

import torch

from lottery.pruning.choosing import Ask, Solved, choose, choose_in_rows
from lottery.pruning.least_squares import RIDGE, least_squares
from lottery.pruning.linear_algebra import cholesky, solve_rows
from lottery.pruning.products import matmul
from lottery.pruning.statistics import Statistics

RHO = 0.1  # the first penalty
LESS, LEAST = 5, 1e-3  # it is divided by this where no weight changes its place at first, down to that
EVERY = 3  # iterations after which the penalty grows
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # where more than such a share of the support has changed, by how much
MOST = 300  # iterations


def alps(weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> Solved:
    """Finds the weights, all but as many as asked for zero, whose outputs are nearest to the dense ones.

    Meng et al., ALPS (NeurIPS 2024), algorithm 1: with A the Gram matrix of unit diagonal plus the ridge, w the dense
    weights times the norms, and D the largest of all entries of the matrix together,

        B = (A w - V + rho D) (A + rho I)^-1,  D = largest(B + V / rho),  V = V + rho (B - D),

    until the support of D stands still; then conjugate gradients on that support. The published code decomposes A into
    eigenvectors once. A Cholesky factor at each change of rho, of which there are a dozen, takes half of the time.
    """
    if not (ask.remove or ask.groups):
        return Solved(weight_OI, weight_OI != 0)
    support = Admm(weight_OI, statistics, ask)
    stays_OI = support.find()
    solution_OI = least_squares(weight_OI, stays_OI, statistics, support.sparse_OI / statistics.scale)
    return Solved(solution_OI.to(weight_OI.dtype), stays_OI, support.damping)


class Admm:
    """The iteration for one matrix. Everything is in the scale of the unit diagonal."""

    def __init__(self, weight_OI: torch.Tensor, statistics: Statistics, ask: Ask) -> None:
        assert statistics.gram_II is not None
        self.ask, self.gram_II = ask, statistics.gram_II
        self.weight_OI, self.norm_I = weight_OI, statistics.norm_I  # weights of inputs that are always zero go first
        self.zero_OI = weight_OI == 0
        dense_OI = weight_OI * self.norm_I
        goal_OI = matmul(dense_OI, self.gram_II) if statistics.goal_OI is None else statistics.goal_OI
        self.goal_OI = goal_OI.add(dense_OI, alpha=RIDGE)  # what the statistics hold stays as it is
        self.sparse_OI = dense_OI
        self.damping: float | None = None

    def find(self) -> torch.Tensor:
        """Returns which weights stay (bool [O, I]). `sparse_OI` then holds their values."""
        rho, moved = RHO, False
        dual_OI, free_OI = torch.zeros_like(self.sparse_OI), torch.empty_like(self.sparse_OI)
        size = dual_OI.numel() - self.ask.remove
        for i in range(MOST):
            if i % EVERY == 0:
                factor_II = torch.empty(0)  # the old one is given back first
                factor_II = self._factor(rho)
            torch.sub(self.goal_OI, dual_OI, out=free_OI).add_(self.sparse_OI, alpha=rho)
            free_OI = solve_rows(factor_II, free_OI)
            torch.add(free_OI, dual_OI, alpha=1 / rho, out=self.sparse_OI)
            stays_OI = self._largest(self.sparse_OI)
            self.sparse_OI *= stays_OI
            dual_OI.add_(free_OI.sub_(self.sparse_OI), alpha=rho)
            if i == 0:
                before_OI = stays_OI
            if i % EVERY == EVERY - 1:
                changed = int((stays_OI != before_OI).sum())
                if changed:
                    rho *= next(by for share, by in GROWTH if changed > share * size)
                elif moved or rho < LEAST:
                    break
                else:  # the penalty holds every weight in its place: once more from the start, with a smaller one
                    rho /= LESS
                    torch.mul(self.weight_OI, self.norm_I, out=self.sparse_OI)
                    dual_OI.zero_()
                before_OI, moved = stays_OI, moved or changed > 0
        return stays_OI

    def _factor(self, rho: float) -> torch.Tensor:
        factor_II, grown = cholesky(self.gram_II, self.damping or RIDGE, rho)
        self.damping = grown or self.damping
        return factor_II

    def _largest(self, x_OI: torch.Tensor) -> torch.Tensor:
        if self.ask.groups:
            return choose_in_rows(x_OI.abs(), self.zero_OI, self.ask)
        return choose(x_OI.abs(), self.zero_OI, self.ask.remove)
