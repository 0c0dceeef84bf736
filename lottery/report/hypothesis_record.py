"""Reads the record of a hypothesis (hypothesis.json): its arms in order, their names, their curves, their costs.

Losses are nats a token. A density is the share of the prunable weights that live. A *curve* is the rows of one arm that
differ in density and rate alone. All functions work on plain dictionaries, without torch and MLflow.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from lottery.errors import InputError

Record: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]

FORMAT = 1  # of hypothesis.json
TICKETS = ("rewound", "original")  # trained alone from their own first weights: what the hypothesis is about
CONTROLS = ("oneshot", "permuted", "signs", "other", "reinit", "shuffled")
LATER = ("tuned", "rewound-rate", "untrained")  # no weights go back: other ways to spend the same work
SCORES = ("snip", "grasp", "synflow")  # masks from the first weights alone
BEFORE = ("early", *(f"{s}{end}" for s in SCORES for end in ("", "-shuffled")), "random")
ARMS = ("dense", "rewound", "original", "oneshot", "tuned", "rewound-rate", "early", "permuted", "signs", "other",
        "reinit", "shuffled", *BEFORE[1:], "untrained")  # fmt: skip
ABOUT = {
    "dense": "the whole network",
    "rewound": "pruned round by round, weights back to step k",
    "original": "pruned round by round, weights back to the start",
    "oneshot": "pruned once, weights back to step k",
    "tuned": "pruned round by round and trained on, nothing goes back",
    "rewound-rate": "pruned round by round, only the learning rate goes back",
    "early": "the mask as soon as it stopped moving",
    "permuted": "the ticket's mask; its values change places inside each tensor",
    "signs": "the ticket's mask and signs, new magnitudes",
    "other": "the ticket's mask, weights of another network",
    "reinit": "the ticket's mask, new weights",
    "shuffled": "the ticket's mask shuffled inside each tensor",
    "snip": "mask by SNIP before training",
    "grasp": "mask by GraSP before training",
    "synflow": "mask by SynFlow before training",
    "random": "a random mask",
    "untrained": "the trained network pruned, not trained again",
} | {f"{s}-shuffled": f"the mask of {s} shuffled inside each tensor" for s in SCORES}


def check_format(record: Record) -> None:
    if record.get("format") != FORMAT:
        raise InputError(
            f"hypothesis.json: format={record.get('format')!r}, this version reads {FORMAT}; run the command in it again"
        )


def arm_rank(arm: str) -> tuple[int, str]:
    """Returns what arms are sorted by: their order in tables, unknown ones last."""
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def row_rank(r: Row) -> tuple[Any, ...]:
    share = r["rewind_share"] if r["arm"] == "dense" else -r["rewind_share"]
    return (*arm_rank(r["arm"]), r["steps"], r["mask_steps"], r["scope"], share, -r["density"], r["lr"])


def sorted_rows(record: Record) -> list[Row]:
    return sorted(record["rows"], key=row_rank)


def best_rows(record: Record) -> list[Row]:
    """Returns the rows at each place's best rate that have a loss."""
    return [r for r in sorted_rows(record) if r["best"] and r["loss"] is not None]


def curve_key(r: Row) -> tuple[Any, ...]:
    return (r["arm"], r["rewind_share"], r["steps"], r["mask_steps"], r["scope"])


def place_key(r: Row) -> tuple[Any, ...]:
    """Returns what fixes a place in the tables: a curve and a density. The rates of one place compete."""
    return (*curve_key(r), round(r["density"], 6))


def rates_tried(record: Record) -> dict[tuple[Any, ...], set[float]]:
    """Returns the learning rates that were tried at each place, by `place_key`."""
    tried: dict[tuple[Any, ...], set[float]] = {}
    for r in record["rows"]:
        tried.setdefault(place_key(r), set()).add(r["lr"])
    return tried


def training_key(r: Row) -> tuple[Any, ...]:
    """Returns what trainings and rows of one place share. A training's record names the step of its rewind alone."""
    share = round(r["rewind"] / r["steps"], 4)
    return (r["arm"], share, r["steps"], r["mask_steps"], r["scope"], round(r["density"], 6))


