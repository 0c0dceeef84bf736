"""What is claimed from losses: at which rate, paired by seed and window, and how sure.

Legend: S seeds, N windows, R resamples.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from lottery.hypothesis.claims import TOLERANCE, Group, Made, all_claims, all_rows, choose_rate
from lottery.measuring.intervals import RESAMPLES, expanded_tail, paired_interval, resample_counts

DENSE = Group("dense", 1.0, 0, 0, 0.0, 800, 800, 0, "global")
TICKET = Group("rewound", 0.21, 7, 40, 0.05, 800, 800, 40, "global")
PERMUTED, RANDOM = replace(TICKET, arm="permuted"), Group("random", 0.21, 7, 0, 0.0, 800, 0, 0, "global")
N = 64
NOISE_N = np.random.default_rng(0).normal(0, 0.01, N)
NOISE_N -= NOISE_N.mean()
Groups = dict[Group, list[Made]]


def made(loss: float, seed: int = 0, lr: float = 0.003, search: float | None = None, noise: float = 0.0) -> Made:
    """A training whose mean loss is `loss`; `noise` sets how far its windows lie from those of another one."""
    window_N = 2 + np.linspace(0, 1, N) - 0.5
    return Made(seed, lr, loss if search is None else search, loss - 2 + window_N + noise * NOISE_N)


def one(
    groups: Groups, claim: str = "matches", control: str | None = None, lost: Sequence[float] = ()
) -> dict[str, Any]:
    """The one claim of that kind; `lost` are rates at which the ticket diverged."""
    claims = all_claims(groups, {(TICKET, lr): 1 for lr in lost})
    (found,) = [c for c in claims if (c["claim"], c["control"], c["arm"]) == (claim, control, "rewound")]
    return found


@pytest.mark.parametrize(
    ("more", "noise", "holds", "why"),
    [
        (-0.02, 0.0, True, "it is at most the dense one"),
        (0.005, 0.0, True, "is at most +0.01"),
        (TOLERANCE - 1e-6, 0.0, True, "is at most +0.01"),
        (TOLERANCE + 1e-6, 0.0, False, "is above +0.01"),
        (0.05, 1.0, False, "is above +0.01"),
        (0.01, 1.0, None, "contains +0.01"),
        (0.0, 10.0, None, "contains +0.01"),
    ],
)
def test_a_ticket_matches(more: float, noise: float, holds: bool | None, why: str) -> None:
    found = one({DENSE: [made(2.3)], TICKET: [made(2.3 + more, noise=noise)]})
    assert found["holds"] is holds and why in found["why"] and found["seeds"] == 1
    assert found["difference"] == pytest.approx(more) and found["lo"] <= found["difference"] <= found["hi"]
    assert (found["lr"], found["control_lr"], found["density"], found["rewind"]) == (0.003, 0.003, 0.21, 40)


@pytest.mark.parametrize(
    ("more", "noise", "holds", "why"),
    [
        (-0.1, 1.0, True, "is below 0"),
        (0.1, 1.0, False, "is not below 0"),
        (0.0, 0.0, False, "is not below 0"),  # the same losses
        (0.0, 1.0, None, "contains 0"),
    ],
)
def test_a_ticket_beats_its_control(more: float, noise: float, holds: bool | None, why: str) -> None:
    groups = {DENSE: [made(2.3)], TICKET: [made(2.4 + more, noise=noise)], PERMUTED: [made(2.4)]}
    found = one(groups, "beats", "permuted")
    assert found["holds"] is holds and why in found["why"] and found["difference"] == pytest.approx(more)


def test_the_rate_is_chosen_on_the_search_text_and_said_of_the_report_text() -> None:
    """At 0.01 the report text would look better by luck."""
    ticket = [made(2.40, search=2.39), made(2.30, lr=0.01, search=2.41), made(2.5, lr=0.03, search=2.5)]
    ticket += [made(2.6, lr=0.001, search=2.6)]
    groups = {DENSE: [made(2.3)], TICKET: ticket}
    found = one(groups)
    assert found["lr"] == 0.003 and found["difference"] == pytest.approx(0.1) and found["edge"] is False
    rows = {row["lr"]: row for row in all_rows(groups, {}) if row["arm"] == "rewound"}
    assert [row["best"] for _, row in sorted(rows.items())] == [False, True, False, False]
    assert rows[0.01]["loss"] == pytest.approx(2.30) and rows[0.01]["difference"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("losses", "edge"), [((2.3, 2.4, 2.5), True), ((2.4, 2.3, 2.5), False), ((2.5, 2.4, 2.3), True)]
)
def test_the_edge_of_the_rates_is_said(losses: tuple[float, ...], edge: bool) -> None:
    control = [made(loss, lr=lr) for loss, lr in zip(losses, (0.003, 0.01, 0.03), strict=True)]
    groups = {DENSE: [made(2.3)], TICKET: [made(2.2)], PERMUTED: control}
    found = one(groups, "beats", "permuted")
    assert found["edge"] is edge and ("permuted was best at the edge of the rates" in found["why"]) is edge
    assert one(groups)["edge"] is False
    assert "rewound was trained at one rate, permuted at 3" in found["why"]
    dense = {DENSE: [made(2.3, lr=0.003), made(2.4, lr=0.01)], TICKET: [made(2.2)]}
    assert one(dense)["edge"] is True and "dense was best at the edge of the rates" in one(dense)["why"]
    assert {row["edge"] for row in all_rows(groups, {}) if row["arm"] == "permuted" and row["best"]} == {edge}


def test_nothing_is_claimed_where_the_dense_network_has_learned_nothing() -> None:
    """A ticket whose mask was trained before knows the frequencies of tokens sooner; there is nothing else to know."""
    groups: Groups = {DENSE: [made(4.8)], TICKET: [made(4.7)], PERMUTED: [made(4.8)]}
    for unigram, holds in ((4.7, None), (4.805, None), (4.9, True)):
        claims = all_claims(groups, {}, None, unigram)
        of_ticket = [c for c in claims if c["arm"] == "rewound"]
        assert [(c["claim"], c["control"], c["holds"]) for c in of_ticket] == [
            ("matches", None, holds), ("beats", "permuted", holds),
        ]  # fmt: skip
        assert all(("no more than how frequent tokens are" in c["why"]) is (holds is None) for c in of_ticket)


def test_seeds_that_were_lost_leave_a_claim_open() -> None:
    """Of three seeds two diverged: the one that is left has the narrow interval of one seed, and decides nothing."""
    groups: Groups = {DENSE: [made(2.3, seed) for seed in range(3)], TICKET: [made(2.2, 0)], PERMUTED: [made(2.4, 0)]}
    for kind, control in (("matches", None), ("beats", "permuted")):
        claims = all_claims(groups, {}, dict.fromkeys(groups, 3))
        (found,) = [c for c in claims if (c["claim"], c["control"], c["arm"]) == (kind, control, "rewound")]
        assert found["holds"] is None and found["why"] == "1 of 3 seeds ended on both sides"


def test_a_rate_that_diverged_was_tried() -> None:
    """The best of 0.003, 0.01 and 0.03, the last of which diverged, is not at the edge."""
    groups = {DENSE: [made(2.3)], TICKET: [made(2.4), made(2.3, lr=0.01)]}
    assert one(groups)["edge"] is True
    assert one(groups, lost=[0.03])["edge"] is False
    rows = [row for row in all_rows(groups, {(TICKET, 0.03): 2}) if row["arm"] == "rewound"]
    assert [(row["lr"], row["diverged"], row["seeds"], row["loss"] is None) for row in rows] == [
        (0.003, 0, 1, False), (0.01, 0, 1, False), (0.03, 2, 0, True),
    ]  # fmt: skip
    assert [row["edge"] for row in rows] == [False, False, False]


def test_a_rate_without_all_seeds_does_not_win() -> None:
    ticket = [made(2.4, seed) for seed in (0, 1)] + [made(2.2, 0, lr=0.01)]
    best = choose_rate(TICKET, ticket)
    assert best is not None and best.lr == 0.003 and sorted(best.by_seed) == [0, 1]


def test_seeds_are_paired() -> None:
    """Seeds differ by more than the arms do. A seed that one of the two lacks is left out."""
    lucky = {0: 0.0, 1: 0.3, 2: -0.2}
    dense = [made(2.3 + luck, seed) for seed, luck in lucky.items()]
    ticket = [made(2.28 + luck, seed, noise=0.5) for seed, luck in lucky.items()]
    found = one({DENSE: dense, TICKET: ticket})
    assert found["holds"] is True and found["seeds"] == 3 and found["difference"] == pytest.approx(-0.02)
    found = one({DENSE: dense[1:], TICKET: ticket})
    assert found["seeds"] == 2 and found["difference"] == pytest.approx(-0.02)
    found = one({DENSE: dense[:1], TICKET: ticket[1:]})
    assert found["holds"] is None and found["seeds"] == 0 and "with the same seed" in found["why"]


def test_dense_is_that_of_as_many_steps() -> None:
    groups = {DENSE: [made(2.3)], replace(DENSE, steps=1600, mask_steps=1600): [made(2.1)], TICKET: [made(2.2)]}
    assert one(groups)["holds"] is True
    longer = replace(TICKET, steps=1600, mask_steps=1600)
    claims = all_claims({**groups, longer: [made(2.2)]}, {})
    assert [(c["steps"], c["holds"]) for c in claims] == [(800, True), (1600, False)]
    later = replace(DENSE, rewind=40, rewind_share=0.05)  # serves the barriers alone
    assert one({later: [made(2.3)], TICKET: [made(2.2)]})["why"].startswith("no dense training of as many steps")


def test_a_ticket_that_diverged_everywhere_is_not_known() -> None:
    groups: Groups = {DENSE: [made(2.3)], TICKET: [], PERMUTED: [made(2.4)]}
    for found in (one(groups), one(groups, "beats", "permuted")):
        assert (
            found["holds"] is found["difference"] is found["lr"] is None and "no training of it ended" in found["why"]
        )
    groups = {DENSE: [made(2.3)], TICKET: [made(2.3)], PERMUTED: []}
    assert "no training of permuted with the same seed ended" in one(groups, "beats", "permuted")["why"]


def test_each_arm_has_its_own_controls() -> None:
    snip, shuffled = replace(RANDOM, arm="snip"), replace(RANDOM, arm="snip-shuffled")
    other_place = replace(PERMUTED, rewind=80, rewind_share=0.1)
    names = (DENSE, TICKET, PERMUTED, other_place, RANDOM, snip, shuffled, replace(TICKET, arm="oneshot"))
    claims = all_claims({group: [made(2.3)] for group in names}, {})
    beats = [(c["arm"], c["control"], c["rewind"]) for c in claims if c["claim"] == "beats"]
    assert sorted(beats) == [
        ("oneshot", "random", 40), ("rewound", "permuted", 40), ("snip", "random", 0), ("snip", "snip-shuffled", 0),
    ]  # fmt: skip
    assert sum(c["claim"] == "matches" for c in claims) == 7


@settings(max_examples=6, deadline=None, phases=(Phase.explicit, Phase.generate))  # 4,000 loops each
@given(st.data(), st.integers(2, 5), st.integers(2, 9))
def test_the_interval_over_seeds_and_windows_is_a_slow_loop_s(data: st.DataObject, seeds: int, windows: int) -> None:
    d_SN = data.draw(arrays.arrays(np.float64, (seeds, windows), elements=st.integers(-40, 40).map(lambda i: i / 16)))
    of_seeds = np.random.default_rng((0, seeds, windows)).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    of_windows = resample_counts(windows)
    means = []
    for r in range(RESAMPLES):
        drawn = np.repeat(np.arange(seeds), of_seeds[r])
        looked = np.repeat(np.arange(windows), of_windows[r].astype(int))
        means.append(float(d_SN[drawn][:, looked].mean()))
    tail = expanded_tail(min(seeds, windows))
    lo, hi = np.quantile(means, [tail, 1 - tail])
    of_seed = [float(np.mean(row)) for row in d_SN]
    half = stats.t.ppf(0.975, seeds - 1) * np.std(of_seed, ddof=1) / seeds**0.5
    wider = min(lo, np.mean(of_seed) - half), max(hi, np.mean(of_seed) + half)
    assert paired_interval(d_SN) == pytest.approx(wider, abs=1e-12)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("of_window", [0.05, 0.005])
def test_the_interval_holds_the_truth(seeds: int, of_window: float) -> None:
    """Simulated losses in which a seed is lucky on all windows, and a window is hard for all seeds, and nothing else than
    the seeds matters. Of three seeds alone the resamples' own quantiles held the truth in 80% of the cases."""
    rng = np.random.default_rng(seeds)
    hits, trials, windows = 0, 200, 512
    for _ in range(trials):
        d_SN = 0.02 * rng.standard_normal((seeds, 1)) + of_window * rng.standard_normal((1, windows))
        lo, hi = paired_interval(d_SN + of_window * rng.standard_normal((seeds, windows)))
        hits += lo <= 0 <= hi
    assert hits / trials >= 0.92, hits / trials
