"""Builds the page of a hypothesis from its record alone (hypothesis.json), with figures and tables. It needs neither torch
nor MLflow."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lottery.files.home import make_folder, resolve_path
from lottery.report import hypothesis_tables as tables
from lottery.report import images
from lottery.report.answers import Answer
from lottery.report.folder import SUMMARY, check_folder, write_files
from lottery.report.hypothesis_answers import answer_all, chief_claim, lead_sure
from lottery.report.hypothesis_barriers import barrier_figures
from lottery.report.hypothesis_figures import figures_of, usual_rows
from lottery.report.hypothesis_limits import facts, limits, not_run
from lottery.report.hypothesis_places import mean_densities, places_sentence, places_short, plot_places, shares
from lottery.report.hypothesis_record import (
    TICKETS,
    Record,
    Row,
    arms_of,
    check_format,
    claim_row,
    density_text,
)
from lottery.report.images import Drawing
from lottery.report.rendering import table_files
from lottery.report.templates import template

QUESTION = "Does a subnetwork reach the whole network?"  # where the record asks nothing else
LINKS = ("loss", "claims", "found", "stability")  # the section of each answer, in the order of `answer_all`


def write_hypothesis_report(record: Record, folder: Path) -> dict[str, Any]:
    """Writes the report of a hypothesis into a folder that holds nothing else or an earlier report.

    Returns {"index": the page's path, "answers": one dictionary for each question, "figures", "tables": names below the
    folder}. Raises InputError for a record of another format, or a folder that holds other files.
    """
    check_format(record)
    resolved = resolve_path(folder, "out")
    check_folder(resolved, folder)
    files, summary = build_hypothesis_page(record)
    make_folder(resolved, "out")
    files[SUMMARY] = json.dumps(summary, indent=1).encode() + b"\n"
    write_files(resolved, files)
    return {"index": str(resolved / "index.html"), **summary}


def build_hypothesis_page(record: Record) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns (path below the report's folder -> content, the report's summary for programs)."""
    answers = answer_all(record)
    drawn: dict[str, tuple[Figure, str]] = {**figures_of(record), **barrier_figures(record)}
    places, said = draw_places(record)
    drawn |= places
    drawings = {name: Drawing(name, caption, figure) for name, (figure, caption) in drawn.items()}
    sheets = {
        t.name: t
        for t in (
            tables.claims_summary(record), tables.claims_table(record), tables.arms_table(record), tables.rates_table(record), tables.barriers_table(record),
            tables.unfinished_table(record), tables.empty_table(record), tables.tickets_table(record),
        )
        if t is not None and t.rows
    }  # fmt: skip
    page = template("hypothesis.html").render(
        name=record["name"], title=record["question"] or QUESTION, answers=list(zip(LINKS, answers, strict=True)), drawings=drawings,
        tables=sheets, places=said, arms=tables.arms_legend(record, arms_of(record)), not_run=not_run(record),
        limits=limits(record), facts=facts(record), command=record["command"],
        lead=[a.sentence for a in answers[:2]], sure=lead_sure(record, chief_claim(record)),
    )  # fmt: skip
    files = {"index.html": page.encode()} | table_files(sheets.values())
    for name, (figure, _) in drawn.items():
        files |= {f"figures/{name}.svg": images.to_svg(figure).encode(), f"figures/{name}.png": images.to_png(figure)}
    return files, summarize(record, answers, files)


def draw_places(record: Record) -> tuple[dict[str, tuple[Figure, str]], str]:
    """Returns (the heat map of the chief ticket, if its masks are known; the sentence about it or "")."""
    row, matches = chief_row(record)
    if row is None:
        return {}, ""
    cells, seeds = mean_densities(record, row)
    if not cells:
        return {}, ""
    title = f"{row['arm']} at {density_text(row['density'])}"
    caption = f"Share of the weights of each matrix that live in {title}, mean over seeds."
    return {"places": (plot_places(cells, title), caption)}, places_sentence(record, row, cells, seeds, matches)


def places_answer(record: Record) -> tuple[str, str]:
    """Returns where the weights of the chief ticket sit: (in a word, of which ticket); ("not known", "") without masks."""
    row, _ = chief_row(record)
    cells = {} if row is None else mean_densities(record, row)[0]
    if row is None or not cells:
        return "not known", ""
    by = shares(record, cells)
    least, most = min(by.values()), max(by.values())
    return places_short(
        row, by
    ), f"{density_text(least)} to {density_text(most)} of each part, `{row['arm']}` at {density_text(row['density'])}"


def chief_row(record: Record) -> tuple[Row | None, bool]:
    """Returns (the row of the sparsest ticket that matches, else of the closest one, whether it matches)."""
    chief = chief_claim(record)
    if chief is not None and (row := claim_row(record, chief)):
        return row, bool(chief["holds"])
    tickets = [r for r in usual_rows(record) if r["arm"] in TICKETS]
    return min(tickets, key=lambda r: r["density"], default=None), False


def summarize(record: Record, answers: list[Answer], files: dict[str, bytes]) -> dict[str, Any]:
    return {
        "name": record["name"],
        "answers": [{"question": a.question, "answer": a.short, "sentence": a.sentence, "sure": a.sure} for a in answers],
        "figures": sorted(n for n in files if n.startswith("figures/")),
        "tables": sorted(n for n in files if n.startswith("tables/")),
    }  # fmt: skip
