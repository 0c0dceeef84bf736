"""Factorizations of large matrices, with the fastest library on each device.

Legend: I columns of a weight.
"""

import numpy as np
import torch

from lottery.errors import InputError
from lottery.progress import say
from lottery.pruning.statistics import Statistics

MORE = 10  # by which the damping grows where a factorization fails
TRIES = 5
STEP = 2**20  # numbers that are moved at once where a matrix is changed in place
ROWS = 1024  # whose lower triangle is cleared at once


def inverse_factor(statistics: Statistics, damping: float) -> tuple[torch.Tensor, float | None]:
    """Returns the upper Cholesky factor U of the inverse of the damped Gram matrix, in float64 [I, I]: U^T U = H^-1.

    H is the Gram matrix plus `damping` times the mean of its diagonal. Where H is not positive definite, the damping
    grows, a line says so, and the damping that served is returned too.
    """
    used = damping
    for _ in range(TRIES):
        if (factor := try_inverse_factor(statistics, used)) is not None:
            return factor, grown(damping, used)
        used *= MORE
    raise hopeless(used / MORE)


def grown(damping: float, used: float) -> float | None:
    """Returns the damping that served if it had to grow, with a line that says so, else None."""
    if used == damping:
        return None
    say(f"warning: a Gram matrix is not positive definite; its damping was raised from {damping:g} to {used:g}")
    return used


def hopeless(damping: float) -> InputError:
    return InputError(
        f"calibration: a Gram matrix cannot be factorized, even with a damping of {damping:g}; give another text, more "
        f"nsamples, or method=wanda"
    )


def cholesky(gram_II: torch.Tensor, damping: float, more: float) -> tuple[torch.Tensor, float | None]:
    """Returns the lower Cholesky factor [I, I] of a Gram matrix of unit diagonal plus `damping` + `more` times the
    identity; the entries above the diagonal mean nothing.

    Where it is not positive definite the damping grows, a line says so, and the damping that served is returned too.
    """
    used = damping
    for _ in range(TRIES):
        if (factor_II := try_cholesky(gram_II, used + more)) is not None:
            return factor_II, grown(damping, used)
        used *= MORE
    raise hopeless(used / MORE)


def try_cholesky(gram_II: torch.Tensor, added: float) -> torch.Tensor | None:
    h_II = gram_II.clone()
    h_II.diagonal().add_(added)
    if h_II.is_cuda:
        factor_II, info = torch.linalg.cholesky_ex(h_II)
        return None if info.item() else factor_II
    from scipy.linalg import lapack

    potrf = lapack.spotrf if h_II.dtype == torch.float32 else lapack.dpotrf
    # Fortran's columns are numpy's rows: the upper triangle that it computes is the lower one in numpy's order.
    return None if potrf(h_II.numpy().T, lower=0, overwrite_a=1, clean=0)[1] else h_II


def solve_rows(factor_II: torch.Tensor, b_OI: torch.Tensor) -> torch.Tensor:
    """Returns X [O, I] of X H = B, with the lower Cholesky factor of H. It may be in the memory of B."""
    if b_OI.is_cuda:
        return torch.cholesky_solve(b_OI.T, factor_II).T
    from scipy.linalg import lapack

    potrs = lapack.spotrs if b_OI.dtype == torch.float32 else lapack.dpotrs
    return torch.from_numpy(potrs(factor_II.numpy().T, b_OI.numpy().T, lower=0, overwrite_b=1)[0].T)


def try_inverse_factor(statistics: Statistics, damping: float) -> torch.Tensor | None:
    """Returns that factor, or None where H is not positive definite.

    With J the reversal of rows and columns, JHJ = LL^T gives H = RR^T with R = JLJ upper triangular, so that U is the
    inverse of R: one factorization instead of two and an inverse. On a CPU everything happens in one buffer.
    """
    assert statistics.gram_II is not None
    scale_I = statistics.scale.double()
    added = damping * float(scale_I.square().mean())
    if statistics.gram_II.is_cuda:
        return inverse_factor_on_gpu(statistics.gram_II, scale_I, added)
    reversed_I = scale_I.numpy()[::-1]
    h_II = np.empty(statistics.gram_II.shape)
    np.multiply(statistics.gram_II.numpy()[::-1, ::-1], reversed_I, out=h_II)
    h_II *= reversed_I[:, None]
    h_II.reshape(-1)[:: len(h_II) + 1] += added
    return torch.from_numpy(h_II) if invert_in_place(h_II) else None


def inverse_factor_on_gpu(gram_II: torch.Tensor, scale_I: torch.Tensor, added: float) -> torch.Tensor | None:
    h_II = gram_II.double().mul_(scale_I).mul_(scale_I[:, None])
    h_II.diagonal().add_(added)
    lower_II, info = torch.linalg.cholesky_ex(h_II.flip(0, 1))
    if info.item():
        return None
    eye_II = torch.eye(len(lower_II), dtype=torch.float64, device=lower_II.device)
    return torch.linalg.solve_triangular(lower_II, eye_II, upper=False).flip(0, 1)


def invert_in_place(h_II: np.ndarray) -> bool:
    """Replaces JHJ by JL^-1J, with JHJ = LL^T. Returns False where it is not positive definite."""
    from scipy.linalg import lapack

    # Fortran's columns are numpy's rows: the upper triangle that it computes is L in numpy's order.
    if lapack.dpotrf(h_II.T, lower=0, overwrite_a=1, clean=0)[1]:
        return False
    if lapack.dtrtri(h_II.T, lower=0, overwrite_c=1)[1]:
        return False
    reverse_in_place(h_II.reshape(-1))
    for first in range(0, len(h_II), ROWS):
        rows = slice(first, first + ROWS)
        h_II[rows, :first] = 0
        h_II[rows, rows] = np.triu(h_II[rows, rows])
    return True


def reverse_in_place(flat: np.ndarray) -> None:
    for first in range(0, len(flat) // 2, STEP):
        last = min(first + STEP, len(flat) // 2)
        front, back = flat[first:last], flat[len(flat) - last : len(flat) - first]
        front[:], back[:] = back[::-1].copy(), front[::-1].copy()
