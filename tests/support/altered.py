"""Tickets that somebody has altered, and what is said of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import Result

import lottery
from lottery.errors import InputError


def model_id(name: str = "altered", version: str = "1") -> str:
    return mlflow.MlflowClient().get_model_version(name, version).source.removeprefix("models:/")


def refused(ticket: Any, cli: Callable[..., Result], *words: str) -> None:
    with pytest.raises(InputError) as caught:
        lottery.load(ticket)
    said = cli("verify", "--ticket", ticket, code=2).stderr.removeprefix(f"fetch {ticket}\n")
    assert said.startswith("Error: ") and said.count("\n") == 1 and said.strip().endswith(str(caught.value))
    for word in words:
        assert word in said, said


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def same(left: Any, right: Any) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
