"""How sure a comparison is, by resampling evaluation windows: those of one model together, so that what two of its tickets
share cancels.

Legend: N and M windows, S resamples, T targets, P pairs of targets.
"""

import math
from functools import cache
from itertools import combinations
from statistics import NormalDist

import numpy as np

BOOTSTRAP_RESAMPLES = 10_000  # of the interval of one run
RESAMPLES = 4_000  # of what a report compares
PAIRS_AT_ONCE = 2_048  # 4,000 resamples of them are 64 MB


def expanded_tail(windows: int) -> float:
    """Where the quantiles of the 95% interval of a mean over so few windows are taken: as for every interval of a run
    (Hesterberg 2015, "expanded percentile")."""
    from scipy.special import stdtrit

    return NormalDist().cdf(-math.sqrt(windows / (windows - 1)) * float(stdtrit(windows - 1, 0.975)))


@cache
def draws(windows: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each window is drawn in each resample, [S, N]: as many as there are, with replacement."""
    rng = np.random.default_rng((seed, windows))
    return rng.multinomial(windows, np.full(windows, 1 / windows), size=resamples).astype(np.float64)


def difference_interval(difference_N: np.ndarray) -> tuple[float, float]:
    """95%, of the mean over windows."""
    if len(difference_N) < 2:
        return -math.inf, math.inf
    low = expanded_tail(len(difference_N))
    lo, hi = np.quantile(draws(len(difference_N)) @ difference_N / len(difference_N), [low, 1 - low])
    return float(lo), float(hi)


def order(nll_NT: np.ndarray) -> np.ndarray:
    """Which of two targets certainly loses less: the paired 95% interval of their difference does not hold 0."""
    count_T = nll_NT.shape[1]
    order_TT = np.zeros((count_T, count_T), np.int8)
    low = expanded_tail(len(nll_NT))
    pairs = np.array(list(combinations(range(count_T), 2)))
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        a_P, b_P = pairs[first : first + PAIRS_AT_ONCE].T
        sum_SP = draws(len(nll_NT)) @ (nll_NT[:, a_P] - nll_NT[:, b_P])
        lo_P, hi_P = np.quantile(sum_SP, [low, 1 - low], axis=0)
        order_TT[a_P, b_P] = (hi_P < 0).astype(np.int8) - (lo_P > 0)
    return order_TT - order_TT.T


def signs(nll_NT: np.ndarray, pairs_P2: np.ndarray, draws_SN: np.ndarray) -> np.ndarray:
    """Which target of each pair loses less in each resample, [S, P] of -1, 0, 1. Equal tickets tie exactly: differences
    are taken window by window, before anything is summed."""
    return np.sign(draws_SN @ (nll_NT[:, pairs_P2[:, 0]] - nll_NT[:, pairs_P2[:, 1]])).astype(np.int8)


def tau_b(a_NT: np.ndarray, b_MT: np.ndarray, draws_SN: np.ndarray, draws_SM: np.ndarray) -> np.ndarray:
    """Kendall's tau-b between the orders of the same targets in two models, of each resample [S]; ties lower it as in
    scipy's; NaN where one of them ties all."""
    pairs_P2 = np.array(list(combinations(range(a_NT.shape[1]), 2)))
    both_S, a_S, b_S = (np.zeros(len(draws_SN)) for _ in range(3))
    for first in range(0, len(pairs_P2), PAIRS_AT_ONCE):
        chunk = pairs_P2[first : first + PAIRS_AT_ONCE]
        a_SP, b_SP = signs(a_NT, chunk, draws_SN), signs(b_MT, chunk, draws_SM)
        both_S += (a_SP * b_SP).sum(1, dtype=np.int64)
        a_S += np.count_nonzero(a_SP, 1)
        b_S += np.count_nonzero(b_SP, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return both_S / np.sqrt(a_S * b_S)


def bootstrap_interval(values_N: np.ndarray, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap 95% interval of the mean over windows; None for a single window.

    Percentile intervals of few values are too narrow; the quantiles are taken where Student's t would put them
    (Hesterberg 2015, "expanded percentile": Phi(-sqrt(n/(n-1)) t(0.975, n-1))). Windows of one article are not
    independent, so the true interval is somewhat wider.
    """
    n = len(values_N)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    means_S = np.concatenate(
        [values_N[rng.integers(0, n, (500, n))].mean(1) for _ in range(BOOTSTRAP_RESAMPLES // 500)]
    )
    tail = expanded_tail(n)
    low, high = np.quantile(means_S, [tail, 1 - tail])
    return float(low), float(high)
