"""How much of the ticket was the method: curves, spreads over draws and texts, and the factor between two methods."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.measuring import intervals
from lottery.report import cliffs, grouping, method_curves, method_figure, rankings, tables
from lottery.report.methods_answer import answer_methods
from tests.support.reports import Elements, Written, read
from tests.support.studies import MEASURED, write

QUESTION = "How much of the ticket was the method?"


def ticket(method: str, sparsity: float, ratio: float | None, **more: Any) -> dict[str, Any]:
    ends = (
        {f"perplexity_ratio{end}": ratio * by for end, by in (("", 1), ("_lo", 0.98), ("_hi", 1.02))} if ratio else {}
    )
    name = "-".join(map(str, (method, sparsity, *more.values())))
    return {
        "kind": "ticket", "base": "m", "protocol": "p", "target": "all", "quantize": "none", "method": method,
        "tolerance": 0.1, "sparsity": sparsity, "run_id": name, "ticket": name, **ends, **more,
    }  # fmt: skip


def known(rows: list[dict[str, Any]], windows: int = 24) -> Callable[[str], np.ndarray | None]:
    """The NLL of each run's windows: the logarithm of its ratio, and what all share."""
    shared_N = np.random.default_rng(0).normal(3, 1, windows)
    own = {r["run_id"]: np.random.default_rng(i).normal(0, 0.02, windows) for i, r in enumerate(rows)}
    at = {r["run_id"]: math.log(r["perplexity_ratio"]) for r in rows if "perplexity_ratio" in r}
    nll = {name: shared_N + at[name] + own[name] - own[name].mean() for name in at}
    return nll.get


DRAWS = [ticket("repair", 0.6, ratio, seed=float(seed)) for seed, ratio in enumerate((1.9, 2.1, 2.0))]
TEXTS = [
    ticket("repair", 0.6, 2.6, seed=0.0, calibration="self"),
    ticket("repair", 0.6, 2.4, seed=0.0, calibration="/x/old.txt"),
]
OTHERS = [
    ticket("magnitude", 0.6, 24.0), ticket("magnitude", 0.6, 20.0, scope="row"), ticket("wanda", 0.6, 5.0, seed=0.0),
    ticket("random", 0.6, 900.0, seed=0.0), ticket("magnitude", 0.5, 4.0), ticket("repair", 0.5, 1.3, seed=0.0),
]  # fmt: skip


def test_draws_and_texts_of_a_method_are_one_point() -> None:
    (found,) = method_curves.compare_methods([*OTHERS, *DRAWS, *TEXTS])
    at = {(p.method, p.sparsity): p for p in found.points}
    assert {m for m, s in at if s == 0.6} == {"magnitude", "magnitude row", "wanda", "repair"}
    point = at["repair", 0.6]
    assert (point.ratio, point.text, point.tickets, point.least, point.most) == (2.0, "c4", 5, 1.9, 2.6)
    assert point.draws == method_curves.Spread(("0", "1", "2"), 1.9, 2.1)
    assert point.texts == method_curves.Spread(("c4", "self", "old.txt"), 1.9, 2.6)  # of seed 0 each
    assert at["wanda", 0.6].draws is None and at["magnitude", 0.6].text == ""


def test_a_method_s_name_says_what_differs_between_methods() -> None:
    rows = [ticket("magnitude", 0.5, 2.0, scope="row"), *(ticket("wanda", 0.5, 1.5, nsamples=str(n)) for n in (8, 8))]
    assert method_curves.method_names(rows) == ["magnitude row", "wanda", "wanda"]
    rows.append(ticket("wanda", 0.5, 1.4, seqlen="64", seed=1.0, calibration="self"))
    names = ["magnitude row", "wanda nsamples=8", "wanda nsamples=8", "wanda seqlen=64"]
    assert method_curves.method_names(rows) == names


