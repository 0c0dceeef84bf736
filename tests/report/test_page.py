"""`lottery report` on real runs of real tickets, and its page in a real browser."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from scipy import stats

from lottery.measuring import intervals
from lottery.measuring.numbers import format_ends, format_perplexity
from lottery.registry import parts, store
from lottery.report import efficiency, frames, grouping, rankings, results, writing
from tests.support.browser import new_page, open_browser
from tests.support.models import tiny_model
from tests.support.paths import ROOT
from tests.support.reports import Elements, Made, Written, begin_study, read, rows_of

BAD = "<script>alert(1)</script> & 50% of $x_1$ \\input{x} #~^ | `a`"  # for HTML, LaTeX, Markdown
FOLDER = "<script>alert(1)<b> 50%_of $x_1$ & #~^"  # a model's name: the same, as a file system has it
PLACES = """
name: places
question: "Which part can be cut? QUESTION"
models: [builtin]
dataset: builtin
limit: 4
register: none
measure: perplexity
grid:
  - {target: all, sparsity: [0.3, 0.5, 0.7], refine: 0.1}
  - {target: [attention, mlp, early], sparsity: 0.5}
  - {target: all, sparsity: 0.5, quantize: int8}
  - {target: all, sparsity: 0.5, measure: "perplexity,memory,samples", control: 1}
  - {target: all, sparsity: 0.5, window: 256}
"""
PAIR = """
name: pair
question: Is it the same in both?
models: ["builtin", "MODEL"]
dataset: builtin
limit: 4
register: none
measure: perplexity
grid:
  - {target: [all, attention, mlp, early], sparsity: 0.5}
  - {target: early, sparsity: 0.3}
  - {target: late, sparsity: 0.5, measure: "perplexity,speed"}
  - {target: q_proj@6, sparsity: 0.5}  # a layer that it does not have
"""
FAST_HARDWARE, SLOW_HARDWARE = "Fast Accelerator 9000", "AMD <b>EPYC</b>"
COMMON = ("all", "attention", "mlp", "late")


@pytest.fixture(scope="module")
def made(cli: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two studies: of the embedded model, and of that one beside a random one of another family, which lacks a layer.
    One ticket is taken away again, one failed, one was measured on another machine, and what people and texts say is hostile."""
    folder = tmp_path_factory.mktemp("study")
    other = tiny_model(folder / FOLDER, "Qwen2")
    (folder / "places.yaml").write_text(PLACES.replace("QUESTION", BAD.replace("\\", "\\\\")), encoding="utf-8")
    (folder / "pair.yaml").write_text(PAIR.replace("MODEL", str(other)), encoding="utf-8")
    places = json.loads(cli("study", folder / "places.yaml", "--json").stdout)
    pair = json.loads(cli("study", folder / "pair.yaml", "--json").stdout)
    client, runs = store.connect(), {}
    for row in sorted([*places["tickets"], *pair["tickets"]], key=lambda row: len(row["metrics"])):
        where = " w256" if row["params"]["window"] == "256" else ""
        runs[row["base"], row["title"] + where] = client.get_run(row["run_id"])
        client.set_tag(row["run_id"], "hardware", SLOW_HARDWARE)
    result = Made(client, places["study_id"], parts.part_key(places["run_id"]), pair["run_id"], runs)
    client.delete_run(runs.pop((FOLDER, "early 50%")).info.run_id)
    failed = runs.pop((FOLDER, "early 30%")).info.run_id
    client.set_terminated(failed, "FAILED")
    client.set_tag(failed, "reason", f"no such window {BAD}")
    client.set_tag(runs["builtin", "late 50%"].info.run_id, "hardware", FAST_HARDWARE)
    of_person = runs["builtin", "all 50%"].info.run_id
    for key, value in {"coherent": "no", "note": BAD}.items():
        client.set_tag(of_person, key, value)
    texts = [{"prompt": f"The {BAD}", "text": f"says </div></html> {BAD}", "dense": f"dense {BAD}"}]
    client.log_text(of_person, json.dumps(texts), "samples.json")
    return result


