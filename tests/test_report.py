"""`lottery report` on real runs of real tickets, and its page in a real browser."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import new_page, open_browser
from click.testing import Result
from conftest import ROOT, tiny_model
from mlflow import MlflowClient
from PIL import Image
from scipy import stats

import lottery
from lottery import answers, figures, report, results, tracking
from lottery.spec import Spec

SID = "0123456789ab"
BAD = "<script>alert(1)</script> & 50% of $x_1$ \\input{x} #~^ | `a`"  # for HTML, LaTeX, Markdown
FOLDER = "<script>alert(1)<b> 50%_of $x_1$ & #~^"  # a model's name: the same, as a file system has it
BUILTIN = [("all", 0.3), ("all", 0.5), ("all", 0.7), ("attention", 0.5), ("mlp", 0.5), ("early", 0.5)]
QUICK = {"limit": "6", "register": "none", "dataset": "builtin"}
FAST_HARDWARE, SLOW_HARDWARE = "Fast Accelerator 9000", "AMD <b>EPYC</b>"


@dataclass
class Made:
    """A study as `lottery study` would have left it. `runs`: part -> what `prune` gave back, the newest of each part."""

    client: MlflowClient
    parent: str
    bad_base: str
    runs: dict[str, Any] = field(default_factory=dict)


def begin_study(name: str, study_id: str, plan: dict[str, Any]) -> str:
    client = MlflowClient()
    tags = {"kind": "study", "study": name, "study_id": study_id}
    run_id = client.create_run("0", run_name=f"{name} builtin", tags=tags).info.run_id
    client.log_dict(run_id, {"study_id": study_id, "name": name, **plan}, "plan.json")
    return run_id


def mark(client: MlflowClient, run_id: str, tags: dict[str, str], parameters: float) -> None:
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    client.log_metric(run_id, "parameters", parameters)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two models: the embedded one with a cliff, four targets at one level, 8 bits, speeds of two machines, another
    protocol; a random one of another family. One ticket failed, one was never begun, one was left out."""
    other = tiny_model(tmp_path_factory.mktemp("models") / FOLDER, "Qwen2")
    client = tracking.connect()
    wanted: list[dict[str, Any]] = [{"target": t, "sparsity": s, "measure": "perplexity"} for t, s in BUILTIN]
    wanted[1] |= {"measure": "all", "control": 1}  # all 50%
    wanted += [
        {"target": "late", "sparsity": 0.5, "measure": "perplexity,speed"},
        {"target": "all", "sparsity": 0.5, "quantize": "int8", "measure": "perplexity"},
        {"target": "all", "sparsity": 0.5, "window": "256", "measure": "perplexity"},
        *(
            {"model": str(other), "target": t, "sparsity": 0.5, "measure": "perplexity"}
            for t in ("all", "attention", "mlp")
        ),
        *(
            {"target": t, "sparsity": s, "measure": "perplexity"} for t, s in (("q_proj@2", 0.5), ("k_proj", 0.9))
        ),  # not made
    ]
    specs = [Spec.parse(**{**QUICK, **w}) for w in wanted]
    base = {"builtin": "builtin", str(other): FOLDER}
    parts = [
        {"part": f"ticket-{i}", "title": results.name_of(s.params()), "base": base[s.model], "model": s.model, "budget": None,
         "params": s.params()} for i, s in enumerate(specs)
    ]  # fmt: skip
    parent = begin_study("locate", SID, {
        "question": f"Which part can be cut? {BAD}",
        "tickets": parts,
        "baselines": [{"part": f"dense-{i}", "base": b, "model": m, "params": {}} for i, (m, b) in enumerate(base.items())],
        "refined": [{"part": "refine-0", "title": "all", "base": "builtin", "model": "builtin", "width": 0.1,
                     "params": {**specs[0].params(), "sparsity": "0"}}],
        "left_out": [{"model": "builtin", "target": "lm_head", "reason": f"fewer weights than that {BAD}"}],
    })  # fmt: skip
    result = Made(client, parent, FOLDER)
    everywhere = {f"study.{SID}": "", "mlflow.parentRunId": parent, "family": "llama", "hardware": SLOW_HARDWARE}

    def make(part: str, spec: Spec) -> None:
        ticket = lottery.prune(**spec.params())
        of_other = spec.model != "builtin"
        tags = everywhere | {f"study.{SID}": part} | ({"family": "qwen2"} if of_other else {})
        if part == "ticket-6":
            tags |= {"hardware": FAST_HARDWARE}
        weights = 120_000 if of_other else 5_145_024
        mark(client, ticket.run_id, tags, weights)
        result.runs[part] = ticket
        if (dense := ticket.found.dense_run) is not None and (run := tracking.find_run(client, dense.id)) is not None:
            mark(client, run.info.run_id, tags | {f"study.{SID}": f"dense-{int(of_other)}"}, weights)

    for i, spec in enumerate(specs[:-2]):
        make(f"ticket-{i}", spec)
    for sparsity in ("0.6", "0.55"):
        make("refine-0", Spec.parse(**{**specs[0].params(), "sparsity": sparsity}))
    failed = client.create_run("0", tags={"kind": "ticket", f"study.{SID}": f"ticket-{len(specs) - 2}", "outcome": "failed",
                                          "reason": f"no such layer {BAD}"})  # fmt: skip
    client.set_terminated(failed.info.run_id, "FAILED")
    for key, value in {"coherent": "no", "note": BAD}.items():
        client.set_tag(result.runs["ticket-1"].run_id, key, value)
    texts = [{"prompt": f"The {BAD}", "text": f"says </div></html> {BAD}", "dense": f"dense {BAD}"}]
    client.log_text(result.runs["ticket-1"].run_id, json.dumps(texts), "samples.json")
    client.set_terminated(parent, "FINISHED")
    return result


