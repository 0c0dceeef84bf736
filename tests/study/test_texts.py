"""The texts that a study's tickets look at: which specs mean one ticket, and which tickets are left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lottery.measuring import control
from lottery.spec import METHODS
from tests.support.models import tiny_model
from tests.support.paths import ROOT
from tests.support.studies import QUICK, runs, write

TEXT = ROOT / "lottery" / "assets" / "evaluation.txt"
SMALL = ("--nsamples", 2, "--seqlen", 32)


def asked(plan: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (p["params"]["method"], p["params"]["calibration"], p["params"]["seed"], p["title"]) for p in plan["tickets"]
    ]


def test_methods_names_each_ticket_once(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    """`self` is what the embedded model looks at anyhow, and the embedded text is the one that it is measured on."""
    plan = lottery_json("study", "methods", "--dry-run")
    titles = [p["title"] for p in plan["tickets"]]
    every = [m for m in METHODS if m != "random" and not METHODS[m].trained]
    at = ["50%", "60%", "70%"]
    assert sorted(titles[: 3 * len(every)]) == sorted(
        f"all {s} {m}".replace(" magnitude", "") for m in every for s in at
    )
    assert sorted(titles[3 * len(every) :]) == sorted(
        [f"all {s} row" for s in at] + [f"all {s} repair seed={seed}" for s in at for seed in (1, 2)]
    )
    assert [left["reason"][:20] for left in plan["left_out"]] == ["calibration=builtin:"]
    assert {(p["params"]["control"], p["params"]["measure"]) for p in plan["tickets"]} == {("1", "perplexity")}
    # Another model has all texts; a file is the text of every row that names none, and of no method that looks at no data.
    other = lottery_json("study", "methods", "--model", tiny, "--calibration", TEXT, "--dry-run")
    assert other["left_out"] == [] and len(set(asked(other))) == len(other["tickets"]) == len(titles) + 2 * 3
    texts = {title.split("% ")[1]: text for method, text, seed, title in asked(other) if "repair" in title}
    assert texts == {
        "repair evaluation.txt": str(TEXT), "repair evaluation.txt seed=1": str(TEXT),
        "repair evaluation.txt seed=2": str(TEXT), "repair self": "self", "repair builtin": "builtin",
    }  # fmt: skip
    assert {text for method, text, _, _ in asked(other) if method == "magnitude"} == {"auto"}
    with_text = lottery_json("study", "methods", "--calibration", TEXT, "--dry-run")
    assert len(with_text["tickets"]) == len(titles) + 3  # now `self` is another text, and `builtin` is left out as ever


def test_tickets_of_two_files_of_one_name_are_told_apart(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    """So are those that differ in their draw, their number of samples, what a block sees, or their storage."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text(f"{folder} " * 300 + TEXT.read_text()[:3000])
    grid: list[dict[str, Any]] = [
        {"calibration": [str(tmp_path / folder / "text.txt") for folder in ("a", "b")]},
        {"calibration": "self", "nsamples": ["2", "3"]},
        {"calibration": "self", "propagate": "pruned", "seed": ["0", "1"]},
        {"method": "magnitude", "storage": ["packed", "mask"]},
        {"method": "random", "seed": ["0", "1"]},
    ]
    path = write(
        tmp_path, "told", models=[str(tiny)], method="wanda", seqlen="32", nsamples="2", sparsity="0.5", grid=grid
    )
    found = lottery_json("study", path, *QUICK[:-2], "--out", tmp_path / "report")
    titles = [row["title"] for row in found["tickets"][1:]]
    a, b = (f"all 50% wanda text.txt nsamples=2 seqlen=32 calibration={tmp_path}/{f}/text.txt" for f in ("a", "b"))
    assert titles == [
        a, b, "all 50% wanda self nsamples=2 seqlen=32", "all 50% wanda self nsamples=3 seqlen=32",
        "all 50% wanda self nsamples=2 seqlen=32 propagate=pruned",
        "all 50% wanda self nsamples=2 seqlen=32 propagate=pruned seed=1",
        "all 50% storage=packed", "all 50% storage=mask", "all 50% random", "all 50% random seed=1",
    ]  # fmt: skip
    assert len({row["ticket"] for row in found["tickets"]}) == len(found["tickets"])
    (table,) = (tmp_path / "report" / "tables").glob("tickets-*.csv")
    assert all(title in table.read_text() for title in titles)


