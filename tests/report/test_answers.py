"""The statistics of a report against slow and obvious twins."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.report import answers, figures


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
