"""Studies, through the front door: presets and files, once each ticket, on after a kill, what fails, what is left out."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lottery.files.home import home
from lottery.models.checkpoint import BUILTIN
from lottery.registry.parts import part_key
from lottery.spec import Spec
from lottery.study.bisection import crossing, halfway
from tests.support.forks import Forks
from tests.support.hub_server import Hub
from tests.support.models import tiny_model

MEASURED = ("--measure", "perplexity", "--limit", 3, "--dataset", "builtin", "--register", "none")
QUICK = (*MEASURED, "--out", "none")  # no report


def write(folder: Path, stem: str, **study: Any) -> Path:
    path = folder / f"{stem}.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def runs(query: str) -> list[Any]:
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, query))


@pytest.fixture(scope="module")
def located(lottery_json: Callable[..., dict[str, Any]], tiny: Path) -> dict[str, Any]:
    return lottery_json("study", "locate", "--model", tiny, *QUICK)


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
    assert shown["models"] == ["a/b", "c/d"] and shown["control"] == "2"
    models = [yaml.safe_load(cli("study", name, "--show").stdout)["models"] for name in ("compare", "size")]
    assert models[0][0] == "mistralai/Mistral-7B-v0.1" and len(models[0]) == 5
    assert models[1] == [f"Qwen/Qwen2.5-{size}B" for size in ("0.5", "1.5", "3", "7")]


def test_what_is_shown_is_a_study(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("cliff", "locate", "map"):
        (tmp_path / "own.yaml").write_text(cli("study", name, "--show", "--budget", "none", "--window", "256").stdout)
        again = lottery_json("study", tmp_path / "own.yaml", "--dry-run")
        assert again["study_id"] == lottery_json("study", name, "--dry-run", "--window", 256)["study_id"]


def test_twenty_runs_and_the_study_s_own(located: dict[str, Any], tiny: Path) -> None:
    # the dense baseline may be another test's already
    assert [row["state"] for row in located["tickets"][1:]] == ["made"] * 19 and located["left_out"] == []
    key = part_key(located["run_id"])
    parent = mlflow.get_run(located["run_id"])
    assert (
        parent.info.status == "FINISHED"
        and parent.data.tags["kind"] == "study"
        and parent.data.tags["study"] == "locate"
    )
    assert parent.data.params["models"] == str(tiny) and parent.data.metrics == {"tickets": 20, "failed": 0}
    assert "| all 30%" in parent.data.tags["mlflow.note.content"]
    plan = json.loads(
        Path(mlflow.artifacts.download_artifacts(run_id=parent.info.run_id, artifact_path="plan.json")).read_text()
    )
    assert plan["study_id"] == located["study_id"] and plan["run"] == parent.info.run_id and len(plan["tickets"]) == 19
    parts = runs(f"tags.`{key}` != ''")
    assert sorted(run.data.tags[key] for run in parts) == sorted(["dense-0", *(f"ticket-{i}" for i in range(19))])
    for run in parts:
        assert run.data.tags["hardware"] and run.data.tags["family"] == "llama" and run.data.metrics["parameters"] > 0
        if run.data.tags["kind"] == "ticket":
            assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and run.data.tags["study"] == "locate"
            assert set(run.data.params) == set(Spec().params())  # every parameter, for MLflow's filters


def test_the_figures_are_those_of_the_main_job(
    located: dict[str, Any], lottery_json: Callable[..., dict[str, Any]], tiny: Path
) -> None:
    alone = lottery_json("prune", "--model", tiny, "--target", "late", "--sparsity", 0.7, *MEASURED)
    row = next(row for row in located["tickets"] if row["title"] == "late 70%")
    assert row["ticket"] == alone["ticket"]
    for name, value in alone["metrics"].items():
        if not name.endswith("_s"):
            assert row["metrics"][name] == value, name


def test_nothing_is_made_twice(
    located: dict[str, Any], lottery_json: Callable[..., dict[str, Any]], tiny: Path
) -> None:
    before = len(runs("tags.kind != ''"))
    again = lottery_json("study", "locate", "--model", tiny, *QUICK)
    assert [row["state"] for row in again["tickets"]] == ["found"] * 20 and again["run_id"] == located["run_id"]
    assert len(runs("tags.kind != ''")) == before
    # a metric that was not measured then
    more = lottery_json("study", "locate", "--model", tiny, "--measure", "perplexity,samples", *QUICK[2:], "--dry-run")
    assert more["study_id"] != located["study_id"]


def test_fresh_makes_all_again(lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "two", models=[str(tiny)], target=["mlp", "attention"], sparsity=0.4)
    first = lottery_json("study", path, *QUICK)
    fresh = lottery_json("study", path, *QUICK, "--fresh")
    assert [r["state"] for r in fresh["tickets"]] == ["found", "made", "made"] and fresh["run_id"] != first["run_id"]
    # what was made since counts: a third one without it finds the newest
    third = lottery_json("study", path, *QUICK)
    assert {r["run_id"] for r in third["tickets"]} == {r["run_id"] for r in fresh["tickets"]}


def test_a_ticket_made_alone_is_found(lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path) -> None:
    alone = lottery_json("prune", "--model", tiny, "--target", "q_proj", "--sparsity", "0.35", *MEASURED)
    path = write(tmp_path, "found", models=[str(tiny)], target=["q_proj", "v_proj"], sparsity="0.350")
    study = lottery_json("study", path, *QUICK)
    assert [r["state"] for r in study["tickets"]][1:] == ["found", "made"]
    run = mlflow.get_run(alone["run_id"])
    assert run.data.tags[part_key(study["run_id"])] == "ticket-0" and "study" not in run.data.tags


def test_cliff_is_known_to_one_point(lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result]) -> None:
    # on the embedded model: of a random one every ratio is 1
    command = ("study", "cliff", "--measure", "perplexity", "--limit", 4, "--register", "none")
    found = lottery_json(*command)
    (cliff,) = found["cliffs"]
    ratios = {float(r["params"]["sparsity"]): r["metrics"]["perplexity_ratio"] for r in found["tickets"][1:]}
    assert (cliff["below"], cliff["above"]) == (0.48, 0.49)  # pinned; seen by a scan of every point, too
    assert ratios[0.48] <= 1.1 < ratios[0.49] and ratios[0.0] == 1.0
    assert list(ratios) == [
        0,
        0.3,
        0.4,
        0.45,
        0.48,
        0.49,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]  # in order, the grid's seven and four more
    assert mlflow.get_run(found["run_id"]).data.metrics["cliff_builtin_all"] == pytest.approx(0.485)
    said = cli(*command)
    assert "crosses 1.1 between 48.00% and 49.00%" in said.stdout and "made" not in said.stderr


@settings(max_examples=200, deadline=None)
@given(st.floats(0.0, 1.0), st.sampled_from([0.01, 0.02, 0.05, 0.003]), st.sets(st.integers(0, 99), max_size=8))
def test_bisection_against_a_scan(true: float, width: float, grid: set[int]) -> None:
    """Whatever the grid: the crossing of a rising ratio lies in the end between two points as near as was asked."""

    def ratio(sparsity: float) -> float:
        return 1.0 if sparsity <= true else 2.0

    points = {i / 100: ratio(i / 100) for i in grid}
    asked = 0
    while (sparsity := halfway(*crossing(points, 1.1), width)) is not None:
        assert sparsity not in points
        points[sparsity] = ratio(sparsity)
        asked += 1
        assert asked < 20
    below, above = crossing(points, 1.1)
    assert below <= true <= above and above - below <= width * 1.0001


def test_an_overflow_is_beyond_the_cliff() -> None:
    assert crossing({0.0: 1.0, 0.5: float("nan"), 0.7: 1.0}, 1.1) == (0.0, 0.5)
    assert crossing({}, 1.1) == (0.0, 1.0) and crossing({0.3: 1.0}, 1.1) == (0.3, 1.0)


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


def test_one_that_fails_is_reported_and_the_others_go_on(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    """A damaged ticket lies where one of them would be kept."""
    ticket = lottery_json("plan", "--model", tiny, "--target", "mlp", "--sparsity", 0.55)["ticket"]
    folder = home() / "tickets" / ticket
    folder.mkdir(parents=True)
    (folder / "ticket.json").write_text("{}")
    path = write(tmp_path, "damaged", models=[str(tiny)], target=["mlp", "attention", "embeddings"], sparsity=0.55)
    done = cli("study", path, "--measure", "none", "--register", "none", "--json", code=1)
    found = json.loads(done.stdout)
    assert [r["state"] for r in found["tickets"]] == ["failed", "made", "made"]
    assert "format None" in found["tickets"][0]["reason"] and "1 of 3 failed" in done.stderr
    assert "Traceback" not in done.stderr
    run = mlflow.get_run(found["tickets"][0]["run_id"])
    assert run.info.status == "FAILED" and "format None" in run.data.tags["reason"]
    assert run.data.tags[part_key(found["run_id"])] == "ticket-0"
    assert mlflow.get_run(found["run_id"]).info.status == "FAILED"
    # mended, the same command makes what is missing alone, and its run is a good one
    shutil.rmtree(folder)
    again = json.loads(cli("study", path, "--measure", "none", "--register", "none", "--json").stdout)
    assert [r["state"] for r in again["tickets"]] == ["made", "found", "found"]
    assert mlflow.get_run(again["run_id"]).info.status == "FINISHED" and again["run_id"] == found["run_id"]
    assert "outcome" not in mlflow.get_run(again["run_id"]).data.tags


def test_each_protocol_has_a_table_of_its_own(cli: Callable[..., Result], tiny: Path, tmp_path: Path) -> None:
    """The two kinds of int8 arithmetic are in none together."""
    path = write(
        tmp_path, "two-runtimes", models=[str(tiny)], target="mlp", quantize="int8", runtime=["dense", "packed"]
    )
    measured = ("--dataset", "builtin", "--limit", "2", "--measure", "perplexity", "--register", "none")
    said = cli("study", path, *measured).stdout
    first, second = (part.splitlines() for part in re.split("protocol [0-9a-f]{12}:", said)[1:])
    for part in (first, second):
        assert [line.split("|")[1].strip() for line in part if line.startswith("| ")][1:] == ["dense", "mlp 50% int8"]
    assert "2 protocols: perplexities compare within one of them only" in said


def test_several_models_and_what_one_does_not_have(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    gpt = tiny_model(tmp_path / "gpt", "GPTNeoX")
    path = write(tmp_path, "two-models", models=[str(tiny), str(gpt)], target=["mlp", "q_proj"], sparsity=0.5)
    found = lottery_json("study", path, *QUICK)
    assert [(r["base"], r["title"]) for r in found["tickets"]] == [
        ("tiny", "dense"), ("tiny", "mlp 50%"), ("tiny", "q_proj 50%"), ("gpt", "dense"), ("gpt", "mlp 50%"),
    ]  # fmt: skip
    (left,) = found["left_out"]
    assert left["model"] == str(gpt) and left["target"] == "q_proj" and "unknown" in left["reason"]
    assert "of 2 protocols" not in cli("study", path, *QUICK).stdout
    wrong = write(tmp_path, "wrong", models=[str(tiny)], target=["mlp", "q_porj"], sparsity=0.5)
    assert "did you mean q_proj" in cli("study", wrong, *QUICK, code=2).stderr
    none = write(tmp_path, "none", models=[str(tiny), str(gpt)], target=["mlp", "no_proj"], sparsity=0.5)
    assert "target=no_proj" in cli("study", none, *QUICK, code=2).stderr  # no model has it: a typo
    budget = write(tmp_path, "budget", models=[str(tiny)], target=["mlp", "q_porj"], budget="0.01")
    assert "did you mean q_proj" in cli("study", budget, *QUICK, code=2).stderr


def test_a_hub_s_models_are_planned_without_their_weights_and_kept_as_masks(
    server: Hub, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    server.add("org/one", tiny)
    server.add("org/two", tiny_model(tmp_path / "phi", "Phi"))
    grid = [
        {"target": "mlp", "sparsity": "0.5", "quantize": ["none", "int8"]},
        {"target": "gate_proj", "sparsity": "0.5"},
    ]
    path = write(tmp_path, "of-the-hub", models=["org/one", "org/two"], grid=grid)
    plan = lottery_json("study", path, "--dry-run", *QUICK)
    assert [(p["base"], p["title"], p["params"]["storage"]) for p in plan["tickets"]] == [
        ("org/one", "mlp 50%", "mask"), ("org/one", "mlp 50% int8", "packed"), ("org/one", "gate_proj 50%", "mask"),
        ("org/two", "mlp 50%", "mask"), ("org/two", "mlp 50% int8", "packed"),
    ]  # fmt: skip
    assert [left["target"] for left in plan["left_out"]] == ["gate_proj"]
    assert not [asked for asked in server.asked if asked.startswith("GET") and "model.safetensors" in asked]
    asked = cli("study", path, "--show", "--storage", "packed").stdout
    assert "storage: packed" in asked  # who asks for it gets it
    packed = lottery_json("study", path, "--dry-run", *QUICK, "--storage", "packed", "--quantize", "none")
    assert {p["params"]["storage"] for p in packed["tickets"]} == {"packed"}
    found = lottery_json("study", path, *QUICK)
    # the first one's dense baseline is there: its files are those of another test's
    assert [row["state"] for row in found["tickets"] if row["title"] != "dense"] == ["made"] * 5
    small, eight = (row["metrics"]["disk_bytes"] for row in found["tickets"][1:3])
    assert small < eight / 10


def test_what_was_asked_otherwise_is_not_found(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    """A verdict by another tolerance, controls of other draws, a version that is not there: the ticket is measured again."""
    path = write(tmp_path, "otherwise", models=[str(tiny)], target="k_proj", sparsity=0.45)
    usual = ("--measure", "perplexity", "--limit", 3, "--dataset", "builtin", "--out", "none")
    for more, state in (
        (("--register", "none"), "made"),
        (("--register", "none", "--tolerance", "0.10"), "found"),
        (("--register", "none", "--tolerance", 0.5), "made"),
        (("--register", "none", "--control", 2), "made"),
        (("--register", "none", "--control", 2, "--seed", 1), "made"),
        (("--register", "none", "--control", 2), "found"),
        (("--register", "none", "--control", 1), "made"),
        (("--register", "of-otherwise"), "made"),
        (("--register", "of-otherwise", "--seed", 7), "found"),
    ):
        (_, ticket) = lottery_json("study", path, *usual, *more)["tickets"]
        assert ticket["state"] == state, more
    assert ticket["metrics"]["perplexity"] and mlflow.MlflowClient().get_model_version("of-otherwise", "1")


def test_two_parts_that_are_one_ticket(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    names = ["attention", "q_proj+k_proj+v_proj+o_proj"]
    path = write(tmp_path, "same", models=[str(tiny)], target=names, sparsity=0.25)
    found = lottery_json("study", path, *QUICK)
    assert [r["state"] for r in found["tickets"]][1:] == ["made", "found"]
    run = mlflow.get_run(found["tickets"][2]["run_id"])
    assert run.data.tags[part_key(found["run_id"])] == "ticket-0,ticket-1"
    closed = lottery_json("study", path, *QUICK, "--part", "report")
    assert [r["state"] for r in closed["tickets"]] == ["made"] * 3


def test_models_of_one_name_are_told_apart(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    for i, family in enumerate(("Llama", "GPTNeoX")):
        tiny_model(tmp_path / str(i) / "final", family)
    models = [str(tmp_path / str(i) / "final") for i in range(2)]
    path = write(tmp_path, "alike", models=models, target="mlp", sparsity=0.5)
    found = lottery_json("study", path, *MEASURED, "--out", tmp_path / "report")
    assert [r["base"] for r in found["tickets"]] == [f"final ({m})" for m in models for _ in range(2)]
    table = (tmp_path / "report" / "tables").glob("*.csv")
    assert all(any(m in path.read_text() for path in table) for m in models[:1])
    assert len({(r["base"], r["metrics"]["parameters"]) for r in found["tickets"]}) == 2


def test_a_fresh_study_that_did_not_end_goes_on_fresh(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, "again", models=[str(tiny)], target=["down_proj", "up_proj"], sparsity=0.65)
    first = lottery_json("study", path, *QUICK)
    damaged = home() / "tickets" / first["tickets"][2]["ticket"] / "ticket.json"
    whole = damaged.read_bytes()
    damaged.write_text("{}")
    begun = json.loads(cli("study", path, *QUICK, "--fresh", "--json", code=1).stdout)
    assert [r["state"] for r in begun["tickets"]] == ["found", "made", "failed"]
    damaged.write_bytes(whole)
    for _ in range(2):  # the second time it has ended, and is found
        ended = lottery_json("study", path, *QUICK)
        assert ended["run_id"] == begun["run_id"] != first["run_id"]
        assert ended["tickets"][1]["run_id"] == begun["tickets"][1]["run_id"]
        assert ended["tickets"][2]["run_id"] != first["tickets"][2]["run_id"]
    parts = runs(f"tags.`{part_key(begun['run_id'])}` != ''")
    assert len(parts) == 3 and all(run.info.status == "FINISHED" for run in parts)  # the failed one counts no more
    # the first study still has what it had
    assert len(runs(f"tags.`{part_key(first['run_id'])}` != ''")) == 3


def test_a_cluster_s_study_is_not_made_here_too(
    cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    path = write(tmp_path, "submitted", models=[str(tiny)], target="o_proj", sparsity=0.75)
    lottery_json("study", path, *QUICK, "--part", "dense-0")  # its run is begun, and waits
    error = cli("study", path, *QUICK, code=2).stderr
    assert "it was submitted before" in error and "--yes" in error
    assert lottery_json("study", path, *QUICK, "--yes")["tickets"][1]["state"] == "made"


def test_a_search_that_nobody_made_is_missing(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    grid = [{"target": "all", "sparsity": ["0.2", "0.6"], "refine": "0.1"}]
    path = write(tmp_path, "searched", models=[str(tiny)], grid=grid)
    for part in ("ticket-0", "ticket-1"):
        lottery_json("study", path, *QUICK, "--part", part)
    found = json.loads(cli("study", path, *QUICK, "--part", "report", "--json", code=1).stdout)
    assert [(r["title"], r["state"]) for r in found["tickets"]] == [
        ("dense", "missing"), ("all 20%", "made"), ("all 60%", "made"), ("all: search", "missing"),
    ]  # fmt: skip
    assert "it ended between 60.00% and 100.00%" in found["tickets"][3]["reason"]
    assert (
        set(mlflow.get_run(found["run_id"]).data.metrics) == {"tickets", "failed"} and not found["cliffs"][0]["known"]
    )


def test_a_model_that_changed_is_searched_anew(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tmp_path: Path
) -> None:
    """What was searched for the old one counts no more; the command, the report and a cluster's last job agree."""
    model = tmp_path / "model"
    shutil.copytree(BUILTIN, model)
    grid = [{"target": "all", "sparsity": ["0.5", "0.6"], "refine": "0.03"}]
    path = write(tmp_path, "changing", models=[str(model)], grid=grid)
    first = lottery_json("study", path, *MEASURED, "--out", tmp_path / "first")
    assert len(first["tickets"]) > 3 and first["cliffs"][0]["above"] < 0.6 and first["answers"][0]["answer"]
    config = json.loads((model / "generation_config.json").read_text())
    shutil.rmtree(model)
    tiny_model(model)  # a random one: every ratio is about 1
    (model / "generation_config.json").write_text(json.dumps(config))
    second = lottery_json("study", path, *MEASURED, "--out", tmp_path / "second")
    assert second["run_id"] == first["run_id"] and second["cliffs"][0]["below"] >= 0.9
    closed = lottery_json("study", path, *MEASURED, "--part", "report", "--out", tmp_path / "closed")
    assert closed["cliffs"] == second["cliffs"] and closed["answers"] == second["answers"]
    parts = runs(f"tags.`{part_key(first['run_id'])}` LIKE 'refine%'")
    assert not {run.info.run_id for run in parts} & {row["run_id"] for row in first["tickets"]}


