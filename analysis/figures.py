"""Draws every figure of the documents, and writes the answers of docs/results.md and docs/hypothesis.md, from the files
in analysis/results.

    python analysis/figures.py

It needs neither a model nor a tracking store: analysis/collect.py has written there what the studies found. Files whose names
begin with `own-text-` are of the embedded model on its own text, which docs/studies.md and the README show; those that begin
with `hypothesis-` are of `lottery hypothesis`; all others answer the questions of docs/results.md. Each answer is printed with how sure it is and with its figures.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parent.parent
OWN_TEXT = "own-text-"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "hypothesis.md")


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--results", type=click.Path(path_type=Path), default=ROOT / "analysis" / "results", help="The files.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "analysis" / "figures", help="The figures.")
@click.option("--page", "pages", multiple=True, type=click.Path(path_type=Path), help="A document to fill; repeatable.")
def main(results: Path, out: Path, pages: tuple[Path, ...]) -> None:
    from lottery.progress import quiet_libraries

    quiet_libraries()
    import hypothesis_results
    from results_page import all_cliffs, questions, unknown_places

    own, others = (list(records_in(results, which)) for which in (True, False))
    found, tested = questions(others), hypothesis_results.read_all(results)
    views = [view for question in found for view in question.views]
    drawn = draw_own_text(own) | {d.name: d.figure for view in views for d in view.figures}
    drawn |= {d.name: d.figure for d in all_cliffs(found)}
    write_figures(out, drawn | hypothesis_results.figures(tested))
    for page in pages or PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(fill(text, found, tested, os.path.relpath(out, page.parent)), encoding="utf-8")
        for name in unknown_places(text, found):
            click.echo(f"{page}: results:{name} is no question of the report, so it stays as it was", err=True)
        for name in hypothesis_results.unknown_places(text):
            click.echo(f"{page}: hypothesis:{name} is no part of it, so it stays as it was", err=True)
    for view in views:
        answer = view.section.answer
        click.echo(f"\n{answer.question} {view.line}\n{answer.sentence}\n{answer.sure}")
        for drawing in view.figures:
            click.echo(out / f"{drawing.name}.svg")
    for question in found:
        if not question.views:
            click.echo(f"\n{question.text} {question.needs}")
    for each in tested:
        click.echo("\n".join(["", each.title, *(f"{a.question} {a.sentence}" for a in each.answers)]))


def fill(text: str, found: Sequence[Any], tested: Sequence[Any], folder: str) -> str:
    """Returns a document with each marked place filled. `folder`: that of the figures, from the document."""
    import hypothesis_results
    import results_page

    path = partial("{}/{}.svg".format, folder)
    return hypothesis_results.fill(results_page.fill(text, found, path), tested, path)


def records_in(folder: Path, own_text: bool) -> Iterable[dict[str, Any]]:
    """Yields the studies in the files of a folder, in the order of their names."""
    from hypothesis_results import PREFIX
    from lottery.report.saved import read_records

    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(OWN_TEXT) == own_text and not path.name.startswith(PREFIX):
            yield from read_records(path)


def draw_own_text(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns name -> figure for docs/studies.md and the README; prints the answers. A study that is not there has none."""
    import pandas as pd

    from lottery.report import answers, cliff_answer, figures, frames, heatmaps, rankings, saved

    drawn = {}
    for record in records:
        found, budget = saved.combine([record]), bool(record["study"].get("budget"))
        rows = frames.records(found.rows)
        if record["name"] == "cliff":
            answer = cliff_answer.answer_cliff(rows)
            drawn["cliff"] = figures.plot_cliff(found.rows, crossings=answer.data)
        elif record["name"] == "map":
            drawn["map"] = heatmaps.plot_layers(found.rows)
            continue
        elif budget:
            answer = answers.answer_ranking(rankings.rank_targets(rows, found.nll))
            drawn["budget"] = figures.plot_ranking(pd.DataFrame(list(answer.data)))
        else:
            drawn["locate"] = heatmaps.plot_targets(found.rows)
            continue
        click.echo(f"\n{answer.question} {answer.sentence}\n{answer.sure}")
    return drawn


def write_figures(out: Path, drawn: Mapping[str, Any]) -> None:
    """Writes each figure, and deletes those of answers that are no more."""
    from lottery.report import images

    out.mkdir(parents=True, exist_ok=True)
    for name, figure in drawn.items():
        (out / f"{name}.svg").write_text(images.to_svg(figure), encoding="utf-8")
    for path in [*out.glob("results-*.svg"), *out.glob("hypothesis-*.svg")]:
        if path.stem not in drawn:
            path.unlink()


if __name__ == "__main__":
    main()
