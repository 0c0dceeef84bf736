"""Studies, through the front door: once each ticket, found again, on after a kill, what fails."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from lottery.files.home import home
from lottery.registry.parts import part_key
from lottery.spec import Spec
from tests.support.forks import Forks
from tests.support.models import tiny_model
from tests.support.store import new_store
from tests.support.studies import MEASURED, QUICK, runs, write


@pytest.fixture(scope="module")
def located(lottery_json: Callable[..., dict[str, Any]], tiny: Path) -> dict[str, Any]:
    """Nobody has made one of its tickets before: files that make some, too, come later in the alphabet."""
    return lottery_json("study", "locate", "--model", tiny, *QUICK)


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
    assert (first[0], second[0]) == ("", " runtime packed")
    for part in (first, second):
        assert [line.split("|")[1].strip() for line in part if line.startswith("| ")][1:] == ["dense", "mlp 50% int8"]
    assert "2 protocols: perplexities compare within one of them only" in said


def test_a_study_takes_a_runtime_as_any_parameter(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path
) -> None:
    """The search for the cliff too; sparse tickets have the perplexity of packed ones, to the bit."""
    usual = lottery_json("study", "cliff", "--model", tiny, "--dry-run")
    plan = lottery_json("study", "cliff", "--model", tiny, "--dry-run", "--runtime", "sparse")
    assert plan["study_id"] != usual["study_id"]
    assert (
        lottery_json("study", "cliff", "--model", tiny, "--dry-run", "--runtime", "dense")["study_id"]
        == usual["study_id"]
    )
    for name in ("tickets", "baselines", "refined"):
        assert {part["params"]["runtime"] for part in plan[name]} == {"sparse"}
    assert "runtime: sparse" in cli("study", "cliff", "--show", "--runtime", "sparse").stdout
    found = {}
    for runtime in ("packed", "sparse"):
        how = ("--model", tiny, "--runtime", runtime, "--device", "cpu", *QUICK)
        made = lottery_json("study", "cliff", *how)
        assert {row["params"]["runtime"] for row in made["tickets"]} == {runtime}
        found[runtime] = [(row["title"], row["metrics"]["perplexity"]) for row in made["tickets"]]
        assert mlflow.get_run(made["run_id"]).data.params["runtime"] == runtime
    assert found["packed"] == found["sparse"] and len(found["packed"]) >= 8


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
    store = new_store(tmp_path / "m.db")
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


def test_runs_are_named_after_base_and_ticket_and_found_by_any_name(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    other = tiny_model(tmp_path / "other-base", num_hidden_layers=2)
    grid = [{"target": "up_proj", "sparsity": "0.3"}]
    path = write(tmp_path, "renamed", models=[str(tiny), str(other)], grid=grid)
    registered = (*QUICK[:-4], *("--register", "named-after"), "--out", "none")
    first = lottery_json("study", path, *registered)["tickets"]
    client = mlflow.MlflowClient()
    made = {row["run_id"]: client.get_run(row["run_id"]).info.run_name for row in first if row["title"] != "dense"}
    assert list(made.values()) == ["tiny up_proj 30%", "other-base up_proj 30%"]
    models = [client.get_logged_model(client.get_run(id).outputs.model_outputs[0].model_id) for id in list(made)[:1]]
    assert [model.name for model in models] == ["tiny up_proj 30"]
    for row in first:
        client.update_run(row["run_id"], name="anything")
    again = lottery_json("study", path, *registered)["tickets"]
    assert [(row["state"], row["run_id"]) for row in again] == [("found", row["run_id"]) for row in first]
    listed = lottery_json("list", "--name", "named-after")["tickets"]
    assert listed[0]["metrics"]["perplexity"] == first[1]["metrics"]["perplexity"]
    assert lottery_json("report", "--study", "renamed", "--out", tmp_path / "report")["tickets"] == 2


def test_its_artifact_is_a_study(located: dict[str, Any], lottery_json: Callable[..., dict[str, Any]]) -> None:
    path = mlflow.artifacts.download_artifacts(run_id=located["run_id"], artifact_path="study.yaml")
    assert lottery_json("study", path, "--dry-run")["study_id"] == located["study_id"]


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


def test_killed_twice_and_resumed(tmp_path: Path, tiny: Path, forks: Forks, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path / "mlflow.db")  # a kill while MLflow makes its tables leaves no usable store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    command = ("study", "locate", "--model", tiny, "--measure", "perplexity", "--limit", 3, "--dataset", "builtin")
    forks.run(command, kill_at=(": made:", 2))
    forks.run(command, kill_at=(": made:", 1))
    (done,) = forks.run((*command, "--json"))
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
