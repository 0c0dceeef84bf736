"""Turns what hypotheses found into Markdown and figures for the documents: see analysis/figures.py.

A document marks where a part belongs, by one of the names in PLACES:

    <!-- hypothesis:answers -->
    everything between these two comments is written by analysis/figures.py
    <!-- /hypothesis -->
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from lottery.report import hypothesis_tables as tables
from lottery.report import rendering
from lottery.report.answers import Answer
from lottery.report.hypothesis_answers import answer_all, chief_claim, lead_sure
from lottery.report.hypothesis_barriers import barrier_figures
from lottery.report.hypothesis_figures import figures_of
from lottery.report.hypothesis_limits import not_run, rates_paragraph, size_paragraph
from lottery.report.hypothesis_page import draw_places, places_answer
from lottery.report.hypothesis_record import Record, seeds_of
from lottery.report.hypothesis_saved import read_saved
from lottery.report.rendering import Table
from lottery.report.wording import natural_list, pluralize

PREFIX = "hypothesis-"  # of the files in analysis/results
SHOWN, FOLDED = (
    ("loss", "barrier"),
    ("before", "later", "places"),
)  # figures of a document; the others are in the report
MARKED = re.compile(r"(<!-- hypothesis:(\w+) -->\n).*?(<!-- /hypothesis -->)", re.S)
PLACES_QUESTION = "Where do the surviving weights sit?"
NOTHING = "Not measured yet."
Paths = Callable[[str], str]  # a figure's name -> its path from the document


@dataclass(frozen=True)
class Found:
    """What one run of a hypothesis found. `name`: that of its file."""

    name: str
    record: Record

    @property
    def title(self) -> str:
        return f"`{self.record['name']}` on `{self.record['text']['name']}`"

    @property
    def seeds(self) -> int:
        return len(seeds_of(self.record))

    @cached_property
    def answers(self) -> list[Answer]:
        return answer_all(self.record)

    @cached_property
    def drawn(self) -> dict[str, tuple[Figure, str]]:
        """Name of the figure's file -> the figure and its caption."""
        made = {**figures_of(self.record), **barrier_figures(self.record), **draw_places(self.record)[0]}
        return {f"{self.name}-{name}": made[name] for name in (*SHOWN, *FOLDED) if name in made}


def read_all(folder: Path) -> list[Found]:
    """Returns what the files of a folder hold: the runs of most seeds and trainings first, of equals a real text first."""
    found = [Found(path.stem, read_saved(path)) for path in sorted(folder.glob(f"{PREFIX}*.json"))]
    return sorted(found, key=lambda f: (-f.seeds, -len(f.record["trainings"]), f.record["text"]["name"] == "stories"))


def figures(found: Iterable[Found]) -> dict[str, Figure]:
    return {name: figure for each in found for name, (figure, _) in each.drawn.items()}


def fill(text: str, found: Sequence[Found], path: Paths) -> str:
    """Returns a document with each marked place filled. A place of a name that is not known stays as it is."""

    def content(place: re.Match[str]) -> str:
        if place[2] not in PLACES:
            return place[0]
        return f"{place[1]}{PLACES[place[2]](found, path)}\n{place[3]}"

    return MARKED.sub(content, text)


def unknown_places(text: str) -> list[str]:
    """Returns the names of marked places that nothing fills."""
    return [name for _, name, _ in MARKED.findall(text) if name not in PLACES]


def answers_table(found: Sequence[Found], path: Paths) -> str:
    """Returns one row for each question and one column for each run."""
    if not found:
        return NOTHING
    lines = ["| question | " + " | ".join(f"{f.title}, {pluralize(f.seeds, 'seed')}" for f in found) + " |"]
    lines.append("|---|" + "---|" * len(found))
    for i, answer in enumerate(found[0].answers):
        cells = [f"**{f.answers[i].short}** {f.answers[i].about}".strip() for f in found]
        lines.append(f"| {answer.question} | " + " | ".join(cells) + " |")
    places = [places_answer(f.record) for f in found]
    lines.append(
        f"| {PLACES_QUESTION} | " + " | ".join(f"**{short}** {about}".strip() for short, about in places) + " |"
    )
    return "\n".join(lines)


