"""The tables of a report: the same rows as Markdown, CSV and LaTeX. What runs say is text of anybody: escaped in each.

A sheet's cells are for people; its CSV has the numbers as they were logged.
"""

import csv
import html
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lottery.report.answers import Answer, count, number, percent, times

Row: TypeAlias = Mapping[str, Any]
FIGURES = ("perplexity", "perplexity_lo", "perplexity_hi", "perplexity_ratio", "perplexity_ratio_lo",
           "perplexity_ratio_hi", "bits_per_byte", "control_perplexity", "control_perplexity_lo", "control_perplexity_hi",
           "control_ratio", "control_ratio_lo", "control_ratio_hi", "sparsity_target", "sparsity_prunable", "sparsity_model",
           "disk_bytes", "disk_ratio", "weights_bytes", "weights_ratio", "peak_bytes", "prefill_tok_s", "decode_tok_s",
           "decode_tok_s_lo", "decode_tok_s_hi", "decode_floor_tok_s", "beside_tok_s", "repetition", "distinct_2")  # fmt: skip
ABOUT = ("title", "kind", "base", "target", "sparsity", "budget", "method", "scope", "pattern", "quantize", "storage",
         "runtime", "protocol", "hardware", "winner", "beats_control", "coherent", "note", "outcome", "run_id")  # fmt: skip


@dataclass(frozen=True)
class Sheet:
    """`columns`: name -> whether it holds numbers, to the right. `marks`: of each row what it is (dense, winner, absent)."""

    name: str  # of its files
    title: str
    columns: dict[str, bool]
    rows: list[list[str]]
    note: str = ""
    marks: list[str] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)

    def mark(self, i: int) -> str:
        return self.marks[i] if i < len(self.marks) else ""


def sheet(
    name: str,
    title: str,
    rows: Sequence[Row],
    columns: Mapping[str, tuple[bool, Callable[[Row], str]]],
    note: str = "",
    marks: Sequence[str] = (),
    data: Sequence[Mapping[str, Any]] | None = None,
) -> Sheet:
    """Columns that nothing has are left out."""
    cells = [[of(row) for _, of in columns.values()] for row in rows]
    used = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in cells)]
    names = list(columns.items())
    return Sheet(
        name,
        title,
        {names[i][0]: names[i][1][0] for i in used},
        [[row[i] for i in used] for row in cells],
        note,
        list(marks),
        [dict(d) for d in (rows if data is None else data)],
    )


def interval(row: Row, name: str, digits: int) -> str:
    value = number(row, name)
    if value is None:
        return ""
    low, high = number(row, f"{name}_lo"), number(row, f"{name}_hi")
    text = f"{value:,.{digits}f}"
    return text if low is None or high is None else f"{text} [{low:,.{digits}f}, {high:,.{digits}f}]"


def figure(row: Row, name: str, digits: int, factor: float = 1) -> str:
    value = number(row, name)
    return "" if value is None else f"{factor * value:,.{digits}f}"


def text(row: Row, name: str) -> str:
    value = row.get(name)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def tickets(name: str, title: str, rows: Sequence[Row], absent: Sequence[Row], note: str) -> Sheet:
    """One model under one protocol: the dense row first; what was planned and is not there stands where it would."""

    def perplexity(r: Row) -> str:
        return "" if r.get("state") else interval(r, "perplexity", 2) or text(r, "outcome") or "not measured"

    def ratio(r: Row) -> str:
        return "1" if r.get("kind") == "dense" and number(r, "perplexity") else interval(r, "perplexity_ratio", 4)

    def control(r: Row) -> str:
        low, high = figure(r, "control_perplexity_lo", 1), figure(r, "control_perplexity_hi", 1)
        return f"{figure(r, 'control_perplexity', 1)} ({low} to {high})" if low else ""

    def removed(r: Row) -> str:
        share = number(r, "sparsity_model")
        return "" if share is None or r.get("kind") == "dense" else f"{share:.1%}"

    def coherent(r: Row) -> str:
        return " ".join(w for w in (text(r, "coherent"), f"({text(r, 'note')})" if text(r, "note") else "") if w)

    columns: dict[str, tuple[bool, Callable[[Row], str]]] = {
        "ticket": (False, lambda r: text(r, "title") + (f": {text(r, 'state')}" if r.get("state") else "")),
        "perplexity [95%]": (True, perplexity),
        "ratio to dense [95%]": (True, ratio),
        "winner": (False, lambda r: text(r, "winner") + (" (limited)" if text(r, "limited") else "")),
        "gone of all weights": (True, removed),
        "random controls (least to greatest)": (True, control),
        "ratio to them [95%]": (True, lambda r: interval(r, "control_ratio", 3)),
        "beats them": (False, lambda r: text(r, "beats_control")),
        "coherent, to a reader": (False, coherent),
        "file MB": (True, lambda r: figure(r, "disk_bytes", 2, 1e-6)),
        "of the base's": (True, lambda r: figure(r, "disk_ratio", 3)),
        "in memory MB": (True, lambda r: figure(r, "weights_bytes", 2, 1e-6)),
    }
    every = [*rows, *absent]
    dense = [r for r in every if r.get("kind") == "dense"]
    order = {t: i for i, t in enumerate(dict.fromkeys(str(r.get("target")) for r in every))}
    others = sorted(
        (r for r in every if r.get("kind") != "dense"),
        key=lambda r: (
            order[str(r.get("target"))],
            "" if r.get("quantize") == "none" else str(r.get("quantize") or ""),
            "" if r.get("method") == "magnitude" else str(r.get("method") or ""),
            number(r, "sparsity") or 0.0,
        ),
    )
    shown = [*dense, *others]
    marks = ["dense" if r.get("kind") == "dense" else "absent" if r.get("state") else "" for r in shown]
    marks = [
        m or ("winner" if r.get("winner") == "yes" else "overflow" if number(r, "perplexity") is None else "")
        for m, r in zip(marks, shown, strict=True)
    ]
    data = [{k: r.get(k) for k in (*ABOUT[:2], "state", *ABOUT[2:], *FIGURES)} for r in shown]
    return sheet(name, title, shown, columns, note, marks, data)


