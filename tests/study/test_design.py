"""Presets and files: the tickets that they ask for, and what is wrong with one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result

from tests.support.studies import QUICK, runs, write


def test_locate_is_exactly_this(lottery_json: Callable[..., dict[str, Any]]) -> None:
    plan = lottery_json("study", "locate", "--dry-run")
    asked = [(part["params"]["target"], float(part["params"]["sparsity"])) for part in plan["tickets"]]
    five = [(t, s) for t in ("all", "attention", "mlp", "early", "late") for s in (0.3, 0.5, 0.7)]
    assert asked == [*five, ("embeddings", 0.3), ("lm_head", 0.3), ("attention", 0.9), ("mlp", 0.9)]
    assert [part["part"] for part in plan["baselines"]] == ["dense-0"]
    assert all(part["params"]["storage"] == "packed" for part in plan["tickets"])
    same = lottery_json("study", "locate", "--dry-run", "--method", "magnitude", "--seed", 0, "--budget", "none")
    assert same["study_id"] == plan["study_id"]  # what is so anyhow makes no other study
    assert lottery_json("study", "locate", "--dry-run", "--seed", 1)["study_id"] != plan["study_id"]


def test_the_other_presets(lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]) -> None:
    cliff = lottery_json("study", "cliff", "--dry-run")
    assert [float(p["params"]["sparsity"]) for p in cliff["tickets"]] == [0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert [(p["part"], p["width"]) for p in cliff["refined"]] == [("refine-0", 0.01)]
    each = lottery_json("study", "map", "--dry-run")
    assert {p["params"]["target"] for p in each["tickets"]} == {
        f"{c}@{i}" for c in ("attention", "mlp") for i in range(8)
    }
    shown = yaml.safe_load(cli("study", "compare", "--show", "--models", "a/b,c/d", "--control", 2).stdout)
    assert shown["models"] == ["a/b", "c/d"] and shown["control"] == 2
    models = [yaml.safe_load(cli("study", name, "--show").stdout)["models"] for name in ("compare", "size")]
    assert models[0][0] == "mistralai/Mistral-7B-v0.1" and len(models[0]) == 5
    assert models[1] == [f"Qwen/Qwen2.5-{size}B" for size in ("0.5", "1.5", "3", "7")]


def test_what_is_shown_is_a_study(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("cliff", "locate", "map"):
        (tmp_path / "own.yaml").write_text(cli("study", name, "--show", "--budget", "none", "--window", "256").stdout)
        shown = yaml.safe_load((tmp_path / "own.yaml").read_text())
        assert shown["window"] == 256 and shown["grid"][0].get("refine", 0.01) == 0.01
        first = {"cliff": [0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9], "locate": [0.3, 0.5, 0.7], "map": 0.7}[name]
        assert shown["grid"][0]["sparsity"] == first
        again = lottery_json("study", tmp_path / "own.yaml", "--dry-run")
        assert again["study_id"] == lottery_json("study", name, "--dry-run", "--window", 256)["study_id"]


def test_numbers_stand_without_quotes_and_words_stay(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "odd.yaml").write_text(
        """
