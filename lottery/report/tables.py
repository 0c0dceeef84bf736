"""Makes the tables of a report. A table's cells are text for people; its CSV has the numbers as they were logged."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from lottery.measuring.hardware import kernel_of
from lottery.measuring.numbers import format_ends, format_interval, format_perplexity, format_ratio, format_speed
from lottery.report.answers import Answer
from lottery.report.grouping import Row, number
from lottery.report.judging import verdict
from lottery.report.rendering import Table
from lottery.report.wording import percent, pluralize

Columns: TypeAlias = Mapping[
    str, tuple[bool, Callable[[Row], str]]
]  # name -> (whether it holds numbers, its cell of a row)
METRIC_COLUMNS = ("perplexity", "perplexity_lo", "perplexity_hi", "perplexity_ratio", "perplexity_ratio_lo",
           "perplexity_ratio_hi", "bits_per_byte", "control_perplexity", "control_perplexity_lo", "control_perplexity_hi",
           "control_ratio", "control_ratio_lo", "control_ratio_hi", "sparsity_target", "sparsity_prunable", "sparsity_model",
           "disk_bytes", "disk_ratio", "weights_bytes", "weights_ratio", "peak_bytes", "prefill_tok_s", "decode_tok_s",
           "decode_tok_s_lo", "decode_tok_s_hi", "decode_floor_tok_s", "beside_tok_s", "repetition", "distinct_2", "layer_error",
           "calibrate_s", "prune_s")  # fmt: skip
ABOUT = ("title", "kind", "base", "target", "sparsity", "budget", "method", "scope", "allocation", "calibration", "nsamples",
         "seqlen", "propagate", "seed", "pattern", "quantize", "storage",
         "runtime", "protocol", "hardware", "winner", "beats_control", "coherent", "note", "outcome", "run_id")  # fmt: skip


def make_table(
    name: str,
    title: str,
    rows: Sequence[Row],
    columns: Columns,
    note: str = "",
    marks: Sequence[str] = (),
    data: Sequence[Mapping[str, Any]] | None = None,
) -> Table:
    """Fills a table's cells. Columns that no row has are left out, except the first. `data`: the rows of the CSV, if
    not `rows`."""
    cells = [[of(row) for _, of in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in cells)]
    names = list(columns.items())
    return Table(
        name,
        title,
        {names[i][0]: names[i][1][0] for i in used},
        [[row[i] for i in used] for row in cells],
        note,
        list(marks),
        [dict(d) for d in (rows if data is None else data)],
    )


def interval(row: Row, name: str, digits: int) -> str:
    return format_interval(known(row, name), name, digits)


def known(row: Row, name: str) -> dict[str, float]:
    """Returns the value called `name` and the ends of its interval, as far as they are numbers."""
    return {key: value for key in (name, f"{name}_lo", f"{name}_hi") if (value := number(row, key)) is not None}


def format_number(row: Row, name: str, digits: int, factor: float = 1) -> str:
    value = number(row, name)
    return "" if value is None else f"{factor * value:,.{digits}f}"


def text_cell(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def perplexity_cell(r: Row) -> str:
    return "" if r.get("state") else interval(r, "perplexity", 2) or text_cell(r, "outcome") or "not measured"


def ratio_cell(r: Row) -> str:
    return "1" if r.get("kind") == "dense" and number(r, "perplexity") else interval(r, "perplexity_ratio", 4)


def control_cell(r: Row) -> str:
    found = known(r, "control_perplexity")
    words = [format_perplexity(found[name]) for name in found]
    return f"{words[0]} ({words[1]} to {words[2]})" if len(words) == 3 else ""


def removed_cell(r: Row) -> str:
    removed = number(r, "sparsity_model")
    return "" if removed is None or r.get("kind") == "dense" else f"{removed:.1%}"


def coherent_cell(r: Row) -> str:
    note = f"({text_cell(r, 'note')})" if text_cell(r, "note") else ""
    return " ".join(w for w in (text_cell(r, "coherent"), note) if w)


TICKETS: Columns = {
    "ticket": (False, lambda r: text_cell(r, "title") + (f": {text_cell(r, 'state')}" if r.get("state") else "")),
    "perplexity [95%]": (True, perplexity_cell),
    "ratio to dense [95%]": (True, ratio_cell),
    "winner": (False, lambda r: verdict(r)),
    "removed of all weights": (True, removed_cell),
    "random controls (least to greatest)": (True, control_cell),
    "ratio to the controls [95%]": (True, lambda r: interval(r, "control_ratio", 3)),
    "beats the controls": (False, lambda r: text_cell(r, "beats_control")),
    "coherent, to a reader": (False, coherent_cell),
    "file MB": (True, lambda r: format_number(r, "disk_bytes", 2, 1e-6)),
    "of the base's": (True, lambda r: format_number(r, "disk_ratio", 3)),
    "in memory MB": (True, lambda r: format_number(r, "weights_bytes", 2, 1e-6)),
}


def tickets(name: str, title: str, rows: Sequence[Row], absent: Sequence[Row], note: str) -> Table:
    """Returns the table of one model under one protocol. The dense row comes first; a ticket that was planned and is
    missing stands at its own place in the order."""
    every = [*rows, *absent]
    order = {t: i for i, t in enumerate(dict.fromkeys(str(r.get("target")) for r in every))}
    dense = [r for r in every if r.get("kind") == "dense"]
    others = [r for r in every if r.get("kind") != "dense"]
    shown = [*dense, *sorted(others, key=lambda r: sort_key(r, order))]
    data = [{k: r.get(k) for k in (*ABOUT[:2], "state", *ABOUT[2:], *METRIC_COLUMNS)} for r in shown]
    return make_table(name, title, shown, TICKETS, note, [row_mark(r) for r in shown], data)


def sort_key(r: Row, order: Mapping[str, int]) -> tuple[int, str, str, float]:
    """`order`: target -> its place. Among tickets of one target the default way of pruning comes first, and the least
    sparsity."""
    return (
        order[str(r.get("target"))],
        "" if r.get("quantize") == "none" else str(r.get("quantize") or ""),
        "" if r.get("method") == "magnitude" else str(r.get("method") or ""),
        number(r, "sparsity") or 0.0,
    )


def row_mark(r: Row) -> str:
    """Returns what kind of row it is; the page gives each mark its own style."""
    if r.get("kind") == "dense":
        return "dense"
    if r.get("state"):
        return "absent"
    if verdict(r) == "yes":
        return "winner"
    return "overflow" if number(r, "perplexity") is None else ""


def speeds(name: str, machine: str, rows: Sequence[Row]) -> Table:
    """Returns the table of one machine. Each ticket's speed is compared with the dense model's in the same process."""
    several = len({r["base"] for r in rows}) > 1

    columns: Columns = {
        "ticket": (False, lambda r: f"{r['base']}: {r['title']}" if several else text_cell(r, "title")),
        "decode tok/s [quartiles]": (True, lambda r: format_speed(known(r, "decode_tok_s"), "decode_tok_s", 1)),
        "dense, same process": (True, lambda r: format_number(r, "beside_tok_s", 1)),
        "of dense": (True, lambda r: "" if (share := share_of_dense(r)) is None else f"{share:.2f}"),
        "memory's limit": (True, lambda r: format_number(r, "decode_floor_tok_s", 0)),
        "prefill tok/s": (True, lambda r: format_number(r, "prefill_tok_s", 0)),
        "in memory MB": (True, lambda r: format_number(r, "weights_bytes", 2, 1e-6)),
        "peak MB": (True, lambda r: format_number(r, "peak_bytes", 0, 1e-6)),
        "kernel": (False, lambda r: kernel_of(text_cell(r, "hardware"))),
    }
    data = [{k: r.get(k) for k in (*ABOUT, *METRIC_COLUMNS)} for r in rows]
    return make_table(name, machine, rows, columns, f"At batch 1, medians. {speeds_note(rows)}", data=data)


def speeds_note(rows: Sequence[Row]) -> str:
    """Returns what the runtimes of these tickets make of their zeros, and how fast the sparse ones decode."""
    runtimes = {r.get("runtime", "dense") for r in rows}
    notes = ["Zeros that are stored sparse and computed dense save disk space, not time."] * ("dense" in runtimes)
    if "sparse" in runtimes:
        notes.append("With runtime=sparse a token is multiplied straight from bitmask and values, without unpacking.")
        shares = [s for r in rows if r.get("runtime") == "sparse" and (s := share_of_dense(r)) is not None]
        if shares:
            between = " to ".join(dict.fromkeys(f"{end(shares):.2f}" for end in (min, max)))
            notes.append(f"These tickets decode at {between} times the speed of the dense model.")
    return " ".join(notes)


def share_of_dense(r: Row) -> float | None:
    """Returns a ticket's decoding speed divided by that of the dense model in the same process, None if one is missing."""
    mine, dense = number(r, "decode_tok_s"), number(r, "beside_tok_s")
    return mine / dense if mine and dense else None