def test_the_answer_of_tickets_of_several_methods() -> None:
    control = {
        "perplexity": 240.0,
        "control_perplexity": 9000.0,
        "control_perplexity_lo": 8000.0,
        "control_perplexity_hi": 9500.0,
    }
    rows = [OTHERS[0] | control, *OTHERS[1:], *DRAWS, *TEXTS]
    nll = known(rows)
    answer = answer_methods(rows, nll)
    difference_N = nll("magnitude-0.6") - nll("repair-0.6-2.0")  # type: ignore[operator]  # both are known
    lo, hi = (math.exp(end) for end in intervals.difference_interval(difference_N))
    assert answer.short == "a factor of 12.0" and answer.about == "between `magnitude` and `repair`, at 60% of `all`"
    lines = answer.sentence.split("\n")
    assert lines[0].startswith(
        "m with 50% of `all` removed: the methods span ratios from 1.3000 (`repair`) to 4.000 (`magnitude`)"
    )
    assert lines[1] == (
        f"m with 60% of `all` removed: the methods span ratios from 2.000 (`repair`) to 24.00 (`magnitude`), a factor of "
        f"12.00 [{lo:.2f}, {hi:.2f}]; random tickets have 900.0."
    )
    assert lines[2] == "`repair` with 60% of `all` removed (2.000) still loses less than `magnitude` with 50% (4.000)."
    assert lines[3] == (
        "Another draw of the calibration samples changes a ratio by up to 10.5% (`repair` at 60%: 1.9000 to 2.100, "
        "3 of c4), and another text changes a ratio by up to 36.8% (`repair` at 60%: 1.9000 to 2.600, c4, self and "
        "old.txt). Among the methods that look at a text, the worst has up to 2.500 times the perplexity of the best: the method "
        "decides more."
    )
    assert "certainly loses more than the best in 2 " in answer.sure and "Calibration text: c4." in answer.sure
    table = tables.answer_table("methods", answer)
    assert table is not None and [row[2] for row in table.rows if row[1] == "60%"] == [
        "repair", "wanda", "magnitude row", "magnitude", "random",
    ]  # fmt: skip
    (of_repair,) = [row for row in table.rows if row[1:3] == ["60%", "repair"]]
    assert "1.9000 to 2.100 (3)" in of_repair and "1.9000 to 2.600 (3)" in of_repair


@pytest.mark.parametrize("random", [2.0, 40.0, 2e6])
def test_the_figure_keeps_methods_apart_however_bad_chance_is(random: float) -> None:
    control = {
        "perplexity": 11.0,
        "control_perplexity": 10 * random,
        "control_perplexity_lo": 9 * random,
        "control_perplexity_hi": 11 * random,
    }
    rows = [r | control for s in (0.5, 0.6) for r in (ticket("magnitude", s, 1.3), ticket("repair", s, 1.1))]
    rows = [r | {"perplexity": 10 * r["perplexity_ratio"]} for r in rows]
    every = method_figure.plot_methods(pd.DataFrame(list(answer_methods(rows, known(rows)).data))).axes
    low, high = every[-1].get_ylim()
    assert math.log(1.3 / 1.1) / math.log(high / low) > 0.1 and low < 1
    assert len(every) == (1 if random == 2 else 2)
    if len(every) == 2:
        low, high = every[0].get_ylim()
        assert low < 0.9 * random and high > 1.1 * random and not every[0].texts


def test_more_zeros_and_less_loss_are_said_where_the_intervals_lie_apart() -> None:
    """Each interval reaches 2% to either side."""
    for worst, said in ((1.29, False), (1.36, True)):
        rows = [
            ticket(m, s, r)
            for m, s, r in (
                ("magnitude", 0.5, worst),
                ("wanda", 0.5, 1.1),
                ("magnitude", 0.6, 2.0),
                ("wanda", 0.6, 1.3),
            )
        ]
        words = f"`wanda` with 60% of `all` removed (1.3000) still loses less than `magnitude` with 50% ({worst:.4f})."
        assert (words in answer_methods(rows, known(rows)).sentence) == said


