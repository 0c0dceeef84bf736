"""The statistics of a report against slow and obvious twins."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from lottery.measuring import intervals
from lottery.report import answers, figures

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
    draws_SN, draws_SM = intervals.draws(n, 8, 1), intervals.draws(m, 8, 2)
    found = intervals.tau_b(a_NT, b_MT, draws_SN, draws_SM)
    for tau, drawn_N, drawn_M in zip(found, draws_SN, draws_SM, strict=True):
        twin = stats.kendalltau(resampled(a_NT, drawn_N), resampled(b_MT, drawn_M)).statistic
        assert tau == pytest.approx(twin, nan_ok=True)


def test_many_targets_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    a_NT, b_MT = rng.normal(size=(9, 12)), rng.normal(size=(7, 12))
    whole = intervals.tau_b(a_NT, b_MT, intervals.draws(9, 50), intervals.draws(7, 50)), intervals.order(a_NT)
    monkeypatch.setattr(intervals, "PAIRS_AT_ONCE", 5)
    parts = intervals.tau_b(a_NT, b_MT, intervals.draws(9, 50), intervals.draws(7, 50)), intervals.order(a_NT)
    assert (whole[0] == parts[0]).all() and (whole[1] == parts[1]).all()


def test_draws_are_of_all_windows_and_the_same_each_time() -> None:
    draws_SN = intervals.draws(11, 300, 5)
    assert (draws_SN.sum(1) == 11).all() and draws_SN.mean() == 1 and 0.8 < draws_SN.var() < 1.0
    again = np.random.default_rng((5, 11)).multinomial(11, np.full(11, 1 / 11), size=300)
    assert (draws_SN == again).all() and intervals.RESAMPLES >= 2000


def test_an_order_is_certain_where_the_paired_interval_says_so() -> None:
    rng = np.random.default_rng(1)
    common_N = rng.normal(3, 1, 20)  # what windows have in common is far larger than what targets differ by
    nll_NT = common_N[:, None] + np.array([0.0, 0.002, 0.02, 0.0]) + rng.normal(0, 0.01, (20, 4))
    nll_NT[:, 3] = nll_NT[:, 0]  # the same ticket by another name
    order_TT = intervals.order(nll_NT)
    tail = intervals.expanded_tail(20)
    for a, b in combinations(range(4), 2):
        means = [np.repeat(nll_NT[:, a] - nll_NT[:, b], d.astype(int)).mean() for d in intervals.draws(20)]
        lo, hi = np.quantile(means, [tail, 1 - tail])
        assert order_TT[a, b] == -order_TT[b, a] == (1 if hi < 0 else -1 if lo > 0 else 0)
    assert order_TT[0, 2] == 1 and order_TT[0, 3] == 0 and (np.diag(order_TT) == 0).all()


def test_intervals_are_those_of_a_run() -> None:
    from lottery.measuring.intervals import bootstrap_interval

    values_N = np.random.default_rng(2).normal(0.1, 0.05, 40)
    mine, run_s = intervals.difference_interval(values_N), bootstrap_interval(values_N)
    assert run_s is not None
    assert mine == pytest.approx(run_s, abs=0.05 * (run_s[1] - run_s[0]))
    assert intervals.difference_interval(values_N[:1]) == (-math.inf, math.inf)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=2, max_size=8), st.floats(0.01, 3))
def test_the_crossing_is_the_first(logs: list[float], limit: float) -> None:
    logs = [0.0, *logs]
    at = [i / 10 for i in range(len(logs))]
    found = answers.crossing(at, logs, limit)
    fine = np.linspace(0, at[-1], 20_001)
    over = np.flatnonzero(np.interp(fine, at, logs) > limit + 1e-12)
    if found is None:
        assert not len(over)
    else:
        assert len(over) and found[0] == pytest.approx(fine[over[0]], abs=2e-4) and found[1] <= found[0] <= found[2]


def ticket(sparsity: float, ratio: float | None, **more: Any) -> dict[str, Any]:
    ends = (
        {}
        if ratio is None
        else {"perplexity_ratio": ratio, "perplexity_ratio_lo": ratio * 0.98, "perplexity_ratio_hi": ratio * 1.02}
    )
    return {
        "kind": "ticket", "base": "m", "protocol": "p", "target": "all", "quantize": "none", "method": "magnitude",
        "tolerance": 0.1, "sparsity": sparsity, "run_id": f"{sparsity}", **ends, **more,
    }  # fmt: skip


def test_the_cliff_and_its_band() -> None:
    (found,) = answers.cliffs(
        [ticket(0.5, 1.05), ticket(0.6, 1.2), ticket(0.7, 3.0), ticket(0.9, None, outcome="overflow")]
    )
    share = math.log(1.1 / 1.05) / math.log(1.2 / 1.05)
    assert found.at == pytest.approx(0.5 + 0.1 * share) and found.bracket == (0.5, 0.6)
    early = 0.5 + 0.1 * math.log(1.1 / (1.05 * 1.02)) / math.log(1.2 / 1.05)
    assert found.at is not None and found.hi is not None
    assert found.lo == pytest.approx(early) and early < found.at < found.hi
    assert found.wide and not answers.cliffs([ticket(0.5, 1.05), ticket(0.51, 1.2)])[0].wide
    # The dense base is a curve's beginning, but not of one in 8 bits; one ticket is no curve.
    assert answers.cliffs([ticket(0.3, 1.3), ticket(0.5, 2.0)])[0].bracket == (0.0, 0.3)
    assert answers.cliffs([ticket(0.3, 1.3, quantize="int8"), ticket(0.5, 2.0, quantize="int8")]) == []
    assert answers.cliffs([ticket(0.5, 1.2)]) == []
    # Not reached, and what overflows: no number is made up.
    safe = answers.how_much([ticket(0.3, 1.0), ticket(0.5, 1.05)])
    assert safe.short == "over 50%" and "more than 50%" in safe.sentence
    whole = answers.how_much([ticket(0.5, 1.0), ticket(1.0, 1.02)])
    assert whole.short == "all" and whole.sentence.startswith("m: all of `all`; no ticket reached")
    both = answers.how_much(
        [ticket(0.3, 1.0), ticket(0.5, 1.05), ticket(0.4, 1.1, base="n"), ticket(0.41, 1.2, base="n")]
    )
    assert both.short == "about 40% or more"
    over = answers.cliffs([ticket(0.5, 1.05), ticket(0.6, None, outcome="overflow")])[0]
    assert over.at == 0.5 and over.bracket == (0.5, 0.6)


def test_a_figure_of_curves_below_what_is_allowed_shows_both() -> None:
    (axes,) = figures.cliff(pd.DataFrame([ticket(0.02, 0.999), ticket(0.05, 1.001)])).axes
    low, high = axes.get_ylim()
    assert low < 0.999 * 0.98 and high > 1.1


def test_numbers_of_two_protocols_make_no_curve_and_no_ranking() -> None:
    rows = [ticket(0.5, 1.05), ticket(0.6, 1.08), ticket(0.7, 3.0, protocol="q")]
    assert [c.protocol for c in answers.cliffs(answers.chief(rows))] == ["p"]
    others = [ticket(0.5, 1.05), ticket(0.5, 1.2, target="mlp", protocol="q", run_id="b")]
    assert answers.rankings(others, lambda _: np.ones(4)) == []


def of_models(*models: tuple[str, str, float, float]) -> list[dict[str, Any]]:
    """(name, family, weights, where its ratio begins to grow)"""
    return [
        ticket(s, math.exp(4 * max(0.0, s - cliff)) * 1.05, base=name, family=family, parameters=weights)
        for name, family, weights, cliff in models
        for s in (0.3, 0.5, 0.7)
    ]


def test_bigger_models_are_said_with_what_that_rests_on() -> None:
    one = answers.bigger(of_models(("a", "llama", 1e9, 0.4)))
    assert not one.known and one.sentence.startswith("not known")
    assert "do not say how many weights" in answers.bigger(of_models(("a", "l", 0, 0.4), ("b", "l", 0, 0.4))).sentence
    up = answers.bigger(of_models(("a", "qwen2", 1e9, 0.3), ("b", "qwen2", 7e9, 0.55)))
    assert up.short == "yes, here" and "2 models of 1 family (qwen2)" in up.sure
    down = answers.bigger(of_models(("a", "qwen2", 1e9, 0.55), ("b", "llama", 7e9, 0.3)))
    assert down.short == "no, here" and "2 families (llama and qwen2)" in down.sure
    assert answers.bigger(of_models(("a", "l", 1e9, 0.4), ("b", "l", 7e9, 0.401))).short == "open"


def test_agreement_names_the_pairs_that_are_certain() -> None:
    rng = np.random.default_rng(3)
    shifts = {"a": (0.0, 0.3, 0.6, 0.9), "b": (0.0, 0.3, 0.9, 0.6), "c": (0.9, 0.6, 0.3, 0.0)}
    nll = {f"{m}{t}": rng.normal(3, 0.02, 12) + s for m, of in shifts.items() for t, s in zip("wxyz", of, strict=True)}
    rows = [
        ticket(0.5, math.exp(s) * 1.01, base=m, target=t, run_id=f"{m}{t}")
        for m, of in shifts.items()
        for t, s in zip("wxyz", of, strict=True)
    ]
    answer = answers.same_everywhere(answers.rankings(rows, nll.get))
    found = {(r["a"], r["b"]): r for r in answer.data}
    assert found["a", "b"]["tau"] == pytest.approx(4 / 6) and found["a", "b"]["reversed"] == ["y before z"]
    assert len(found["a", "b"]["same"]) == 5 and "w before x" in found["a", "b"]["same"]
    assert found["a", "c"]["tau"] == -1 and found["a", "c"]["hi"] < 0 and len(found["a", "c"]["reversed"]) == 6
    assert answer.short == "in part" and "3 models" in answer.sentence
    drawn = figures.svg(figures.agreement(pd.DataFrame(list(answer.data))))
    assert all(f">{word}<" in drawn for word in ("0.67", "same", "50% of each target"))
    two = answers.rankings([r for r in rows if r["target"] in "wx"], nll.get)
    assert "4 targets" in answers.same_everywhere(two).sentence


def test_eight_bits_are_compared_with_the_same_ticket() -> None:
    nll = {"whole": np.array([3.0, 3.2, 2.9, 3.1]), "eight": np.array([3.01, 3.22, 2.92, 3.12]), "other": np.ones(4)}
    rows = [ticket(0.5, 1.1, run_id="whole"), ticket(0.5, 1.12, quantize="int8", run_id="eight"),
            ticket(0.7, 1.12, quantize="int8", run_id="other")]  # fmt: skip
    answer = answers.eight_bits(rows, nll.get)
    (pair,) = answer.data
    assert pair["ratio"] == pytest.approx(math.exp(0.0175)) and 1 < pair["lo"] < pair["ratio"] < pair["hi"]
    assert answer.short == "under 1.8%" and "1 pair of tickets 1 are certainly worse" in answer.sure


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_frontier_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    rows = pd.DataFrame(points, columns=["disk_bytes", "perplexity_ratio"])
    found = {tuple(p) for p in figures.frontier(rows).to_numpy().tolist()}
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] <= p[1]}
    assert found == set(points) - beaten


@settings(max_examples=200, deadline=None)
@given(st.floats(0.9, 1.0), st.floats(1.0005, 1e6))
def test_axes_have_ticks_and_not_too_many(low: float, high: float) -> None:
    ticks = figures.ticks(low, high)
    assert 1 <= len(ticks) <= 12 and ticks == sorted(ticks)
    assert all(low * 0.998 <= t <= high * 1.002 for t in ticks)
