"""Slow, obvious references of the methods that look at data, in numpy, written from their papers.

Each takes a weight [O, I], the Gram matrix G = X^T X of its inputs [I, I], and how many weights go: `remove` of the
matrix, or all but `keep` of each `size` neighbours. Of equal scores the earlier go first; zeros always go.
"""

import numpy as np

from tests.support.row_twin import twin_rows

Groups = tuple[int, int] | None
TINY = np.finfo(np.float64).tiny


def norms(gram_II: np.ndarray) -> np.ndarray:
    return np.sqrt(np.diag(gram_II))


def ranked(score_OI: np.ndarray, weight_OI: np.ndarray) -> np.ndarray:
    """Scores in which only zero weights have 0."""
    return np.where(weight_OI == 0, 0, np.maximum(score_OI, TINY))


def keep_in_groups(score_OI: np.ndarray, keep: int, size: int) -> np.ndarray:
    stays_OI = np.zeros(score_OI.shape, bool)
    for score_I, stays_I in zip(score_OI, stays_OI, strict=True):
        for first in range(0, len(score_I), size):
            order = first + np.argsort(score_I[first : first + size], kind="stable")
            stays_I[order[size - keep :]] = True
    return stays_OI & (score_OI > 0)


def wanda_stays(weight_OI: np.ndarray, gram_II: np.ndarray, remove: int, groups: Groups = None) -> np.ndarray:
    """Score |w_ij| * ||x_j||; compared within a row, or within a group."""
    score_OI = ranked(np.abs(weight_OI) * norms(gram_II), weight_OI)
    return keep_in_groups(score_OI, *groups) if groups else twin_rows(score_OI, remove)


def swaps_stays(weight_OI: np.ndarray, gram_II: np.ndarray, remove: int, groups: Groups = None) -> np.ndarray:
    """From wanda's mask: of the 8 removed weights whose return alone would lower the error e G e^T of a row most, and all
    kept ones, the pair whose exchange lowers it most, until none does. e is what is removed of the row."""
    stays_OI = wanda_stays(weight_OI, gram_II, remove, groups)

    def error(weight_I: np.ndarray, stays_I: np.ndarray) -> float:
        e_I = weight_I * ~stays_I
        return float(e_I @ gram_II @ e_I)

    def changed(stays_I: np.ndarray, *places: int) -> np.ndarray:
        other_I = stays_I.copy()
        other_I[list(places)] ^= True
        return other_I

    for weight_I, stays_I in zip(weight_OI, stays_OI, strict=True):
        while True:
            now = error(weight_I, stays_I)
            gone = [int(j) for j in np.flatnonzero(~stays_I & (weight_I != 0))]
            gone = sorted(gone, key=lambda j: error(weight_I, changed(stays_I, j)))[:8]
            pairs = [
                (error(weight_I, changed(stays_I, i, j)), i, j)
                for j in gone
                for i in map(int, np.flatnonzero(stays_I))
                if groups is None or i // groups[1] == j // groups[1]
            ]
            least, i, j = min(pairs, default=(now, 0, 0))
            if least >= now * (1 - 1e-12):
                break
            stays_I[:] = changed(stays_I, i, j)
    return stays_OI


