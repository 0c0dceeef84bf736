"""One tracking store and one home for the whole session; real small models; the CLI in process."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lottery.progress import quiet_libraries

quiet_libraries()
if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of two threads each on two cores wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent"}  # no test asks a hub but its own

import pytest

pytest.register_assert_rewrite("tests.support")

import torch
from click.testing import CliRunner, Result

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # a GPU's kernel, if Triton is here, runs in Python

from tests.support.hub_server import Hub, use
from tests.support.models import tiny_model


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's folder: SQLite tracking store, artifacts, LOTTERY_HOME. Kernels stay compiled between sessions."""
    folder = tmp_path_factory.mktemp("store")
    before, here = dict(os.environ), Path.cwd()
    from lottery.files.home import home

    os.environ.setdefault("NUMBA_CACHE_DIR", str(home() / "kernels"))
    os.environ |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "LOTTERY_HOME": str(folder / "home")}
    os.environ.pop("MLFLOW_RUN_ID", None)
    os.chdir(folder)
    yield folder
    os.chdir(here)
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, and this process set to it with an empty cache."""
    server = Hub()
    use(monkeypatch, server.url, tmp_path / "home")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    from lottery.cli.main import main

    def invoke(*arguments: Any, code: int = 0) -> Result:
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        assert result.exit_code == code, (arguments, result.output, result.exception)
        return result

    return invoke


@pytest.fixture(scope="session")
def lottery_json(cli: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    def invoke(*arguments: Any) -> dict[str, Any]:
        return json.loads(cli(*arguments, "--json").stdout)

    return invoke


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")
