"""Turns the answers of the report into Markdown and figures for the documents: see analysis/figures.py.

A view is what the studies of one question found by one method of pruning. A document marks where an answer belongs:

    <!-- results:cliff -->
    everything between these two comments is written by analysis/figures.py
    <!-- /results -->

The name is that of a section of the report, or `answers` (all answers, one line each), `models` (one row for each model) or
`readme` (the cliffs of all models by all methods in one figure, and all answers).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lottery.measuring.hardware import machine_of
from lottery.measuring.numbers import format_interval
from lottery.measuring.verdict import NOT_JUDGED
from lottery.report import (
    cliffs,
    figures,
    frames,
    grouping,
    heatmaps,
    judging,
    page,
    rankings,
    rendering,
    saved,
    tables,
)
from lottery.report.drawings import Section
from lottery.report.wording import natural_list, pluralize

STUDIES = {  # section of the report -> the studies that answer it; a section that is not named here has one of its name
    "where": ("locate", "map"),
    "agreement": ("locate",),
    "eight_bits": ("quantize",),
    "bigger": ("cliff",),
}
BY_METHOD = ("cliff", "where", "agreement", "eight_bits", "bigger")  # one answer for each method of pruning
CHIEF_FIRST = ("where", "agreement")  # their first figure answers the question, the others are folded
MARKED = re.compile(r"(<!-- results:(\w+) -->\n).*?(<!-- /results -->)", re.S)
TABLE_COLUMNS = (
    2  # lines before the columns of a table as `rendering.to_markdown` writes it: its title and an empty one
)
Found = saved.SavedResults


@dataclass(frozen=True)
class Drawn:
    """A figure of the documents. `name`: that of its file, without the extension."""

    name: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class View:
    """One question answered for one method ("" where the answer is about all methods), with its figures, the chief one
    first."""

    section: Section
    method: str
    found: Found
    figures: list[Drawn]

    @property
    def headline(self) -> str:
        """The answer in one line: of a cliff where each curve crosses, else the report's headline, with the model's name if
        it is about one alone. That it is an estimate is said once, below the table of answers."""
        answer = self.section.answer
        if self.section.name == "cliff":
            cliffs_said = "; ".join(f"{c['base']} **{tables.format_cliff(c)}**" for c in answer.data if c["chief"])
            return f"{cliffs_said} of the layers' weights"
        short = answer.short.removesuffix(f" ({judging.ESTIMATE})")
        bases = self.found.tickets["base"].unique()
        of = f" ({bases[0]})" if len(bases) == 1 else ""
        return f"**{short}** {answer.about.split(f'; {NOT_JUDGED}')[0]}{of}"

    @property
    def line(self) -> str:
        return f"by {self.method}: {self.headline}" if self.method else self.headline


@dataclass(frozen=True)
class Question:
    """A question of the report with its views; none if nothing answers it yet. `studies`: the records of its studies."""

    name: str
    text: str
    needs: str
    views: list[View]
    studies: list[dict[str, Any]]


def questions(records: Sequence[dict[str, Any]]) -> list[Question]:
    """Returns the questions of the report in its order, each answered by the studies of its own."""

    @cache
    def sections(studies: tuple[str, ...], method: str) -> tuple[Found, dict[str, Section]]:
        found = of_method(saved.combine([r for r in records if r["name"] in studies]), method)
        return found, {s.name: s for s in page.answer_sections(found, frames.records(found.rows), {})}

    answered = []
    for name, open_section in sections((), "")[1].items():
        studies = STUDIES.get(name, (name,))
        mine = [record for record in records if record["name"] in studies]
        views = []
        for method in methods_of(mine) if name in BY_METHOD else [""] if mine else []:
            found, made = sections(studies, method)
            if made[name].answer.known:
                prefix = "-".join(word for word in ("results", name, method) if word)
                views.append(View(made[name], method, found, draw(prefix, made[name], found)))
        answer = open_section.answer
        answered.append(Question(name, answer.question, answer.sentence, views, mine))
    return answered


def methods_of(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the methods of the tickets, magnitude first."""
    methods = dict.fromkeys(row["method"] for r in records for row in r["rows"] if row["kind"] == "ticket")
    return sorted(methods, key=lambda method: method != "magnitude")


def of_method(found: Found, method: str) -> Found:
    """Returns what was found by one method, beside the dense models; by all methods for ""."""
    rows = found.rows
    return replace(found, rows=rows[(rows["kind"] == "dense") | (rows["method"] == method)]) if method else found