class Elements(HTMLParser):
    """Names of all elements, and the text of table cells by table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words: list[str] = []
        self.table, self.cell = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "action", "data")]
        assert not [k for k, _ in attrs if k.startswith("on")]
        if tag == "table":
            self.table = str(given["id"]).removeprefix("table-")
            self.tables[self.table] = []
        if tag == "tr":
            self.tables[self.table].append([])
        self.cell = tag in ("td", "th")
        if self.cell:
            self.tables[self.table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.cell:
            self.tables[self.table][-1][-1] += data


@dataclass
class Written:
    folder: Path
    summary: dict[str, Any]
    page: Elements


@pytest.fixture(scope="module")
def written(
    made: Made, lottery_json: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Written:
    folder = tmp_path_factory.mktemp("reports") / "locate"
    summary = lottery_json("report", "--study", "locate", "--out", folder)
    return Written(folder, summary, Elements((folder / "index.html").read_text(encoding="utf-8")))


def rows_of(written: Written, base: str) -> dict[str, dict[str, str]]:
    """Of the first table of a model: title -> column -> cell."""
    for name, (head, *body) in written.page.tables.items():
        sheet = (written.folder / f"tables/{name}.csv").read_text(encoding="utf-8")
        if name.startswith("tickets-") and next(csv.DictReader(sheet.splitlines()))["base"] == base:
            return {row[0]: dict(zip(head, row, strict=True)) for row in body}
    raise AssertionError(base)


def test_the_tables_hold_what_was_measured(made: Made, written: Written) -> None:
    shown = rows_of(written, "builtin")
    assert next(iter(shown)) == "dense" and shown["dense"]["ratio to dense [95%]"] == "1"
    for part, title in (
        ("ticket-0", "all 30%"),
        ("ticket-1", "all 50%"),
        ("refine-0", "all 55%"),
        ("ticket-7", "all 50% int8"),
    ):
        m, row = made.runs[part].metrics, shown[title]
        for column, name, digits in (
            ("perplexity [95%]", "perplexity", 2),
            ("ratio to dense [95%]", "perplexity_ratio", 4),
        ):
            ends = [f"{m[name + end]:,.{digits}f}" for end in ("", "_lo", "_hi")]
            assert row[column] == f"{ends[0]} [{ends[1]}, {ends[2]}]"
        assert row["file MB"] == f"{m['disk_bytes'] / 1e6:,.2f}" and row["of the base's"] == f"{m['disk_ratio']:.3f}"
    assert "all 60%" in shown  # a part that refines has several runs
    m, row = made.runs["ticket-1"].metrics, shown["all 50%"]
    assert row["random controls (least to greatest)"].startswith(f"{m['control_perplexity']:,.1f} (")
    assert row["beats them"] == made.runs["ticket-1"].tags["beats_control"]
    assert row["winner"] == "no (limited)" and row["coherent, to a reader"] == f"no ({BAD})"
    data = pd.read_csv(next(f for f in written.folder.glob("tables/tickets-*.csv") if "all 55%" in f.read_text()))
    kept = data.set_index("title")
    assert kept.loc["all 30%", "perplexity"] == made.runs["ticket-0"].metrics["perplexity"]
    assert kept.loc["all 30%", "run_id"] == made.runs["ticket-0"].run_id


def test_what_is_not_there_is_shown_with_its_reason(written: Written) -> None:
    shown = rows_of(written, "builtin")
    assert "q_proj@2 50%: failed" in shown and "k_proj 90%: missing" in shown
    states = {row[0]: row for row in written.page.tables["absent"][1:]}
    assert states["q_proj@2 50%"][2:4] == ["failed", f"no such layer {BAD}"]
    assert states["k_proj 90%"][2] == "missing"
    assert written.page.tables["left_out"][1][:3] == ["lm_head", "builtin", f"fewer weights than that {BAD}"]
    assert {(r["title"], r["state"]) for r in written.summary["absent"]} == {
        ("q_proj@2 50%", "failed"),
        ("k_proj 90%", "missing"),
    }
    assert any("1 failed, 1 missing, 1 left out" in w for w in written.page.words)


def test_protocols_are_kept_apart_and_said_so(made: Made, written: Written) -> None:
    protocols = [set(pd.read_csv(f)["protocol"].dropna()) for f in sorted(written.folder.glob("tables/tickets-*.csv"))]
    assert len(protocols) == 3 and all(len(p) == 1 for p in protocols)
    assert {made.runs["ticket-1"].tags["protocol"], made.runs["ticket-8"].tags["protocol"]} <= set.union(*protocols)
    words = " ".join(written.page.words)
    assert "Of builtin there are tickets of several protocols." in words and "6 windows of 256" in words
    cliffs = pd.read_csv(written.folder / "tables/cliff.csv")
    assert made.runs["ticket-8"].tags["protocol"] not in set(cliffs["protocol"])


def test_speeds_of_two_machines_are_never_in_one_column(made: Made, written: Written) -> None:
    speeds = {name: table for name, table in written.page.tables.items() if name.startswith("speed-")}
    assert [[row[0] for row in table[1:]] for table in speeds.values()] == [["all 50%"], ["late 50%"]]
    head, row = speeds["speed-0"]
    m, beside = made.runs["ticket-1"].metrics, made.runs["ticket-1"].found.dense
    assert dict(zip(head, row, strict=True))["decode tok/s [quartiles]"].startswith(f"{m['decode_tok_s']:,.1f} [")
    assert dict(zip(head, row, strict=True))["dense, beside"] == f"{beside['decode_tok_s']:,.1f}"
    assert sorted(p.name for p in (written.folder / "figures").glob("speed*.svg")) == ["speed-0.svg", "speed-1.svg"]
    two = results.load(made.client, SID).rows
    with pytest.raises(ValueError, match="2 machines"):
        figures.speed(two)


def test_the_answers_are_those_of_slow_twins(made: Made, written: Written) -> None:
    answer = {a["question"]: a for a in written.summary["answers"]}
    at = {
        s: made.runs[p].metrics["perplexity_ratio"]
        for s, p in ((0.3, "ticket-0"), (0.5, "ticket-1"), (0.55, "refine-0"))
    }
    below = max(s for s, r in at.items() if r <= 1.1)
    above = min(s for s, r in at.items() if s > below)
    crossing = np.interp(np.log(1.1), [np.log(at[below]), np.log(at[above])], [below, above])
    assert f"{crossing:.1%} of the weights of `all`" in answer["How much can be cut?"]["sentence"]
    # Two models put three targets in an order: tau, and its interval by scipy, resample for resample.
    found = results.load(made.client, "locate")
    targets = ("all", "attention", "mlp")
    nll = [
        np.stack([made.runs[p].found.nll_N for p in parts], 1)
        for parts in (("ticket-1", "ticket-3", "ticket-4"), ("ticket-9", "ticket-10", "ticket-11"))
    ]
    ratios = [
        [made.runs[p].metrics["perplexity_ratio"] for p in parts]
        for parts in (("ticket-1", "ticket-3", "ticket-4"), ("ticket-9", "ticket-10", "ticket-11"))
    ]
    rows = answers.chief(answers.measured(results.records(found.rows)))
    ranked = {r.base: r for r in answers.rankings(rows, found.nll) if r.level == 0.5 and set(targets) <= set(r.targets)}
    row = answers.agreement(ranked["builtin"], ranked[made.bad_base], resamples=200)
    assert row is not None and row["tau"] == pytest.approx(stats.kendalltau(*ratios).statistic)
    twin = [
        stats.kendalltau(nll[0].T @ a, nll[1].T @ b).statistic
        for a, b in zip(answers.draws(6, 200, 1), answers.draws(6, 200, 2), strict=True)
    ]
    low = answers.tail(6)
    assert (row["lo"], row["hi"]) == pytest.approx(tuple(np.quantile(twin, [low, 1 - low])))
    said = next(r for r in csv.DictReader((written.folder / "tables/agreement.csv").read_text().splitlines()))
    assert float(said["tau"]) == pytest.approx(row["tau"]) and int(said["pairs"]) == 3
    # The ranking's interval is the run's own, and its order is that of the ratios.
    ranking = pd.read_csv(written.folder / "tables/where.csv")
    mine = ranking[(ranking["base"] == "builtin") & (ranking["level"] == 0.5)].sort_values("rank")
    assert list(mine["ratio"]) == sorted(mine["ratio"]) and len(mine) == 5
    for a, b in combinations(range(3), 2):
        difference = nll[0][:, a] - nll[0][:, b]
        hi = answers.interval(difference)[1]
        better = next(r for r in mine.to_dict("records") if r["target"] == targets[a])["certain_better_than"]
        assert (targets[b] in str(better).split(", ")) == (hi < 0)
    eight = next(csv.DictReader((written.folder / "tables/eight_bits.csv").read_text().splitlines()))
    difference = made.runs["ticket-7"].found.nll_N - made.runs["ticket-1"].found.nll_N
    assert float(eight["ratio"]) == pytest.approx(np.exp(difference.mean()))
    assert answer["Do bigger models hold better tickets?"]["answer"] is None  # the random model has no cliff


def test_no_word_of_a_run_becomes_markup(made: Made, written: Written) -> None:
    page = written.page
    assert not page.names & {"script", "iframe", "object", "embed", "form", "input", "b ", "img"}
    assert all(a.startswith("#") or a == "data:," for a in page.addresses), page.addresses
    assert any(f"says </div></html> {BAD}" in w for w in page.words) and any(FOLDER in w for w in page.words)
    for path in written.folder.glob("figures/*.svg"):
        assert "<script" not in path.read_text(encoding="utf-8")
    latex = "".join(p.read_text() for p in written.folder.glob("tables/*.tex"))
    body = [line for line in latex.splitlines() if not line.startswith("%")]
    for line in body:
        plain = re.sub(
            r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl)\{\}", "", line
        )
        plain = re.sub(r"\\[{}$&#%_]|\{\[\}|\{\]\}", "", plain)
        plain = re.sub(r"^\\(begin|end)\{tabular\}(\{[lr]+\})?$|^\\hline$|\\\\$", "", plain)
        assert not re.search(r"[\\{}$#%_^~]", plain), line
    assert r"\textbackslash{}input\{x\}" in latex
    for path in written.folder.glob("tables/*.md"):
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1 and "<script" not in path.read_text()


def test_the_report_is_a_run_of_the_store(made: Made, written: Written) -> None:
    run = made.client.get_run(written.summary["run_id"])
    assert run.info.status == "FINISHED" and run.info.run_name == "report locate"
    assert (run.data.tags["kind"], run.data.tags["study"]) == ("report", "locate")
    folders = {
        f.path: [g.path for g in made.client.list_artifacts(run.info.run_id, f.path)]
        for f in made.client.list_artifacts(run.info.run_id)
    }
    assert set(folders) == {"index.html", "report.json", "figures", "tables"}
    assert (
        sorted(folders["figures"]) == written.summary["figures"]
        and sorted(folders["tables"]) == written.summary["tables"]
    )
    assert {Path(f).suffix for f in folders["tables"]} == {".md", ".csv", ".tex"}


def test_again_into_the_same_folder_gives_the_same_files(made: Made, written: Written) -> None:
    before = {p: p.read_bytes() for p in written.folder.rglob("*") if p.is_file()}
    stale = written.folder / "figures" / "old.svg"
    stale.write_text("of an earlier study")
    report.report(SID, written.folder, record=False)
    after = {p: p.read_bytes() for p in written.folder.rglob("*") if p.is_file()}
    assert before == after and not stale.exists()


def test_neither_torch_nor_transformers_are_needed(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys; from lottery.cli import main\n"
        f"main(['report', '--study', {made.parent!r}, '--out', {str(tmp_path / 'r')!r}, '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'numba', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tickets"] == 14 and (tmp_path / "r" / "index.html").exists()


def test_the_newest_study_is_the_default_and_tickets_alone_will_do(
    made: Made, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert lottery_json("report", "--out", tmp_path / "a")["studies"][0]["run_id"] == made.parent
    text = cli("report", "--study", f"locate,{SID}", "--out", tmp_path / "b").stdout  # the same study twice is one
    assert "How much can be cut?" in text and f"report: {tmp_path / 'b' / 'index.html'}" in text
    tags = f"tags.`study.{SID}` = 'ticket-0'"
    found = lottery_json("report", "--filter", tags, "--out", tmp_path / "c")
    assert found["tickets"] == 1 and found["study"] == ""
    assert rows_of(Written(tmp_path / "c", found, Elements((tmp_path / "c/index.html").read_text())), "builtin")[
        "dense"
    ]
    frame = results.tickets("params.target = 'mlp' and metrics.perplexity_ratio > 1")
    assert set(frame["target"]) == {"mlp"} and frame["perplexity"].notna().all() and frame["sparsity"].dtype == float


def test_a_study_in_which_nothing_is_measured_and_other_bad_input(
    made: Made, cli: Callable[..., Result], tmp_path: Path
) -> None:
    begin_study("empty", "ffffffffffff", {"tickets": [{"part": "ticket-0", "title": "all 30%", "base": "builtin"}]})
    odd = made.client.create_run("0", tags={"kind": "study", "study": "odd"}).info.run_id
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    out = ("--out", tmp_path / "r")
    for arguments, words in (
        (("--study", "lokate", *out), "study=lokate: no such study; there are: odd, empty, locate"),
        (("--study", "empty", *out), "none of its tickets is measured (1 missing)"),
        (("--study", odd, *out), "has no study_id"),
        (("--filter", "params.target = 'nothing'", *out), "no finished ticket fulfils it"),
        (("--filter", "sparsity is high", *out), "filter=sparsity is high: "),
        (("--study", "locate", "--filter", "params.target = 'all'", *out), "give one of them"),
        (("--study", "locate", "--out", other), "it holds notes.txt, no report; give a new folder"),
        (("--study", "locate", "--out", tmp_path / "file"), "it is a file; give a folder"),
    ):
        said = cli("report", *arguments, code=2).stderr
        assert words in said and said.count("\n") == 1 and "Traceback" not in said, said
    assert not (tmp_path / "r").exists() and [p.name for p in other.iterdir()] == ["notes.txt"]
    made.client.delete_run(odd)


def test_a_store_that_takes_no_report_costs_no_report(
    made: Made, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made.client.delete_experiment(made.client.create_experiment("gone"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    result = cli("report", "--study", "locate", "--out", tmp_path / "r", "--json")
    assert "did not take the report" in result.stderr and json.loads(result.stdout)["run_id"] is None
    assert (tmp_path / "r" / "index.html").exists()


def test_a_study_whose_plan_is_gone_or_nonsense_has_a_report(made: Made, tmp_path: Path) -> None:
    for study_id, plan in (
        ("eeeeeeeeeeee", None),
        ("dddddddddddd", '{"tickets": [1, {"part": "ticket-0", "budget": "x", "params": 3}], "left_out": 4}'),
    ):
        tags = {"kind": "study", "study": study_id, "study_id": study_id}
        run_id = made.client.create_run("0", tags=tags).info.run_id
        if plan:
            made.client.log_text(run_id, plan, "plan.json")
        made.client.set_tag(made.runs["ticket-0"].run_id, f"study.{study_id}", "ticket-0")
        assert report.report(run_id, tmp_path / study_id, record=False)["tickets"] == 1
        page = (tmp_path / study_id / "index.html").read_text()
        assert ("cannot be read: what is missing is not known" in page) == (plan is None)
        made.client.delete_run(run_id)


@pytest.fixture(scope="module")
def pages() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize("width", [1280, 390])
def test_it_reads_well_in_a_browser(pages: Any, written: Written, tmp_path: Path, width: int) -> None:
    with new_page(pages) as page:
        asked, said = [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("console", lambda m: said.append(m.text))
        page.on("pageerror", lambda e: said.append(str(e)))
        page.set_viewport_size({"width": width, "height": 900})
        address = (written.folder / "index.html").as_uri()
        page.goto(address)
        assert [a for a in asked if a != "data:,"] == [address] and said == []
        assert page.evaluate("document.scrollingElement.scrollWidth") <= width
        seen = page.evaluate(
            "[...document.querySelectorAll('figure svg')].map(e => { const b = e.getBoundingClientRect();"
            " return [b.width, b.height, b.left, b.right, getComputedStyle(e).visibility] })"
        )
        assert len(seen) == len(list(written.folder.glob("figures/*.svg"))) >= 7
        for w, h, left, right, visibility in seen:
            assert w > 250 and h > 90 and left >= 0 and right <= width and visibility == "visible"
        # A wide table scrolls inside its own box.
        boxes = page.evaluate("[...document.querySelectorAll('.scroll')].map(e => [e.scrollWidth, e.clientWidth])")
        assert (width > 400) or any(inner > outer for inner, outer in boxes)
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        words = page.evaluate("[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)")
        assert min(words) > 6  # pixels: on a phone the smallest label is still one that can be read
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        with Image.open(tmp_path / "page.png") as image:
            colours = image.convert("RGB").getcolors(1 << 24) or []
        assert len(colours) > 200 and max(n for n, _ in colours) < 0.9 * sum(n for n, _ in colours)
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots an inch
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 794
