"""A study's report: one page that stands alone, figures and tables beside it. From MLflow runs alone, no model code."""

import json
import re
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from lottery import __version__
from lottery.errors import InputError, MachineError
from lottery.files.home import make_folder, resolved, write_file
from lottery.progress import say
from lottery.registry import parts, runs, store
from lottery.report import answers, figures, results, tables
from lottery.report.answers import Answer, count, listed, number

TEMPLATE = Path(__file__).parent.parent / "assets" / "report.html"
SUMMARY = "report.json"  # what a report's folder is known by
PARTS = ("index.html", SUMMARY, "figures", "tables")
FIRST_SAMPLES = 3  # tickets beside the dense model; the others are folded up
MOST_SPEEDS = 40  # tickets in a figure of speeds
MOST_CELLS = 24  # single layers in a figure of ranks: the map shows more


@dataclass(frozen=True)
class Drawing:
    name: str
    caption: str
    svg: Markup


@dataclass(frozen=True)
class Section:
    """One question with its answer, figures and tables."""

    name: str
    answer: Answer
    drawings: list[Drawing]
    table: tables.Sheet | None


def report(study: str = "", out: str | Path = "report", filter: str = "", record: bool = True) -> dict[str, Any]:
    """Write the report of a study (`results.load` says what may be named) into `out`, log it as a run, and say where it is.

    Raises InputError for an unknown study, no tickets, or a folder with other files in it.
    """
    folder = resolved(out, "out")
    check_folder(folder, out)
    client = store.connect(reading=True)
    found = results.load(client, study, filter)
    files, summary = build(found)
    make_folder(folder, "out")
    files[SUMMARY] = json.dumps(summary, indent=1).encode() + b"\n"
    write(folder, files)
    run_id = log(client, folder, files, found, {"study": study or "newest", "out": str(out)}) if record else None
    return {**summary, "out": str(folder), "index": str(folder / "index.html"), "run_id": run_id}


def check_folder(folder: Path, out: str | Path) -> None:
    """Raises InputError for a folder that holds anything but an earlier report: nothing of it is overwritten."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"out={out}: it is a file; give a folder")
    there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(name for name in there if name not in PARTS and not name.startswith("."))
    if others or (there and earlier(folder) is None):
        raise InputError(
            f"out={out}: it holds {', '.join((others or sorted(there))[:3])}, no report; give a new folder"
        )


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file whole or not at all, the page last; figures and tables that an earlier report wrote go, and nothing else."""
    before = earlier(folder) or set()
    for name in sorted(files, key=lambda n: (n == "index.html", n != SUMMARY, n)):
        path = make_folder((folder / name).parent, "out") / Path(name).name
        write_file(path, files[name])
    for name in before - files.keys():
        (folder / name).unlink(missing_ok=True)


def earlier(folder: Path) -> set[str] | None:
    """The figures and tables of the report in a folder, None where it holds no report; by its own words, which anybody can
    have edited."""
    try:
        summary = json.loads((folder / SUMMARY).read_bytes())
        return {n for part in ("figures", "tables") for n in summary[part] if re.fullmatch(rf"{part}/[\w.-]+", n)}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def log(
    client: store.Client, folder: Path, files: Iterable[str], found: results.Results, params: Mapping[str, str]
) -> str | None:
    """The report as a run of its own; None, with a warning, where the store does not take it: the files are there."""
    names = ",".join(s.name for s in found.studies) or "tickets"
    tags = {"kind": "report", "study": names} | {parts.part_key(s.run_id): "report" for s in found.studies}
    try:
        with runs.open_run(client, uuid.uuid4().hex[:16], f"report {names}", params, tags) as run:
            for name in files:
                client.log_artifact(run.id, str(folder / name), str(Path(name).parent) if "/" in name else None)
            run.finish()
            return run.id
    except (*store.STORE_ERRORS, MachineError) as e:
        say(f"warning: {store.store_name()} did not take the report ({store.first_line(e)}); it is in {folder}")
        return None


