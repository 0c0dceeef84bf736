"""A hypothesis through the front door: what it prints, records and logs, and that a second call makes nothing again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from click.testing import Result

from lottery.training.recipe import living
from tests.hypothesis.conftest import OWN, Ran
from tests.support.hypotheses import everything, record_of, write
from tests.support.studies import runs

Json = Callable[..., dict[str, Any]]
PRUNABLE = 2 * (4 * 32 * 32 + 3 * 32 * 64)


def trainings_of(run_id: str) -> list[Any]:
    return runs(f"tags.kind = 'training' and tags.`mlflow.parentRunId` = '{run_id}'")


def test_what_json_prints(ran: Ran) -> None:
    printed = ran.printed
    assert list(printed) == ["run_id", "report", "runs", "claims"]
    assert Path(printed["report"]) == ran.report / "index.html" and "small" in Path(printed["report"]).read_text()
    assert len(printed["runs"]) == 14
    for row in printed["runs"]:
        assert {"arm", "seed", "round", "density", "rewind", "loss", "run_id"} <= row.keys()
    claims = [(c["claim"], c["arm"], c["control"]) for c in printed["claims"]]
    assert ("beats", "rewound", "permuted") in claims and ("matches", "random", None) in claims and len(claims) == 7
    for claim in printed["claims"]:
        assert list(claim) == ["claim", "arm", "control", "density", "holds", "difference", "lo", "hi"]
        assert claim["holds"] in (True, False, None) and claim["lo"] <= claim["difference"] <= claim["hi"]


def test_the_hypothesis_run(ran: Ran) -> None:
    run = mlflow.get_run(ran.printed["run_id"])
    assert run.info.status == "FINISHED" and run.data.tags["kind"] == "hypothesis"
    assert run.data.tags["study"] == "small" and run.data.tags["command"].startswith("lottery hypothesis --preset")
    assert run.data.params == {"preset": "small", "text": "stories", "seed": "0", "seeds": "1", "device": "auto"}
    assert run.data.metrics == {"trainings": 14, "failed": 0}
    files = {f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"hypothesis.json", "hypothesis.yaml"} <= files


def test_a_run_for_each_training(ran: Ran) -> None:
    """Nested, with its curve as steps of train_loss and validation_loss, and its place as tags."""
    found = {run.info.run_id: run for run in trainings_of(ran.printed["run_id"])}
    assert len(found) == len(ran.record["trainings"]) == 14
    client = mlflow.MlflowClient()
    for row in ran.record["trainings"]:
        run = found[row["run_id"]]
        assert run.info.status == "FINISHED" and run.data.tags["outcome"] == "done"
        place = {name: run.data.tags[name] for name in ("arm", "round", "density", "seed")}
        assert place == {
            "arm": row["arm"], "round": str(row["round"]), "density": f"{row['density']:.4f}", "seed": "0",
        }  # fmt: skip
        assert run.data.params["lr"] == str(row["lr"]) and run.data.params["rewind"] == str(row["rewind"])
        for name in ("loss", "search_loss", "density", "cost"):
            assert run.data.metrics[name] == pytest.approx(row[name], abs=1e-12)
        for i, name in enumerate(("train_loss", "validation_loss"), 1):
            points = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            assert points == [(point[0], point[i]) for point in row["curve"]]
        assert len(row["curve"]) == {"untrained": 0}.get(row["arm"], 20 if not row["rewind"] else 19)


def test_a_second_call_makes_nothing_again(ran: Ran, cli: Callable[..., Result]) -> None:
    client = mlflow.MlflowClient()
    trainings = {path: time for path, time in everything().items() if "/trainings/" in path}
    count, versions = len(runs("")), len(client.search_model_versions())
    again = cli("hypothesis", "--preset", ran.preset, "--jobs", 1, "--out", ran.report, "--json")
    assert json.loads(again.stdout) == ran.printed
    assert "14 of 14 trainings were made before" in again.stderr and ": made:" not in again.stderr
    assert {path: time for path, time in everything().items() if "/trainings/" in path} == trainings
    assert (len(runs("")), len(client.search_model_versions())) == (count, versions)
    assert record_of(ran.printed["run_id"])["trainings"] == ran.record["trainings"]


def test_it_says_what_it_makes(ran: Ran) -> None:
    lines = [line for line in ran.said.splitlines() if ": made: loss " in line]
    assert len(lines) == 14 and lines[0].startswith("[1/14] dense lr=0.003 seed=0: made: loss ")
    assert "Traceback" not in ran.said and "no weight is left" not in ran.said


def test_the_record(ran: Ran) -> None:
    record = ran.record
    assert record["format"] == 1 and record["name"] == "small" and record["question"] == "Is this a test?"
    assert record["text"]["name"] == "stories" and record["text"]["tokens"]["train"] == 5 * 60 * 8 * 32
    assert record["setup"]["windows"] == {"search": 256, "report": 512} and record["setup"]["rewind"] == [0.05]
    assert record["parameters"] == {"all": PRUNABLE + 300 * 32 + 5 * 32, "prunable": PRUNABLE}
    ticket = ran.training("rewound", round=2, lr=0.003)
    assert ticket["density"] == living(PRUNABLE, 2, 0.2) / PRUNABLE and ticket["rewind"] == 3 and ticket["empty"] == []
    assert ticket["cost"] == 1.95  # 60 steps of dense and 57 of round 1, in trainings of 60
    size = {name: 32 * (64 if name[2] in "gud" and "proj" in name else 32) for name in ticket["densities"]}
    kept = sum(share * size[name] for name, share in ticket["densities"].items())
    assert len(size) == 14 and kept == pytest.approx(ticket["density"] * PRUNABLE, abs=1)
    assert ran.training("random")["cost"] == 0 and ran.training("untrained")["cost"] == 1


def test_the_losses_are_of_what_the_arms_say(ran: Ran) -> None:
    """Untrained is one cut after dense; the control of a ticket has its density and not its loss."""
    dense, ticket = ran.training("dense", rewind=0, steps=60), ran.training("rewound", round=2, lr=0.003)
    assert ran.training("dense", steps=120)["loss"] < dense["loss"] < 5
    permuted = ran.training("permuted", lr=0.003)
    assert permuted["densities"] == ticket["densities"] and permuted["loss"] > ticket["loss"]
    row = next(r for r in ran.record["rows"] if r["arm"] == "rewound" and r["round"] == 2 and r["lr"] == 0.003)
    assert row["loss"] == pytest.approx(ticket["loss"]) and row["difference"] == pytest.approx(
        ticket["loss"] - dense["loss"]
    )
    assert row["lo"] < row["loss"] < row["hi"] and row["difference_lo"] < row["difference"] < row["difference_hi"]


def test_the_lines_begin_and_end_at_the_trainings(ran: Ran) -> None:
    by_id = {t["id"]: t for t in ran.record["trainings"]}
    lines = [(line["arm"], line["rewind"], line["kind"]) for line in ran.record["barriers"]]
    assert lines == [("rewound", 3, "order"), ("dense", 0, "order"), ("dense", 3, "order")]
    for line in ran.record["barriers"]:
        losses = [loss for _, loss in line["line"]]
        assert len(losses) == 11 and by_id[line["b"]]["order"] == 1 and by_id[line["a"]]["order"] == 0
        assert losses[0] == pytest.approx(by_id[line["a"]]["search_loss"], abs=1e-5)
        assert losses[-1] == pytest.approx(by_id[line["b"]]["search_loss"], abs=1e-5)
        assert line["barrier"] == pytest.approx(max(0, max(losses) - (losses[0] + losses[-1]) / 2), abs=2e-5)
        assert line["lo"] <= line["barrier"] <= line["hi"]


def test_another_hypothesis_finds_the_trainings(
    ran: Ran, cli: Callable[..., Result], lottery_json: Json, tmp_path: Path
) -> None:
    """It makes one, and its run takes the others' runs as its own."""
    grid = [{"arm": "dense"}, {"arm": ["rewound", "shuffled"], "density": 0.64}]
    preset = write(tmp_path, "part", **OWN, grid=grid)
    result = cli("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none", "--json")
    printed = json.loads(result.stdout)
    assert "3 of 4 trainings were made before" in result.stderr and result.stderr.count(": made:") == 1
    assert printed["report"] is None and len(trainings_of(printed["run_id"])) == 1
    known = {t["run_id"] for t in ran.record["trainings"]}
    assert len({row["run_id"] for row in printed["runs"]} & known) == 3
    shown = lottery_json("hypothesis", "--preset", preset, "--dry-run")
    assert [row["steps"] for row in shown["trainings"]] == [60, 57, 57, 57] and shown["hypothesis"] == "part"


def test_another_seed_is_another_hypothesis(ran: Ran, lottery_json: Json, tmp_path: Path) -> None:
    preset = write(tmp_path, "dense", **OWN, grid=[{"arm": "dense"}])
    one, two = (lottery_json("hypothesis", "--preset", preset, "--seed", seed, "--jobs", 1) for seed in (0, 1))
    assert one["run_id"] != two["run_id"] and one["runs"][0]["loss"] != two["runs"][0]["loss"]
    assert one["runs"][0]["loss"] == ran.training("dense", rewind=0, steps=60)["loss"] and one["claims"] == []


def test_a_part_that_is_not_there(ran: Ran, cli: Callable[..., Result], tmp_path: Path) -> None:
    result = cli("hypothesis", "--preset", ran.preset, "--part", "training-0-99", code=2)
    assert "part=training-0-99: did you mean training-0-" in result.stderr
    unknown = write(tmp_path, "unknown", grid=[{"arm": "dense"}])
    result = cli("hypothesis", "--preset", unknown, "--part", "training-0-0", code=2)
    assert "the run of this hypothesis is not in" in result.stderr and "submit it again" in result.stderr