def all_runs(found: Sequence[Found], path: Paths) -> str:
    """Returns a section for each run."""
    return "\n\n".join(section(each, path) for each in found) or NOTHING


def section(found: Found, path: Paths) -> str:
    """Returns what one run found: figures, answers, how sure they are, and the tables that they rest on."""
    record = found.record
    images = {name: f"![{caption}]({path(name)})" for name, (_, caption) in found.drawn.items()}
    shown = [images[name] for name in (f"{found.name}-{part}" for part in SHOWN) if name in images]
    sure = " ".join([*lead_sure(record, chief_claim(record)), rates_paragraph(record)])
    answers = [f"- **{a.question}** {a.sentence}" for a in found.answers]
    if places := draw_places(record)[1]:
        answers.append(f"- **{PLACES_QUESTION}** {places}")
    parts = [f"### {found.title}", made_by(record), *shown, "\n".join(answers), f"*How sure:* {sure}"]
    parts += [folded(sheet) for sheet in sheets(record)]
    if more := [image for image in images.values() if image not in shown]:
        parts.append(f"<details><summary>{pluralize(len(more), 'more figure')}</summary>")
        parts += [*more, "</details>"]
    return "\n\n".join(part for part in [*parts, size_paragraph(record), left_out(record)] if part)


def sheets(record: Record) -> list[Table]:
    """Returns the tables of claims and of losses by arm and density, at the best rate and at one rate."""
    made = [tables.claims_summary(record), tables.claims_table(record), tables.arms_table(record)]
    return [sheet for sheet in made if sheet is not None and sheet.rows]


def folded(sheet: Table) -> str:
    title, body = rendering.to_markdown(sheet).rstrip().split("\n", 1)
    summary = f"<summary>{title.removeprefix('### ')}: {pluralize(len(sheet.rows), 'row')}</summary>"
    return f"<details>{summary}\n\n{body.strip()}\n\n</details>"


def made_by(record: Record) -> str:
    """Returns how large the run was, and its command."""
    setup, trainings = record["setup"], record["trainings"]
    hours = sum(t.get("seconds") or 0 for t in trainings) / 3600
    spent = f"{60 * hours:.0f} min" if hours < 1 else f"{hours:.1f} h"
    about = (f"{pluralize(len(seeds_of(record)), 'seed').capitalize()}, {pluralize(len(trainings), 'training')}, "
             f"{spent} of one core: {setup['steps']:,} steps of {setup['batch']} windows of {setup['context']} tokens.")  # fmt: skip
    return f"{about}\n\n```sh\n{record['command']}\n```"


def left_out(record: Record) -> str:
    """Returns what was not run, and what has no loss."""
    lost = [t for t in record["trainings"] if t["outcome"] != "done"]
    of = {o: sum(t["outcome"] == o for t in lost) for o in dict.fromkeys(t["outcome"] for t in lost)}
    without = f"Trainings without a loss: {natural_list(f'{n} {o}' for o, n in of.items())}." if lost else ""
    return " ".join(filter(None, (not_run(record), without)))


def for_readme(found: Sequence[Found], path: Paths) -> str:
    """Returns one figure of the chief run, and three answers of all runs that have as many seeds, each a sentence."""
    if not found:
        return NOTHING
    chief = found[0]
    alike = [f for f in found if (f.record["name"], f.seeds) == (chief.record["name"], chief.seeds)]
    said = []
    for i, answer in enumerate(chief.answers[:3]):
        texts: dict[str, list[str]] = {}
        for f in alike:
            texts.setdefault(f.answers[i].short, []).append(f"`{f.record['text']['name']}`")
        by_answer = "; ".join(f"{short} on {natural_list(names)}" for short, names in texts.items())
        said.append(f"*{answer.question}* {by_answer[0].upper()}{by_answer[1:]}.")
    name = f"{chief.name}-loss"
    image = f"![{chief.drawn[name][1]}]({path(name)})\n\n" if name in chief.drawn else ""
    return f"{image}The preset `{chief.record['name']}`, {pluralize(chief.seeds, 'seed')}. {' '.join(said)}"


PLACES = {"answers": answers_table, "runs": all_runs, "readme": for_readme}
