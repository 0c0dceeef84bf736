"""The tables of a hypothesis: claims, arms, every rate, barriers, what is missing. The same cells go to the terminal."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.table import Table as TerminalTable

from lottery.measuring.console import render
from lottery.report.hypothesis_record import (
    ABOUT,
    Record,
    Row,
    arm_rank,
    best_rows,
    costs,
    density_text,
    difference_text,
    label,
    loss_text,
    place_key,
    row_rank,
    seeds_of,
    signed,
    sorted_rows,
    training_key,
)
from lottery.report.rendering import Table
from lottery.report.wording import natural_list, pluralize

ANSWERS = {True: "yes", False: "no", None: "not known"}
MARKS = {True: "winner", False: "", None: "open"}
FEW = 24  # claims whose table is not folded
DIFFERENCE = "minus dense [95%]"


def sorted_claims(record: Record) -> list[Row]:
    return sorted(
        record["claims"],
        key=lambda c: (arm_rank(c["arm"]), c["steps"], c["mask_steps"], c["scope"], -(c["rewind"] or 0), -c["density"], c["claim"] == "beats",
                       arm_rank(c["control"] or "")),
    )  # fmt: skip


def claim_words(record: Record, c: Row) -> str:
    what = "matches dense" if c["claim"] == "matches" else f"beats {c['control']}"
    return f"{label(record, c)} {what}"


def rates_text(c: Row) -> str:
    rates = [f"{lr:g}" for lr in (c["lr"], c["control_lr"]) if lr is not None]
    return " / ".join(rates) + (" (edge)" if c.get("edge") else "")


def claims_table(record: Record) -> Table:
    claims = sorted_claims(record)
    columns = {
        "claim": False,
        "density": True,
        "k": True,
        "holds": False,
        "difference [95%]": True,
        "rates": True,
        "why": False,
    }
    rows = [
        [claim_words(record, c), density_text(c["density"]), f"{c['rewind'] or 0:,}", ANSWERS[c["holds"]], difference_text(c),
         rates_text(c), c.get("why") or ""]
        for c in claims
    ]  # fmt: skip
    note = ("Differences are nats a token, the arm's loss minus that of dense or of the control: negative where the arm is better. Rates are "
            "each one's best on the search text, the arm's first; k is the step to which the ticket goes back, or of a control the chain that made its mask.")  # fmt: skip
    return Table("claims", "Claims", columns, rows, note, [MARKS[c["holds"]] for c in claims], claims)


def claims_summary(record: Record) -> Table | None:
    """Returns the answers by density, one row for each claim; None for few claims, whose own table can be read at once."""
    claims = sorted_claims(record)
    densities = sorted({round(c["density"], 6) for c in claims}, reverse=True)
    if len(densities) < 2 or len(claims) <= FEW:
        return None
    by_name: dict[tuple[str, int], dict[float, Row]] = {}
    for c in claims:
        by_name.setdefault((claim_words(record, c), c["rewind"] or 0), {})[round(c["density"], 6)] = c
    columns = {"claim": False, "k": True} | {density_text(d): True for d in densities}
    rows = [[words, f"{k:,}", *(summary_cell(of.get(d)) for d in densities)] for (words, k), of in by_name.items()]
    note = ("Yes, no or not known at each density, with the arm's loss minus that of dense or of the control in nats a token. Intervals, rates "
            "and reasons stand below.")  # fmt: skip
    return Table("claims-by-density", "Claims by density", columns, rows, note, [], claims)


def summary_cell(claim: Row | None) -> str:
    if claim is None:
        return ""
    return ANSWERS[claim["holds"]] + (f" {signed(claim['difference'])}" if claim["difference"] is not None else "")


def arms_table(record: Record) -> Table:
    """Returns the table of all places at their best rates, with the setup's own rate beside it."""
    common, cost = record["setup"]["lr"], costs(record)
    at_common = {place_key(r): r for r in record["rows"] if r["lr"] == common}
    columns = {
        "arm": False, "density": True, "best rate": True, "loss [95%]": True, DIFFERENCE: True,
        f"loss at rate {common:g}": True, f"minus dense, at rate {common:g}": True, "trainings for the mask": True,
    }  # fmt: skip
    rows, data = [], []
    chosen = [r for r in sorted_rows(record) if r["best"]]
    for r in chosen:
        beside = at_common.get(place_key(r))
        spent = cost.get(training_key(r))
        rows.append([
            label(record, r), density_text(r["density"]), f"{r['lr']:g}{' (edge)' if r['edge'] else ''}", loss_text(r), difference_text(r),
            loss_text(beside) if beside else "not run", difference_text(beside) if beside else "", "" if spent is None else f"{spent:.2f}",
        ])  # fmt: skip
        data.append({**r, "cost": spent, "common_lr": common, "common_loss": beside and beside["loss"],
                     "common_difference": beside and beside["difference"]})  # fmt: skip
    note = (
        "Each arm at its best rate, and at one common rate. The best rate is chosen on the search text; losses are of the report text. (edge): "
        "the best rate is the smallest or greatest tried. Differences are from dense of the same number of steps at its best rate."
    )
    return Table("arms", "Every arm at its best rate and at one rate", columns, rows, note, dense_marks(chosen), data)


