"""Several at once that write the same row of a store: MLflow's own steps fail for one of them, ours do not."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from lottery.measuring.protocol import EvalProtocol
from lottery.registry.runs import Run, start_run
from tests.support.store import new_store

AT_ONCE, ROUNDS = 6, 8


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    uri = new_store(tmp_path / "fresh.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    return uri


def all_at_once(works: list[Callable[[], None]]) -> None:
    barrier = Barrier(len(works))

    def begin(work: Callable[[], None]) -> None:
        barrier.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        for end in [pool.submit(begin, work) for work in works]:
            end.result()


def test_a_data_set_that_several_runs_name_first(fresh: str) -> None:
    client = MlflowClient()
    runs = [Run(client, client.create_run("0").info.run_id, lambda status: None) for _ in range(AT_ONCE)]
    for i in range(ROUNDS):
        protocol = EvalProtocol(
            dataset=f"text{i}", text_sha256=f"{i:064}", utf8_bytes=1, tokens=1, windows=1, window=1, limit="none",
            bos="none", dtype="float32", runtime="dense", device="cpu",
        )  # fmt: skip
        all_at_once([partial(run.log_dataset, protocol) for run in runs])
    for run in runs:
        inputs = client.get_run(run.id).inputs
        assert inputs and sorted(d.dataset.name for d in inputs.dataset_inputs) == [
            f"text{i}-w1" for i in range(ROUNDS)
        ]


def test_a_new_experiment_that_several_runs_make(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()

    def run() -> None:
        start_run(client, "first", {}).finish()

    for i in range(ROUNDS):
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", f"new{i}")
        all_at_once([run] * AT_ONCE)
        experiment = mlflow.get_experiment_by_name(f"new{i}")
        assert experiment is not None
        assert len(client.search_runs([experiment.experiment_id])) == AT_ONCE
