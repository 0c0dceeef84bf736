"""Renders a table as Markdown, CSV and LaTeX. Anybody can have written a run's text, so each form escapes it."""

import csv
import html
import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """A table whose cells are text for people. `columns`: name -> whether it holds numbers, which are aligned to the
    right. `marks`: what each row is (dense, winner, absent, overflow or ""). `data`: the rows of the CSV, with numbers
    as logged."""

    name: str  # of its files, without extension
    title: str
    columns: dict[str, bool]
    rows: list[list[str]]
    note: str = ""
    marks: list[str] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)

    def mark(self, i: int) -> str:
        return self.marks[i] if i < len(self.marks) else ""


def one_line(words: str) -> str:
    """Returns the text without line breaks and control characters, since a cell is one line."""
    return " ".join("".join(c if c.isprintable() else " " for c in words).split())


def to_markdown(table: Table) -> str:
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


def to_latex(table: Table) -> str:
    """Returns a plain tabular that needs no package. Brackets are escaped, too: one at the start of a row would be read
    as an argument of the row before."""

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


def to_csv(table: Table) -> str:
    """Returns the table's data with all digits. A text that a spreadsheet would take for a formula gets an apostrophe
    in front."""

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


def table_files(tables: Iterable[Table]) -> dict[str, bytes]:
    """Returns path below the report's folder -> content."""
    forms = {"md": to_markdown, "csv": to_csv, "tex": to_latex}
    return {f"tables/{t.name}.{form}": write(t).encode() for t in tables for form, write in forms.items()}
