"""What studies found becomes a file, and from files alone come the same answers, figures and pages."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lottery.models.checkpoint import BUILTIN
from lottery.report import images, saved
from tests.analysis.test_eight_bits import script
from tests.support.paths import ROOT
from tests.support.studies import write

FOLDER = "Private Folder"  # no file names it
TEXT = ROOT / "lottery" / "assets" / "evaluation.txt"
METHOD = {"method": "refit", "nsamples": 2, "seqlen": 64}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "cliff": [{"target": "all", "sparsity": [0.3, 0.7]}],
    "locate": [{"target": ["all", "attention", "late"], "sparsity": 0.5}],
    "quantize": [{"target": "all", "sparsity": 0.5, "quantize": ["none", "int8"]}],
}
PAGE = "# Results\n\n" + "\n\n".join(
    f"<!-- results:{name} -->\nold\n<!-- /results -->" for name in ("readme", "models", "cliff", "where", "eight_bits")
)


@dataclass(frozen=True)
class Collected:
    """`runs`: name of the file -> id of the study's run; each file is `folder / NAME.json`."""

    folder: Path
    runs: dict[str, str]


def words_of(svg: str | Path) -> list[str]:
    """The words and numbers of a figure. Its lines may differ in their last digits."""
    return re.findall(r"<text[^>]*>([^<]*)", svg if isinstance(svg, str) else svg.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def collect() -> Any:
    return script("collect")


@pytest.fixture(scope="module")
def figures(monkeypatch_module: pytest.MonkeyPatch) -> Any:
    monkeypatch_module.syspath_prepend(str(ROOT / "analysis"))
    return script("figures")


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def collected(
    collect: Any, lottery_json: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Collected:
    """Studies of a model in a folder of its own, on a text of its own, by two methods, of which one looks at that text."""
    home = tmp_path_factory.mktemp("results") / FOLDER
    shutil.copytree(BUILTIN, home / "small")
    shutil.copyfile(TEXT, home / "novel.txt")
    common = {
        "limit": 6,
        "window": 128,
        "measure": "perplexity",
        "register": "none",
        "dataset": str(home / "novel.txt"),
    }
    by = {"calibration": str(home / "novel.txt"), **METHOD}
    made = {f"{name}-magnitude": (name, common) for name in GRIDS} | {"cliff-refit": ("cliff", common | by)}
    runs = {}
    for file, (name, parameters) in made.items():
        path = write(home, file, name=name, models=[str(home / "small")], grid=GRIDS[name], **parameters)
        runs[file] = lottery_json("study", path, "--out", "none")["run_id"]
        done = CliRunner().invoke(collect.main, ["--study", runs[file], "--out", str(home / "found" / f"{file}.json")])
        assert done.exit_code == 0 and "tickets of" in done.stdout, (done.output, done.exception)
    return Collected(home / "found", runs)


def test_a_file_is_small_and_names_no_folder(collected: Collected, collect: Any) -> None:
    for file, run_id in collected.runs.items():
        path = collected.folder / f"{file}.json"
        text = path.read_text()
        again = path.with_suffix(".again.json")
        assert CliRunner().invoke(collect.main, ["--study", run_id, "--out", str(again)]).exit_code == 0
        assert again.read_text() == text and len(text) < 20_000
        again.unlink()
        assert "Private" not in text and str(ROOT) not in text and os.uname().nodename not in text
        (record,) = json.loads(text)["studies"]
        assert record["study"]["models"] == ["small"] and record["command"].startswith(f"lottery study '{file}.yaml' ")
        tickets = [row for row in record["rows"] if row["kind"] == "ticket"]
        assert {row["model"] for row in tickets} == {"small"} and {row["dataset"] for row in tickets} == {"novel.txt"}
        assert sum(line.strip().startswith('{"') and '"kind"' in line for line in text.split("\n")) == len(
            record["rows"]
        )
        assert all(len(record["nll"][row["run_id"]]) == 6 for row in record["rows"])


def test_a_report_of_files_answers_as_that_of_the_store(
    collected: Collected, lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    names = list(collected.runs)
    ours = ",".join(str(collected.folder / f"{name}.json") for name in names)
    of_store = lottery_json("report", "--study", ",".join(collected.runs.values()), "--out", tmp_path / "store")
    of_files = lottery_json("report", "--study", ours, "--out", tmp_path / "files")
    assert [a["sentence"] for a in of_store["answers"]] == [a["sentence"] for a in of_files["answers"]]
    assert [a["sure"] for a in of_store["answers"]] == [a["sure"] for a in of_files["answers"]]
    page = (tmp_path / "files" / "index.html").read_text(encoding="utf-8")
    assert "<h1>4 studies: cliff (2), locate and quantize</h1>" in page
    assert (
        page.index("<summary>The studies and their commands") < page.index("lottery study &#39;") < page.index("<nav")
    )
    assert of_store["tickets"] == of_files["tickets"] == 8 and of_store["run_id"] and of_files["run_id"] is None
    for name in sorted(of_store["figures"]):
        if name.endswith(".svg"):
            assert words_of(tmp_path / "store" / name) == words_of(tmp_path / "files" / name), name


def test_figures_and_answers_of_a_document_come_from_files_alone(
    collected: Collected, figures: Any, lottery_json: Callable[..., dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    of_store = {
        name: lottery_json("report", "--study", run_id, "--out", tmp_path / name)["answers"]
        for name, run_id in collected.runs.items()
    }
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where no store answers
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    arguments = ["--results", str(collected.folder), "--out", str(tmp_path / "figures"), "--page", str(page)]
    done = CliRunner().invoke(figures.main, arguments)
    assert done.exit_code == 0, (done.output, done.exception)
    text = page.read_text()
    assert "\nold\n" not in text
    for file, answers in of_store.items():
        for answer in answers:
            if answer["answer"] and (answer["question"] == "Where is it?") == (file == "locate-magnitude"):
                assert answer["sentence"] in done.stdout and answer["sure"] in done.stdout, file
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"results-cliff-magnitude.svg", "results-cliff-refit.svg", "results-where-magnitude.svg"} <= drawn
    assert {"small by magnitude", "small by refit"} <= set(words_of(tmp_path / "figures" / "results-readme.svg"))
    shown = re.findall(r"!\[[^]]+\]\(figures/([\w.-]+)\)", text)
    assert set(shown) == drawn and len(shown) == len(drawn)
    assert re.search(r"by magnitude: \*\*[^|]* loses least at equal sparsity \(small\)", text)
    assert "by magnitude: small **" in text and "by refit: small **" in text and "| small | 5," in text
    assert CliRunner().invoke(figures.main, arguments).exit_code == 0 and page.read_text() == text


@pytest.fixture(scope="module")
def committed(figures: Any) -> Any:
    """The questions, as the files in analysis/results answer them."""
    from results_page import questions

    return questions(list(figures.records_in(ROOT / "analysis" / "results", own_text=False)))


@pytest.fixture(scope="module")
def tested(figures: Any) -> Any:
    """What the hypotheses in analysis/results found."""
    from hypothesis_results import read_all

    return read_all(ROOT / "analysis" / "results")


def test_the_committed_documents_agree_with_the_committed_files(figures: Any, committed: Any, tested: Any) -> None:
    found = committed
    for page in figures.PAGES:
        text = page.read_text(encoding="utf-8")
        folder = os.path.relpath(ROOT / "analysis" / "figures", page.parent)
        assert figures.fill(text, found, tested, folder) == text, f"{page}: run {figures.__file__}"
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for question in found:
        assert f"## {question.text}\n" in text and f"<!-- results:{question.name} -->" in text
    largest = max(path.stat().st_size for path in (ROOT / "analysis" / "results").glob("*.json"))
    assert largest < 200_000


def figures_of_readme(found: Any) -> Any:
    from results_page import all_cliffs

    return all_cliffs(found)


def test_the_committed_figures_show_the_committed_files(figures: Any, committed: Any, tested: Any) -> None:
    """They have the same words and numbers. Another version of matplotlib may draw their lines elsewhere."""
    drawn = figures.draw_own_text(list(figures.records_in(ROOT / "analysis" / "results", own_text=True)))
    assert set(drawn) == {"cliff", "locate", "budget", "map"}
    drawn |= {d.name: d.figure for question in committed for view in question.views for d in view.figures}
    drawn |= {d.name: d.figure for d in figures_of_readme(committed)}
    drawn |= {name: figure for each in tested for name, (figure, _) in each.drawn.items()}
    folder = ROOT / "analysis" / "figures"
    assert {path.stem for path in folder.glob("*.svg")} == set(drawn)
    for name, figure in drawn.items():
        assert words_of(folder / f"{name}.svg") == words_of(images.to_svg(figure)), name


def test_the_study_of_8_bits_has_twelve_tickets(lottery_json: Callable[..., dict[str, Any]]) -> None:
    path = ROOT / "analysis" / "studies" / "quantize.yaml"
    plan = lottery_json("study", path, "--dry-run", "--method", "refit")
    asked = {(p["params"]["sparsity"], p["params"]["quantize"], p["params"]["method"]) for p in plan["tickets"]}
    assert asked == {(s, q, "refit") for s in ("0.0", "0.3", "0.5", "0.6") for q in ("none", "int8", "fp8")}


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("lottery study cliff --models /a/b/small,builtin --dataset=/c/d.txt", "lottery study cliff --models small,builtin --dataset=d.txt"),
        ("--model ~/models/small/ --text ../d.txt and 'models/small'", "--model small --text d.txt and 'small'"),
        ("small (/home/me/models/small)", "small (small)"),
        ("study '/home/me/my studies/cliff.yaml' --text '/my texts/'", "study 'cliff.yaml' --text 'my texts'"),
        ("org/model@main models:/ticket/1 https://host/x perplexity / dense 1/2", None),
    ],
)  # fmt: skip
def test_paths_are_shortened_and_nothing_else(text: str, short: str | None) -> None:
    assert saved.shorten({"x": [text]}, ["/home/me/models/small"]) == {"x": [short or text]}


def test_what_is_no_such_file_is_said_in_a_line(
    cli: Callable[..., Result], collected: Collected, collect: Any, tmp_path: Path
) -> None:
    good, other, broken = collected.folder / "cliff-refit.json", tmp_path / "other.json", tmp_path / "broken.json"
    other.write_text('{"format": 1}')
    broken.write_text(good.read_text().replace('"sparsity"', '"sparse"').replace('"run_id"', '"run"'))
    for study, more, says in (
        (other, (), "it holds no results of studies; python analysis/collect.py writes such a file"),
        (broken, (), "it does not hold what collect.py wrote"),
        (tmp_path / "none.json", (), "there is no such file; give a file that"),
        (f"{good},locate", (), "locate is no .json file"),
        (good, ("--filter", "params.target = 'all'"), "is given too; give one of them"),
    ):
        said = cli("report", "--study", study, *more, "--out", tmp_path / "report", code=2).stderr
        assert says in said and len(said.strip().split("\n")) == 1 and "study=" in said, said
        assert not (tmp_path / "report").exists()
    for arguments, says in (
        (["--study", "unheard-of", "--out", str(tmp_path / "x.json")], "no such study"),
        (
            ["--study", collected.runs["cliff-refit"], "--out", str(tmp_path / "x.yaml")],
            "give a file that ends in .json",
        ),
    ):
        done = CliRunner().invoke(collect.main, arguments)
        assert done.exit_code == 2 and says in done.stderr and not list(tmp_path.glob("x.*"))
