"""Which weights live: a mask is a bool array over all parameters, True for a weight that lives.

A mask is always explicit. A weight that happens to be 0 is not a removed one.

Legend: P parameters, M matrices, W the weights that are ranked together.
"""

from collections.abc import Callable, Sequence

import numpy as np

from lottery.training.network import Matrix, Network


def full_mask(network: Network) -> np.ndarray:
    """Returns the mask of the dense network, [P]."""
    return np.ones(network.size, bool)


def keep_best(network: Network, score_P: np.ndarray, mask_P: np.ndarray, keep: int, scope: str) -> np.ndarray:
    """Returns the mask in which the `keep` prunable weights of highest score live, of those that live in `mask_P`.

    With scope `global` all matrices are ranked together, with `layer` each matrix keeps the same share. Of equal scores
    the later weights go first. Raises ValueError if fewer than `keep` weights live.
    """
    alive = int((mask_P & network.prunable_P).sum())
    if keep > alive:
        raise ValueError(f"{keep} of {alive} living weights cannot be kept")
    out_P = mask_P & ~network.prunable_P
    if scope == "global":
        groups = [(np.flatnonzero(network.prunable_P), keep)]
    else:
        alive_M = np.array([int(mask_P[m.part].sum()) for m in network.matrices])
        number_M = np.minimum(shares(keep, network.matrices), alive_M)
        while number_M.sum() < keep:  # rounding asked a matrix for one weight more than an earlier round had left it
            number_M[np.argmax(alive_M - number_M)] += 1
        groups = [(np.arange(m.start, m.stop), int(n)) for m, n in zip(network.matrices, number_M, strict=True)]
    for places_W, number in groups:
        living_W = places_W[mask_P[places_W]]
        order = np.argsort(-score_P[living_W], kind="stable")
        out_P[living_W[order[:number]]] = True
    return out_P


def shares(keep: int, matrices: Sequence[Matrix]) -> list[int]:
    """Returns how many weights each matrix keeps when all keep the same share; their sum is exactly `keep`."""
    sizes = np.array([m.stop - m.start for m in matrices])
    ends = np.round(np.cumsum(sizes) * (keep / sizes.sum())).astype(int)
    return [int(n) for n in np.diff(ends, prepend=0)]


def shuffle_mask(network: Network, mask_P: np.ndarray, seed: int) -> np.ndarray:
    """Returns the mask with its bits permuted inside each matrix: every matrix keeps as many weights as before."""
    return permute(network, mask_P, seed, lambda matrix: np.arange(matrix.start, matrix.stop))


def permute_values(network: Network, weight_P: np.ndarray, mask_P: np.ndarray, seed: int) -> np.ndarray:
    """Returns the weights with the living ones permuted inside each matrix: the same values, in other places."""
    return permute(network, weight_P, seed, lambda matrix: matrix.start + np.flatnonzero(mask_P[matrix.part]))


def permute(network: Network, array_P: np.ndarray, seed: int, places: Callable[[Matrix], np.ndarray]) -> np.ndarray:
    """Returns the array with the elements at `places` of each matrix permuted among themselves."""
    rng = np.random.default_rng([seed, 0x5EED])
    out_P = array_P.copy()
    for matrix in network.matrices:
        places_W = places(matrix)
        out_P[places_W] = array_P[rng.permutation(places_W)]
    return out_P


def densities(network: Network, mask_P: np.ndarray) -> dict[str, float]:
    """Returns the share of living weights of each matrix, by its short name."""
    return {m.short: float(mask_P[m.part].mean()) for m in network.matrices}