def draw(prefix: str, section: Section, found: Found) -> list[Drawn]:
    """Returns the figures of a section: those of the report, or one of all models where the report has one for each."""
    data = pd.DataFrame(list(section.answer.data))
    if section.name == "where":
        made = draw_places(data, found)
    elif section.name == "eight_bits":
        made = [(section.drawings[0].caption, figures.plot_quantization(data))]
    else:
        made = [(d.caption, d.figure) for d in section.drawings]
        made = made[:1] if section.name == "cliff" else made  # the others show the curve of each model alone
    return [Drawn(f"{prefix}{f'-{i}' if i else ''}", *one) for i, one in enumerate(made)]


def draw_places(data: pd.DataFrame, found: Found) -> list[tuple[str, Figure]]:
    """Draws the ranking at equal budget (else at equal sparsity), the heat map of targets, and that of layers for each
    model."""
    made = []
    targets = data[~data["cells"]]
    budget = targets[targets["by"] == "budget"]
    if len(targets):
        equal = "equal numbers of removed weights" if len(budget) else "equal sparsity"
        caption = f"Targets at {equal}, the least damaged on top, with 95% intervals; a grey bar at the right joins neighbours whose order is not certain"
        made.append((caption, figures.plot_ranking(budget if len(budget) else targets)))
    rows = frames.frame(grouping.keep_main_protocol(grouping.measured_tickets(frames.records(found.tickets))))
    rows = rows[rows["budget"].isna()]
    cells = rows["target"].str.fullmatch(rankings.SINGLE_LAYER)
    if rows[~cells]["target"].nunique() > 1:
        caption = "Ratio to dense of each target at each sparsity; the darker, the more is lost"
        made.append((caption, heatmaps.plot_targets(rows[~cells])))
    for base, part in rows[cells].groupby("base", sort=False):
        caption = f"Ratio to dense of {base} with one component of one layer pruned at a time"
        made.append((caption, heatmaps.plot_layers(part)))
    return made


def all_cliffs(found: Sequence[Question]) -> list[Drawn]:
    """Returns the figure of the README: the cliffs of all models by all methods, which share the text that they were
    measured on. None if no cliff is known."""
    views = next((q.views for q in found if q.name == "cliff"), [])
    if not views:
        return []
    parts = [v.found.tickets.assign(curve=v.found.tickets["base"] + f" by {v.method}") for v in views]
    caption = (
        "Perplexity divided by that of the dense model, against the share of the weights of attention and MLP that were "
        "removed, with 95% bands; the dashed line is 10% above dense"
    )
    return [Drawn("results-readme", caption, figures.plot_cliff(pd.concat(parts), by="curve"))]


def fill(text: str, found: Sequence[Question], figure: Callable[[str], str]) -> str:
    """Returns a document with each marked place filled. `figure`: a figure's name -> its path from the document.

    A place of a question that the report does not have stays as it is; `unknown_places` names it.
    """
    of_name = {question.name: question for question in found}

    def content(place: re.Match[str]) -> str:
        name = place[2]
        if name in TABLES:
            images = [f"![{d.caption}]({figure(d.name)})\n\n" for d in (all_cliffs(found) if name == "readme" else ())]
            return f"{place[1]}\n{''.join(images)}{TABLES[name](found)}\n\n{place[3]}"
        if name not in of_name:
            return place[0]
        before = found[: found.index(of_name[name])]
        return f"{place[1]}\n{block(of_name[name], before, figure)}\n\n{place[3]}"

    return MARKED.sub(content, text)


def unknown_places(text: str, found: Sequence[Question]) -> list[str]:
    """Returns the names of marked places that nothing fills."""
    known = {*TABLES, *(question.name for question in found)}
    return [name for _, name, _ in MARKED.findall(text) if name not in known]


def answers_and_note(found: Sequence[Question]) -> str:
    """Returns the answers, and why tickets are not judged if so."""
    rows = [row for q in found for v in q.views for row in frames.records(v.found.rows)]
    note = judging.not_judged_note(list({row["run_id"]: row for row in rows}.values()))
    return "\n\n".join(filter(None, (answers_table(found), note)))


