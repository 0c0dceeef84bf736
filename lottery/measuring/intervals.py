"""Says how certain a figure or a comparison is, by resampling evaluation windows.

The windows of one model are resampled together, so that what two of its tickets share cancels.

Legend: N and M windows, S resamples, T targets, P pairs of targets.
"""

import math
from functools import cache
from itertools import combinations
from statistics import NormalDist

import numpy as np

from lottery.measuring.verdict import LEAST_WINDOWS

BOOTSTRAP_RESAMPLES = 10_000  # for the interval of one run
RESAMPLES = 4_000  # for the comparisons of a report
PAIRS_AT_ONCE = 2_048  # 4,000 resamples of so many pairs take 64 MB


def expanded_tail(windows: int) -> float:
    """Returns the lower quantile at which the 95% bootstrap interval of a mean over so few windows begins.

    Every interval uses Hesterberg's "expanded percentile" (2015): Phi(-sqrt(n/(n-1)) t(0.975, n-1)) for n windows.
    """
    return NormalDist().cdf(-math.sqrt(windows / (windows - 1)) * student(windows))


@cache
def resample_counts(windows: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Returns how often each resample draws each window, [S, N]. A resample draws N windows with replacement."""
    rng = np.random.default_rng((seed, windows))
    return rng.multinomial(windows, np.full(windows, 1 / windows), size=resamples).astype(np.float64)


def difference_interval(difference_N: np.ndarray) -> tuple[float, float]:
    """Returns the 95% interval of the mean over windows; it is infinite for fewer than two windows."""
    if len(difference_N) < 2:
        return -math.inf, math.inf
    low = expanded_tail(len(difference_N))
    lo, hi = np.quantile(resample_counts(len(difference_N)) @ difference_N / len(difference_N), [low, 1 - low])
    return float(lo), float(hi)


def significant_order(nll_NT: np.ndarray) -> np.ndarray:
    """Returns which of two targets certainly loses less, [T, T]: 1 if the row's does, -1 if the column's, else 0.

    It is certain if the paired 95% interval of their difference does not hold 0. Of fewer than `LEAST_WINDOWS` windows
    nothing is certain.
    """
    count_T = nll_NT.shape[1]
    order_TT = np.zeros((count_T, count_T), np.int8)
    if len(nll_NT) < LEAST_WINDOWS:
        return order_TT
    low = expanded_tail(len(nll_NT))
    pairs = np.array(list(combinations(range(count_T), 2)))
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        a_P, b_P = pairs[first : first + PAIRS_AT_ONCE].T
        sum_SP = resample_counts(len(nll_NT)) @ (nll_NT[:, a_P] - nll_NT[:, b_P])
        lo_P, hi_P = np.quantile(sum_SP, [low, 1 - low], axis=0)
        order_TT[a_P, b_P] = (hi_P < 0).astype(np.int8) - (lo_P > 0)
    return order_TT - order_TT.T


def signs(nll_NT: np.ndarray, pairs_P2: np.ndarray, draws_SN: np.ndarray) -> np.ndarray:
    """Returns the sign of the difference between the targets of each pair in each resample, [S, P] of -1, 0, 1.

    Equal tickets tie exactly, because differences are taken window by window before the sum.
    """
    return np.sign(draws_SN @ (nll_NT[:, pairs_P2[:, 0]] - nll_NT[:, pairs_P2[:, 1]])).astype(np.int8)


def tau_b(a_NT: np.ndarray, b_MT: np.ndarray, draws_SN: np.ndarray, draws_SM: np.ndarray) -> np.ndarray:
    """Returns Kendall's tau-b between the orders of the same targets in two models, for each resample [S].

    Ties lower it as in scipy. It is NaN where all targets of one model tie.
    """
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
    """Returns the 95% bootstrap interval of the mean over windows, None for a single window.

    Percentile intervals of few values are too narrow, so the quantiles are those that Student's t would give
    (`expanded_tail`). Windows of one article are not independent, so the true interval is somewhat wider.
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


def paired_interval(difference_SN: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95% interval of the mean of a difference over seeds and windows, [S, N].

    Seeds and windows are resampled independently (the pigeonhole bootstrap, Owen 2007): a window is hard for all seeds,
    and a seed is lucky on all windows. The quantiles are those that Student's t gives for the lesser of the two counts.
    No resample of three seeds lies outside of them, so where the seeds differ most that interval held the truth in 80%
    of simulations; Student's interval of the seeds' means is therefore held too. With one seed the interval is over
    windows alone: it says nothing of other seeds.
    """
    seeds, windows = difference_SN.shape
    if seeds == 1:
        return difference_interval(difference_SN[0])
    rng = np.random.default_rng((seed, seeds, windows))
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES) / seeds
    mean_R = ((of_seeds @ difference_SN) * resample_counts(windows)).sum(1) / windows
    tail = expanded_tail(min(seeds, windows))
    lo, hi = np.quantile(mean_R, [tail, 1 - tail])
    mean, half = difference_SN.mean(), student(seeds) * difference_SN.mean(1).std(ddof=1) / math.sqrt(seeds)
    return min(float(lo), float(mean - half)), max(float(hi), float(mean + half))


def student(count: int) -> float:
    """Returns the 97.5% quantile of Student's t for the mean of so many values."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975))