def absences(rows: Sequence[Row]) -> Table:
    columns: Columns = {
        "ticket": (False, lambda r: text_cell(r, "title")),
        "model": (False, lambda r: text_cell(r, "base")),
        "state": (False, lambda r: text_cell(r, "state")),
        "reason": (False, lambda r: text_cell(r, "reason")),
        "study": (False, lambda r: text_cell(r, "study")),
        "part": (False, lambda r: text_cell(r, "part")),
    }
    return make_table("absent", "Planned, but missing", rows, columns, marks=["absent"] * len(rows))


def left_out(rows: Sequence[Row]) -> Table:
    columns: Columns = {
        "target": (False, lambda r: text_cell(r, "target")),
        "model": (False, lambda r: text_cell(r, "model")),
        "reason": (False, lambda r: text_cell(r, "reason")),
        "study": (False, lambda r: text_cell(r, "study")),
    }
    return make_table("left_out", "Left out by the plan", rows, columns)


def answer_table(name: str, answer: Answer) -> Table | None:
    """Returns the data that an answer rests on, one row per curve, target or pair; None if there is no data."""
    if not answer.data:
        return None
    columns = {
        "cliff": CLIFFS,
        "where": RANKS,
        "agreement": AGREEMENTS,
        "eight_bits": EIGHT,
        "bigger": CLIFFS,
        "methods": METHODS,
    }[name]
    return make_table(name, answer.question, list(answer.data), columns)


