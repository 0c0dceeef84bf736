"""One tracking store and one home for the whole session; real small models; the CLI in process, or in forks of one.

Tests marked `slow` run with LOTTERY_SLOW=1, in CI on a machine that is not too slow, and where they are named; else the last
lines say how many were not run.
"""

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lottery.progress import quiet_libraries

quiet_libraries()
# Two processes of two threads each on two cores wait for one another, and by spinning: together they take ten times as long.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "/nonexistent"}  # no test asks a hub but its own

import pytest

pytest.register_assert_rewrite("tests.support")

import torch
from click.testing import CliRunner, Result

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # a GPU's kernel, if Triton is here, runs in Python

from tests.support.forks import Forks
from tests.support.hub_server import Hub, use
from tests.support.models import tiny_model
from tests.support.often import SLOW_TOO
from tests.support.store import new_store

# The files that take longest, which two processes have to begin with.
LONGEST = (
    "docs/test_documents.py",
    "registry/test_server.py",
    "pruning/test_memory.py",
    "jobs/test_run.py",
    "study/test_slurm_study.py",
    "models/test_families.py",
    "report/test_page.py",
    "kernels/test_cuda.py",
    "registry/test_browser.py",
    "study/test_run.py",
    "study/test_slurm_tasks.py",
    "registry/test_serving.py",
    "registry/test_registry.py",
    "registry/test_verdicts.py",
    "cli/test_fuzz.py",
)

NOT_RUN = pytest.StashKey[int]()  # how many slow tests this run leaves out


def wants_slow_tests(config: pytest.Config) -> bool:
    """In CI, with LOTTERY_SLOW=1, and where single tests are picked: by -k, by -m, or by their names."""
    picked = config.option.keyword or config.option.markexpr or any("::" in word for word in config.args)
    return bool(SLOW_TOO or picked)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))
    slow = [] if wants_slow_tests(config) else [item for item in items if item.get_closest_marker("slow")]
    config.stash[NOT_RUN] = len(slow)
    if slow:
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # one of several processes, each of which collects all tests
        session.config.workeroutput["not_run"] = session.config.stash.get(NOT_RUN, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[NOT_RUN] = getattr(node, "workeroutput", {}).get("not_run", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := config.stash.get(NOT_RUN, 0):
        terminalreporter.write_line(f"{count} slow tests were not run: `make test SLOW=1` runs them too")


@pytest.fixture(scope="session", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The session's folder: SQLite tracking store, artifacts, LOTTERY_HOME. Kernels stay compiled between sessions."""
    folder = tmp_path_factory.mktemp("store")
    before, here = dict(os.environ), Path.cwd()
    from lottery.files.home import home

    os.environ.setdefault("NUMBA_CACHE_DIR", str(home() / "kernels"))
    os.chdir(folder)
    os.environ |= {"MLFLOW_TRACKING_URI": new_store(folder / "mlflow.db"), "LOTTERY_HOME": str(folder / "home")}
    os.environ.pop("MLFLOW_RUN_ID", None)
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

    modules = 0

    def invoke(*arguments: Any, code: int = 0) -> Result:
        nonlocal modules
        result = CliRunner().invoke(main, [str(a) for a in arguments])
        if len(sys.modules) > modules + 50:
            # Between two models memory is collected: with all the imports of a test's process that takes half a second.
            gc.collect()
            gc.freeze()
            modules = len(sys.modules)
        assert result.exit_code == code, (arguments, result.output, result.exception)
        return result

    return invoke


@pytest.fixture(scope="session")
def lottery_json(cli: Callable[..., Result]) -> Callable[..., dict[str, Any]]:
    def invoke(*arguments: Any) -> dict[str, Any]:
        return json.loads(cli(*arguments, "--json").stdout)

    return invoke


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Commands in processes of their own: where several work at once, or one is killed."""
    started = Forks()
    yield started
    started.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets LOTTERY_KERNEL, which a process reads once."""
    from lottery.kernels import product  # it loads compiled kernels

    def kernel(name: str) -> None:
        monkeypatch.setenv("LOTTERY_KERNEL", name)
        product.pick_kernel.cache_clear()

    yield kernel
    product.pick_kernel.cache_clear()