@pytest.fixture(scope="module")
def written(
    made: Made, lottery_json: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Written:
    folder = tmp_path_factory.mktemp("reports") / "places"
    summary = lottery_json("report", "--study", "places,pair", "--out", folder)
    return Written(folder, summary, Elements((folder / "index.html").read_text(encoding="utf-8")))


def test_the_tables_hold_what_was_measured(made: Made, written: Written) -> None:
    shown = rows_of(written, "builtin")
    assert next(iter(shown)) == "dense" and shown["dense"]["ratio to dense [95%]"] == "1"
    refined = [title for (base, title), run in made.runs.items() if base == "builtin" and "refine" in made.part(run)]
    assert refined and len(of_all := [t for t in shown if re.fullmatch(r"all [0-9.]+%", t)]) == 3 + len(refined)
    assert of_all == sorted(of_all, key=lambda title: float(title[4:-1]))
    for title in ("all 30%", "all 50%", "all 50% int8", "late 50%", *refined):
        m, row = made.metrics(title), shown[title]
        for column, name, digits in (
            ("perplexity [95%]", "perplexity", 2),
            ("ratio to dense [95%]", "perplexity_ratio", 4),
        ):
            assert row[column] == format_ends(m[name], m[f"{name}_lo"], m[f"{name}_hi"], digits)
        assert row["file MB"] == f"{m['disk_bytes'] / 1e6:,.2f}" and row["of the base's"] == f"{m['disk_ratio']:.3f}"
    m, row = made.metrics("all 50%"), shown["all 50%"]
    assert row["random controls (least to greatest)"].startswith(f"{format_perplexity(m['control_perplexity'])} (")
    assert row["beats the controls"] == made.runs["builtin", "all 50%"].data.tags["beats_control"]
    assert row["winner"] == "not judged: 4 of 54 windows" and row["coherent, to a reader"] == f"no ({BAD})"
    sheets = [r for name in written.page.tables if name.startswith("tickets-") for r in read(written, name)]
    (kept,) = [r for r in sheets if r["base"] == "builtin" and r["title"] == "all 30%"]
    assert float(kept["perplexity"]) == made.metrics("all 30%")["perplexity"]
    assert kept["run_id"] == made.runs["builtin", "all 30%"].info.run_id


def test_what_is_not_there_is_shown_with_its_reason(made: Made, written: Written) -> None:
    shown = rows_of(written, FOLDER, "")
    assert "early 30%: failed" in shown and "early 50%: missing" in shown and "all 50%" in shown
    assert not [title for title in rows_of(written, "builtin") if "missing" in title or "failed" in title]
    states = {(row[0], row[2]): row for row in written.page.tables["absent"][1:]}
    assert states["early 30%", "failed"][3] == f"no such window {BAD}"
    assert states["early 50%", "missing"][1] == FOLDER
    left = written.page.tables["left_out"][1]
    assert left[0] == "q_proj@6" and FOLDER in left[1] and left[2]
    assert ("early 50%", "missing") in {(r["title"], r["state"]) for r in written.summary["absent"]}
    assert any("1 failed, 1 missing, 1 left out" in w for w in written.page.words)


def test_protocols_are_kept_apart_and_said_so(made: Made, written: Written) -> None:
    sheets = [{r["protocol"] for r in read(written, n)} - {""} for n in written.page.tables if n.startswith("tickets-")]
    assert len(sheets) == 3 and all(len(protocols) == 1 for protocols in sheets)
    other = made.runs["builtin", "all 50% w256"].data.tags["protocol"]
    assert {other} in sheets and list(rows_of(written, "builtin", "windows of 256")) == ["dense", "all 50%"]
    assert "Of builtin there are tickets of several protocols." in " ".join(written.page.words)
    assert other not in {r["protocol"] for r in read(written, "cliff")}


def test_speeds_of_two_machines_are_never_in_one_column(made: Made, written: Written) -> None:
    speeds = [written.page.tables[f"speed-{i}"] for i in range(2)]
    assert {written.page.titles[f"speed-{i}"].split(" At batch")[0] for i in range(2)} == {SLOW_HARDWARE, FAST_HARDWARE}
    for head, *body in speeds:
        assert len(body) == 1  # of each machine its ticket alone
        for row in (dict(zip(head, cells, strict=True)) for cells in body):
            fast = written.page.titles[f"speed-{speeds.index([head, *body])}"].startswith(FAST_HARDWARE)
            run = made.runs["builtin" if fast else FOLDER, row["ticket"]]
            local = made.client.download_artifacts(run.info.run_id, "measurements.json")
            beside = json.loads(Path(local).read_text(encoding="utf-8"))["dense"]
            assert row["decode tok/s [quartiles]"].startswith(f"{run.data.metrics['decode_tok_s']:,.1f} [")
            assert row["dense, same process"] == f"{beside['decode_tok_s']:,.1f}"
    assert sorted(p.name for p in (written.folder / "figures").glob("speed*.svg")) == ["speed-0.svg", "speed-1.svg"]
    with pytest.raises(ValueError, match="2 machines"):
        efficiency.plot_speed(results.load(made.client, "pair").rows)


def test_the_answers_are_those_of_slow_twins(made: Made, written: Written) -> None:
    answer = {a["question"]: a for a in written.summary["answers"]}
    of_all = [title for base, title in made.runs if base == "builtin" and re.fullmatch(r"all [0-9.]+%", title)]
    at = {float(title[4:-1]): made.metrics(title)["perplexity_ratio"] for title in of_all} | {0.0: 1.0}
    below = max(s for s, r in at.items() if r <= 1.1)
    above = min(s for s in at if s > below)
    crossing = np.interp(np.log(1.1), [np.log(at[below]), np.log(at[above])], [below, above])
    won = max(float(t[4:-1]) for t in of_all if made.metrics(t)["perplexity_ratio_hi"] <= 1.1)
    cut = answer["How much can be cut?"]
    assert cut["answer"] == f"{won:g}% (an estimate, not judged)"
    assert f"builtin: {won:g}% of the weights of `all` can go: the ticket there would win" in cut["sentence"]
    assert f"the curve is 10% over the dense model's perplexity at about {crossing:.1f}%" in cut["sentence"]
    # Two models put four targets in an order: tau, and its interval by scipy, resample for resample.
    found = results.load(made.client, "places,pair")
    rows = grouping.keep_main_protocol(grouping.measured_tickets(frames.records(found.rows)))
    ranked = [r for r in rankings.rank_targets(rows, found.nll) if r.level == 0.5 and not r.cells and not r.setting]
    one, other = sorted(ranked, key=lambda r: r.base != "builtin")
    assert (one.base, other.base, set(other.targets)) == ("builtin", FOLDER, set(COMMON))
    ratios = [[made.metrics(f"{t} 50%", base)["perplexity_ratio"] for t in COMMON] for base in ("builtin", FOLDER)]
    nll = [np.stack([made.nll(f"{t} 50%", base) for t in COMMON], 1) for base in ("builtin", FOLDER)]
    row = rankings.compare_rankings(one, other, resamples=200)
    assert row is not None and row["tau"] == pytest.approx(stats.kendalltau(*ratios).statistic)
    twin = [
        stats.kendalltau(nll[0].T @ a, nll[1].T @ b).statistic
        for a, b in zip(intervals.resample_counts(4, 200, 1), intervals.resample_counts(4, 200, 2), strict=True)
    ]
    low = intervals.expanded_tail(4)
    assert (row["lo"], row["hi"]) == pytest.approx(tuple(np.quantile(twin, [low, 1 - low])))
    said = next(r for r in read(written, "agreement") if r["cells"] == "False")
    assert float(said["tau"]) == pytest.approx(row["tau"]) and int(said["pairs"]) == 6
    # A ranking is in the order of the ratios, and says what its windows say.
    where = [r for r in read(written, "where") if (r["base"], r["level"], r["cells"]) == ("builtin", "0.5", "False")]
    mine = [r for r in where if not r.get("setting")]
    assert [float(r["ratio"]) for r in mine] == sorted(
        made.metrics(f"{r['target']} 50%")["perplexity_ratio"] for r in mine
    )
    # Four windows make nothing certain, although some interval of theirs does not hold 0, and each answer is an estimate.
    apart = [intervals.difference_interval(a - b)[1] for a, b in permutations(nll[0].T, 2)]
    assert min(apart) < 0 and not any(r.get("certain_better_than", "").strip("[]") for r in where)
    known = [a for a in written.summary["answers"] if a["answer"]]
    assert len(known) == 4 and all(a["answer"].endswith(" (an estimate, not judged)") for a in known)
    assert "the order of 0 of" in answer["Where is it?"]["sure"] and "0 are certainly worse" in known[3]["sure"]
    assert known[2]["answer"].startswith("open") and "fewer than 12 windows, which decide nothing" in known[2]["sure"]
    eight = next(r for r in read(written, "eight_bits") if r["base"] == "builtin")
    assert float(eight["ratio"]) == pytest.approx(np.exp((made.nll("all 50% int8") - made.nll("all 50%")).mean()))
    assert answer["Do bigger models hold better tickets?"]["answer"] is None  # the random model has no cliff


def test_what_is_not_judged_or_not_answered_is_said_at_the_top_and_in_one_line(
    made: Made, cli: Callable[..., Result], tmp_path: Path
) -> None:
    text = cli("report", "--study", "places", "--out", tmp_path / "said").stdout
    page = (tmp_path / "said" / "index.html").read_text(encoding="utf-8")
    note = "These tickets are not judged: 4 of 54 windows; 4 of 109 windows. What is said of them is an estimate."
    assert text.startswith(f"{note}\nHow much can be cut? ")
    assert page.count(note) == 1 and page.index(note) < page.index('class="cards"')
    assert re.search(r"\d+ measured, none judged: 4 of 54 windows; 4 of 109 windows<", page)
    (line,) = [line for line in text.splitlines() if line.startswith("Not answered here: ")]
    for open in ("Is it the same in every model?", "Do bigger models hold better tickets?"):
        assert f'"{open}" needs two models' in line
    assert page.count("Not answered here") == 1 and "not known" not in page + text


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
    assert run.info.status == "FINISHED" and run.info.run_name == "report places,pair"
    assert (run.data.tags["kind"], run.data.tags["study"]) == ("report", "places,pair")
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
    stale, mine = written.folder / "figures" / "old.svg", written.folder / "figures" / "mine.txt"
    stale.write_text("of an earlier study")
    mine.write_text("not of any report")
    (written.folder / "tables" / "drafts").mkdir()
    there = json.loads((written.folder / "report.json").read_text())
    there["figures"] += ["figures/old.svg", "figures/../../escaped.txt"]
    (written.folder / "report.json").write_text(json.dumps(there))
    (escaped := written.folder.parent / "escaped.txt").write_text("of somebody else")
    run_id = writing.write_report(f"{made.id},pair", written.folder)["run_id"]
    after = {p: p.read_bytes() for p in written.folder.rglob("*") if p.is_file()}
    assert escaped.exists() and after.pop(mine) and before == after and not stale.exists()
    assert "figures/mine.txt" not in [f.path for f in made.client.list_artifacts(run_id, "figures")]
    mine.unlink()
    (written.folder / "tables" / "drafts").rmdir()


def test_neither_torch_nor_transformers_are_needed(made: Made, tmp_path: Path) -> None:
    code = (
        "import sys; from lottery.cli.main import main\n"
        f"main(['report', '--study', {made.newest!r}, '--out', {str(tmp_path / 'r')!r}, '--json'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'numba', 'matplotlib.pyplot'} & set(sys.modules), 'imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tickets"] > 5 and (tmp_path / "r" / "index.html").exists()


def test_the_newest_study_is_the_default_and_tickets_alone_will_do(
    made: Made, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert lottery_json("report", "--out", tmp_path / "a")["studies"][0]["run_id"] == made.newest
    text = cli("report", "--study", f"places,{made.id}", "--out", tmp_path / "b").stdout  # the same study twice is one
    assert "How much can be cut?" in text and f"report: {tmp_path / 'b' / 'index.html'}" in text
    tags = f"tags.`{made.key}` = 'ticket-0'"
    found = lottery_json("report", "--filter", tags, "--out", tmp_path / "c")
    assert found["tickets"] == 1 and found["study"] == ""
    assert rows_of(Written(tmp_path / "c", found, Elements((tmp_path / "c/index.html").read_text())), "builtin")[
        "dense"
    ]
    frame = results.search_tickets("params.target = 'mlp' and metrics.perplexity_ratio > 1")
    assert set(frame["target"]) == {"mlp"} and frame["perplexity"].notna().all() and frame["sparsity"].dtype == float


def test_a_study_in_which_nothing_is_measured_and_other_bad_input(
    made: Made, cli: Callable[..., Result], tmp_path: Path
) -> None:
    begin_study("empty", "ffffffffffff", '{"tickets": [{"part": "ticket-0", "title": "all 30%", "base": "builtin"}]}')
    odd = made.client.create_run("0", tags={"kind": "study", "study": "odd"}).info.run_id
    other = tmp_path / "notes"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    (tmp_path / "site" / "figures").mkdir(parents=True)
    for name in ("index.html", "report.json"):
        (tmp_path / "site" / name).write_text("{}")
    out = ("--out", tmp_path / "r")
    for arguments, words in (
        (("--study", "lokate", *out), "study=lokate: no such study; known: odd, empty, pair, places"),
        (("--study", "empty", *out), "none of its tickets is measured (1 missing)"),
        (("--study", odd, *out), "none of its tickets is measured (none planned)"),
        (("--filter", "params.target = 'nothing'", *out), "no finished ticket fulfils it"),
        (("--filter", "sparsity is high", *out), "filter=sparsity is high: "),
        (("--study", "places", "--filter", "params.target = 'all'", *out), "give one of them"),
        (("--study", "places", "--out", other), "it holds notes.txt, no report; give a new folder"),
        (("--study", "places", "--out", tmp_path / "file"), "it is a file; give a folder"),
        (("--study", "places", "--out", tmp_path / "site"), "it holds figures, index.html, report.json, no report"),
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
    result = cli("report", "--study", "places", "--out", tmp_path / "r", "--json")
    assert "did not take the report" in result.stderr and json.loads(result.stdout)["run_id"] is None
    assert (tmp_path / "r" / "index.html").exists()


def test_a_study_whose_plan_is_gone_or_nonsense_has_a_report(made: Made, tmp_path: Path) -> None:
    of_builtin = made.runs["builtin", "all 30%"].info.run_id
    odd = '{"tickets": [1, {"part": "ticket-0", "budget": "x", "params": 3}], "left_out": 4}'
    for study_id, plan in (("eeeeeeeeeeee", "no JSON"), ("dddddddddddd", odd)):
        run_id = begin_study(study_id, study_id, plan)
        made.client.set_tag(of_builtin, parts.part_key(run_id), "ticket-0")
        assert writing.write_report(run_id, tmp_path / study_id, record=False)["tickets"] == 1
        written = (tmp_path / study_id / "index.html").read_text(encoding="utf-8")
        assert ("cannot be read: what is missing is not known" in written) == (plan != odd)
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