def speeds(name: str, machine: str, rows: Sequence[Row]) -> Sheet:
    """Of one machine. Beside each ticket the dense model as the same process measured it: what a speed is compared with."""
    several = len({r["base"] for r in rows}) > 1

    def share(r: Row) -> str:
        mine, dense = number(r, "decode_tok_s"), number(r, "beside_tok_s")
        return f"{mine / dense:.2f}" if mine and dense else ""

    columns: dict[str, tuple[bool, Callable[[Row], str]]] = {
        "ticket": (False, lambda r: f"{r['base']}: {r['title']}" if several else text(r, "title")),
        "decode tok/s [quartiles]": (True, lambda r: interval(r, "decode_tok_s", 1)),
        "dense, beside": (True, lambda r: figure(r, "beside_tok_s", 1)),
        "of dense": (True, share),
        "memory's limit": (True, lambda r: figure(r, "decode_floor_tok_s", 0)),
        "prefill tok/s": (True, lambda r: figure(r, "prefill_tok_s", 0)),
        "in memory MB": (True, lambda r: figure(r, "weights_bytes", 2, 1e-6)),
        "peak MB": (True, lambda r: figure(r, "peak_bytes", 0, 1e-6)),
    }
    data = [{k: r.get(k) for k in (*ABOUT, *FIGURES)} for r in rows]
    note = "At batch 1, the median of five. Zeros that are stored sparse and run dense save disk, not time."
    return sheet(name, machine, rows, columns, note, data=data)


def absences(rows: Sequence[Row]) -> Sheet:
    columns: dict[str, tuple[bool, Callable[[Row], str]]] = {
        "ticket": (False, lambda r: text(r, "title")),
        "model": (False, lambda r: text(r, "base")),
        "state": (False, lambda r: text(r, "state")),
        "reason": (False, lambda r: text(r, "reason")),
        "study": (False, lambda r: text(r, "study")),
        "part": (False, lambda r: text(r, "part")),
    }
    return sheet("absent", "Planned, and not there", rows, columns, marks=["absent"] * len(rows))


def left_out(rows: Sequence[Row]) -> Sheet:
    columns: dict[str, tuple[bool, Callable[[Row], str]]] = {
        "target": (False, lambda r: text(r, "target")),
        "model": (False, lambda r: text(r, "model")),
        "reason": (False, lambda r: text(r, "reason")),
        "study": (False, lambda r: text(r, "study")),
    }
    return sheet("left_out", "Left out by the plan", rows, columns)


def of_answer(name: str, answer: Answer) -> Sheet | None:
    """What an answer rests on, one row a curve, target or pair; None where there is nothing to show."""
    if not answer.data:
        return None
    columns = {"cliff": CLIFFS, "where": RANKS, "agreement": AGREEMENTS, "eight_bits": EIGHT, "bigger": CLIFFS}[name]
    return sheet(name, answer.question, list(answer.data), columns)


def ends(r: Row, lo: str = "lo", hi: str = "hi", digits: int = 4) -> str:
    low, high = number(r, lo), number(r, hi)
    return "" if low is None or high is None else f" [{low:,.{digits}f}, {high:,.{digits}f}]"


def share(r: Row, name: str, digits: int = 1) -> str:
    value = number(r, name)
    return "" if value is None else percent(value, digits)


def at(r: Row) -> str:
    if number(r, "at") is None:
        return f"over {percent(r['most'])}"
    return f"{share(r, 'at')} [{share(r, 'lo') or '?'}, {share(r, 'hi') or '?'}]"


