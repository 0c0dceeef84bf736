"""A ticket in 8 bits takes the weights of the same ticket in 16 bits, if that was made before: the same bytes, no samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lottery.ticket.record import write_record
from tests.pruning.test_calibrated import LOOK, QUICK, folder_hashes
from tests.support.families import make
from tests.support.models import tiny_model

Cli = Callable[..., Result]
TAKEN = "the weights are those of"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home in which no earlier test made a ticket."""
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def plain_folder(home: Path) -> Path:
    """The folder of the only ticket in 16 bits."""
    (found,) = (
        record.parent
        for record in (home / "tickets").glob("*/ticket.json")
        if json.loads(record.read_text())["spec"]["quantize"] == "none"
    )
    return found


def was_pruned(result: Result) -> bool:
    """Whether the run states the seconds of pruning."""
    metrics: dict[str, Any] = json.loads(result.stdout)["metrics"]
    assert ("prune_s" in metrics) == ("calibrate_s" in metrics)
    return "prune_s" in metrics


@pytest.mark.parametrize(
    ("label", "method", "more"),
    [
        ("llama", "repair", ()),
        ("llama", "wanda", ("--target", "late+lm_head")),
        ("llama", "alps", ("--pattern", "2:4")),
        ("llama", "sparsegpt", ("--allocation", "owl")),
        ("gpt2", "refit", ()),
        ("mixtral", "swaps", ("--target", "mlp")),
    ],
)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_bytes_are_those_of_a_ticket_that_is_pruned_anew(
    label: str, method: str, more: tuple[str, ...], kind: str, tmp_path: Path, home: Path, cli: Cli
) -> None:
    model = make(label, tmp_path / "m", "saved")
    look = ("--calibration", "self", "--nsamples", "4", "--seqlen", "32")
    given = ("prune", "--model", model, "--method", method, *look, *more, *QUICK, "--json")
    alone = cli(*given, "--quantize", kind, "--out", tmp_path / "alone")
    assert TAKEN not in alone.stderr and was_pruned(alone)
    cli(*given)
    taken = cli(*given, "--quantize", kind, "--out", tmp_path / "taken")
    assert f"{TAKEN} {plain_folder(home)}, in {kind}" in taken.stderr and not was_pruned(taken)
    assert folder_hashes(tmp_path / "taken") == folder_hashes(tmp_path / "alone")


def test_a_registered_ticket_serves_too(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "solved-before")
    given = ("prune", "--model", model, "--method", "repair", *LOOK, "--measure", "memory", "--json")
    alone = json.loads(cli(*given, "--quantize", "fp8", "--register", "none").stdout)
    uri = json.loads(cli(*given).stdout)["model_uri"]
    taken = cli(*given, "--quantize", "fp8", "--out", tmp_path / "taken")
    assert f"{TAKEN} {uri}, in fp8" in taken.stderr
    assert folder_hashes(tmp_path / "taken") == folder_hashes(Path(alone["path"]))


def test_what_cannot_be_taken_is_pruned_again(tmp_path: Path, home: Path, cli: Cli) -> None:
    """A damaged ticket, one of other samples, and one so dense that it holds no masks. A method without data is quick."""
    model = tiny_model(tmp_path / "m")
    given = ("prune", "--model", model, "--method", "repair", *LOOK, *QUICK, "--json")
    cli(*given, "--quantize", "int8", "--out", tmp_path / "alone")
    cli(*given)
    shard = next(plain_folder(home).glob("ticket-*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    again = cli(*given, "--quantize", "int8", "--out", tmp_path / "again")
    assert "warning: quantize=int8: the weights are pruned again (ticket=" in again.stderr
    assert "is damaged or missing" in again.stderr and was_pruned(again)
    assert folder_hashes(tmp_path / "again") == folder_hashes(tmp_path / "alone")
    content[-1] ^= 1
    shard.write_bytes(content)
    folder = plain_folder(home)
    record = json.loads((folder / "ticket.json").read_text())
    del record["checksum"]
    write_record(folder, record | {"samples": "0" * 64})
    others = cli(*given, "--quantize", "int8", "--out", tmp_path / "others")
    assert "the weights are" not in others.stderr and was_pruned(others)
    for method, sparsity, look in (("repair", "0.03", LOOK), ("magnitude", "0.5", ())):
        few = ("prune", "--model", model, "--method", method, "--sparsity", sparsity, *look, *QUICK)
        cli(*few)
        assert TAKEN not in cli(*few, "--quantize", "int8").stderr