def unit_diagonal(gram_II: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Gram matrix with unit diagonal, and the norms by which rows and columns were divided."""
    norm_I = norms(gram_II)
    scale_I = np.where(norm_I > 0, norm_I, 1)
    unit_II = gram_II / scale_I / scale_I[:, None]
    np.fill_diagonal(unit_II, 1)
    return unit_II, scale_I


def refit_weights(
    weight_OI: np.ndarray,
    stays_OI: np.ndarray,
    gram_II: np.ndarray,
    start_OI: np.ndarray | None = None,
    steps: int = 20,
    goal_OI: np.ndarray | None = None,
) -> np.ndarray:
    """What 20 steps of conjugate gradients give in exact arithmetic, for each row alone, from the masked weight.

    With v = w * norm and A = unit-diagonal Gram + 0.01, the minimum of (v' - v) A (v' - v) over v' on the support solves
    A_SS v'_S = (A v)_S. From x_S with the residual r_S, 20 steps of conjugate gradients reach the minimum over
    x_S + span{r_S, A_SS r_S, ..., A_SS^19 r_S}. With a goal y^T X (in the scale of v) the minimum solves
    A_SS v'_S = (y^T X + 0.01 v)_S.
    """
    unit_II, scale_I = unit_diagonal(gram_II)
    a_II = unit_II + 0.01 * np.eye(len(unit_II))
    out_OI = np.zeros_like(weight_OI)
    for o, (weight_I, stays_I) in enumerate(zip(weight_OI, stays_OI, strict=True)):
        support = np.flatnonzero(stays_I)
        a_SS, b_S = a_II[np.ix_(support, support)], a_II[support] @ (weight_I * scale_I)
        if goal_OI is not None:
            b_S = (goal_OI[o] + 0.01 * weight_I * scale_I)[support]
        x_S = ((weight_I if start_OI is None else start_OI[o]) * scale_I)[support]
        r_S = b_S - a_SS @ x_S
        basis_SK, next_S = np.zeros((len(support), 0)), r_S
        while basis_SK.shape[1] < min(steps, len(support)):
            next_S = next_S - basis_SK @ (basis_SK.T @ next_S)
            if np.linalg.norm(next_S) <= 1e-13 * np.linalg.norm(b_S):
                break
            basis_SK = np.column_stack([basis_SK, next_S / np.linalg.norm(next_S)])
            next_S = a_SS @ basis_SK[:, -1]
        y_K = np.linalg.solve(basis_SK.T @ a_SS @ basis_SK, basis_SK.T @ r_S)
        out_OI[o, support] = (x_S + basis_SK @ y_K) / scale_I[support]
    return out_OI


def alps(
    weight_OI: np.ndarray, gram_II: np.ndarray, remove: int, groups: Groups = None, goal_OI: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """ADMM through the eigenvectors of the ridged Gram matrix, as published; then what `refit_weights` gives."""
    unit_II, scale_I = unit_diagonal(gram_II)
    value_I, vector_II = np.linalg.eigh(unit_II + 0.01 * np.eye(len(unit_II)))
    w_OI = weight_OI * scale_I
    b_OI = w_OI @ unit_II + 0.01 * w_OI if goal_OI is None else goal_OI + 0.01 * w_OI
    survivors = weight_OI.size - remove

    def largest(x_OI: np.ndarray) -> np.ndarray:
        score_OI = ranked(np.abs(x_OI), weight_OI)
        if groups is not None:
            return keep_in_groups(score_OI, *groups)
        stays = np.ones(score_OI.size, bool)
        stays[np.argsort(score_OI.ravel(), kind="stable")[: max(remove, int((weight_OI == 0).sum()))]] = False
        return stays.reshape(score_OI.shape)

    rho, supports = 0.1, []
    d_OI, v_OI = w_OI, np.zeros_like(w_OI)
    for i in range(300):
        b = ((b_OI - v_OI + rho * d_OI) @ vector_II) / (value_I + rho) @ vector_II.T
        stays_OI = largest(b + v_OI / rho)
        d_OI = (b + v_OI / rho) * stays_OI
        v_OI = v_OI + rho * (b - d_OI)
        supports += [stays_OI] if i == 0 or i % 3 == 2 else []
        if i % 3 == 2:
            changed = (supports[-1] != supports[-2]).sum()
            if changed:
                rho *= 1.3 if changed > 0.1 * survivors else 1.2 if changed > 0.005 * survivors else 1.1
            elif all((s == supports[0]).all() for s in supports):
                rho, d_OI, v_OI = rho / 5, w_OI, np.zeros_like(w_OI)
            else:
                break
    return refit_weights(weight_OI, stays_OI, gram_II, d_OI / scale_I, 20, goal_OI), stays_OI


def exact_weights(weight_OI: np.ndarray, stays_OI: np.ndarray, gram_II: np.ndarray) -> np.ndarray:
    """The minimum that `refit_weights` approaches."""
    unit_II, scale_I = unit_diagonal(gram_II)
    a_II = unit_II + 0.01 * np.eye(len(unit_II))
    out_OI = np.zeros_like(weight_OI)
    for o, (weight_I, stays_I) in enumerate(zip(weight_OI, stays_OI, strict=True)):
        s = np.flatnonzero(stays_I)
        out_OI[o, s] = np.linalg.solve(a_II[np.ix_(s, s)], a_II[s] @ (weight_I * scale_I)) / scale_I[s]
    return out_OI


def sparsegpt(
    weight_OI: np.ndarray, gram_II: np.ndarray, remove: int, groups: Groups = None, damping: float = 0.01
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 of the paper with B = B_s = 128, in the order of the published code: (new weight, which weights stay).

    Only the counts are this project's: after each block round(remove * columns so far / columns) weights are gone.
    """
    w_OI, zero_OI, columns = weight_OI.copy(), weight_OI == 0, weight_OI.shape[1]
    h_II = gram_II.copy()
    dead_I = np.diag(h_II) == 0
    h_II[dead_I, dead_I] = 1
    h_II[np.diag_indices(columns)] += damping * np.mean(np.diag(h_II))
    lower_II = np.linalg.cholesky(h_II)
    lower_inverse_II = np.linalg.inv(lower_II)
    u_II = np.linalg.cholesky(lower_inverse_II.T @ lower_inverse_II).T  # upper: U^T U is the inverse of H
    stays_OI = np.ones(w_OI.shape, bool)
    for i in range(0, columns, 128):
        last = min(i + 128, columns)
        if groups is None:
            score_OC = ranked(np.where(dead_I, 0, w_OI**2 / np.diag(u_II) ** 2), weight_OI)[:, i:last]
            count = int(remove * last / columns + 0.5) - int(remove * i / columns + 0.5)
            order = np.argsort(score_OC.ravel(), kind="stable")[: max(count, int(zero_OI[:, i:last].sum()))]
            stays_OI[:, i:last] = ~np.isin(np.arange(score_OC.size), order).reshape(score_OC.shape)
        error_OC = np.zeros((len(w_OI), last - i))
        for j in range(i, last):
            if groups is not None and j % groups[1] == 0:
                block = slice(j, j + groups[1])
                score_OG = ranked(np.where(dead_I, 0, w_OI**2 / np.diag(u_II) ** 2), weight_OI)[:, block]
                stays_OI[:, block] = keep_in_groups(score_OG, *groups)
            q_O = np.where(stays_OI[:, j], w_OI[:, j], 0)
            error_OC[:, j - i] = (w_OI[:, j] - q_O) / u_II[j, j]
            w_OI[:, j:last] -= np.outer(error_OC[:, j - i], u_II[j, j:last])
            w_OI[:, j] = q_O
        w_OI[:, last:] -= error_OC @ u_II[i:last, last:]
    return w_OI, stays_OI


def output_error(weight_OI: np.ndarray, new_OI: np.ndarray, gram_II: np.ndarray) -> float:
    """||X (w' - w)||^2 / ||X w||^2."""
    gap_OI = new_OI - weight_OI
    return float(np.einsum("oi,ij,oj->", gap_OI, gram_II, gap_OI, optimize=True)) / float(
        np.einsum("oi,ij,oj->", weight_OI, gram_II, weight_OI, optimize=True)
    )
