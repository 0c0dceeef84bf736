"""This file shows a study and its plan as tables on the console."""

from collections.abc import Callable, Sequence
from typing import Any

from rich import box
from rich.table import Table

from lottery.measuring.console import megabytes, render
from lottery.measuring.numbers import format_interval, format_metric
from lottery.measuring.verdict import NOT_JUDGED, describe_verdict


def study_table(result: Any, markdown: bool = False) -> str:
    """Returns the tables of a study's tickets and the lines below them. `result` is a `StudyResult`."""
    lines = [f"{r.title} of {r.base}: {r.reason}" for r in result.rows if r.reason]
    lines += [f"left out: {left['reason']} ({left['model']})" for left in result.plan.left_out]
    for c in result.cliffs:
        lines.append(
            f"cliff of {c.title}, {c.base}: {highest_winner(result, c)}the ratio to dense {crossing(result, c)}"
        )
    protocols = list(dict.fromkeys(row.tags["protocol"] for row in result.rows if "protocol" in row.tags))
    models = len({row.base for row in result.rows}) > 1
    tables = [rows_table(result.rows, models)]
    if len(protocols) > 1:  # one table for each protocol; rows without a measurement go to the first
        of_protocol = {p: [r for r in result.rows if r.tags.get("protocol", protocols[0]) == p] for p in protocols}
        tables = [
            f"protocol {protocol}:{other_runtime(rows)}\n{rows_table(rows, models)}\n"
            for protocol, rows in of_protocol.items()
        ]
        lines.append(f"{len(protocols)} protocols: perplexities compare within one of them only")
    if markdown:
        return "\n".join([*tables, "", *(f"- {line}" for line in lines)])
    return render(*tables, *lines)


def other_runtime(rows: Sequence[Any]) -> str:
    """Returns the runtime of these rows for the title of their table, "" for the default."""
    runtimes = {row.params.get("runtime", "dense") for row in rows} - {"dense"}
    return f" runtime {', '.join(sorted(runtimes))}" if runtimes else ""


def rows_of_search(result: Any, cliff: Any) -> list[Any]:
    """Returns the rows of the tickets that a cliff was searched with."""
    (part,) = (p for p in result.plan.refined if p.part == cliff.part)
    return [r for r in result.rows if r.part in (*part.points, part.part)]


def crossing(result: Any, cliff: Any) -> str:
    """Returns where the ratio crosses the limit, or up to where it does not, for the cliff's line."""
    measured = [float(r.params["sparsity"]) for r in rows_of_search(result, cliff) if r.ratio is not None]
    if cliff.above in measured:
        return f"crosses {cliff.limit:g} between {cliff.below:.2%} and {cliff.above:.2%}"
    return f"does not reach {cliff.limit:g} up to {cliff.below:.2%}"


def highest_winner(result: Any, cliff: Any) -> str:
    """Returns which ticket of a search has the most zeros among its winners, or why none is judged, for the cliff's line."""
    rows = rows_of_search(result, cliff)
    if reason := next((v for r in rows if (v := describe_verdict(r.tags)).startswith(NOT_JUDGED)), ""):
        return f"{reason}, an estimate; "
    won = [float(r.params["sparsity"]) for r in rows if describe_verdict(r.tags) == "yes"]
    return f"{max(won):.2%} wins; " if won else "none wins; "


def rows_table(rows: Sequence[Any], models: bool) -> str:
    """Returns the table of a study's rows. With `models` it names the model. Columns without a value are left out."""
    columns: dict[str, Callable[[Any], str]] = {
        "model": lambda r: r.base if models else "",
        "": lambda r: r.title,
        "of all weights": lambda r: f"{m['sparsity_model']:.2%}" if "sparsity_model" in (m := r.metrics) else "",
        "perplexity [95%]": lambda r: format_interval(r.metrics, "perplexity", 2) or overflow(r),
        "ratio to dense [95%]": lambda r: format_interval(r.metrics, "perplexity_ratio", 4),
        "controls": lambda r: format_metric(r.metrics, "control_perplexity", 2),
        "file MB": lambda r: megabytes(r.metrics.get("disk_bytes")),
        "winner": lambda r: describe_verdict(r.tags),
        "coherent": lambda r: r.tags.get("coherent", ""),
        "state": lambda r: r.state if r.state in ("failed", "missing") else "",
    }
    table = Table(box=box.MARKDOWN)
    used = [name for name, of in columns.items() if name == "" or any(of(row) for row in rows)]
    for name in used:
        table.add_column(name, justify="left" if name in ("model", "", "winner", "coherent", "state") else "right")
    for row in rows:
        table.add_row(*(columns[name](row) for name in used))
    return render(table)


def overflow(row: Any) -> str:
    """Returns the word that stands for the perplexity of a measured ticket that has none."""
    return str(row.tags.get("outcome", "")) if row.state in ("made", "found") else ""


def parts_table(plan: Any) -> str:
    """Returns the table of the parts that a study would make."""
    table = Table(box=box.MARKDOWN)
    for name in ("part", "model", "", "target", "sparsity"):
        table.add_column(name)
    for part in plan.parts:
        about = f"to {part.width:.2%} between those of the grid" if part.width else f"{part.spec.sparsity:.4%}"
        title = f"search: {part.title}" if part.width else part.title
        table.add_row(part.part, part.base, title, part.spec.target, "" if part.title == "dense" else about)
    return render(table)