def test_a_mistyped_text_ends_the_study_at_once(cli: Callable[..., Result], tiny: Path, tmp_path: Path) -> None:
    """And not with its first ticket that looks at it, when others were made; of several models too."""
    other, before = tiny_model(tmp_path / "other", "Qwen2"), len(runs("tags.kind != ''"))
    path = write(tmp_path, "late", models=[str(tiny), str(other)], sparsity="0.5", grid=[{}, {"method": "wanda"}])
    for more, said in (
        (("--calibration", "no-such.txt"), "Error: calibration=no-such.txt: there is no such file"),
        (("--calibration", TEXT, "--dataset", "none.txt"), "Error: dataset=none.txt: there is no such file"),
    ):
        error = cli("study", path, *QUICK, *more, code=2).stderr.splitlines()
        assert error[-1].startswith(said), error
    assert len(runs("tags.kind != ''")) == before


def test_a_text_that_the_hub_does_not_give_is_left_out(
    cli: Callable[..., Result], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tickets are made, and keep the names of their parts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    grid = [{"method": "wanda"}, {"method": "wanda", "calibration": "self"}, {}]
    path = write(tmp_path, "offline", models=[str(tiny)], sparsity="0.5", grid=grid)
    done = cli("study", path, *QUICK, *SMALL, "--json")
    found = json.loads(done.stdout)
    assert [row["part"] for row in found["tickets"]] == ["dense-0", "ticket-1", "ticket-2"]
    assert [left["reason"].split(":")[0] for left in found["left_out"]] == ["calibration=c4"]
    assert f"left out, {tiny}: calibration=c4: " in done.stderr
    alone = write(tmp_path, "alone", models=[str(tiny)], sparsity="0.5", method="wanda")
    said = cli("study", alone, *QUICK, code=2).stderr.splitlines()[-1]
    assert said.startswith("Error: calibration=c4: ") and "give calibration=self, or a text as calibration=FILE" in said


def test_what_has_no_effect_is_said(cli: Callable[..., Result], tmp_path: Path) -> None:
    said = cli("study", "locate", "--nsamples", 8, "--dry-run").stderr
    assert "warning: nsamples=8: ignored, because no method of the study locate looks at data" in said
    said = cli("study", "methods", "--method", "wanda", "--dry-run", code=2).stderr
    assert "method=wanda: it has no effect, because every row of the study methods names its own method" in said
    said = cli("study", "methods", "--storage", "mask", "--dry-run", code=2).stderr.splitlines()[-1]
    assert said.startswith("Error: study=methods: row 1 of its grid: storage=mask: ") and "method=refit" in said
    path = write(tmp_path, "odd", sparsity="0.5", grid=[{}, {"pattern": "2:4", "sparsity": "0.3"}])
    said = cli("study", path, "--dry-run", code=2).stderr.splitlines()[-1]
    assert said.startswith("Error: study=odd: row 2 of its grid: pattern=2:4: ")


def test_one_control_serves_the_methods_of_one_sparsity(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are those of a control that is measured anew for each."""
    seen = []
    measure_control = control.measure_control

    def counted(i: int, *rest: Any) -> Any:
        seen.append(i)
        return measure_control(i, *rest)

    monkeypatch.setattr(control, "measure_control", counted)
    common = {"models": [str(tiny)], "calibration": "self", "nsamples": "2", "seqlen": "32", "control": "2"}
    path = write(tmp_path, "controls", **common, method=["magnitude", "wanda", "refit"], sparsity=["0.5", "0.7"])
    found = lottery_json("study", path, *QUICK)["tickets"][1:]
    assert len(found) == 6 and seen == [1, 2] * 2
    for row in found[1::2]:
        alone = write(tmp_path, "alone", **common, method=row["params"]["method"], sparsity=row["params"]["sparsity"])
        (again,) = lottery_json("study", alone, *QUICK, "--fresh")["tickets"][1:]
        names = [name for name in row["metrics"] if name.startswith("control_")]
        assert len(names) == 6 and {n: row["metrics"][n] for n in names} == {n: again["metrics"][n] for n in names}
    assert len(seen) == 4 + 3 * 2
    # Other counts, another seed or another pattern have controls of their own.
    grid = [
        {"sparsity": "0.4"},
        {"seed": "5"},
        {"pattern": "2:4"},
        {"quantize": "fp8"},
        {"limit": "2"},
        {"target": "mlp"},
    ]
    others = write(tmp_path, "others", models=[str(tiny)], sparsity="0.5", control="1", grid=[{}, *grid])
    lottery_json("study", others, *QUICK, "--fresh")
    assert len(seen) == 4 + 3 * 2 + 7