def test_what_is_open_or_broken_or_of_few_windows() -> None:
    for rows in ([OTHERS[0], OTHERS[3]], [OTHERS[0], OTHERS[5]], DRAWS, []):  # chance is no method; one method; none
        answer = answer_methods(rows, known(rows))
        assert not answer.known and answer.sentence.startswith("not known: this needs tickets of two methods")
    rows = [*DRAWS[:1], ticket("magnitude", 0.6, None, outcome="overflow"), ticket("wanda", 0.6, 5.0)]
    answer = answer_methods(rows, known(rows, windows=8))
    assert "to 5.000 (`wanda`), a factor of" in answer.sentence and "; `magnitude` overflowed." in answer.sentence
    assert "certainly loses more than the best in 0 " in answer.sure
    table = tables.answer_table("methods", answer)
    assert table is not None and "overflow" in next(row for row in table.rows if row[2] == "magnitude")
    (axes,) = method_figure.plot_methods(pd.DataFrame(list(answer.data))).axes
    assert len(axes.lines) >= 3
    silent = answer_methods(rows, lambda _: None)  # the windows of no run are there
    assert "a factor of 2.632." in silent.sentence.replace("; `magnitude` overflowed", "") and "in 0 " in silent.sure
    limited = [r | {"winner": "not judged: 24 of 54 windows", "limited": "24"} for r in rows]
    assert answer_methods(limited, known(rows)).short.endswith("(an estimate, not judged)")