name: "2024"
question: "7"
models: ["12", "1.5"]
sparsity: [0.00001, 0.5]
pattern: "unstructured"
grid: [{target: mlp}, {target: [all], sparsity: 0.5, pattern: "2:4"}]
"""
    )
    text = cli("study", tmp_path / "odd.yaml", "--show", "--limit", 8, "--budget", "0.05").stdout
    assert "- 0.5\n" in text and "limit: 8\n" in text and "- 0.05\n" in text
    found = yaml.safe_load(text)
    assert (found["name"], found["question"], found["models"]) == ("2024", "7", ["12", "1.5"])
    assert found["sparsity"] == [0.00001, 0.5] and found["grid"][1]["pattern"] == "2:4"
    (tmp_path / "again.yaml").write_text(text)
    assert cli("study", tmp_path / "again.yaml", "--show").stdout == text


def test_equal_budgets(lottery_json: Callable[..., dict[str, Any]], tiny: Path) -> None:
    found = lottery_json("study", "locate", "--model", tiny, "--budget", "0.03,0.1", *QUICK)
    rows = found["tickets"][1:]
    assert [(r["params"]["target"], r["budget"]) for r in rows[:2]] == [("all", 0.03), ("all", 0.1)]
    total = rows[0]["metrics"]["parameters"]
    for row in rows:
        removed = row["metrics"]["sparsity_model"] * total
        assert removed == pytest.approx(row["budget"] * total, abs=14)  # half a weight a tensor
    left = {(entry["target"], entry["reason"][:20]) for entry in found["left_out"]}
    small = {t for t, _ in left}
    assert "attention" in small and ("attention", "attention has 20,736") in left
    assert not small & {r["params"]["target"] for r in rows if r["budget"] == 0.1}
    assert "attention" in {r["params"]["target"] for r in rows if r["budget"] == 0.03}


@pytest.mark.parametrize(
    ("study", "said"),
    [
        ({"modles": ["builtin"]}, "unknown key 'modles'; did you mean models"),
        ({"grid": [{"targets": "all"}]}, "unknown key 'targets' in grid; did you mean target"),
        ({"sparsity": ["0.5", "1.5"]}, "sparsity=1.5"),
        ({"grid": []}, "grid holds no list of rows"),
        ({"grid": {"target": "all"}}, "grid holds no list of rows"),
        ({"models": []}, "models=[]"),
        ({"models": [{"a": 1}]}, "models="),
        ({"target": {"a": "b"}}, "target holds no plain value"),
        ({"budget": ["2"]}, "budget=2"),
        ({"budget": "0"}, "nothing would be removed"),
        ({"name": "../up"}, "name=../up"),
        ({"grid": [{"target": "all", "refine": "2"}]}, "refine=2"),
        ({"pattern": "2:4", "sparsity": "0.3"}, "pattern=2:4"),
        ({"quantize": "int4"}, "quantize=int4"),
        ({"target": "all@*@*"}, "target=all@0@0"),
        ({"grid": [{"target": "all", "pattern": "2:4", "refine": "0.1"}]}, "pattern=2:4: it has only one sparsity"),
        ({"grid": [{"target": "all", "measure": "speed", "refine": "0.1"}]}, "measure=speed: a search for a sparsity"),
        ({"budget": "0.00000001"}, "budget=1e-08: that is less than one of its"),
    ],
)
def test_a_wrong_file_is_named(cli: Callable[..., Result], tmp_path: Path, study: dict[str, Any], said: str) -> None:
    error = cli("study", write(tmp_path, "own", **study), "--dry-run", code=2).stderr.splitlines()[-1]
    assert error.startswith("Error: ") and said in error, error


def test_bad_input(cli: Callable[..., Result], tmp_path: Path) -> None:
    for arguments, said in (
        (("locat",), "did you mean locate"),
        ((), "known: cliff, compare, locate, map, methods, size"),
        (("no-such.yaml",), "give a YAML file"),
        (("cliff", "--budget", "0.05"), "budget=0.05"),
        (("locate", "--budget", "x"), "budget=x"),
        (("locate", "--models", ","), "models=,"),
        (("locate", "--sparsity", "0.5"), "No such option"),
        (("locate", "--method", "wonda"), "method=wonda"),
        (("locate", "--part", "ticket-99"), "part=ticket-99"),
        (("locate", "--model", str(tmp_path / "no")), "there is no such folder"),
        (("locate", "--part", "dense-0", "--slurm"), "--slurm: with --part"),
        (("locate", "--partition", "batch"), "--partition: only with --slurm"),
        (("locate", "--slurm", "--out", "x"), "--slurm: no report is written with it"),
        (("a/plan.json", "--part", "dense-0", "--fresh", "--seed", "1"), "leave --fresh, --seed out"),
    ):
        done = cli("study", *arguments, code=2)
        assert said in done.stderr and "Traceback" not in done.output, (arguments, done.stderr)
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "not readable as YAML" in cli("study", tmp_path / "bad.yaml", code=2).stderr
    (tmp_path / "bad.yaml").write_text("target: all\nsparsity: 0.5\ntarget: mlp\n")
    assert "the key 'target' appears twice" in cli("study", tmp_path / "bad.yaml", code=2).stderr
    (tmp_path / "bad.yaml").write_text("a: " + "[" * 5000)
    assert "not readable as YAML" in cli("study", tmp_path / "bad.yaml", code=2).stderr
    (tmp_path / "list.yaml").write_text("- a")
    assert "holds no keys" in cli("study", tmp_path / "list.yaml", code=2).stderr
    (tmp_path / "plan.json").write_text("{}")
    assert "not a plan that lottery wrote" in cli("study", tmp_path / "plan.json", "--part", "dense-0", code=2).stderr


def test_more_than_there_is_room_for(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr("lottery.study.preparation.CONFIRM_BYTES", 100_000)
    before = len(runs("tags.kind = 'study'"))
    said = cli("study", "map", "--model", tiny, *QUICK, code=2).stderr
    assert "6 tickets, 0.01 GB on disk in all" in said and "give --yes" in said
    assert len(runs("tags.kind = 'study'")) == before
    cli("study", "map", "--model", tiny, *QUICK, "--yes")