def build(found: results.Results) -> tuple[dict[str, bytes], dict[str, Any]]:
    """(path -> content, what a program reads of it)"""
    rows = results.records(found.rows)
    chief = answers.chief(answers.measured(rows))
    ranked = answers.rankings(chief, found.nll)
    drawn: dict[str, Figure] = {}
    sections = [
        section("cliff", answers.how_much(rows), found, drawn),
        section("where", answers.where(ranked), found, drawn),
        section("agreement", answers.same_everywhere(ranked), found, drawn),
        section("eight_bits", answers.eight_bits(rows, found.nll), found, drawn),
        section("bigger", answers.bigger(rows), found, drawn),
    ]
    sheets = ticket_tables(found, rows)
    fast = with_beside(found)
    machines = [
        (name, part, tables.speeds(f"speed-{i}", name, results.records(part)))
        for i, (name, part) in enumerate(fast.items())
    ]
    caption = (
        "Perplexity against bytes on disk; the line joins the tickets that no other is both smaller and better than."
    )
    sized = [draw(drawn, n, figures.pareto, part, caption) for n, part in each("size", found.tickets)]
    speeds = [
        draw(drawn, f"speed-{i}", figures.speed, part.head(MOST_SPEEDS),
             f"Speed and memory on {name}. Each ticket beside the dense model as the same process measured it, in a study once; memory's limit is its "
             f"bandwidth over the bytes that a token reads.")
        for i, (name, part, _) in enumerate(machines)
    ]  # fmt: skip
    absent, left = results.records(found.absent), results.records(found.left_out)
    others = [s for s in (tables.absences(absent), tables.left_out(left)) if s.rows]
    every = [*sheets, *(s.table for s in sections if s.table), *(m[2] for m in machines), *others]
    bases = list(dict.fromkeys(r["base"] for r in rows))
    page = template().render(
        title=title(found), name=", ".join(s.name for s in found.studies) or "tickets", facts=facts(found, bases),
        answered=[s for s in sections if s.answer.known], open=[s for s in sections if not s.answer.known],
        places=[d for d in map_and_places(drawn, found) if d], tables=sheets, sizes=[d for d in sized if d],
        speeds=[(d, m[2]) for d, m in zip(speeds, machines, strict=True)], others=others, samples=samples(found),
        protocols=[(f"{id}, {base}", line) for (id, base), line in sorted(found.protocols.items())], apart=apart(found), limits=limits(rows), version=__version__,
    )  # fmt: skip
    files = {"index.html": page.encode()} | tables.files(every)
    for name, drawing in drawn.items():
        files |= {f"figures/{name}.svg": figures.svg(drawing).encode(), f"figures/{name}.png": figures.png(drawing)}
    summary = {
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
    return files, summary


def template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["code"] = code
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def code(words: str) -> Markup:
    """What stands between backticks as code; everything escaped."""
    parts = words.split("`")
    pairs = len(parts) // 2 * 2 if len(parts) % 2 else 0
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if i % 2 and i < pairs else escape(part) for i, part in enumerate(parts)
    )


def draw(
    drawn: dict[str, Figure], name: str, function: Callable[..., Figure], rows: pd.DataFrame, caption: str, *more: Any
) -> Drawing | None:
    """A figure for the page and for the folder; None where no row has what it shows."""
    needs = {"size": "disk_bytes", "cliffs": "perplexity_ratio"} | dict.fromkeys(
        ("places", "layers"), "perplexity_ratio"
    )
    kind = name.split("-")[0]
    if rows.empty or (kind in needs and rows[["perplexity_ratio", needs[kind]]].dropna().empty):
        return None
    drawn[name] = function(rows, *more)
    inside = figures.apart(figures.svg(drawn[name]), name)
    return Drawing(name, caption, Markup(inside))  # matplotlib's own writer has escaped every label


def section(name: str, answer: Answer, found: results.Results, drawn: dict[str, Figure]) -> Section:
    data = pd.DataFrame(list(answer.data))
    made: list[Drawing | None] = []
    if answer.known and name == "cliff":
        made = cliff_drawings(answer, found, drawn)
    elif answer.known and name == "where":
        made = where_drawings(data, drawn)
    elif answer.known and name == "agreement":
        made = agreement_drawings(data, drawn)
    elif answer.known and name == "eight_bits":
        caption = "Perplexity of a ticket in 8 bits over that of the same ticket in 16, with paired 95% intervals."
        made = [draw(drawn, n, figures.eight_bits, part, caption) for n, part in each(name, data)]
    elif answer.known:
        made = [
            draw(drawn, name, figures.sizes, data, "Where the cliff is, with its band, against the size of the model.")
        ]
    return Section(name, answer, [d for d in made if d], tables.of_answer(name, answer))


