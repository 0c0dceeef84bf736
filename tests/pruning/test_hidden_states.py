"""The hidden states of all samples, in memory or in a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lottery.files.home import home
from lottery.models import devices
from lottery.pruning import hidden_states
from lottery.ticket.stored import StoredTicket
from tests.support.weights import same_bits


def test_a_file_holds_them_where_they_would_take_a_quarter_of_the_free_memory() -> None:
    free = devices.free_bytes("cpu")
    assert not hidden_states.lies_in_file(free // 8)
    assert hidden_states.lies_in_file(free // 2)


def test_the_ticket_is_the_same_with_a_file(
    tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text("One day a little girl went to the park with her dog. " * 50)
    given = ("--model", tiny, "--method", "sparsegpt", "--calibration", tmp_path / "text.txt")
    quick = ("--nsamples", "3", "--seqlen", "64", "--measure", "none", "--register", "none")
    lottery_json("prune", *given, *quick, "--out", tmp_path / "memory")
    monkeypatch.setattr(hidden_states, "SHARE", 10**15)  # of the free memory, no byte is such a part
    lottery_json("prune", *given, *quick, "--out", tmp_path / "file")
    one, two = StoredTicket(tmp_path / "memory"), StoredTicket(tmp_path / "file")
    assert all(same_bits(one.tensor(name), two.tensor(name)) for name in one.tensors)
    plan = lottery_json("plan", *given, *quick[:4])
    assert plan["calibration_bytes"]["hidden_states"] == 0


def test_nothing_is_left_of_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(hidden_states, "SHARE", 10**15)
    states = hidden_states.new_hidden_states((2, 3, 5), torch.float16)
    states[:] = torch.arange(30).view(2, 3, 5)
    assert states.sum() == 435 and states.dtype == torch.float16
    assert "the hidden states of the calibration samples take 0.0 GB and lie in a file in" in capsys.readouterr().err
    mapped = Path("/proc/self/maps").read_text()
    assert str(home() / "unfinished") in mapped and "(deleted)" in mapped
    assert not list((home() / "unfinished").glob("tmp*"))
