"""Builds the page of a study's report (one HTML file without links to others), its figures and its tables."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lottery import __version__
from lottery.measuring.hardware import machine_of
from lottery.measuring.numbers import format_ratio
from lottery.measuring.verdict import LEAST_WINDOWS
from lottery.report import (
    answers,
    drawings,
    efficiency,
    frames,
    grouping,
    images,
    judging,
    rankings,
    rendering,
    results,
    study_plans,
    tables,
)
from lottery.report.allocations import allocation_drawings
from lottery.report.cliff_answer import answer_cliff
from lottery.report.drawings import draw, heatmap_drawings, section, split_by_model
from lottery.report.grouping import number
from lottery.report.methods_answer import answer_methods
from lottery.report.templates import template
from lottery.report.wording import natural_list

FEW_STUDIES = 3  # of more, the commands are folded, so that the answers are on the first screen
FIRST_SAMPLES = 3  # tickets shown next to the dense model; the others are folded
MOST_SPEEDS = 40  # tickets in a figure of speeds


def build_page(found: results.Results) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Returns (path below the report's folder -> content, the report's summary for programs)."""
    rows = frames.records(found.rows)
    drawn: dict[str, Figure] = {}
    sections = answer_sections(found, rows, drawn)
    sheets = ticket_tables(found, rows)
    sizes = size_drawings(found, drawn)
    speeds = speed_drawings(found, drawn)
    absent, left = frames.records(found.absent), frames.records(found.left_out)
    others = [s for s in (tables.absences(absent), tables.left_out(left)) if s.rows]
    every = [*sheets, *(s.table for s in sections if s.table), *(table for _, table in speeds), *others]
    page = template("report.html").render(
        title=title(found), name=", ".join(study_names(found)) or "tickets",
        facts=facts(found, rows), studies=study_facts(found), fold_studies=len(found.studies) > FEW_STUDIES, not_judged=judging.not_judged_note(rows), unanswered=unanswered([s.answer for s in sections]),
        answered=[s for s in sections if s.answer.known],
        places=[d for d in heatmap_drawings(drawn, found) if d], tables=sheets, sizes=sizes,
        allocations=allocation_drawings(drawn, found), speeds=speeds, others=others, samples=samples(found),
        protocols=[(f"{id}, {base}", line) for (id, base), line in sorted(found.protocols.items())],
        apart=protocols_note(found), limits=caveats(rows),
    )  # fmt: skip
    files = {"index.html": page.encode()} | rendering.table_files(every)
    for name, drawing in drawn.items():
        files |= {f"figures/{name}.svg": images.to_svg(drawing).encode(), f"figures/{name}.png": images.to_png(drawing)}
    return files, {
        **summarize(found, sections, absent, left, files),
        "not_judged": judging.not_judged_note(rows) or None,
    }


def answer_sections(
    found: results.Results, rows: Sequence[grouping.Row], drawn: dict[str, Figure]
) -> list[drawings.Section]:
    """Answers the six questions. The figures go into `drawn`."""
    chief = grouping.keep_main_protocol(grouping.measured_tickets(rows))
    ranked = rankings.rank_targets(chief, found.nll)
    return [
        section("cliff", answer_cliff(rows), found, drawn),
        section("where", answers.answer_ranking(ranked), found, drawn),
        section("agreement", answers.answer_agreement(ranked), found, drawn),
        section("eight_bits", answers.answer_quantization(rows, found.nll), found, drawn),
        section("bigger", answers.answer_model_size(rows), found, drawn),
        section("methods", answer_methods(rows, found.nll), found, drawn),
    ]


def size_drawings(found: results.Results, drawn: dict[str, Figure]) -> list[drawings.Drawing]:
    caption = (
        "Perplexity against bytes on disk; the line joins the tickets that no other is both smaller and better than."
    )
    rows = grouping.keep_main_protocol(grouping.measured_tickets(frames.records(found.tickets)))
    parts = split_by_model("size", pd.DataFrame(rows).reindex(columns=found.tickets.columns))
    made = [draw(drawn, name, efficiency.plot_pareto, part, caption) for name, part in parts]
    return [d for d in made if d]


def speed_drawings(
    found: results.Results, drawn: dict[str, Figure]
) -> list[tuple[drawings.Drawing | None, rendering.Table]]:
    """Returns one figure and one table for each machine."""
    made = []
    for i, (machine, part) in enumerate(speeds_by_machine(found).items()):
        caption = (
            f"Speed and memory on {machine}. Each ticket stands next to the dense model as the same process measured it (a study measures it once); "
            f"memory's limit is its bandwidth over the bytes that a token reads."
        )
        drawing = draw(drawn, f"speed-{i}", efficiency.plot_speed, part.head(MOST_SPEEDS), caption)
        made.append((drawing, tables.speeds(f"speed-{i}", machine, frames.records(part))))
    return made


