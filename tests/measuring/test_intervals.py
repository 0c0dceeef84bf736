"""Intervals, orders and resamples against slow and obvious twins."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from lottery.measuring import intervals


@pytest.mark.parametrize("n", [2, 6, 40])
def test_the_interval_equals_a_slow_twin(n: int) -> None:
    from scipy import stats

    values_N = np.random.default_rng(n).gamma(2, size=n)
    low, high = intervals.bootstrap_interval(values_N)  # type: ignore[misc]  # None: the test fails
    rng = np.random.default_rng(1)
    means = sorted(np.mean(rng.choice(values_N, n)) for _ in range(10_000))
    tail = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(0.975, n - 1))
    spread = values_N.std() / math.sqrt(n)
    assert low == pytest.approx(means[int(tail * 10_000)], abs=0.1 * spread)
    assert high == pytest.approx(means[min(9_999, int((1 - tail) * 10_000))], abs=0.1 * spread)
    assert intervals.bootstrap_interval(values_N) == (low, high) and intervals.bootstrap_interval(values_N[:1]) is None


@pytest.mark.parametrize("n", [12, 32, 146])
def test_a_95_percent_interval_covers_as_often_as_it_says(n: int) -> None:
    """Window losses as they are spread in real texts: about 3.3 nats, give or take 0.3."""
    rng = np.random.default_rng(n)
    hits = 0
    for trial in range(1500):
        low, high = intervals.bootstrap_interval(rng.normal(3.3, 0.3, n), seed=trial)  # type: ignore[misc]  # None: the test fails
        hits += low <= 3.3 <= high
    assert 0.93 <= hits / 1500 <= 0.97, hits / 1500


# Sixteenths: their sums are exact, so that what ties ties in the twin, too.
NLL = st.integers(0, 12).map(lambda i: i / 16)


def resampled(nll_NT: np.ndarray, times_drawn_N: np.ndarray) -> np.ndarray:
    """The means over the windows that were drawn, each as often as it was."""
    return np.repeat(nll_NT, times_drawn_N.astype(int), axis=0).sum(0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(2, 7), st.integers(2, 6), st.integers(2, 6))
def test_tau_is_scipy_s_of_each_resample(data: st.DataObject, targets: int, n: int, m: int) -> None:
    a_NT = data.draw(arrays.arrays(np.float64, (n, targets), elements=NLL))
    b_MT = data.draw(arrays.arrays(np.float64, (m, targets), elements=NLL))
    draws_SN, draws_SM = intervals.resample_counts(n, 8, 1), intervals.resample_counts(m, 8, 2)
    found = intervals.tau_b(a_NT, b_MT, draws_SN, draws_SM)
    for tau, drawn_N, drawn_M in zip(found, draws_SN, draws_SM, strict=True):
        twin = stats.kendalltau(resampled(a_NT, drawn_N), resampled(b_MT, drawn_M)).statistic
        assert tau == pytest.approx(twin, nan_ok=True)


def test_many_targets_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a_NT, b_MT = rng.normal(size=(9, 12)), rng.normal(size=(7, 12))
    whole = (
        intervals.tau_b(a_NT, b_MT, intervals.resample_counts(9, 50), intervals.resample_counts(7, 50)),
        intervals.significant_order(a_NT),
    )
    monkeypatch.setattr(intervals, "PAIRS_AT_ONCE", 5)
    parts = (
        intervals.tau_b(a_NT, b_MT, intervals.resample_counts(9, 50), intervals.resample_counts(7, 50)),
        intervals.significant_order(a_NT),
    )
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all()


def test_draws_are_of_all_windows_and_the_same_each_time() -> None:
    draws_SN = intervals.resample_counts(11, 300, 5)
    assert (draws_SN.sum(1) == 11).all() and draws_SN.mean() == 1 and 0.8 < draws_SN.var() < 1.0
    again = np.random.default_rng((5, 11)).multinomial(11, np.full(11, 1 / 11), size=300)
    assert (draws_SN == again).all() and intervals.RESAMPLES >= 2000


def test_an_order_is_certain_where_the_paired_interval_says_so() -> None:
    rng = np.random.default_rng(1)
    common_N = rng.normal(3, 1, 20)  # what windows have in common is far larger than what targets differ by
    nll_NT = common_N[:, None] + np.array([0.0, 0.002, 0.02, 0.0]) + rng.normal(0, 0.01, (20, 4))
    nll_NT[:, 3] = nll_NT[:, 0]  # the same ticket by another name
    order_TT = intervals.significant_order(nll_NT)
    tail = intervals.expanded_tail(20)
    for a, b in combinations(range(4), 2):
        means = [np.repeat(nll_NT[:, a] - nll_NT[:, b], d.astype(int)).mean() for d in intervals.resample_counts(20)]
        lo, hi = np.quantile(means, [tail, 1 - tail])
        assert order_TT[a, b] == -order_TT[b, a] == (1 if hi < 0 else -1 if lo > 0 else 0)
    assert order_TT[0, 2] == 1 and order_TT[0, 3] == 0 and (np.diag(order_TT) == 0).all()
    assert intervals.significant_order(nll_NT[:12])[0, 2] == 1
    assert not intervals.significant_order(nll_NT[:11]).any() and not intervals.significant_order(nll_NT[:2]).any()


def test_intervals_are_those_of_a_run() -> None:
    from lottery.measuring.intervals import bootstrap_interval

    values_N = np.random.default_rng(2).normal(0.1, 0.05, 40)
    mine, run_s = intervals.difference_interval(values_N), bootstrap_interval(values_N)
    assert run_s is not None
    assert mine == pytest.approx(run_s, abs=0.05 * (run_s[1] - run_s[0]))
    assert intervals.difference_interval(values_N[:1]) == (-math.inf, math.inf)