def cliff_drawings(answer: Answer, found: results.Results, drawn: dict[str, Figure]) -> list[Drawing | None]:
    """Of each model its curves; where there are several models, first the one of each that the answer is about."""
    rows = pd.DataFrame(answers.chief(answers.measured(results.records(found.rows))))
    rows = rows[~rows["target"].str.fullmatch(answers.CELL)].reindex(columns=found.rows.columns)
    usual = chosen(rows, (not answers.setting(r) for r in results.records(rows)))
    rows = usual if len(usual) else rows
    crossings = [c for c in answer.data if c["chief"]]
    curves = {(c["base"], c["target"]) for c in answer.data}
    rows = chosen(rows, ((b, t) in curves for b, t in zip(rows["base"], rows["target"], strict=True)))
    caption = "Ratio to the dense model's perplexity, with the 95% band of each curve; dashed: what a winner may lose."
    made: list[Drawing | None] = []
    chief = {(c["base"], c["target"]) for c in crossings}
    one = chosen(rows, ((b, t) in chief for b, t in zip(rows["base"], rows["target"], strict=True)))
    if one["base"].nunique() > 1:
        made.append(draw(drawn, "cliffs", figures.cliff, one, caption, "base", crossings))
    return made + [draw(drawn, n, figures.cliff, part, caption, "target", crossings) for n, part in each("cliff", rows)]


def chosen(rows: pd.DataFrame, flags: Iterable[bool]) -> pd.DataFrame:
    """The rows so flagged; an empty list would be taken for one of columns."""
    return rows[pd.Series(list(flags), rows.index, dtype=bool)]