def test_a_search_with_nothing_to_do_is_not_missing(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    grid = [{"target": "all", "sparsity": ["0.95", "1"], "refine": "0.1"}]
    path = write(tmp_path, "tight", models=[str(tiny)], grid=grid, tolerance="0.05")
    found = lottery_json("study", path, *MEASURED, "--out", tmp_path / "report")
    assert [row["state"] for row in found["tickets"] if row["title"] != "dense"] == ["made", "made"]
    assert json.loads((tmp_path / "report" / "report.json").read_text())["absent"] == []
    grid = [{"target": "all", "sparsity": ["0.35", "0.6"], "refine": "0.1"}]
    path = write(tmp_path, "loose", models=[str(tiny)], grid=grid)
    for part in ("dense-0", "ticket-0", "ticket-1"):
        lottery_json("study", path, *QUICK, "--part", part)
    lottery_json("report", "--study", "loose", "--out", tmp_path / "loose")
    (absent,) = json.loads((tmp_path / "loose" / "report.json").read_text())["absent"]
    assert (absent["title"], absent["reason"]) == ("all: search", "it ended between 60.00% and 100.00%")


def test_a_ticket_without_its_ratio_is_measured_again(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    """Its base was away, and is back."""
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    whole = lottery_json(
        "prune", "--model", base, "--target", "mlp", "--sparsity", 0.5, "--out", tmp_path / "t", *MEASURED
    )
    base.rename(tmp_path / "away")
    store = f"sqlite:///{tmp_path}/m.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", store)
        path = write(tmp_path, "further", models=[str(tmp_path / "t")], target="attention", sparsity=0.5)
        first = json.loads(cli("study", path, *QUICK, "--json", code=1).stdout)
        (tmp_path / "away").rename(base)
        second = lottery_json("study", path, *QUICK)
    assert [row["state"] for row in first["tickets"]] == ["missing", "made"] and whole["ticket"]
    assert "perplexity_ratio" not in first["tickets"][1]["metrics"]
    assert [row["state"] for row in second["tickets"]] == ["made", "made"]
    assert "perplexity_ratio" in second["tickets"][1]["metrics"]


def test_its_artifact_is_a_study(located: dict[str, Any], lottery_json: Callable[..., dict[str, Any]]) -> None:
    path = mlflow.artifacts.download_artifacts(run_id=located["run_id"], artifact_path="study.yaml")
    assert lottery_json("study", path, "--dry-run")["study_id"] == located["study_id"]


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
        ({"grid": [{"target": "all", "pattern": "2:4", "refine": "0.1"}]}, "pattern=2:4: it has one sparsity alone"),
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
        ((), "known: cliff, compare, locate, map, size"),
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
        (("locate", "--slurm", "--out", "x"), "--slurm: no report is written here"),
        (("a/plan.json", "--part", "dense-0", "--fresh", "--seed", "1"), "leave --fresh, --seed out"),
    ):
        done = cli("study", *arguments, code=2)
        assert said in done.stderr and "Traceback" not in done.output, (arguments, done.stderr)
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "not readable as YAML" in cli("study", tmp_path / "bad.yaml", code=2).stderr
    (tmp_path / "bad.yaml").write_text("target: all\nsparsity: 0.5\ntarget: mlp\n")
    assert "the key 'target' is there twice" in cli("study", tmp_path / "bad.yaml", code=2).stderr
    (tmp_path / "bad.yaml").write_text("a: " + "[" * 5000)
    assert "not readable as YAML" in cli("study", tmp_path / "bad.yaml", code=2).stderr
    (tmp_path / "list.yaml").write_text("- a")
    assert "holds no keys" in cli("study", tmp_path / "list.yaml", code=2).stderr
    (tmp_path / "plan.json").write_text("{}")
    assert "no plan that lottery wrote" in cli("study", tmp_path / "plan.json", "--part", "dense-0", code=2).stderr


