"""The statistics of a report against slow and obvious twins."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.report import (
    answers,
    cliff_answer,
    cliffs,
    efficiency,
    figures,
    grouping,
    heatmaps,
    images,
    judging,
    rankings,
    style,
    tables,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 5), min_size=2, max_size=8), st.floats(0.01, 3))
def test_the_crossing_is_the_first(logs: list[float], limit: float) -> None:
    logs = [0.0, *logs]
    at = [i / 10 for i in range(len(logs))]
    found = cliffs.first_crossing(at, logs, limit)
    fine = np.linspace(0, at[-1], 20_001)
    over = np.flatnonzero(np.interp(fine, at, logs) > limit + 1e-12)
    if found is None:
        assert not len(over)
    else:
        # a curve that ends just above the limit crosses it between two points of the fine grid
        crossing = fine[over[0]] if len(over) else fine[-1]
        assert found[0] == pytest.approx(crossing, abs=2e-4) and found[1] <= found[0] <= found[2]


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
    (found,) = cliffs.find_cliffs(
        [ticket(0.5, 1.05), ticket(0.6, 1.2), ticket(0.7, 3.0), ticket(0.9, None, outcome="overflow")]
    )
    share = math.log(1.1 / 1.05) / math.log(1.2 / 1.05)
    assert found.at == pytest.approx(0.5 + 0.1 * share) and found.bracket == (0.5, 0.6)
    early = 0.5 + 0.1 * math.log(1.1 / (1.05 * 1.02)) / math.log(1.2 / 1.05)
    assert found.at is not None and found.hi is not None
    assert found.lo == pytest.approx(early) and early < found.at < found.hi
    assert found.wide and not cliffs.find_cliffs([ticket(0.5, 1.05), ticket(0.51, 1.2)])[0].wide
    # The dense base is a curve's beginning, but not of one in 8 bits; one ticket is no curve.
    assert cliffs.find_cliffs([ticket(0.3, 1.3), ticket(0.5, 2.0)])[0].bracket == (0.0, 0.3)
    assert cliffs.find_cliffs([ticket(0.3, 1.3, quantize="int8"), ticket(0.5, 2.0, quantize="int8")]) == []
    assert cliffs.find_cliffs([ticket(0.5, 1.2)]) == []
    # Not reached, and what overflows: no number is made up.
    safe = cliff_answer.answer_cliff([ticket(0.3, 1.0), ticket(0.5, 1.05)])
    assert safe.short == "at least 50%" and "the ticket there wins, the highest that was measured" in safe.sentence
    whole = cliff_answer.answer_cliff([ticket(0.5, 1.0), ticket(1.0, 1.02)])
    assert whole.short == "all" and whole.sentence.startswith("m: all of `all` can go: the ticket without it wins")
    both = cliff_answer.answer_cliff(
        [ticket(0.3, 1.0), ticket(0.5, 1.05), ticket(0.4, 1.1, base="n"), ticket(0.41, 1.2, base="n")]
    )
    assert both.short == "under 40% to at least 50%"  # the ratio of 1.1 of the second ends at 1.122
    over = cliffs.find_cliffs([ticket(0.5, 1.05), ticket(0.6, None, outcome="overflow")])[0]
    assert over.at == 0.5 and over.bracket == (0.5, 0.6)


def test_the_headline_is_what_wins_and_not_where_the_curve_crosses() -> None:
    curve = [ticket(0.3, 1.0), ticket(0.5, 1.07), ticket(0.52, 1.09), ticket(0.55, 1.2)]  # 1.09 ends at 1.11
    answer = cliff_answer.answer_cliff([{**t, "winner": "yes" if t["sparsity"] <= 0.5 else "no"} for t in curve])
    crossing = 0.52 + 0.03 * math.log(1.1 / 1.09) / math.log(1.2 / 1.09)
    assert answer.short == "50%" and answer.data[0]["wins"] == 0.5 and answer.data[0]["at"] == pytest.approx(crossing)
    assert answer.sentence.startswith(
        "m: 50% of the weights of `all` can go: the ticket there wins; between tickets the curve is 10% over"
    )
    assert f"at about {crossing:.1%}, by the upper end of its interval already at 5" in answer.sentence
    table = tables.answer_table("cliff", answer)
    assert table is not None and table.rows[0][:3] == ["m", "all", "50%"]
    none = cliff_answer.answer_cliff([ticket(0.3, 1.3), ticket(0.5, 2.0)])
    assert none.short == "under 30%" and "no ticket wins, not even at 30% of `all`" in none.sentence
    several = [*curve, ticket(0.3, 1.0, base="n"), ticket(0.6, 1.05, base="n"), ticket(0.7, 1.3, base="n")]
    assert cliff_answer.answer_cliff(several).short == "50% to 60%"
    assert cliff_answer.answer_cliff(several[:-1]).short == "50% or more"
    two = [ticket(0.3, 1.0), ticket(0.5, 1.3), ticket(0.3, 1.01, base="n"), ticket(0.5, 1.4, base="n")]
    assert cliff_answer.answer_cliff(two).short == "30%"


def test_a_headline_where_nothing_wins_or_a_lower_sparsity_loses() -> None:
    nothing = [ticket(0.0, 1.0), ticket(0.3, 1.3), ticket(0.5, 2.0)]  # that at 0% wins, and removes nothing
    answer = cliff_answer.answer_cliff(nothing)
    assert answer.short == "under 30%"
    assert answer.sentence.startswith(
        "m: no ticket above 0% wins, not even at 30% of `all`; between tickets the curve is 10% over"
    )
    high = [ticket(0.5, 1.0, base="n"), ticket(0.9, 1.05, base="n")]
    assert cliff_answer.answer_cliff([*nothing, *high]).short == "under 30% to at least 90%"
    neither = [ticket(0.3, 1.3), ticket(0.5, 2.0), ticket(0.1, 1.2, base="n"), ticket(0.3, 1.4, base="n")]
    assert cliff_answer.answer_cliff(neither).short == "under 30%"
    odd = [ticket(0.3, 1.2), ticket(0.5, 1.05), ticket(0.7, 2.0)]
    answer = cliff_answer.answer_cliff(odd)
    assert answer.short == "50%" and answer.about.endswith("; 30% does not win")
    assert (
        "the ticket there wins, although that at 30% does not; between tickets the curve is 10% over" in answer.sentence
    )
    answer = cliff_answer.answer_cliff([*odd, ticket(0.2, 1.2), *high])
    assert answer.short == "50% or more" and answer.about.endswith("; of m, 20% and 30% do not win")
    assert "although those at 20% and 30% do not" in answer.sentence


@pytest.mark.parametrize(
    ("winner", "words"),
    [
        ("not judged: 8 of 54 windows", "not judged: 8 of 54 windows"),
        ("no", "not judged: the first 8 windows"),
    ],  # "no" of old
)
def test_what_is_not_judged_is_an_estimate(winner: str, words: str) -> None:
    rows = [ticket(s, r, winner=winner, limited="8") for s, r in ((0.3, 1.0), (0.5, 1.07), (0.6, 1.3))]
    answer = cliff_answer.answer_cliff(rows)
    assert answer.short == "50% (an estimate, not judged)" and answer.about.endswith(f"; {words}")
    assert f"the ticket there would win ({words}); between tickets the curve" in answer.sentence
    assert judging.count_verdicts(rows) == f"3 measured, none {words.removeprefix('not ')}"
    assert judging.not_judged_note(rows) == f"These tickets are {words}. What is said of them is an estimate."
    judged = [ticket(0.1, 1.0, winner="yes"), ticket(0.7, 3.0, winner="no")]
    assert judging.count_verdicts([*rows, *judged]) == f"5 measured, 1 winner, 3 {words}"
    assert judging.not_judged_note([*rows, *judged]).startswith(f"3 of 5 tickets are {words}")
    assert judging.count_verdicts(judged) == "2 measured, 1 winner" and judging.not_judged_note(judged) == ""
    assert judging.count_verdicts([ticket(0.1, None, outcome="overflow")]) == "1 measured, 0 winners"


def test_reasons_that_hold_commas_and_one_ticket_of_its_kind() -> None:
    said = ("not judged: 2 windows, 12 are needed", "not judged: 8 of 54 windows")
    two = [ticket(0.3, 1.0, winner=said[0]), ticket(0.5, 1.0, winner=said[1])]
    assert judging.not_judged_note(two).startswith(
        f"These tickets are {said[0]}; 8 of 54 windows. What is said of them is"
    )
    assert judging.not_judged_note(two[:1]) == f"This ticket is {said[0]}. What is said of it is an estimate."
    judged = ticket(0.7, 2.0, winner="no")
    assert judging.not_judged_note([two[0], judged]).startswith(f"1 of 2 tickets is {said[0]}. What is said of it is")
    silent = [ticket(s, 1.0) for s in (0.1, 0.2)]  # without a verdict
    assert (
        judging.count_verdicts([*two, *silent])
        == "4 measured, 0 winners, 2 not judged: 2 windows, 12 are needed; 8 of 54 windows"
    )


def test_the_style_of_a_row_follows_its_verdict() -> None:
    rows = [
        ticket(0.3, 1.0, perplexity=9.0, winner="yes"),
        ticket(0.5, 1.0, perplexity=9.0, winner="yes", limited="8"),
        ticket(0.7, 2.0, perplexity=9.0, winner="no"),
    ]
    assert tables.tickets("t", "m", rows, [], "").marks == ["winner", "", ""]


def test_a_figure_of_curves_below_what_is_allowed_shows_both() -> None:
    (axes,) = figures.plot_cliff(pd.DataFrame([ticket(0.02, 0.999), ticket(0.05, 1.001)])).axes
    low, high = axes.get_ylim()
    assert low < 0.999 * 0.98 and high > 1.1


def test_one_broken_ticket_leaves_the_figures_readable() -> None:
    """A ratio of six million: the axis ends at 100, and an arrow at its edge names the ratio."""
    sizes = {"storage": "packed", "base": "m"}
    rows = [ticket(s, r, disk_bytes=1e6 * (2 - s), **sizes) for s, r in ((0.3, 1.02), (0.5, 1.2), (0.9, 5796330.2096))]
    for plot in (figures.plot_cliff, efficiency.plot_pareto):
        (axes,) = plot(pd.DataFrame(rows)).axes
        low, high = axes.get_ylim()
        assert axes.get_yscale() == "log" and 100 <= high < 200 and low < 1
        assert math.log(1.2 / 1.02) / math.log(high / low) > 0.03  # these two are some pixels apart
        assert [text.get_text() for text in axes.texts if "e6" in text.get_text()] == ["5.8e6"]
    scale = heatmaps.colour_scale([1.02, 1.2, 5796330.2096])
    assert scale.vmax == 100 and style.short_ratio(5796330.2096) == "5.8e6"
    ranked = rankings.rank_targets(
        [ticket(0.5, r, target=t, run_id=t) for t, r in (("mlp", 1.1), ("attention", 5796330.2096))],
        {"mlp": np.array([1.0, 2.0]), "attention": np.array([9.0, 8.0])}.get,
    )
    (axes,) = figures.plot_ranking(pd.DataFrame(answers.ranking_rows(ranked))).axes
    assert axes.get_xscale() == "log" and 100 <= axes.get_xlim()[1] < 200
    eight = [{"base": "m", "arithmetic": "fp8", "target": "all", "sparsity": s, "ratio": r, "lo": r * 0.9, "hi": r * 1.1}
             for s, r in ((0.3, 1.001), (0.5, 5796330.2096))]  # fmt: skip
    assert figures.plot_quantization(pd.DataFrame(eight)).axes[0].get_yscale() == "log"


def test_numbers_of_two_protocols_make_no_curve_and_no_ranking() -> None:
    rows = [ticket(0.5, 1.05), ticket(0.6, 1.08), ticket(0.7, 3.0, protocol="q")]
    assert [c.protocol for c in cliffs.find_cliffs(grouping.keep_main_protocol(rows))] == ["p"]
    others = [ticket(0.5, 1.05), ticket(0.5, 1.2, target="mlp", protocol="q", run_id="b")]
    assert rankings.rank_targets(others, lambda _: np.ones(4)) == []


def of_models(*models: tuple[str, str, float, float]) -> list[dict[str, Any]]:
    """(name, family, weights, where its ratio begins to grow)"""
    return [
        ticket(s, math.exp(4 * max(0.0, s - cliff)) * 1.05, base=name, family=family, parameters=weights)
        for name, family, weights, cliff in models
        for s in (0.3, 0.5, 0.7)
    ]


def test_bigger_models_are_said_with_what_that_rests_on() -> None:
    one = answers.answer_model_size(of_models(("a", "llama", 1e9, 0.4)))
    assert not one.known and one.sentence.startswith("not known")
    assert (
        "the runs do not say how many weights they have"
        in answers.answer_model_size(of_models(("a", "l", 0, 0.4), ("b", "l", 0, 0.4))).sentence
    )
    up = answers.answer_model_size(of_models(("a", "qwen2", 1e9, 0.3), ("b", "qwen2", 7e9, 0.55)))
    assert up.short == "yes, here" and "2 models of 1 family (qwen2)" in up.sure
    down = answers.answer_model_size(of_models(("a", "qwen2", 1e9, 0.55), ("b", "llama", 7e9, 0.3)))
    assert down.short == "no, here" and "2 families (llama and qwen2)" in down.sure
    assert answers.answer_model_size(of_models(("a", "l", 1e9, 0.4), ("b", "l", 7e9, 0.401))).short == "open"
    for reason, short in (("12 of 54 windows", "yes, here"), ("2 windows, 12 are needed", "open")):
        rows = of_models(("a", "qwen2", 1e9, 0.3), ("b", "qwen2", 7e9, 0.55))
        found = answers.answer_model_size([{**r, "winner": f"not judged: {reason}"} for r in rows])
        assert found.short == f"{short} (an estimate, not judged)" and found.about.endswith(f"; not judged: {reason}")


def test_agreement_names_the_pairs_that_are_certain() -> None:
    rng = np.random.default_rng(3)
    shifts = {"a": (0.0, 0.3, 0.6, 0.9), "b": (0.0, 0.3, 0.9, 0.6), "c": (0.9, 0.6, 0.3, 0.0)}
    nll = {f"{m}{t}": rng.normal(3, 0.02, 12) + s for m, of in shifts.items() for t, s in zip("wxyz", of, strict=True)}
    rows = [
        ticket(0.5, math.exp(s) * 1.01, base=m, target=t, run_id=f"{m}{t}")
        for m, of in shifts.items()
        for t, s in zip("wxyz", of, strict=True)
    ]
    answer = answers.answer_agreement(rankings.rank_targets(rows, nll.get))
    found = {(r["a"], r["b"]): r for r in answer.data}
    assert found["a", "b"]["tau"] == pytest.approx(4 / 6) and found["a", "b"]["reversed"] == ["y before z"]
    assert len(found["a", "b"]["same"]) == 5 and "w before x" in found["a", "b"]["same"]
    assert found["a", "c"]["tau"] == -1 and found["a", "c"]["hi"] < 0 and len(found["a", "c"]["reversed"]) == 6
    assert answer.short == "in part" and "3 models" in answer.sentence
    # two levels of the same two models: alike at one, open at the other, where pairs are certainly reversed
    mixed = {"a": (0.0, 0.3, 0.6, 0.9), "b": (0.6, 0.9, 0.0, 0.3)}
    nll |= {f"70{m}{t}": nll[f"a{t}"] + s for m, of in mixed.items() for t, s in zip("wxyz", of, strict=True)}
    denser = [ticket(0.7, 2.0, base=m, target=t, run_id=f"70{m}{t}") for m in mixed for t in "wxyz"]
    both = answers.answer_agreement(rankings.rank_targets([r for r in rows if r["base"] != "c"] + denser, nll.get))
    assert [row["certain"] for row in both.data] == [1, 0] and both.short == "in part"
    drawn = images.to_svg(heatmaps.plot_agreement(pd.DataFrame(list(answer.data))))
    assert all(f">{word}<" in drawn for word in ("0.67", "same", "50% of each target"))
    short = rankings.rank_targets(rows, {name: nll_N[:11] for name, nll_N in nll.items()}.get)
    few = answers.answer_agreement(short)
    assert few.short == "open" and "0 are in the same order" in few.sure and "3 rest on fewer than 12" in few.sure
    drawn = images.to_svg(heatmaps.plot_agreement(pd.DataFrame(list(few.data))))
    assert ">(0.67)<" in drawn and ">0.67<" not in drawn
    limited = [{**r, "winner": "not judged: 12 of 54 windows"} for r in rows]
    estimates = rankings.rank_targets(limited, nll.get)
    for said in (answers.answer_agreement(estimates), answers.answer_ranking(estimates)):
        assert said.short.endswith(" (an estimate, not judged)") and said.about.endswith(
            "; not judged: 12 of 54 windows"
        )
    # one of three models was ranked at equal budget, too: the headline says that it is about that one
    at_budget = [ticket(0.5, 1.1, base="a", target=t, run_id=f"a{t}", budget=0.1) for t in "wxyz"]
    headline = answers.ranking_headline(rankings.rank_targets([*rows, *at_budget], nll.get))
    assert headline == ("w", "loses least at equal budget (a alone)")
    assert answers.ranking_headline(rankings.rank_targets(at_budget, nll.get)) == ("w", "loses least at equal budget")
    two = rankings.rank_targets([r for r in rows if r["target"] in "wx"], nll.get)
    assert "4 targets" in answers.answer_agreement(two).sentence


def test_eight_bits_are_compared_with_the_same_ticket() -> None:
    nll = {
        "whole": np.array([3.0, 3.2, 2.9, 3.1] * 3),
        "eight": np.array([3.01, 3.22, 2.92, 3.12] * 3),
        "other": np.ones(12),
    }
    rows = [ticket(0.5, 1.1, run_id="whole"), ticket(0.5, 1.12, quantize="int8", run_id="eight"),
            ticket(0.7, 1.12, quantize="int8", run_id="other")]  # fmt: skip
    answer = answers.answer_quantization(rows, nll.get)
    (pair,) = answer.data
    assert pair["ratio"] == pytest.approx(math.exp(0.0175)) and 1 < pair["lo"] < pair["ratio"] < pair["hi"]
    assert "the most at 50% of `all` (m, in 16 bits 1.1000 times dense)" in answer.sentence
    assert (
        answer.short == "under 1.8%"
        and "1 pair of tickets 1 are certainly worse in 8 bits and 0 certainly better" in answer.sure
    )
    few = answers.answer_quantization(rows, {name: nll_N[:11] for name, nll_N in nll.items()}.get)
    assert few.data[0]["lo"] > 1 and "0 are certainly worse" in few.sure and "1 rest on fewer than 12" in few.sure
    limited = [{**r, "winner": "not judged: 12 of 54 windows", "limited": "12"} for r in rows]
    answer = answers.answer_quantization(limited, nll.get)
    assert answer.short == "under 1.8% (an estimate, not judged)" and "1 are certainly worse" in answer.sure
    assert answer.about == "more perplexity than the same ticket in 16 bits; not judged: 12 of 54 windows"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_frontier_is_what_no_other_beats(points: list[tuple[int, int]]) -> None:
    rows = pd.DataFrame(points, columns=["disk_bytes", "perplexity_ratio"])
    found = {tuple(p) for p in efficiency.frontier(rows).to_numpy().tolist()}
    beaten = {p for p in points for q in points if q != p and q[0] <= p[0] and q[1] <= p[1]}
    assert found == set(points) - beaten


@settings(max_examples=200, deadline=None)
@given(st.floats(0.9, 1.0), st.floats(1.0005, 1e6))
def test_axes_have_ticks_and_not_too_many(low: float, high: float) -> None:
    ticks = style.ticks(low, high)
    assert 1 <= len(ticks) <= 12 and ticks == sorted(ticks)
    assert all(low * 0.998 <= t <= high * 1.002 for t in ticks)