def each(name: str, rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A figure for each model, which a page puts side by side where there is room."""
    parts = [part for _, part in rows.groupby("base", sort=False)]
    return [(name if len(parts) == 1 else f"{name}-{i}", part) for i, part in enumerate(parts)]


def agreement_drawings(data: pd.DataFrame, drawn: dict[str, Figure]) -> list[Drawing | None]:
    """Of two models one figure; of more one for each level, at which each two are compared."""
    about = "Kendall's tau between the orders of the targets in each two models"
    if data[["a", "b"]].stack().nunique() == 2:
        caption = f"{about}, with its 95% interval from resampled windows."
        return [draw(drawn, "agreement", figures.agreement, data, caption)]
    caption = f"{about}; between brackets where its 95% interval, which stands in the table, holds 0."
    levels = data.groupby(["by", "level", "cells", "setting"], sort=False)
    return [draw(drawn, f"agreement-{i}", figures.agreement, part, caption) for i, (_, part) in enumerate(levels)]


def where_drawings(data: pd.DataFrame, drawn: dict[str, Figure]) -> list[Drawing | None]:
    """A figure for each model, and for equal budget and equal sparsity apart."""
    made = []
    data = data[data["setting"] == data["setting"].iloc[0]]
    for by, what in (("budget", "equal numbers of weights gone"), ("sparsity", "equal sparsity")):
        for cells in (False, True):
            part = data[(data["by"] == by) & (data["cells"] == cells)]
            for i, (_, of_base) in enumerate(part.groupby("base", sort=False)):
                if cells and of_base.groupby("level").size().max() > MOST_CELLS:
                    continue
                caption = (
                    f"{'Single layers' if cells else 'Targets'} at {what}, the least damaged on top, with 95% intervals. A grey "
                    f"bar at the right joins neighbours whose order is not certain."
                )
                name = f"ranking-{by}{'-layers' if cells else ''}-{i}"
                made.append(draw(drawn, name, figures.ranking, of_base, caption))
    return made


def map_and_places(drawn: dict[str, Figure], found: results.Results) -> list[Drawing | None]:
    """Heat maps of the tickets made as usual: targets against sparsity, components against layers."""
    rows = answers.chief(answers.measured(results.records(found.tickets)))
    usual = pd.DataFrame([r for r in rows if not answers.setting(r)]).reindex(columns=found.rows.columns)
    equal = usual[usual["budget"].isna()]
    cells = equal["target"].astype(str).str.fullmatch(answers.CELL)
    made = []
    if equal[~cells]["target"].nunique() > 1:
        norm = figures.scale(equal[~cells]["perplexity_ratio"])  # one for all models
        caption = "Ratio to dense of each target at each sparsity: the darker, the more is lost. Hatched: not measured."
        made += [draw(drawn, n, figures.places, part, caption, norm) for n, part in each("places", equal[~cells])]
    if cells.any():
        norm = figures.scale(equal[cells]["perplexity_ratio"], 1.02)
        caption = "One component of one layer at a time: ratio to dense."
        made += [draw(drawn, n, figures.layers, part, caption, norm) for n, part in each("layers", equal[cells])]
    return made


def ticket_tables(found: results.Results, rows: Sequence[tables.Row]) -> list[tables.Sheet]:
    """One a model and protocol: perplexities of two protocols are never in one column."""
    made = []
    of_table = answers.groups(
        (r for r in rows if r["kind"] in ("dense", "ticket")), lambda r: (r["base"], r["protocol"])
    )
    absent = results.records(found.absent)
    plans = {(s.name, str(p.get("part"))): p for s in found.studies for p in results.planned(s, "tickets", "refined")}
    seen: set[str] = set()
    for i, ((base, protocol), members) in enumerate(of_table.items()):
        mine = []
        if base not in seen:  # no protocol is known of what was not measured: it stands in its model's first table
            for r in absent:
                part = r["study"], r["part"]
                params = plans.get(part, {}).get("params")
                if r["base"] == base and part in plans:
                    known = params if isinstance(params, dict) else {}
                    mine.append({**r, "kind": "ticket", "target": known.get("target", ""),
                                 "sparsity": results.number(known.get("sparsity"))})  # fmt: skip
        seen.add(base)
        members = [r for r in members if r["run_id"] in once(members)]
        note = f"Protocol {protocol}: {found.protocols.get((protocol, base), 'what it fixes is not recorded')}."
        made.append(tables.tickets(f"tickets-{i}", base, members, mine, note))
    return made


def once(rows: Sequence[tables.Row]) -> set[str]:
    """The runs to show: of a ticket that was measured twice under one protocol the one that says most, the newest of such."""
    of_ticket = answers.groups(
        rows, lambda r: (r["kind"], r.get("ticket"), number(r, "budget")) if r["kind"] == "ticket" else r["kind"]
    )
    return {max(runs, key=lambda r: (len(r), r["started"]))["run_id"] for runs in of_ticket.values()}


def apart(found: results.Results) -> str:
    """What is said where one model was measured under several protocols."""
    several = found.tickets.groupby("base")["protocol"].nunique()
    names = [base for base, n in several.items() if n > 1]
    if not names:
        return ""
    return (
        f"Of {listed(map(str, names))} there are tickets of several protocols. Their perplexities do not compare: each has a table "
        f"of its own, and the answers above take the protocol of most tickets."
    )


def with_beside(found: results.Results) -> dict[str, pd.DataFrame]:
    """machine -> the tickets whose speed was measured on it, with the dense model's beside; the dense row itself first,
    where it was measured there, too."""
    timed = found.tickets.dropna(subset=["decode_tok_s"])
    beside = [found.beside(run_id) for run_id in timed["run_id"]]
    timed = timed.assign(
        beside_tok_s=[b.get("decode_tok_s", float("nan")) for b in beside],
        beside_bytes=[b.get("weights_bytes", float("nan")) for b in beside],
        hardware=[h if isinstance(h, str) else f"{d} (its model is not recorded)"
                  for h, d in zip(timed["hardware"], timed["device"], strict=True)],
    )  # fmt: skip
    return {str(machine): part for machine, part in timed.groupby("hardware", sort=False)}


def samples(found: results.Results) -> list[dict[str, Any]]:
    """By model and prompt: the dense model's text, then tickets from the least damaged to the most; a few at first."""
    made = []
    for base, part in found.tickets.dropna(subset=["distinct_2"]).groupby("base", sort=False):
        part = part.sort_values("perplexity_ratio", kind="stable")
        texts: dict[str, dict[str, Any]] = {}
        for r in results.records(part):
            for sample in found.samples(r["run_id"]):
                entry = texts.setdefault(sample["prompt"], {"dense": "", "tickets": []})
                entry["dense"] = entry["dense"] or sample.get("dense", "")
                ratio = number(r, "perplexity_ratio")
                about = [f"ratio {answers.times(ratio)}"] if ratio else []
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
    """The first, the last and one between."""
    if len(items) <= FIRST_SAMPLES:
        return list(items)
    return [items[round(i * (len(items) - 1) / (FIRST_SAMPLES - 1))] for i in range(FIRST_SAMPLES)]


def title(found: results.Results) -> str:
    questions = [s.question for s in found.studies if s.question]
    if len(found.studies) > 1:
        return f"{len(found.studies)} studies: {listed(s.name for s in found.studies)}"
    return questions[0] if questions else "What these tickets are worth"


def facts(found: results.Results, bases: Sequence[str]) -> list[tuple[str, str]]:
    """What was asked, of which models, when, with what."""
    said = [("models", listed(bases))]
    made = f"{len(found.tickets)} measured, {count(int((found.tickets['winner'] == 'yes').sum()), 'winner')}"
    if len(found.absent):
        states = found.absent.groupby("state").size()
        made += f", {', '.join(f'{n} {state}' for state, n in states.items())}"
    said.append(("tickets", made + (f", {len(found.left_out)} left out" if len(found.left_out) else "")))
    for study in found.studies:
        begun = f"{study.started:%Y-%m-%d %H:%M} UTC"
        said.append(
            (f"study {study.name}", f"begun {begun}, {study.status.lower()}, id {study.study_id}, run {study.run_id}")
        )
        if command := study.tags.get("command"):
            said.append(("command", command))
        if commit := study.tags.get("mlflow.source.git.commit"):
            said.append(("commit", commit[:12]))
        if study.plan is None:
            said.append(("plan", f"that of {study.name} cannot be read: what is missing is not known"))
    return [*said, ("machines", listed(sorted({str(h) for h in found.rows["hardware"].dropna()})) or "not recorded"),
            ("report by", f"lottery {__version__}, Python {sys.version.split()[0]}, pandas {pd.__version__}")]  # fmt: skip


def limits(rows: Sequence[tables.Row]) -> list[str]:
    """What the figures do not tell."""
    sizes = sorted({p for r in rows if (p := number(r, "parameters"))})
    bases = {r["base"] for r in rows}
    said = [
        "The intervals take evaluation windows as independent. Those of one article are not, so the truth is somewhat wider.",
        "A perplexity is of one text under one protocol. What a ticket can do beside predicting that text was not measured.",
        "Nothing was trained again after pruning: this is what can be cut out of a trained model, not what a subnetwork could "
        "learn from the start.",
        "Each comparison has its own 95%: of many, a few are wrong.",
    ]
    if sizes and sizes[-1] < 1e9:
        said.append(
            f"The largest model here has {sizes[-1]:,.0f} weights. A small model tells nothing of big ones: where its cliff is, and "
            f"which part bears cutting, may be otherwise in a model of billions."
        )
    if len(bases) == 1:
        said.append("It is one model: nothing here says what is so of others.")
    if any(r.get("limited") for r in rows):
        said.append("Some were measured on the first windows only (limited): they are never winners.")
    return said


def answers_text(summary: Mapping[str, Any]) -> str:
    """Each question with its answer, for people, on a terminal."""
    lines = []
    for a in summary["answers"]:
        lines += [f"{a['question']} {a['answer'] or ''}".rstrip(), *(f"  {line}" for line in a["sentence"].split("\n"))]
    return "\n".join(lines)


def text(summary: Mapping[str, Any]) -> str:
    """All of a report that fits a terminal."""
    absent = [f"{r['state']}: {r['title']} of {r['base']}: {r['reason']}" for r in summary["absent"]]
    lines = [answers_text(summary), *(re.sub(r"\s+", " ", line) for line in absent)]
    lines.append(f"{summary['tickets']} tickets; report: {summary['index']}")
    if summary["run_id"]:
        lines.append(f"run: {summary['run_id']}")
    return "\n".join(lines)