def curves(rows: Iterable[Row]) -> list[list[Row]]:
    """Returns the curves, each from the dense end to the sparse one."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for r in rows:
        found.setdefault(curve_key(r), []).append(r)
    return [sorted(c, key=lambda r: -r["density"]) for c in found.values()]


def label(record: Record, r: Row) -> str:
    """Returns the arm's name with whatever differs from the setup, or from the other rows of the arm."""
    setup, words, dense = record["setup"], [r["arm"]], r["arm"] == "dense"
    several = len({x["rewind_share"] for x in record["rows"] if x["arm"] == r["arm"]}) > 1
    if several and (r["rewind"] or not dense):
        words.append(rewind_text(r["rewind_share"]))
    if r["steps"] != setup["steps"]:
        words.append(times_text(r["steps"], setup["steps"]))
    if not dense and r["mask_steps"] not in (0, r["steps"]):
        words.append(f"mask of {r['mask_steps']:,} steps")
    if not dense and r["scope"] != setup["scope"]:
        words.append(f"ranked by {r['scope']}")
    return ", ".join(words)


def times_text(steps: int, usual: int) -> str:
    return f"{steps / usual:g}x steps"


def rewind_text(share: float) -> str:
    return f"k={100 * share:g}%"


def density_text(density: float) -> str:
    """Returns a density with two digits, as the field writes it: 41%, 5.5%."""
    return "100%" if density >= 0.995 else f"{100 * density:.2g}%"


def signed(value: float) -> str:
    return f"{value:+.3f}"


def difference_text(r: Row) -> str:
    """Returns "-0.028 [-0.040, -0.016]", or what is known of it."""
    if r.get("difference") is None or (r["arm"] == "dense" and r["difference"] == 0):
        return ""
    lo, hi = (r.get("difference_lo", r.get("lo")), r.get("difference_hi", r.get("hi")))
    ends = f" [{signed(lo)}, {signed(hi)}]" if lo is not None and hi is not None else ""
    return signed(r["difference"]) + ends


def loss_text(r: Row) -> str:
    """Returns "2.341 [2.310, 2.372]"; "diverged" for a place at which no training gave a loss."""
    if r["loss"] is None:
        return "diverged" if r["diverged"] else "no result"
    ends = f" [{r['lo']:.3f}, {r['hi']:.3f}]" if r["lo"] is not None and r["hi"] is not None else ""
    return f"{r['loss']:.3f}{ends}"


def claim_row(record: Record, claim: Row) -> Row | None:
    """Returns the row that a claim is about."""
    return next((r for r in best_rows(record) if place_key(r) == place_key(claim)), None)


def is_usual(record: Record, r: Row) -> bool:
    """Returns whether a row or claim is of the setup's own number of steps and scope. A mask that no training made has
    `mask_steps` 0."""
    setup = record["setup"]
    return r["steps"] == setup["steps"] and r["mask_steps"] in (0, setup["steps"]) and r["scope"] == setup["scope"]


def costs(record: Record) -> dict[tuple[Any, ...], float]:
    """Returns place -> trainings' worth of steps that its mask and start have cost, on average over the seeds."""
    found: dict[tuple[Any, ...], list[float]] = {}
    for t in record["trainings"]:
        if t.get("cost") is not None:
            found.setdefault(training_key(t), []).append(t["cost"])
    return {key: sum(of) / len(of) for key, of in found.items()}


def trainings_of(record: Record, r: Row, any_rate: bool = False) -> list[Row]:
    """Returns the finished trainings in the data's own order that a row is the mean of, or those of its place at any
    rate."""
    key = training_key(r)
    return [
        t
        for t in record["trainings"]
        if t["outcome"] == "done" and not t.get("order") and training_key(t) == key
        and (any_rate or t["lr"] == r["lr"])
    ]  # fmt: skip


def longer_dense(record: Record) -> list[Row]:
    """Returns the dense rows at their best rates, by their number of steps."""
    return sorted((r for r in best_rows(record) if r["arm"] == "dense" and not r["rewind"]), key=lambda r: r["steps"])


def seeds_of(record: Record) -> list[int]:
    return list(dict.fromkeys(record["setup"]["seeds"]))


def arms_of(record: Record) -> list[str]:
    """Returns the arms of which anything was planned."""
    return sorted({t["arm"] for t in record["trainings"]} | {r["arm"] for r in record["rows"]}, key=arm_rank)


def middle(values: Sequence[float]) -> float:
    """Returns the middle one of some values, the greater of two."""
    found = sorted(set(values))
    return found[len(found) // 2]