def ratio_with_ends(r: Row) -> str:
    low, high = number(r, "lo"), number(r, "hi")
    return format_ratio(r["ratio"]) if low is None or high is None else format_ends(r["ratio"], low, high, 4)


def seconds_cell(r: Row) -> str:
    """Returns the seconds of pruning, and those of the passes of the samples, which are 0 where an earlier ticket's sums
    were kept."""
    passes = f" + {s:,.1f}" if (s := number(r, "calibrate_s")) is not None else ""
    return f"{spent:,.1f}{passes}" if (spent := number(r, "prune_s")) is not None else ""


def tau_with_ends(r: Row) -> str:
    return f"{r['tau']:.2f} [{r['lo']:.2f}, {r['hi']:.2f}]"


def share(r: Row, name: str, digits: int = 1) -> str:
    value = number(r, name)
    return "" if value is None else percent(value, digits)


def winner_cell(r: Row) -> str:
    """Returns the highest sparsity that wins, or that would win if the tickets were judged."""
    wins = number(r, "wins")
    if wins is None:
        return "none"
    return percent(wins) + (f" ({r['not_judged']})" if r["not_judged"] else "")


def format_cliff(r: Row) -> str:
    """Returns "52.1% [50.3%, 53.9%]", or "over 90%" if no cliff was reached."""
    if number(r, "at") is None:
        return f"over {percent(r['most'])}"
    return f"{share(r, 'at')} [{share(r, 'lo') or '?'}, {share(r, 'hi') or '?'}]"


CLIFFS: Columns = {
    "model": (False, lambda r: r["base"]),
    "target": (False, lambda r: f"{r['target']} {r['setting']}".strip()),
    "wins up to": (True, winner_cell),
    "cliff [band]": (True, format_cliff),
    "between tickets at": (True, lambda r: " and ".join(map(percent, r["bracket"])) if r["bracket"] else ""),
    "allowed": (True, lambda r: f"{1 + r['tolerance']:g}"),
    "weights": (True, lambda r: format_number(r, "parameters", 0)),
    "tickets": (True, lambda r: str(r["tickets"])),
}
RANKS: Columns = {
    "model": (False, lambda r: f"{r['base']} {r['setting']}".strip()),
    "equal": (False, lambda r: r["by"]),
    "at": (True, lambda r: r["at"]),
    "rank": (True, lambda r: str(r["rank"])),
    "target": (False, lambda r: r["target"]),
    "ratio to dense [95%]": (True, lambda r: ratio_with_ends(r)),
    "removed of all weights": (True, lambda r: share(r, "removed")),
    "certainly better than": (
        False,
        lambda r: (
            ", ".join(r["certain_better_than"])
            if len(r["certain_better_than"]) < 9
            else pluralize(len(r["certain_better_than"]), "other")
        ),
    ),
}
AGREEMENTS: Columns = {
    "models": (False, lambda r: f"{r['a']}, {r['b']}"),
    "equal": (False, lambda r: f"{r['by']} {r['setting']}".strip()),
    "at": (True, lambda r: r["at"]),
    "targets": (True, lambda r: str(r["targets"])),
    "Kendall's tau [95%]": (True, tau_with_ends),
    "pairs": (True, lambda r: str(r["pairs"])),
    "certain and the same": (False, lambda r: f"{len(r['same'])}: {', '.join(r['same'])}".rstrip(": ")),
    "certain and reversed": (False, lambda r: f"{len(r['reversed'])}: {', '.join(r['reversed'])}".rstrip(": ")),
}
EIGHT: Columns = {
    "model": (False, lambda r: r["base"]),
    "target": (False, lambda r: r["target"]),
    "zeros": (True, lambda r: percent(r["sparsity"])),
    "in 8 bits": (False, lambda r: r["arithmetic"]),
    "perplexity in 8 / in 16 bits [95%]": (True, lambda r: ratio_with_ends(r)),
    "file, of the base's": (True, lambda r: format_number(r, "disk_ratio", 3)),
    "in 16 bits": (True, lambda r: format_number(r, "disk_ratio_16", 3)),
}
METHODS: Columns = {
    "model": (False, lambda r: f"{r['base']} {r['setting']}".strip()),
    "zeros": (True, lambda r: percent(r["sparsity"])),
    "method": (False, lambda r: r["method"]),
    "ratio to dense [95%]": (True, lambda r: "overflow" if number(r, "ratio") is None else ratio_with_ends(r)),
    "text": (False, lambda r: r["text"]),
    "over draws (how many)": (True, lambda r: r["draws"]),
    "over texts (how many)": (True, lambda r: r["texts"]),
    "layer error": (True, lambda r: format_number(r, "layer_error", 4)),
    "seconds (pruning + passes)": (True, seconds_cell),
    "ratio to the controls [95%]": (True, lambda r: interval(r, "control_ratio", 3)),
    "beats the controls": (False, lambda r: text_cell(r, "beats_control")),
}