def summarize(
    found: results.Results,
    sections: Sequence[drawings.Section],
    absent: Sequence[grouping.Row],
    left: Sequence[grouping.Row],
    files: Iterable[str],
) -> dict[str, Any]:
    """Returns what a program reads of a report."""
    return {
        "study": ",".join(s.name for s in found.studies),
        "studies": [{"name": s.name, "study_id": s.study_id, "run_id": s.run_id} for s in found.studies],
        "tickets": len(found.tickets),
        "absent": [{k: r[k] for k in ("part", "title", "base", "state", "reason")} for r in absent],
        "left_out": left,
        "answers": [
            {"question": s.answer.question, "answer": s.answer.short or None, "sentence": s.answer.sentence, "sure": s.answer.sure}
            for s in sections
        ],
        "figures": sorted(n for n in files if n.startswith("figures/")),
        "tables": sorted(n for n in files if n.startswith("tables/")),
    }  # fmt: skip


def ticket_tables(found: results.Results, rows: Sequence[grouping.Row]) -> list[rendering.Table]:
    """Returns a table for each model and protocol: perplexities of two protocols never stand in one column."""
    made = []
    of_table = grouping.group_by(
        (r for r in rows if r["kind"] in ("dense", "ticket")), lambda r: (r["base"], r["protocol"])
    )
    absent = frames.records(found.absent)
    plans = {
        (s.name, str(p.get("part"))): p for s in found.studies for p in study_plans.planned(s, "tickets", "refined")
    }
    seen: set[str] = set()
    for i, ((base, protocol), members) in enumerate(of_table.items()):
        mine = []
        if base not in seen:  # a missing ticket has no protocol, so it stands in its model's first table
            for r in absent:
                part = r["study"], r["part"]
                params = plans.get(part, {}).get("params")
                if r["base"] == base and part in plans:
                    known = params if isinstance(params, dict) else {}
                    mine.append({**r, "kind": "ticket", "target": known.get("target", ""),
                                 "sparsity": frames.to_number(known.get("sparsity"))})  # fmt: skip
        seen.add(base)
        members = [r for r in members if r["run_id"] in runs_to_show(members)]
        note = f"Protocol {protocol}: {found.protocols.get((protocol, base), 'what it fixes is not recorded')}."
        made.append(tables.tickets(f"tickets-{i}", base, members, mine, note))
    return made


def runs_to_show(rows: Sequence[grouping.Row]) -> set[str]:
    """Returns the ids of the runs to show. If a ticket was measured twice under one protocol, the run with most values
    is shown, and the newest of those."""
    of_ticket = grouping.group_by(
        rows, lambda r: (r["kind"], r.get("ticket"), number(r, "budget")) if r["kind"] == "ticket" else r["kind"]
    )
    return {max(runs, key=lambda r: (len(r), r["started"]))["run_id"] for runs in of_ticket.values()}


def protocols_note(found: results.Results) -> str:
    """Returns a note for the reader if a model was measured under several protocols, else ""."""
    several = found.tickets.groupby("base")["protocol"].nunique()
    names = [base for base, n in several.items() if n > 1]
    if not names:
        return ""
    return (
        f"Of {natural_list(map(str, names))} there are tickets of several protocols. Their perplexities cannot be compared: each protocol has a "
        f"table of its own, and the answers above use the protocol of most tickets."
    )


def speeds_by_machine(found: results.Results) -> dict[str, pd.DataFrame]:
    """Returns machine -> the tickets whose speed was measured on it, those next to each other that differ in their runtime
    alone. The columns `beside_tok_s` and `beside_bytes` hold what the same process measured of the dense model."""
    timed = found.tickets.dropna(subset=["decode_tok_s"])
    dense = [found.dense_metrics(run_id) for run_id in timed["run_id"]]
    timed = timed.assign(
        beside_tok_s=[b.get("decode_tok_s", float("nan")) for b in dense],
        beside_bytes=[b.get("weights_bytes", float("nan")) for b in dense],
        hardware=[h if isinstance(h, str) else f"{d} (its model is not recorded)"
                  for h, d in zip(timed["hardware"], timed["device"], strict=True)],
    )  # fmt: skip
    first = {ticket: i for i, ticket in reversed(list(enumerate(timed["ticket"])))}
    timed = timed.sort_values("ticket", key=lambda tickets: tickets.map(first), kind="stable")
    return {str(machine): part for machine, part in timed.groupby(timed["hardware"].map(machine_of), sort=False)}