def test_methods_are_compared_on_one_protocol_pattern_and_target() -> None:
    rows = [
        ticket("magnitude", 0.5, 1.2), ticket("wanda", 0.5, 1.1), ticket("repair", 0.5, 1.0, protocol="q"),
        ticket("refit", 0.5, 1.0, target="mlp"), ticket("sparsegpt", 0.5, 1.0, pattern="2:4"),
        ticket("refit", 0.5, 1.0, quantize="int8"), ticket("refit", 0.5, 1.0, target="mlp@3"),
    ]  # fmt: skip
    (found,) = method_curves.compare_methods(rows)
    assert {p.method for p in found.points} == {"magnitude", "wanda"}
    two = [*rows, ticket("magnitude", 0.5, 1.3, base="n"), ticket("repair", 0.5, 1.1, base="n")]
    answer = answer_methods(two, known(two))
    assert answer.short == "a factor of 1.09 to 1.18" and "each of 2 models" in answer.about


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.floats(1, 50)),
        min_size=1,
        max_size=12,
        unique_by=lambda t: t[:2],
    )
)
def test_spreads_are_those_of_an_obvious_twin(made: list[tuple[int, int, float]]) -> None:
    """Seeds 0 to 3 of the texts a, b, c: the main text is the one of most tickets, of equally many the first."""
    names = "abc"
    rows = [ticket("repair", 0.5, ratio, seed=float(seed), calibration=f"{names[t]}.txt") for seed, t, ratio in made]
    (point,) = method_curves.points_of(rows)
    counts = {t: sum(u == t for _, u, _ in made) for _, t, _ in made}
    main = next(t for _, t, _ in made if counts[t] == max(counts.values()))
    of_main = sorted(ratio for _, t, ratio in made if t == main)
    assert point.text == f"{names[main]}.txt" and point.ratio == of_main[len(of_main) // 2]
    assert (point.least, point.most) == (min(r for *_, r in made), max(r for *_, r in made))
    assert (point.draws is None) == (len(of_main) < 2)
    if point.draws:
        assert (point.draws.least, point.draws.most) == (of_main[0], of_main[-1])
    common = [s for s in range(4) if all(any((s, t) == m[:2] for m in made) for t in counts)]
    at_one = [ratio for seed, _, ratio in made if common and seed == common[0]]
    assert (point.texts is None) == (len(at_one) < 2)
    if point.texts:
        assert (point.texts.least, point.texts.most) == (min(at_one), max(at_one))


def test_seeds_of_one_method_are_one_curve_of_the_cliff() -> None:
    """And one rank: the median stands for them."""
    at = ((0.5, 1.05), (0.6, 1.2), (0.7, 3.0))
    seeds = [ticket("wanda", s, r * by, seed=float(i)) for i, by in enumerate((1.0, 1.02, 0.98)) for s, r in at]
    (found,) = cliffs.find_cliffs(seeds)
    (of_first,) = cliffs.find_cliffs([r for r in seeds if r["seed"] == 0])
    assert (found.at, found.setting, found.tickets) == (of_first.at, "wanda", 3)
    others = [ticket("wanda", 0.5, 1.3, seed=float(i), target="mlp") for i in range(3)]
    (ranked,) = [r for r in rankings.rank_targets([*seeds, *others], known([*seeds, *others])) if r.level == 0.5]
    assert (
        ranked.targets == ("all", "mlp")
        and ranked.setting == "wanda"
        and math.exp(ranked.log_ratio_T[0]) == pytest.approx(1.05)
    )
    twice = [
        ticket("wanda", 0.5, 1.05),
        ticket("wanda", 0.5, 1.05) | {"run_id": "again"},
        ticket("wanda", 0.5, 2.0, seed=1.0),
    ]
    assert [r["perplexity_ratio"] for r in grouping.median_draws(twice)] == [
        2.0
    ]  # of two draws the worse, and not of three


def test_the_report_of_a_study_of_methods(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    text = tmp_path / "tale.txt"
    text.write_text("Once upon a time there was a house by the sea. " * 200)
    grid = [
        {"method": ["magnitude", "repair"], "sparsity": ["0.5", "0.6"]},
        {"method": "repair", "sparsity": "0.6", "seed": ["1", "2"]},
        {"method": "repair", "sparsity": "0.6", "calibration": str(text)},
    ]
    path = write(
        tmp_path, "ways", models=[str(tiny)], calibration="self", nsamples="2", seqlen="32", control="1", grid=grid
    )
    found = lottery_json("study", path, *MEASURED, "--out", tmp_path / "report")
    summary = lottery_json("report", "--study", "ways", "--out", tmp_path / "report")
    (answer,) = [a for a in summary["answers"] if a["question"] == QUESTION]
    metrics = {row["title"]: row["metrics"] for row in found["tickets"][1:]}
    ratio = {title: m["perplexity_ratio"] for title, m in metrics.items()}
    drawn = sorted(ratio[f"all 60% repair self nsamples=2 seqlen=32{seed}"] for seed in ("", " seed=1", " seed=2"))
    ends = sorted([(ratio["all 60%"], "magnitude"), (drawn[1], "repair")])
    words = " to ".join(f"{r:.4f} (`{method}`)" for r, method in ends)
    assert f"tiny with 60% of `all` removed: the methods span ratios from {words}, a factor of " in answer["sentence"]
    assert answer["answer"].startswith("a factor of ") and answer["answer"].endswith("(an estimate, not judged)")
    written = Written(tmp_path / "report", summary, Elements((tmp_path / "report" / "index.html").read_text()))
    rows = {(r["kind"], r["sparsity"], r["method"].split()[0]): r for r in read(written, "methods")}
    ways = [("ticket", "magnitude"), ("ticket", "repair"), ("control", "random")]
    assert set(rows) == {(kind, s, m) for s in ("0.5", "0.6") for kind, m in ways}
    point = rows["ticket", "0.6", "repair"]
    every = [r for title, r in ratio.items() if title.startswith("all 60% repair")]
    assert len(every) == 4 and float(point["band_lo"]) == min(every) and float(point["band_hi"]) == max(every)
    assert float(point["calibrate_s"]) > 0 and float(point["layer_error"]) > 0
    dense = found["tickets"][0]["metrics"]["perplexity"]
    of_random = metrics["all 60%"]["control_perplexity"] / dense
    assert float(rows["control", "0.6", "random"]["ratio"]) == pytest.approx(of_random)
    assert "figures/methods.svg" in summary["figures"]
    # The figure of the cliff shows one way of pruning, that of its answer.
    assert "repair" not in (tmp_path / "report" / "figures" / "cliff.svg").read_text()
