"""What lottery sets for the browser, in the store: once, the same from many at once, over nothing that a person has set."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from lottery.registry.views import link_version, prepare_experiment, runs_url
from tests.support.store import new_store

VIEW = "mlflow.sharedViewState.lottery"


def experiment() -> str:
    return str(MlflowClient().create_experiment(f"views {uuid.uuid4().hex}"))


def tags(experiment_id: str) -> dict[str, str]:
    return dict(MlflowClient().get_experiment(experiment_id).tags)


def test_a_view_and_a_description_are_set_by_many_at_once() -> None:
    here = experiment()
    with ThreadPoolExecutor(12) as many:
        list(many.map(lambda _: prepare_experiment(MlflowClient(), here), range(12)))
    found = tags(here)
    assert json.loads(found[VIEW])["name"] == "Tickets by ratio"
    assert json.loads(json.loads(found[VIEW])["state"])["searchFilter"] == "tags.kind = 'ticket'"
    assert len(found[VIEW]) < 5000  # what MLflow's earlier releases take
    assert f"(#/experiments/{here}/runs?" in found["mlflow.note.content"]


def test_what_a_person_has_set_stays() -> None:
    here, client = experiment(), MlflowClient()
    client.set_experiment_tag(here, "mlflow.note.content", "Ours")
    prepare_experiment(client, here)
    assert tags(here)["mlflow.note.content"] == "Ours"
    client.delete_experiment_tag(here, VIEW)
    client.set_experiment_tag(here, "mlflow.note.content", "")
    before = tags(here)
    prepare_experiment(client, here)
    assert tags(here) == before and VIEW not in before


@pytest.mark.parametrize("edition", ["1", "2"])  # 2: an experiment that got the view of this edition alone
def test_the_description_of_an_earlier_edition_is_replaced(edition: str) -> None:
    here, client = experiment(), MlflowClient()
    table, chart = runs_url("", here), runs_url("", here, chart=True)
    old = f"Pruned language models. All tickets: [table by perplexity]({table}), [charts against sparsity]({chart})."
    for text in (old, f"{old} Ask Ann."):
        client.set_experiment_tag(here, "mlflow.note.content", text)
        client.set_experiment_tag(here, "lottery.views", edition)
        prepare_experiment(client, here)
        found = tags(here)["mlflow.note.content"]
        assert found == (old.replace("by perplexity", "by ratio to dense") if text == old else text)


def test_a_store_that_refuses_does_not_stop_a_run(tmp_path: Path) -> None:
    client = MlflowClient(new_store(tmp_path / "other.db"))
    prepare_experiment(client, "12345")  # no such experiment
    assert not mlflow.active_run()


def test_addresses_hold_no_password() -> None:
    table = runs_url("http://me:secret@host:5000/", "3")
    assert table == "http://host:5000/#/experiments/3/runs?workflowType=machine_learning&viewStateShareKey=lottery"
    assert runs_url("", "3", chart=True).startswith("#/experiments/3/runs?")
    assert runs_url("", "3", chart=True).endswith("&compareRunsMode=CHART")
    assert runs_url("https://me:secret@host/mlflow", "3").startswith("https://host/mlflow/#/experiments/3/runs?")


def test_a_logged_model_names_its_version(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    made = lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "ticket-linked")
    client = MlflowClient()
    model_id = client.get_run(made["run_id"]).outputs.model_outputs[0].model_id
    link_version(client, model_id, "ticket-linked", 1)  # again: the run has done it
    named = client.get_logged_model(model_id).tags["mlflow.modelVersions"]
    assert json.loads(named) == [{"name": "ticket-linked", "version": "1"}]
    link_version(client, "m-0", "ticket-linked", 1)  # no such model