Columns: TypeAlias = dict[str, tuple[bool, Callable[[Row], str]]]
CLIFFS: Columns = {
    "model": (False, lambda r: r["base"]),
    "target": (False, lambda r: f"{r['target']} {r['setting']}".strip()),
    "cliff [band]": (True, at),
    "between tickets at": (True, lambda r: " and ".join(map(percent, r["bracket"])) if r["bracket"] else ""),
    "allowed": (True, lambda r: f"{1 + r['tolerance']:g}"),
    "weights": (True, lambda r: figure(r, "parameters", 0)),
    "tickets": (True, lambda r: str(r["tickets"])),
}
RANKS: Columns = {
    "model": (False, lambda r: f"{r['base']} {r['setting']}".strip()),
    "equal": (False, lambda r: r["by"]),
    "at": (True, lambda r: r["at"]),
    "rank": (True, lambda r: str(r["rank"])),
    "target": (False, lambda r: r["target"]),
    "ratio to dense [95%]": (True, lambda r: times(r["ratio"]) + ends(r)),
    "gone of all weights": (True, lambda r: share(r, "removed")),
    "certainly better than": (
        False,
        lambda r: (
            ", ".join(r["certain_better_than"])
            if len(r["certain_better_than"]) < 9
            else count(len(r["certain_better_than"]), "other")
        ),
    ),
}
AGREEMENTS: Columns = {
    "models": (False, lambda r: f"{r['a']}, {r['b']}"),
    "equal": (False, lambda r: f"{r['by']} {r['setting']}".strip()),
    "at": (True, lambda r: r["at"]),
    "targets": (True, lambda r: str(r["targets"])),
    "Kendall's tau [95%]": (True, lambda r: f"{r['tau']:.2f}{ends(r, digits=2)}"),
    "pairs": (True, lambda r: str(r["pairs"])),
    "certain and the same": (False, lambda r: f"{len(r['same'])}: {', '.join(r['same'])}".rstrip(": ")),
    "certain and reversed": (False, lambda r: f"{len(r['reversed'])}: {', '.join(r['reversed'])}".rstrip(": ")),
}
EIGHT: Columns = {
    "model": (False, lambda r: r["base"]),
    "target": (False, lambda r: r["target"]),
    "zeros": (True, lambda r: percent(r["sparsity"])),
    "in 8 bits": (False, lambda r: r["arithmetic"]),
    "perplexity in 8 / in 16 bits [95%]": (True, lambda r: times(r["ratio"]) + ends(r)),
    "file, of the base's": (True, lambda r: figure(r, "disk_ratio", 3)),
    "in 16 bits": (True, lambda r: figure(r, "disk_ratio_16", 3)),
}


# Forms


def one_line(words: str) -> str:
    """No line breaks or control characters: a cell is a line."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


def markdown(table: Sheet) -> str:
    def cell(words: str) -> str:
        return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(one_line(words), quote=False))

    lines = [f"### {cell(table.title)}", ""] + ([cell(table.note), ""] if table.note else [])
    lines.append("| " + " | ".join(cell(name) for name in table.columns) + " |")
    lines.append("|" + "|".join("---:" if right else "---" for right in table.columns.values()) + "|")
    lines += ["| " + " | ".join(cell(c) for c in row) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}",
}  # fmt: skip


def latex(table: Sheet) -> str:
    """A plain tabular, of no package. A bracket at the beginning of a row would be taken for an argument of the row before."""

    def cell(words: str) -> str:
        return "".join(LATEX.get(c, c) for c in one_line(words))

    form = "".join("r" if right else "l" for right in table.columns.values())
    lines = [f"% {one_line(table.title)}", *([f"% {one_line(table.note)}"] if table.note else [])]
    lines += [f"\\begin{{tabular}}{{{form}}}", "\\hline", " & ".join(map(cell, table.columns)) + r" \\", "\\hline"]
    for i, row in enumerate(table.rows):
        lines.append(" & ".join(map(cell, row)) + r" \\")
        if table.mark(i) == "dense" and i + 1 < len(table.rows):
            lines.append("\\hline")
    return "\n".join([*lines, "\\hline", "\\end{tabular}"]) + "\n"


def comma_separated(table: Sheet) -> str:
    """Numbers in full. A text that a spreadsheet would take for a formula gets an apostrophe before it."""

    def cell(value: Any) -> Any:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        if isinstance(value, str):
            value = one_line(value)
            return f"'{value}" if value[:1] in ("=", "+", "-", "@") else value
        return value

    out = io.StringIO()
    columns = list(dict.fromkeys(k for row in table.data for k in row))
    columns = [k for k in columns if any(cell(row.get(k)) != "" for row in table.data)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[cell(row.get(k)) for k in columns] for row in table.data])
    return out.getvalue()


def files(tables: Iterable[Sheet]) -> dict[str, bytes]:
    """path below the report's folder -> content"""
    forms = {"md": markdown, "csv": comma_separated, "tex": latex}
    return {f"tables/{t.name}.{form}": write(t).encode() for t in tables for form, write in forms.items()}
