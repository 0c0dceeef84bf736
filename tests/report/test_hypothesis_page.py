"""The page of a hypothesis, from records whose answers are known, and the page in a real browser."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lottery.errors import InputError
from lottery.report.hypothesis_answers import answer_all
from lottery.report.hypothesis_limits import limits
from lottery.report.hypothesis_page import write_hypothesis_report
from lottery.report.hypothesis_places import ATTENTION, MLP, shares
from lottery.report.hypothesis_tables import hypothesis_table
from tests.support.browser import open_browser
from tests.support.hypothesis_records import density_of, quick, sample, unjudged, with_accidents
from tests.support.reports import Elements, Written, read

BAD = "<script>alert(1)</script> & 50% of $x_1$ \\input{x} #~^ | `a`"


def write(record: dict[str, Any], folder: Path) -> Written:
    summary = write_hypothesis_report(json.loads(json.dumps(record)), folder)
    return Written(folder, summary, Elements((folder / "index.html").read_text(encoding="utf-8")))


def words(written: Written) -> str:
    return " ".join(" ".join(written.page.words).split())


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return with_accidents(sample(longer=True))


@pytest.fixture(scope="module")
def written(record: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Written:
    return write(record, tmp_path_factory.mktemp("page") / "report")


def claims(record: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> dict[str, Any]:
    return record | {"claims": [new for c in record["claims"] if (new := change(c)) is not None]}


def test_the_sparsest_ticket_that_matches_is_the_answer(written: Written) -> None:
    matches, beats, found, stable = written.summary["answers"]
    assert [a["answer"] for a in written.summary["answers"]] == ["yes, at 21%", "yes, at 21%", "no", "yes"]
    assert matches["sentence"].startswith(
        "Yes: the ticket `rewound` with 21% of the weights, back at step 40 of 800, matches the dense network at equal steps of "
        "the last training: its loss minus that of dense is -0.025 [-0.036, -0.014] nats a token"
    )
    assert (
        "beats `permuted`, `signs`, `other`, `reinit` and `shuffled`, each arm at its best learning rate"
        in beats["sentence"]
    )
    assert "its mask has cost 6.7 trainings besides its own" in beats["sentence"]
    assert (
        "dense with 2 times the steps ends 0.207 below and 5 times the steps ends 0.354 below the ticket"
        in beats["sentence"]
    )
    assert found["sentence"].startswith(
        "No: `snip` and `synflow` do not match dense at 41%, 21%, 11% and 5.5%; the nearest"
    )
    assert "Of `grasp` it is not known: no training of grasp is done." in found["sentence"]
    assert (
        "For comparison: 0.270 for `dense` and 0.288 for `shuffled`. At one rate, 0.003, from k=0%: barrier 0.020, matches"
        in stable["sentence"]
    )
    shown = words(written).replace("`", "")
    assert "Yes: the ticket rewound with 21% of the weights" in shown and "3 seeds are few" in shown


def test_no_ticket_matches() -> None:
    matches, beats, *_ = answer_all(sample(shift=0.2, barriers=False))
    assert matches.short == "no" and "(41%, 21%, 11% and 5.5%)" in matches.sentence
    assert (
        "The loss of the closest, the ticket `rewound` with 41% of the weights, back at step 40 of 800, minus that of dense is +0.117"
        in matches.sentence
    )
    assert beats.short == "no, 0 of 5 at 41%" and "it does not beat `permuted`, `signs`" in beats.sentence


def test_what_is_not_known_is_called_so() -> None:
    record = sample(barriers=False, arms=("rewound", "permuted", "snip"))
    open_ = claims(record, lambda c: unjudged(c, "one of two trainings is missing"))
    for answer in answer_all(open_):
        assert answer.short == "not known" and answer.sentence.startswith("Not known")
    assert "one of two trainings is missing." in answer_all(open_)[0].sentence
    # one density of a ticket that misses elsewhere: the sparse end stays open, no "no" is claimed
    some = claims(
        sample(shift=0.2), lambda c: unjudged(c, "diverged") if c["arm"] == "rewound" and c["density"] < 0.3 else c
    )
    assert answer_all(some)[0].short == "not known" and "diverged." in answer_all(some)[0].sentence
    assert "rewound beats permuted" not in hypothesis_table(claims(record, lambda c: None))


@pytest.mark.parametrize("lost, short, said", [
    ((), "yes, at 21%", "Yes: at 21% it beats `permuted`, `signs`, `other`, `reinit` and `shuffled`"),
    (("signs",), "not all, 4 of 5 at 21%", "Not all of them: at 21% it beats `permuted`, `other`, `reinit` and `shuffled`"),
    (("permuted", "signs", "other", "reinit", "shuffled"), "no, 0 of 5 at 21%", "No: at 21% it does not beat `permuted`"),
])  # fmt: skip
def test_controls_that_are_not_beaten_are_named(lost: tuple[str, ...], short: str, said: str) -> None:
    def lose(c: dict[str, Any]) -> dict[str, Any]:
        return c | {"holds": False, "difference": 0.02, "lo": 0.01, "hi": 0.03} if c["control"] in lost else c

    beats = answer_all(claims(sample(barriers=False), lose))[1]
    assert beats.short == short and beats.sentence.startswith(said)


def test_controls_of_the_nearest_density_answer_where_the_matching_ticket_has_none() -> None:
    """A preset that trains controls at one density, beside a chain whose rounds all count."""
    record = sample()
    matching = max(c["density"] for c in record["claims"] if c["claim"] == "matches" and c["holds"])
    apart = claims(
        record,
        lambda c: None if c["claim"] == "beats" and c["density"] == matching else c | {"holds": c["density"] == matching}
        if c["claim"] == "matches" else c,
    )  # fmt: skip
    apart["barriers"] = [b for b in record["barriers"] if abs(b["density"] - matching) > 0.01]
    matches, beats, _, stable = answer_all(apart)
    assert matches.short == "yes, at 41%"
    assert beats.sentence.startswith("Yes: at 21%, the nearest density that has controls, it beats `permuted`")
    assert beats.sentence.endswith("At this density the ticket does not match dense (-0.027 [-0.038, -0.016]).")
    assert stable.sentence.startswith("Yes: the barrier between two copies of the ticket at 21%")


def test_an_open_control_is_neither_beaten_nor_not() -> None:
    def open_one(c: dict[str, Any]) -> dict[str, Any]:
        return unjudged(c, "no result") if c["control"] == "reinit" else c

    beats = answer_all(claims(sample(barriers=False), open_one))[1]
    assert beats.short == "not known" and "against `reinit` it is not known" in beats.sentence


def test_a_mask_from_before_training_that_matches_and_a_task_that_is_too_easy() -> None:
    def hold(c: dict[str, Any]) -> dict[str, Any]:
        easy = c["claim"] == "matches" and c["arm"] in ("synflow", "random") and c["density"] > 0.2
        return c | {"holds": True, "difference": -0.02, "lo": -0.03, "hi": -0.01} if easy else c

    found = answer_all(claims(sample(barriers=False), hold))[2]
    assert found.short == "yes, at 21%" and found.sentence.startswith("Yes: `synflow` matches dense at 21%")
    assert "A random mask matches, too: this training is too easy" in found.sentence
    assert "too easy" not in answer_all(sample(barriers=False))[2].sentence


def test_an_interval_that_holds_the_bound_is_not_known() -> None:
    def widen(c: dict[str, Any]) -> dict[str, Any]:
        wide = {
            "holds": None,
            "difference": 0.011,
            "lo": 0.008,
            "hi": 0.013,
            "why": "the interval from +0.008 to +0.013 contains +0.01",
        }
        return c | wide if c["arm"] in ("snip", "rewound", "original") and c["claim"] == "matches" else c

    matches, _, found, _ = answer_all(claims(sample(barriers=False, arms=("rewound", "original", "snip")), widen))
    assert matches.short == "not known" and "the interval from +0.008 to +0.013 contains +0.01." in matches.sentence
    assert found.short == "not known" and "the interval from +0.008 to +0.013 contains +0.01." in found.sentence
    assert "none was compared" not in found.sentence


def test_controls_that_match_as_well_are_named() -> None:
    record = sample(barriers=False)
    match = next(
        c for c in record["claims"] if c["claim"] == "matches" and c["arm"] == "rewound" and 0.2 < c["density"] < 0.3
    )
    record["claims"] += [match | {"arm": "reinit"}, match | {"arm": "signs", "holds": False}]
    assert "At this density `reinit` matches dense, too: a match alone says little here." in answer_all(record)[0].sure
    assert "says little" not in answer_all(sample(barriers=False))[0].sure


def test_trainings_of_other_lengths_and_scopes_are_told_apart(tmp_path: Path) -> None:
    record = sample((0,), ("rewound", "snip"), (4, 7), longer=True, barriers=False)
    more = [r | {"scope": "layer", "loss": r["loss"] - 0.1} for r in record["rows"] if r["arm"] == "snip"]
    copy = next(r for r in record["rows"] if r["arm"] == "dense" and r["best"]) | {
        "rewind": 40,
        "rewind_share": 0.05,
        "loss": 2.3,
    }
    record["rows"] += [*more, copy]
    page = write(record, tmp_path / "r")
    names = [row[0] for row in page.page.tables["arms"]]
    assert {"rewound", "rewound, 2x steps", "snip", "snip, ranked by layer", "dense, k=5%"} <= set(names)
    assert ">snip, ranked by layer<" in (tmp_path / "r/figures/before.svg").read_text(encoding="utf-8")
    drawn = (tmp_path / "r/figures/loss.svg").read_text(encoding="utf-8")
    assert drawn.count(">dense<") == 1 and ">rewound, 2x steps<" not in drawn
    assert page.summary["answers"][0]["sentence"].count("of 800") == 1


def test_a_page_has_no_figure_of_what_is_absent(written: Written, tmp_path: Path) -> None:
    every = {f"figures/{n}.{form}" for n in ("loss", "before", "later", "variants", "curves", "barrier", "line", "levels", "places")
             for form in ("svg", "png")}  # fmt: skip
    assert set(written.summary["figures"]) == every and all((written.folder / n).stat().st_size > 1000 for n in every)
    bare = sample((0,), ("rewound", "permuted"), (7,), barriers=False)
    bare["trainings"] = [t | {"densities": None, "curve": []} for t in bare["trainings"]]
    small = write(bare, tmp_path / "small")
    assert small.summary["figures"] == ["figures/loss.png", "figures/loss.svg"]
    assert "Where the weights sit" not in words(small) and "no barrier was measured" in words(small)
    nothing = bare | {"trainings": [], "rows": [], "claims": [], "tickets": []}
    empty = write(nothing, tmp_path / "empty")
    assert (
        empty.summary["figures"] == []
        and "No training has a loss yet." in words(empty)
        and "No claim was tested." in words(empty)
    )
    assert [a["answer"] for a in empty.summary["answers"]] == ["not known"] * 4


def test_texts_of_a_record_are_escaped(tmp_path: Path) -> None:
    bad = quick() | {"name": BAD, "question": BAD, "command": BAD}
    bad["text"] |= {"name": BAD}
    bad["claims"] = [unjudged(c, BAD) if c["arm"] == "snip" else c | {"why": BAD} for c in bad["claims"]]
    for part in ("trainings", "rows", "claims"):
        for r in bad[part]:
            r["arm"] = BAD if r["arm"] == "permuted" else r["arm"]
    for t in bad["trainings"]:
        if t["arm"] == "shuffled":
            t |= {"outcome": "failed", "reason": BAD, "densities": {"0.<b>x": 0.5}, "empty": ["0.<b>x"]}
    bad["tickets"][0] |= {"model_uri": BAD}
    page = write(bad, tmp_path / "r")
    assert not page.page.names & {"script", "b>x", "img", "iframe"}
    assert all(a.startswith(("#", "data:")) for a in page.page.addresses)
    assert words(page).count("<script>alert(1)</script>") > 5
    for path in sorted((tmp_path / "r" / "figures").glob("*.svg")):
        assert not [e for e in ElementTree.parse(path).iter() if e.tag.endswith("script")]
    assert "<script" not in hypothesis_table(quick())


def test_one_seed_and_edges_are_said(tmp_path: Path) -> None:
    page = words(write(quick(), tmp_path / "r"))
    assert (
        "One seed: the intervals are over windows of text alone" in page and "3 of 15 pairs of arm and density" in page
    )
    assert page.count("A best learning rate lies at the edge of those tried") == 1
    assert (
        "9 of 15 pairs of arm and density were trained at one learning rate alone (`rewound`, `snip`, `synflow` and `random`)."
        in limits(quick())[3]
    )
    assert (
        "smallest or greatest that was tried (`permuted` at 21%; `reinit` at 21%; `shuffled` at 21%)"
        in limits(quick())[3]
    )
    inside = sample(arms=("rewound",), barriers=False, longer=True)
    assert "Every best learning rate lies inside the grid that was tried." in limits(inside)
    assert "how far dense would come with those steps was not measured" in " ".join(
        limits(sample(dense=(1,), barriers=False))
    )


def test_a_dense_network_that_is_worse_than_counting_is_called_out(record: dict[str, Any]) -> None:
    assert "0.144 nats a token below an n-gram model of order 6" in limits(record)[0]
    low = record | {"text": record["text"] | {"ngram": {"order": 6, "report": 2.0}}}
    assert "0.366 nats a token above" in limits(low)[0] and "read every comparison here with care" in limits(low)[0]


def test_csv_tables_hold_the_numbers_of_the_record(written: Written, record: dict[str, Any]) -> None:
    def cell(value: Any) -> str:
        return "" if value is None else str(value)

    for name, part, keys in (
        ("rows", "rows", ("arm", "density", "rewind", "steps", "lr", "best", "edge", "seeds", "loss", "lo", "hi", "difference", "difference_lo")),
        ("claims", "claims", ("claim", "arm", "control", "density", "holds", "difference", "lo", "hi", "lr", "control_lr", "edge", "why")),
        ("barriers", "barriers", ("arm", "seed", "density", "rewind", "kind", "barrier")),
    ):  # fmt: skip
        found = sorted(tuple(r[k] for k in keys) for r in read(written, name))
        assert found == sorted(tuple(cell(r[k]) for k in keys) for r in record[part]), name
    costs = {r["density"]: float(r["cost"]) for r in read(written, "rows") if r["arm"] == "rewound"}
    assert math.isclose(costs[str(density_of(7))], 0.95 * 7 + 0.05)


def test_tables_on_the_page(written: Written, record: dict[str, Any]) -> None:
    head, *rows = written.page.tables["arms"]
    ticket = next(dict(zip(head, r, strict=True)) for r in rows if r[:2] == ["rewound", "21%"])
    assert (
        ticket["best rate"] == "0.003"
        and ticket["minus dense [95%]"] == "-0.025 [-0.036, -0.014]"
        and ticket["trainings for the mask"] == "6.70"
    )
    control = next(dict(zip(head, r, strict=True)) for r in rows if r[:2] == ["permuted", "21%"])
    assert control["best rate"] == "0.01 (edge)" and control["loss at rate 0.003"] > control["loss [95%]"]
    assert [r[0] for r in rows[:5]] == ["dense", "dense, 2x steps", "dense, 5x steps", "rewound", "rewound"]
    assert ["rewound beats signs", "40", "yes -0.068", "yes -0.064", "yes -0.120", "yes -0.191"] in written.page.tables[
        "claims-by-density"
    ]
    assert ["grasp matches dense", "0", *["not known"] * 4] in written.page.tables["claims-by-density"]
    assert len(written.page.tables["rows"]) == len(record["rows"]) + 1


def test_what_is_missing_is_listed(written: Written) -> None:
    assert ["shuffled", "41%", "800", "0.01", "0", "diverged", "the loss was NaN at step 312"] in written.page.tables[
        "unfinished"
    ]
    assert ["grasp", "5.5%", "800", "0.001, 0.003, 0.01", "0, 1, 2", "missing", "not run yet"] in written.page.tables[
        "unfinished"
    ]
    assert len(read(written, "unfinished")) == 37
    assert ["snip", "11%", "3", "1.q_proj and 2.k_proj"] in written.page.tables["empty"]
    assert "This run did not train grasp-shuffled ." in words(written)


def test_the_heat_map_and_its_sentence(written: Written) -> None:
    figure = (written.folder / "figures/places.svg").read_text(encoding="utf-8")
    assert ">29%<" in figure and ">14%<" in figure and ">down_proj<" in figure and "rewound at 21%" in figure
    assert (
        "rewound at 21% (the sparsest ticket that matches; mean of 3 seeds) keeps 21% of attention , 21% of mlp , 23% of early and 19% of late : most in early , least in late ."
        in words(written)
    )


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.randoms(use_true_random=False))
def test_shares_equal_counting_every_weight(layers: int, width: int, inner: int, draw: Any) -> None:
    setup = {"layers": layers, "width": width, "inner": inner}
    weights: dict[tuple[int, str], np.ndarray] = {}
    for layer in range(layers):
        for name in (*ATTENTION, *MLP):
            count = width * (inner if name in MLP else width)
            weights[layer, name] = np.array([draw.random() < 0.5 for _ in range(count)])
    found = shares({"setup": setup}, {place: float(of.mean()) for place, of in weights.items()})
    early = [of for (layer, _), of in weights.items() if layer < layers // 2]
    attention = [of for (_, name), of in weights.items() if name in ATTENTION]
    assert math.isclose(found["attention"], np.concatenate(attention).mean(), abs_tol=1e-12)
    assert ("early" in found) == bool(early)
    if early:
        assert math.isclose(found["early"], np.concatenate(early).mean(), abs_tol=1e-12)


def test_the_terminal_shows_claims_and_losses(record: dict[str, Any]) -> None:
    lines = hypothesis_table(record).splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert ["rewound beats reinit", "21%", "40", "yes", "-0.058 [-0.069, -0.047]", "0.003 / 0.01 (edge)"] in cells
    assert ["rewound", "", "2.283 -0.083", "2.341 -0.025", "2.491 +0.125", "2.699 +0.333"] in cells
    assert ["rewound, 2x steps", "", "2.067 -0.067", "2.126 -0.008", "2.282 +0.148", "2.493 +0.360"] in cells
    assert ["dense, 2x steps", "2.134", "", "", "", ""] in cells
    assert (
        "not known: grasp matches dense at 41%, grasp matches dense at 21%, grasp matches dense at 11% and grasp matches dense at 5.5%: no training of grasp is done"
        in lines
    )
    assert lines[-2:] == ["37 trainings without a loss: the report names them",
                          "3 seeds; losses are nats a token, each arm at its best learning rate"]  # fmt: skip


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    first = write(sample((0,), ("rewound", "snip"), (7,), barriers=False), tmp_path / "r")
    again = write(sample((0,), ("rewound", "snip"), (7,), barriers=False), tmp_path / "again")
    for name in ["index.html", *first.summary["figures"], *first.summary["tables"]]:
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    second = write(sample((0,), ("rewound",), (7,), barriers=False), tmp_path / "r")
    assert again.summary["figures"] != second.summary["figures"]
    left = {str(p.relative_to(tmp_path / "r")) for p in (tmp_path / "r").rglob("*") if p.is_file()}
    assert left == {"index.html", "report.json", *second.summary["figures"], *second.summary["tables"]}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"it holds thesis\.txt, no report; give a new folder"):
        write_hypothesis_report(quick(), tmp_path / "other")
    with pytest.raises(InputError, match="format=2, this version reads 1"):
        write_hypothesis_report(quick() | {"format": 2}, tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


def test_the_page_needs_neither_torch_nor_mlflow() -> None:
    code = "import sys, lottery.report.hypothesis_page; print([m for m in ('torch', 'transformers', 'mlflow') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_a_screen_and_a_phone(written: Written, width: int) -> None:
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": width, "height": 900})
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.goto((written.folder / "index.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width and not problems
        assert page.locator("figure svg").count() == 9 and page.locator(".card").count() == 4
        boxes = [page.locator("figure svg").nth(i).bounding_box() for i in range(9)]
        assert all(b and b["x"] >= 0 and b["x"] + b["width"] <= width and b["height"] > 150 for b in boxes)
        page.locator("nav a", has_text="Claims").click()
        page.locator("#claims summary").click()
        assert page.locator("#table-claims").is_visible()
        for link in page.locator("nav a, a.card").all():
            assert page.locator(str(link.get_attribute("href"))).count() == 1
