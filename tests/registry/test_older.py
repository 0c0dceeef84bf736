"""Tickets that an earlier version of lottery registered: their MLmodel names `lottery.serve`, and its code lies beside them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from click.testing import Result

import lottery.serve
from lottery.registry import serve
from tests.support.altered import model_id

PROMPT = "The old man"


@pytest.fixture(scope="module")
def registered(tiny: Path, lottery_json: Callable[..., dict[str, Any]]) -> str:
    return lottery_json("prune", "--model", tiny, "--measure", "none", "--register", "older")["model_uri"]


@pytest.fixture
def folder(registered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The logged model with the code of another version beside it: one flat folder, which this process must not need."""
    location = mlflow.MlflowClient().get_logged_model(model_id("older")).artifact_location
    copy = Path(shutil.copytree(location.removeprefix("file://"), tmp_path / "model"))
    shutil.rmtree(copy / "code" / "lottery")
    (copy / "code" / "lottery").mkdir()
    for name in ("__init__.py", "serve.py", "ticket.py", "models.py", "registry.py"):
        (copy / "code" / "lottery" / name).write_text("raise ImportError('the code of an earlier version')\n")
    monkeypatch.setattr(sys, "path", list(sys.path))  # MLflow puts the model's code in front
    return copy


def test_the_name_that_every_version_gave(folder: Path) -> None:
    flavor = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]["python_function"]
    assert (flavor["loader_module"], flavor["code"], flavor["data"]) == ("lottery.serve", "code", "data/ticket")
    assert lottery.serve._load_pyfunc is serve._load_pyfunc


def test_loaded_where_this_version_was_imported_first(
    folder: Path, registered: str, cli: Callable[..., Result]
) -> None:
    served = mlflow.pyfunc.load_model(str(folder))
    assert isinstance(served._model_impl, serve.Served) and str(folder / "code") in sys.path
    said = cli("generate", "--ticket", registered, "--prompt", PROMPT, "--tokens", "4").stdout.removesuffix("\n")
    assert served.predict([PROMPT], params={"max_new_tokens": 4}) == [said] != [PROMPT]


def test_loaded_by_its_folder(folder: Path) -> None:
    """Without MLflow, and without the code beside it."""
    model, tokenizer = lottery.load(folder / "data" / "ticket")
    assert tokenizer is not None and sum(int((p == 0).sum()) for p in model.parameters()) > 10_000
