"""Winning tickets of a hypothesis: registered, loaded, measured and generating as any other, and trained again."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from click.testing import Result
from mlflow.utils.file_utils import local_file_uri_to_path
from safetensors.numpy import load_file

import lottery
from lottery.training.network import Network, initial_weights
from lottery.training.recipe import Shape
from tests.hypothesis.conftest import Ran
from tests.support.hypotheses import everything, write
from tests.support.refused import refused
from tests.support.studies import runs

Json = Callable[..., dict[str, Any]]
Cli = Callable[..., Result]


def start_of(ticket: dict[str, Any]) -> Path:
    """Returns the folder of what a ticket was trained from."""
    return Path(mlflow.artifacts.download_artifacts(run_id=ticket["run_id"], artifact_path="training"))


def test_the_sparsest_matching_ticket_of_each_arm_is_registered(ran: Ran) -> None:
    name = f"ticket-hypothesis-{ran.printed['run_id'][:8]}"
    versions = {str(v.version): v for v in mlflow.MlflowClient().search_model_versions(f"name = '{name}'")}
    matching = {c["arm"] for c in ran.record["claims"] if c["claim"] == "matches" and c["holds"]}
    assert {t["arm"] for t in ran.record["tickets"]} == matching >= {"rewound"} and len(versions) == len(matching)
    for ticket in ran.record["tickets"]:
        start, _, version = ticket["model_uri"].rpartition("/")
        tags = versions[version].tags
        assert start == f"models:/{name}" and tags["ticket"] == ticket["ticket"] and tags["arm"] == ticket["arm"]
        assert (tags["kind"], tags["seed"], tags["density"]) == ("ticket", "0", f"{ticket['density']:.4f}")
        run = mlflow.get_run(ticket["run_id"])
        assert run.data.tags["mlflow.parentRunId"] == ran.printed["run_id"] and run.data.tags["arm"] == ticket["arm"]
    assert ran.ticket["density"] == pytest.approx(0.64, abs=0.001)
    assert mlflow.MlflowClient().get_registered_model(name).aliases == {}


def test_the_perplexity_is_that_of_the_training(ran: Ran) -> None:
    """Measured anew from the packed ticket, on the windows of the report text."""
    by_id = {t["id"]: t for t in ran.record["trainings"]}
    dense = ran.training("dense", rewind=0, steps=60)
    for ticket in ran.record["tickets"]:
        metrics, training = mlflow.get_run(ticket["run_id"]).data.metrics, by_id[ticket["id"]]
        assert metrics["perplexity"] == pytest.approx(math.exp(training["loss"]), rel=1e-6)
        assert ticket["ratio"] == metrics["perplexity_ratio"]
        assert ticket["ratio"] == pytest.approx(math.exp(training["loss"] - dense["loss"]), rel=1e-6)
        assert 1 - metrics["sparsity_target"] == pytest.approx(training["density"], abs=1e-12)


def test_it_is_a_ticket_as_any_other(ran: Ran, lottery_json: Json) -> None:
    uri = ran.ticket["model_uri"]
    model, tokenizer = lottery.load(uri)
    assert tokenizer is not None and sum(p.numel() for p in model.parameters()) == ran.record["parameters"]["all"]
    weights = [p for name, p in model.named_parameters() if "proj" in name]
    living = sum(int((w != 0).sum()) for w in weights) / ran.record["parameters"]["prunable"]
    assert living == pytest.approx(ran.ticket["density"], abs=1e-3)
    measured = lottery_json(
        "evaluate", "--ticket", uri, "--dataset", ran.report_text, "--window", 32, "--measure", "perplexity"
    )
    training = ran.training("rewound", id=ran.ticket["id"])
    assert measured["metrics"]["perplexity"] == pytest.approx(math.exp(training["loss"]), rel=1e-6)
    text = lottery_json("generate", "--ticket", uri, "--prompt", "The dog", "--tokens", 8)["text"]
    assert text.startswith("The dog") and len(text) > len("The dog")
    assert measured["ticket"] == lottery_json("verify", uri)["ticket"] == ran.ticket["ticket"]


def test_what_it_was_trained_from_lies_beside_it(ran: Ran) -> None:
    folder = start_of(ran.ticket)
    recipe, tensors = json.loads((folder / "recipe.json").read_text()), load_file(folder / "weights.safetensors")
    row = ran.training("rewound", id=ran.ticket["id"])
    assert recipe["first"] == 3 and recipe["text"] == "stories" and recipe["loss"] == row["loss"]
    assert recipe["training"]["lr"] == row["lr"] and recipe["setup"]["corpus"] == ran.record["text"]["sha256"]
    network = Network(Shape(**recipe["setup"]["shape"]))
    assert sorted(tensors) == ["initial", "mask", "rewound"]
    mask_P = np.unpackbits(tensors["mask"], count=network.size).astype(bool)
    assert mask_P[network.prunable_P].mean() == ran.ticket["density"] and mask_P[~network.prunable_P].all()
    assert tensors["initial"].tobytes() == initial_weights(network, 0).tobytes()
    rewound_P = tensors["rewound"]
    assert (rewound_P[~mask_P] == 0).all() and 0 < np.abs(rewound_P - tensors["initial"])[mask_P].max() < 0.02
    model, _ = lottery.load(ran.ticket["model_uri"])
    trained_P = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
    assert (trained_P[~mask_P] == 0).all()


def test_trained_again_it_has_the_same_bits(ran: Ran, lottery_json: Json) -> None:
    before = len(runs("tags.kind = 'training'"))
    found = lottery_json("hypothesis", "--retrain", ran.ticket["model_uri"])
    row = ran.training("rewound", id=ran.ticket["id"])
    assert found["same_bits"] is True and found["ticket"] == ran.ticket["ticket"]
    assert found["loss"] == found["registered_loss"] == row["loss"]
    assert found["difference"] == found["lo"] == found["hi"] == 0
    run = mlflow.get_run(found["run_id"])
    assert run.data.tags["mlflow.parentRunId"] == ran.ticket["run_id"] and run.data.tags["retrained"] == "yes"
    points = mlflow.MlflowClient().get_metric_history(found["run_id"], "train_loss")
    assert [(m.step, m.value) for m in points] == [(point[0], point[1]) for point in row["curve"]]
    assert len(runs("tags.kind = 'training'")) == before + 1
    # it is not taken for a training of a hypothesis
    again = lottery_json("hypothesis", "--preset", ran.preset, "--jobs", 1, "--out", "none")
    assert again["runs"] == ran.printed["runs"]


def test_altered_weights_are_not_trained_again(ran: Ran, cli: Cli) -> None:
    root = mlflow.get_run(ran.ticket["run_id"]).info.artifact_uri
    path = Path(local_file_uri_to_path(root)) / "training" / "weights.safetensors"
    whole, before = path.read_bytes(), len(runs(""))
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(cli("hypothesis", "--retrain", ran.ticket["model_uri"], code=2), "weights.safetensors")
    path.write_bytes(whole)
    assert len(runs("")) == before


def test_what_cannot_be_trained_again(ran: Ran, cli: Cli, lottery_json: Json, tiny: Path, tmp_path: Path) -> None:
    ordinary = lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "ordinary")["model_uri"]
    path = tmp_path / "other.txt"
    draw = random.Random(0)
    path.write_text("\n".join("".join(draw.choices("abcdefghij klmnopqrst", k=60)) for _ in range(5_000)))
    before = len(runs(""))
    for words, says in {
        (ordinary,): "no rewound weights lie beside it",
        ("nonsense",): "give a registered ticket of a hypothesis",
        (str(tiny),): "give a registered ticket of a hypothesis",
        ("models:/ticket-hypothesis-none/1",): "retrain=models:/ticket-hypothesis-none/1",
        ("models:/nonsense",): "retrain=models:/nonsense",
        (f"{ran.ticket['model_uri'].rpartition('/')[0]}/99",): "/99",
        (ran.ticket["model_uri"], "--text", str(path)): "is not the text that the ticket was trained on",
        (ran.ticket["model_uri"], "--text", "gone.txt"): "text=gone.txt",
    }.items():
        refused(cli("hypothesis", "--retrain", *words, code=2), says)
    assert len(runs("")) == before


def test_its_method_is_no_method_of_prune(cli: Cli) -> None:
    before = everything()
    refused(
        cli("prune", "--model", "builtin", "--method", "hypothesis", code=2), "method=hypothesis", "lottery hypothesis"
    )
    assert "hypothesis" not in cli("prune", "--help").stdout and everything() == before


def test_a_base_is_found_without_the_chain_s_dense_training(lottery_json: Json, tmp_path: Path) -> None:
    """All trainings are at another rate than the chain's, and no arm needs a chain: nobody has made its dense one."""
    grid = [{"arm": "dense", "lr": 0.006}, {"arm": "random", "density": 0.8, "lr": 0.01}]
    preset = write(tmp_path, "loose", lr=0.02, steps=40, grid=grid)
    printed = lottery_json("hypothesis", "--preset", preset, "--jobs", 1, "--out", "none")
    assert [(run["arm"], run["lr"]) for run in printed["runs"]] == [("dense", 0.006), ("random", 0.01)]
    assert [claim["holds"] for claim in printed["claims"]] == [True]
    name = f"ticket-hypothesis-{printed['run_id'][:8]}"
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{name}'")) == 1