def answers_table(found: Sequence[Question], page: str = "") -> str:
    """Returns one row for each question: the question, which is a link to its heading in `page`, and its answer in a line."""
    lines = ["| question | answer |", "|---|---|"]
    for question in found:
        answer = "<br>".join(view.line for view in question.views) or "not measured yet"
        lines.append(f"| [{question.text}]({page}#{slug(question.text)}) | {answer.replace('|', ' ')} |")
    return "\n".join(lines)


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def models_table(found: Sequence[Question]) -> str:
    """Returns one row for each model: its size, its dense perplexity, and its cliff by each method."""
    rows: dict[str, dict[str, str]] = {}
    for view in next((q.views for q in found if q.name == "cliff"), []):
        dense = {r["base"]: r for r in frames.records(view.found.rows) if r["kind"] == "dense"}
        for c in cliffs.main_cliffs(frames.records(view.found.rows)):
            row = rows.setdefault(c.base, {"weights": f"{c.parameters or 0:,.0f}"})
            row["dense perplexity [95%]"] = format_interval(dense.get(c.base, {}), "perplexity", 2)
            row[f"cliff by {view.method} [band]"] = tables.format_cliff(c.__dict__)
    if not rows:
        return "Nothing is measured yet."
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| model | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    ordered = sorted(rows.items(), key=lambda item: int(item[1]["weights"].replace(",", "")))
    lines += [f"| {base} | " + " | ".join(row.get(name, "") for name in columns) + " |" for base, row in ordered]
    return "\n".join(lines)


def block(question: Question, before: Sequence[Question], figure: Callable[[str], str]) -> str:
    """Returns a question's answers, each with its figure, how sure it is and its table, and the commands that made them,
    or which of the questions `before` it names these commands."""
    parts = [view_text(view, figure) for view in question.views]
    if not parts:
        return f"Not measured yet: {question.needs.removeprefix('not known: ')}."
    same = next((q for q in before if all(study in q.studies for study in question.studies)), None)
    made = f"Measured by commands of [{same.text}](#{slug(same.text)})." if same else made_by(question)
    return "\n\n".join([*parts, made])


def view_text(view: View, figure: Callable[[str], str]) -> str:
    answer, sentences = view.section.answer, view.section.answer.sentence.split("\n")
    by = f"**Pruned by {view.method}:** " if view.method else ""
    text = [by + sentences[0]]
    if len(sentences) > 1:
        text = [f"{by}{view.headline}.", "\n".join(f"- {sentence}" for sentence in sentences)]
    images = [f"![{d.caption}]({figure(d.name)})" for d in view.figures]
    shown = 1 if view.section.name in CHIEF_FIRST else len(images)
    text += [*images[:shown], *(["*How sure:* " + " ".join(answer.sure.split("\n"))] if answer.sure else [])]
    # Of single layers the figures have each number, so that a table of targets is left.
    data = tuple(row for row in answer.data if not (view.section.name == "where" and row["cells"]))
    table = tables.answer_table(view.section.name, replace(answer, data=data))
    more = [pluralize(len(images) - shown, "more figure")] if len(images) > shown else []
    more += [f"a table of {pluralize(len(table.rows), 'row')}"] if table else []
    if more:
        lines = rendering.to_markdown(table).rstrip().split("\n")[TABLE_COLUMNS:] if table else []
        folded = [*images[shown:], *(["\n".join(lines)] if lines else [])]
        summary = f"<summary>What it rests on: {natural_list(more)}</summary>"
        text += [f"<details>{summary}", *folded, "</details>"]
    return "\n\n".join(text)


def made_by(question: Question) -> str:
    """Returns the commands that made the studies of a question, the day, and the machines."""
    commands = dict.fromkeys(study["command"] for study in question.studies if study["command"])
    days = sorted({study["started"][:10] for study in question.studies})
    hardware = {machine_of(str(r["hardware"])) for s in question.studies for r in s["rows"] if "hardware" in r}
    protocols = dict.fromkeys(f"{base}: {line}" for s in question.studies for _, base, line in s["protocols"])
    when = f"{days[0]} to {days[-1]}" if len(days) > 1 else days[0]
    about = f"Measured on {when}, {natural_list(sorted(hardware)) or 'a machine that is not recorded'}:"
    code = ["```sh", *commands, "```", ""] if commands else []
    return "\n".join([about, "", *code, *(f"- {line}" for line in protocols)])


TABLES: dict[str, Callable[[Sequence[Question]], str]] = {  # places that are about all questions
    "answers": answers_and_note,
    "models": models_table,
    "readme": partial(answers_table, page="docs/results.md"),
}