def dense_marks(rows: Sequence[Row]) -> list[str]:
    """Marks the last dense row, below which a line is drawn."""
    last = max((i for i, r in enumerate(rows) if r["arm"] == "dense"), default=-1)
    return ["dense" if i == last else "" for i in range(len(rows))]


def rates_table(record: Record) -> Table:
    """Returns the table of every row of the record."""
    rows, cost = sorted_rows(record), costs(record)
    columns = {"arm": False, "density": True, "k": True, "rate": True, "": False, "loss [95%]": True, DIFFERENCE: True,
               "seeds": True, "diverged": True, "trainings for the mask": True}  # fmt: skip
    cells = []
    for r in rows:
        mark = natural_list(word for word, is_so in (("best", r["best"]), ("edge", r["edge"] and r["best"])) if is_so)
        spent = cost.get(training_key(r))
        cells.append([label(record, r), density_text(r["density"]), f"{r['rewind']:,}", f"{r['lr']:g}", mark, loss_text(r), difference_text(r),
                      str(r["seeds"]), str(r["diverged"] or ""), "" if spent is None else f"{spent:.2f}"])  # fmt: skip
    data = [{**r, "cost": cost.get(training_key(r))} for r in rows]
    return Table("rows", "Every arm at every rate", columns, cells, "", dense_marks(rows), data)


def barriers_table(record: Record) -> Table | None:
    found = sorted(
        record["barriers"],
        key=lambda b: (b["kind"] != "order", arm_rank(b["arm"]), -b["density"], b["rewind"], b["seed"]),
    )
    columns = {"arm": False, "between": False, "density": True, "k": True, "seed": True, "barrier": True}
    kinds = {"order": "two orders of the data", "level": "this round and the one before"}
    rows = [[b["arm"], kinds.get(b["kind"], b["kind"]), density_text(b["density"]), f"{b['rewind']:,}", str(b["seed"]),
             "" if b["barrier"] is None else f"{b['barrier']:.4f}"] for b in found]  # fmt: skip
    data = [{k: v for k, v in b.items() if k != "line"} for b in found]
    return Table("barriers", "Every barrier", columns, rows, "", [], data) if rows else None


def unfinished_table(record: Record) -> Table | None:
    """Returns the trainings that have no loss, each with its reason."""
    found = sorted(
        (t for t in record["trainings"] if t["outcome"] != "done"),
        key=lambda t: (*row_rank({**t, "rewind_share": 0}), t["seed"]),
    )
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for t in found:
        alike.setdefault(
            (t["arm"], density_text(t["density"]), t["steps"], t["outcome"], t.get("reason") or ""), []
        ).append(t)
    columns = {
        "arm": False,
        "density": True,
        "steps": True,
        "rates": True,
        "seeds": True,
        "outcome": False,
        "why": False,
    }
    rows = [[arm, density, f"{steps:,}", listed(f"{t['lr']:g}" for t in of), listed(str(t["seed"]) for t in of), outcome, reason]
            for (arm, density, steps, outcome, reason), of in alike.items()]  # fmt: skip
    data = [{k: t.get(k) for k in ("id", "arm", "seed", "round", "density", "rewind", "lr", "mask_lr", "steps", "mask_steps", "order", "scope",
                                   "outcome", "reason", "run_id")} for t in found]  # fmt: skip
    marks = ["absent" if outcome in ("missing", "not started") else "overflow" for _, _, _, outcome, _ in alike]
    title = f"{pluralize(len(found), 'training')} without a loss"
    return Table("unfinished", title, columns, rows, "", marks, data) if rows else None