def test_more_than_there_is_room_for(cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    monkeypatch.setattr("lottery.study.run.MUCH", 100_000)
    before = len(runs("tags.kind = 'study'"))
    said = cli("study", "map", "--model", tiny, *QUICK, code=2).stderr
    assert "6 tickets, 0.01 GB on disk in all" in said and "say --yes" in said
    assert len(runs("tags.kind = 'study'")) == before
    cli("study", "map", "--model", tiny, *QUICK, "--yes")


def test_parts_are_what_a_cluster_runs(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    path = write(
        tmp_path, "parts", models=[str(tiny)], grid=[{"target": "mlp", "sparsity": ["0.2", "0.6"], "refine": "0.2"}]
    )
    for part, states in (
        ("ticket-1", ["made"]),
        ("ticket-1", ["found"]),
        ("dense-0", ["found"]),
        ("refine-0", ["made"]),
    ):
        found = lottery_json("study", path, *QUICK, "--part", part)
        assert found["tickets"][0]["state"] == states[0], part
    found = lottery_json("study", path, *MEASURED, "--part", "report", "--out", tmp_path / "report")
    assert found["report"] == str(tmp_path / "report" / "index.html") and Path(found["report"]).exists()
    # of a random model every ratio is about 1: the search went on to the end of what can be cut
    sparsities = [float(r["params"]["sparsity"]) for r in found["tickets"][1:]]
    assert sparsities == sorted(sparsities) and {0.2, 0.6, 0.8} <= set(sparsities)
    assert mlflow.get_run(found["run_id"]).info.status == "FINISHED"
    # one part was never run: it is shown as missing, and is no success
    other = write(tmp_path, "unfinished", models=[str(tiny)], target=["mlp", "o_proj"], sparsity="0.15")
    lottery_json("study", other, *QUICK, "--part", "ticket-0")
    done = cli("study", other, *QUICK, "--part", "report", code=1)
    assert "missing" in done.stdout and "2 of 3 failed" in done.stderr


def test_killed_twice_and_resumed(tmp_path: Path, tiny: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    forks = Forks(MLFLOW_TRACKING_URI=store, LOTTERY_HOME=str(tmp_path / "home"))
    mlflow.MlflowClient(store).search_experiments()  # a kill while MLflow makes its tables leaves no usable store
    command = ("study", "locate", "--model", tiny, "--measure", "perplexity", "--limit", 3, "--dataset", "builtin")
    try:
        forks.run(command, kill_at=(": made:", 2))
        forks.run(command, kill_at=(": made:", 1))
        (done,) = forks.run((*command, "--json"))
    finally:
        forks.close()
    assert done["code"] == 0, done["err"]
    found = json.loads(done["out"])
    states = [row["state"] for row in found["tickets"]]
    client = mlflow.MlflowClient(store)
    every = client.search_runs([e.experiment_id for e in client.search_experiments()])
    finished = [run.data.tags["ticket"] for run in every if run.info.status == "FINISHED" and "ticket" in run.data.tags]
    assert len(finished) == len(set(finished)) == 20  # none twice
    assert set(states) <= {"made", "found"} and states.count("found") >= 1  # the first kill came after a ticket
    assert not [run for run in every if run.info.status == "RUNNING"]
    assert len([run for run in every if run.data.tags.get("kind") == "study"]) == 1
    assert len(client.search_model_versions("name = 'ticket-tiny'")) == 19


def test_the_live_table(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.live import Live as Drawing

    from lottery.study.watching import Live

    console = Console(force_terminal=True, width=100, record=True)
    with Drawing(console=console, auto_refresh=False) as live:
        watch = Live(["m dense", "m mlp 50%", "m mlp 70%"], live)
        watch.begin("m dense")
        watch.end("made", {"perplexity": 71.38}, None)
        watch.begin("m mlp 50%")
        watch.tell("ticket: perplexity over 54 windows: 40%")
    shown = console.export_text()
    assert "71.38" in shown and "54 windows: 40%" in shown and "waits" in shown and "1 of 3 done" in shown
    capsys.readouterr()
