"""What a hypothesis found becomes a small file, and from such files alone come the page, its figures and the README's place."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lottery.errors import InputError
from lottery.report import hypothesis_saved as saved
from lottery.report import hypothesis_tables as tables
from lottery.report import images
from lottery.report.hypothesis_answers import answer_all
from lottery.report.hypothesis_barriers import barrier_figures
from lottery.report.hypothesis_figures import figures_of
from lottery.report.hypothesis_page import draw_places
from lottery.training.stories import write_stories
from tests.analysis.test_collect import words_of
from tests.analysis.test_eight_bits import script
from tests.support.hypothesis_records import quick, sample, with_accidents
from tests.support.paths import ROOT
from tests.support.studies import write

PLACES = ("answers", "runs", "readme")
PAGE = "# Page\n\n" + "\n\n".join(f"<!-- hypothesis:{name} -->\nold\n<!-- /hypothesis -->" for name in PLACES) + "\n"
QUESTIONS = ("*Does a ticket match the dense network?* ", "*Does it beat its controls?* ", "*Can it be found before training?* ")  # fmt: skip
SMALL = {"layers": 1, "width": 8, "heads": 2, "inner": 8, "vocabulary": 257, "context": 8, "batch": 2, "steps": 20}


@pytest.fixture
def collect() -> Any:
    return script("collect")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "analysis"))
    return script("figures")


def put(folder: Path, **records: dict[str, Any]) -> None:
    """Writes a file of results for each record."""
    folder.mkdir(exist_ok=True)
    for name, record in records.items():
        file = folder / f"hypothesis-{name.replace('_', '-')}.json"
        file.write_text(saved.file_text(record, {"lottery": "0"}), encoding="utf-8")


def on(text: str, record: dict[str, Any], name: str = "full") -> dict[str, Any]:
    return record | {"name": name, "text": record["text"] | {"name": text}}


@pytest.mark.parametrize(
    "record",
    [quick(), with_accidents(sample(longer=True)), sample(seeds=range(5), longer=True), sample(shift=0.2, barriers=False)],
    ids=["quick", "accidents", "five seeds", "no ticket"],
)  # fmt: skip
def test_a_file_says_what_the_whole_record_says(record: dict[str, Any], tmp_path: Path) -> None:
    """The twin is the page of the whole record, in which nothing was left out."""
    put(tmp_path, one=record)
    file = tmp_path / "hypothesis-one.json"
    found = saved.read_saved(file)
    assert file.stat().st_size < 200_000 and file.stat().st_size < len(json.dumps(record)) / 4
    assert [(a.short, a.sentence, a.sure, a.about) for a in answer_all(found)] == [
        (a.short, a.sentence, a.sure, a.about) for a in answer_all(record)
    ]
    for sheet in (tables.claims_table, tables.claims_summary, tables.arms_table, tables.rates_table, tables.barriers_table,
                  tables.unfinished_table, tables.empty_table, tables.tickets_table):  # fmt: skip
        ours, whole = sheet(found), sheet(record)
        assert (ours and ours.rows) == (whole and whole.rows), sheet
    made, expected = ({**figures_of(r), **barrier_figures(r), **draw_places(r)[0]} for r in (found, record))
    assert set(made) == set(expected)
    for name in set(made) & {"loss", "barrier", "before", "places"}:  # those of the documents
        assert words_of(images.to_svg(made[name][0])) == words_of(images.to_svg(expected[name][0])), name
    assert draw_places(found)[1] == draw_places(record)[1]


def test_trainings_come_back_as_they_were() -> None:
    record = with_accidents(sample(longer=True))
    back = saved.unpack_trainings(saved.unpack(saved.pack_trainings(record["trainings"])))
    key = lambda t: json.dumps([t[name] for name in ("arm", "density", "rewind", "lr", "steps", "seed")])  # noqa: E731
    for ours, theirs in zip(sorted(back, key=key), sorted(record["trainings"], key=key), strict=True):
        assert {k: v for k, v in theirs.items() if k not in ("id", "run_id") and v not in (None, [])} == {
            k: v for k, v in ours.items() if v not in (None, [])
        }


def test_documents_without_any_result(figures: Any, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    text = fill(figures, tmp_path)
    assert text.count("Not measured yet.") == 3 and "![" not in text and not list((tmp_path / "figures").iterdir())


def fill(figures: Any, folder: Path) -> str:
    page = folder / "page.md"
    if not page.exists():
        page.write_text(PAGE)
    arguments = ["--results", str(folder / "results"), "--out", str(folder / "figures"), "--page", str(page)]
    done = CliRunner().invoke(figures.main, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    text = page.read_text()
    assert "\nold\n" not in text
    assert set(re.findall(r"\]\(figures/([\w.-]+)\)", text)) == {path.name for path in (folder / "figures").iterdir()}
    return text


def place(text: str, name: str) -> str:
    return text.split(f"<!-- hypothesis:{name} -->\n")[1].split("<!-- /hypothesis -->")[0]


def test_documents_with_the_quick_preset_alone(figures: Any, tmp_path: Path) -> None:
    put(tmp_path / "results", quick_stories=quick() | {"name": "quick"})
    text = fill(figures, tmp_path)
    assert fill(figures, tmp_path) == text
    readme = place(text, "readme")
    assert readme.count("![") == 1 and "figures/hypothesis-quick-stories-loss.svg" in readme
    assert all(readme.count(question) == 1 for question in QUESTIONS) and "The preset `quick`, 1 seed. " in readme
    assert (
        "*Does a ticket match the dense network?* Yes, at 21% on `stories`." in readme and len(readme.splitlines()) == 3
    )
    assert "| question | `quick` on `stories`, 1 seed |" in place(text, "answers")
    runs = place(text, "runs")
    assert "1 seed, 27 trainings, 12 min of one core: 800 steps of 16 windows of 64 tokens." in runs
    assert (
        "One seed: the intervals are over windows of text alone" in runs
        and "This run did not train `original`, " in runs
    )
    assert runs.count("<details>") == runs.count("</details>") == 3  # claims, arms, more figures


def test_documents_with_several_runs(figures: Any, tmp_path: Path) -> None:
    full = with_accidents(sample(longer=True))
    put(
        tmp_path / "results",
        quick_stories=quick() | {"name": "quick"},
        full_stories=on("stories", full),
        full_moby=on("moby.txt", full),
    )
    text = fill(figures, tmp_path)
    head = "| question | `full` on `moby.txt`, 3 seeds | `full` on `stories`, 3 seeds | `quick` on `stories`, 1 seed |"
    assert head in place(text, "answers")
    assert "**yes, at 21%** `rewound` at 21%, k=5% | **yes, at 21%**" in place(text, "answers")
    runs = place(text, "runs")
    assert re.findall(r"^### (.*)$", runs, re.M) == [
        "`full` on `moby.txt`",
        "`full` on `stories`",
        "`quick` on `stories`",
    ]
    assert runs.count("Trainings without a loss: 1 diverged and 36 missing.") == 2
    assert "*Does it beat its controls?* Yes, at 21% on `moby.txt` and `stories`." in place(text, "readme")
    assert (
        "| Where do the surviving weights sit? | **most in `early`, least in `late`** 19% to 23% of each part" in text
    )
    assert "figures/hypothesis-full-moby-loss.svg" in place(text, "readme") and place(text, "readme").count("![") == 1
    (tmp_path / "results" / "hypothesis-full-moby.json").unlink()
    assert "moby" not in fill(figures, tmp_path)  # nor are its figures there


def test_a_place_that_does_not_exist_is_said(figures: Any, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    page = tmp_path / "page.md"
    page.write_text("<!-- hypothesis:nothing -->\nold\n<!-- /hypothesis -->\n")
    done = CliRunner().invoke(
        figures.main, ["--results", str(tmp_path / "results"), "--out", str(tmp_path), "--page", str(page)]
    )
    assert "hypothesis:nothing is no part of it" in done.stderr and "\nold\n" in page.read_text()


def test_a_real_run_is_collected_by_name_by_run_and_from_its_file(
    collect: Any, figures: Any, lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    home = tmp_path / "Private Folder"
    home.mkdir()
    text = home / "novel.txt"
    text.write_text(write_stories(9, 100_000))
    grid = [{"arm": "dense"}, {"arm": ["rewound", "shuffled"], "density": 0.8, "rewind": 0.1}]
    preset = write(home, "small", name="small", grid=grid, **SMALL)
    out = lottery_json("hypothesis", "--preset", preset, "--text", text, "--jobs", "1", "--out", home / "report")
    import mlflow

    raw = mlflow.artifacts.download_artifacts(run_id=out["run_id"], artifact_path="hypothesis.json", dst_path=str(home))
    written: list[str] = []
    for name in ("small", out["run_id"], raw):
        target = tmp_path / "results" / f"hypothesis-{len(written)}.json"
        done = CliRunner().invoke(collect.main, ["--hypothesis", name, "--out", str(target)])
        assert done.exit_code == 0 and "3 trainings of small on novel.txt" in done.stdout, (done.output, done.exception)
        written.append(target.read_text())
    assert len(set(written)) == 1 and len(written[0]) < 20_000
    assert "Private" not in written[0] and str(ROOT) not in written[0]
    record = json.loads(written[0])["hypothesis"]
    assert record["command"].startswith("lottery hypothesis --preset 'small.yaml' --text 'novel.txt' ")
    whole = json.loads(Path(raw).read_text())
    assert answer_all(saved.read_saved(target))[0].sentence == answer_all(whole)[0].sentence
    assert "`small` on `novel.txt`" in fill(figures, tmp_path)


def test_what_is_no_such_record_is_said_in_a_line(cli: Callable[..., Result], collect: Any, tmp_path: Path) -> None:
    for name, content in (("study", (ROOT / "analysis" / "results" / "own-text-cliff.json").read_text()),
                          ("old", '{"format": 7}'), ("broken", "{")):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(content)
    out = str(tmp_path / "results" / "x.json")
    for arguments, says in (
        (["--hypothesis", str(tmp_path / "study.json"), "--out", out], "it holds no trainings; give a hypothesis.json"),
        (["--hypothesis", str(tmp_path / "old.json"), "--out", out], "format=7, this version reads 1"),
        (["--hypothesis", str(tmp_path / "broken.json"), "--out", out], "it is not readable as JSON"),
        (["--hypothesis", str(tmp_path / "none.json"), "--out", out], "there is no such file"),
        (["--hypothesis", "unheard-of", "--out", out], "no such hypothesis; "),
        (["--hypothesis", "quick", "--out", "x.yaml"], "out=x.yaml: give a file that ends in .json"),
        (["--hypothesis", "quick", "--study", "cliff", "--out", out], "study, hypothesis: give one of them"),
        (["--out", out], "study, hypothesis: give one of them"),
    ):  # fmt: skip
        done = CliRunner().invoke(collect.main, arguments)
        assert done.exit_code == 2 and says in done.stderr and len(done.stderr.strip().split("\n")) == 1, done.output
        assert not (tmp_path / "results").exists()
    with pytest.raises(InputError, match=r"study\.json: it does not hold a hypothesis that collect\.py wrote"):
        saved.read_saved(tmp_path / "study.json")