def samples(found: results.Results) -> list[dict[str, Any]]:
    """Returns for each model and prompt the dense model's text and the tickets' texts, from the least damaged to the
    most. `few` are shown at once, `rest` is folded."""
    made = []
    for base, part in found.tickets.dropna(subset=["distinct_2"]).groupby("base", sort=False):
        part = part.sort_values("perplexity_ratio", kind="stable")
        texts: dict[str, dict[str, Any]] = {}
        for r in frames.records(part):
            for sample in found.samples(r["run_id"]):
                entry = texts.setdefault(sample["prompt"], {"dense": "", "tickets": []})
                entry["dense"] = entry["dense"] or sample.get("dense", "")
                ratio = number(r, "perplexity_ratio")
                about = [f"ratio {format_ratio(ratio)}"] if ratio else []
                about += [f"coherent: {r['coherent']}"] if r.get("coherent") else []
                entry["tickets"].append(
                    {"title": r["title"], "about": ", ".join(about), "text": sample.get("text", "")}
                )
        for prompt, entry in texts.items():
            few = spread(entry["tickets"])
            rest = [t for t in entry["tickets"] if t not in few]
            made.append({"base": base, "prompt": prompt, "dense": entry["dense"], "few": few, "rest": rest})
    return made


def spread(items: Sequence[Any]) -> list[Any]:
    """Returns the first item, the last, and one between them."""
    if len(items) <= FIRST_SAMPLES:
        return list(items)
    return [items[round(i * (len(items) - 1) / (FIRST_SAMPLES - 1))] for i in range(FIRST_SAMPLES)]


def unanswered(found: Sequence[answers.Answer]) -> str:
    """Returns the open questions in one line, each with what would answer it, "" if there is none."""
    return answers.open_line([(a.question, a.sentence) for a in found if not a.known])


def title(found: results.Results) -> str:
    questions = [s.question for s in found.studies if s.question]
    if len(found.studies) > 1:
        return f"{len(found.studies)} studies: {natural_list(study_names(found))}"
    return questions[0] if questions else "What these tickets are worth"


def study_names(found: results.Results) -> list[str]:
    """Returns the name of each study, with a count where several have one: "cliff (3)"."""
    counts = Counter(s.name for s in found.studies)
    return [f"{name} ({n})" if n > 1 else name for name, n in counts.items()]


def facts(found: results.Results, rows: Sequence[grouping.Row]) -> list[tuple[str, str]]:
    """Returns (name, value) pairs on models, tickets and machines for the head of the page."""
    pairs, made = [("models", natural_list(dict.fromkeys(r["base"] for r in rows)))], judging.count_verdicts(rows)
    if len(found.absent):
        states = found.absent.groupby("state").size()
        made += f", {', '.join(f'{n} {state}' for state, n in states.items())}"
    pairs.append(("tickets", made + (f", {len(found.left_out)} left out" if len(found.left_out) else "")))
    return [*pairs, ("machines", natural_list(sorted({machine_of(str(h)) for h in found.rows["hardware"].dropna()})) or "not recorded"),
            ("report by", f"lottery {__version__}, Python {sys.version.split()[0]}, pandas {pd.__version__}")]  # fmt: skip


def study_facts(found: results.Results) -> list[tuple[str, str]]:
    """Returns (name, value) pairs on each study: when it was made, by which command, from which commit."""
    pairs = []
    for study in found.studies:
        started = f"{study.started:%Y-%m-%d %H:%M} UTC"
        pairs.append(
            (
                f"study {study.name}",
                f"started {started}, {study.status.lower()}, id {study.study_id}, run {study.run_id}",
            )
        )
        if command := study.tags.get("command"):
            pairs.append(("command", command))
        if commit := study.tags.get("mlflow.source.git.commit"):
            pairs.append(("commit", commit[:12]))
        if study.plan is None:
            pairs.append(("plan", f"that of {study.name} cannot be read: what is missing is not known"))
    return pairs


def caveats(rows: Sequence[grouping.Row]) -> list[str]:
    """Returns sentences on what the numbers do not show."""
    sizes = sorted({p for r in rows if (p := number(r, "parameters"))})
    bases = {r["base"] for r in rows}
    sentences = [
        "The intervals treat evaluation windows as independent. Windows of one article are not, so the true intervals are somewhat wider.",
        "A perplexity is of one text under one protocol. It was not measured what else a ticket can do than predict that text.",
        "Nothing was trained again after pruning: this is what can be cut out of a trained model, not what a subnetwork could "
        "learn from the start.",
        "Each comparison has its own 95% interval: among many comparisons, a few are wrong.",
    ]
    if sizes and sizes[-1] < 1e9:
        sentences.append(
            f"The largest model here has {sizes[-1]:,.0f} weights. A small model says nothing about big ones: in a model of billions, "
            f"the cliff and the parts that can be cut may be different."
        )
    if "builtin" in bases:
        sentences.append(
            "The embedded model is far easier to prune than a real one: docs/results.md has results of real models."
        )
    if len(bases) == 1:
        sentences.append("This is one model: nothing here says what holds for others.")
    if judging.reasons_not_judged(rows):
        sentences.append(
            f"A ticket that was measured on the first windows of a text only, or on fewer than {LEAST_WINDOWS}, is not judged."
        )
    return sentences