def listed(words: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def empty_table(record: Record) -> Table | None:
    """Returns the arms that left matrices without a living weight."""
    found: dict[tuple[str, float], dict[str, set[int]]] = {}
    for t in sorted(record["trainings"], key=lambda t: (*arm_rank(t["arm"]), -t["density"])):
        for name in t.get("empty") or []:
            found.setdefault((t["arm"], round(t["density"], 6)), {}).setdefault(name, set()).add(t["seed"])
    columns = {"arm": False, "density": True, "seeds": True, "matrices without a living weight": False}
    rows = [
        [arm, density_text(density), str(len(set.union(*of.values()))), natural_list(of)]
        for (arm, density), of in found.items()
    ]
    data = [{"arm": arm, "density": density, "matrix": name, "seeds": sorted(seeds)}
            for (arm, density), of in found.items() for name, seeds in of.items()]  # fmt: skip
    return Table("empty", "Empty matrices", columns, rows, "", [], data) if rows else None


def tickets_table(record: Record) -> Table | None:
    found = sorted(record.get("tickets") or [], key=lambda t: (*arm_rank(t["arm"]), -t["density"], t["seed"]))
    columns = {
        "arm": False,
        "density": True,
        "seed": True,
        "registered as": False,
        "ticket": False,
    }
    rows = [[t["arm"], density_text(t["density"]), str(t["seed"]), t["model_uri"] or "", t["ticket"] or ""]
            for t in found]  # fmt: skip
    note = "`lottery hypothesis --retrain URI` trains one again from its stored weights; `lottery generate URI` writes text with it."
    return Table("registered", "Registered tickets", columns, rows, note, [], found) if rows else None


def arms_legend(record: Record, arms: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (arm, what it is) for the arms of the record."""
    return [(a, ABOUT[a]) for a in arms if a in ABOUT]


def hypothesis_table(record: Record) -> str:
    """Returns the claims, and the loss of each arm by density, as text for a terminal."""
    claims = claims_table(record)
    parts: list[Any] = (
        [terminal_table({k: v for k, v in claims.columns.items() if k != "why"}, [row[:-1] for row in claims.rows])]
        if claims.rows
        else []
    )
    parts += unknown_lines(record)
    best, densities = best_rows(record), sorted({round(r["density"], 6) for r in best_rows(record)}, reverse=True)
    of_label: dict[str, dict[float, str]] = {}
    for r in best:
        cell = f"{r['loss']:.3f}" + (f" {signed(r['difference'])}" if r["difference"] else "")
        of_label.setdefault(label(record, r), {})[round(r["density"], 6)] = cell
    if of_label:
        columns = {"loss, minus dense": False} | {density_text(d): True for d in densities}
        parts += [
            "",
            terminal_table(columns, [[name, *(of.get(d, "") for d in densities)] for name, of in of_label.items()]),
        ]
    unfinished = [t for t in record["trainings"] if t["outcome"] != "done"]
    if unfinished:
        parts.append(f"{pluralize(len(unfinished), 'training')} without a loss: the report names them")
    parts.append(
        f"{pluralize(len(seeds_of(record)), 'seed')}; losses are nats a token, each arm at its best learning rate"
    )
    return render(*parts)


def unknown_lines(record: Record) -> list[str]:
    """Returns the claims of which nothing is known, those of one reason in one line."""
    of_reason: dict[str, list[str]] = {}
    for c in sorted_claims(record):
        if c["difference"] is None:
            of_reason.setdefault(c["why"], []).append(f"{claim_words(record, c)} at {density_text(c['density'])}")
    return [f"not known: {natural_list(of)}: {why}" for why, of in of_reason.items()]


def terminal_table(columns: dict[str, bool], rows: Sequence[Sequence[str]]) -> TerminalTable:
    table = TerminalTable(box=box.MARKDOWN)
    for name, right in columns.items():
        table.add_column(name, justify="right" if right else "left")
    for row in rows:
        table.add_row(*row)
    return table
