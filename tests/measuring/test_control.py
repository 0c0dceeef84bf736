"""Controls: random tickets of the same counts, through the command and a real store."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from click.testing import Result

from lottery.kernels import bitmask
from lottery.measuring.control import control_metrics
from lottery.measuring.measurement import ModelResult
from lottery.models.sources import open_base
from lottery.ticket.opening import open_ticket
from lottery.ticket.packing import matrix_bits
from tests.support.models import tiny_model

SHORT = ("--dataset", "builtin", "--limit", 12, "--measure", "perplexity", "--register", "none")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--scope", "global"),
        ("--scope", "row"),
        ("--quantize", "int8"),
        ("--pattern", "2:4"),
        ("--storage", "mask"),
        ("--method", "random"),
        ("--allocation", "alpha"),
    ],
    ids="=".join,
)
def test_a_control_has_the_ticket_s_own_counts(
    arguments: tuple[str, str],
    tmp_path: Path,
    lottery_json: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model(tmp_path / "model")
    from lottery.measuring import control

    seen: list[tuple[dict[str, Any], dict[str, bytes]]] = []
    measure_model = control.measure_model

    def looked_at(what: str, ticket: Any, *rest: Any) -> Any:
        masks = {n: ticket.matrix(n).bitmask_OB.tobytes() for n, e in ticket.entries.items() if "requested" in e}
        seen.append((ticket.record, masks))
        return measure_model(what, ticket, *rest)

    monkeypatch.setattr(control, "measure_model", looked_at)
    out = tmp_path / "t"
    made = lottery_json("prune", "--model", model, "--control", 2, "--out", out, *SHORT, *arguments)
    stored = open_ticket(out)
    targeted = {n: e["kept"] for n, e in stored.entries.items() if "requested" in e}
    assert len(seen) == 2 and seen[0][1] != seen[1][1]
    for record, masks in seen:
        assert {n: e["kept"] for n, e in record["tensors"].items() if "requested" in e} == targeted
        assert record["spec"]["quantize"] == stored.record["spec"]["quantize"]
        assert masks != {n: stored.matrix(n).bitmask_OB.tobytes() for n in targeted}  # type: ignore[union-attr]  # packed
    metrics, client = made["metrics"], mlflow.MlflowClient()
    local = Path(client.download_artifacts(made["run_id"], "control_nll_per_window.npy", str(tmp_path)))
    nll_CN = np.load(local)
    assert nll_CN.shape == (2, 12)
    each = np.exp(nll_CN.mean(1))
    assert metrics["control_perplexity"] == pytest.approx(np.median(each))
    assert (metrics["control_perplexity_lo"], metrics["control_perplexity_hi"]) == (each.min(), each.max())
    assert metrics["control_ratio"] == pytest.approx(metrics["perplexity"] / math.sqrt(each[0] * each[1]))
    assert made["tags"]["beats_control"] == ("yes" if metrics["control_ratio_hi"] < 1 else "no")


def test_a_control_is_a_random_ticket_of_the_next_seed(tmp_path: Path, lottery_json: Callable[..., Any]) -> None:
    """At sparsity per tensor it is the very ticket that method=random makes."""
    model = tiny_model(tmp_path / "model")
    arguments = ("prune", "--model", model, "--sparsity", "0.8", *SHORT)
    with_control = lottery_json(*arguments, "--control", 1)["metrics"]
    random = lottery_json(*arguments, "--method", "random", "--seed", 1, "--out", tmp_path / "r")["metrics"]
    assert with_control["control_perplexity"] == random["perplexity"]
    stored, base = open_ticket(tmp_path / "r"), open_base(str(model))
    for name, entry in stored.entries.items():
        if "requested" in entry:
            kept = bitmask.survivors_per_row(stored.matrix(name).bitmask_OB).sum()  # type: ignore[arg-type]  # packed
            assert kept == round(0.2 * matrix_bits(base.tensor(name), False).size)


def test_controls_that_overflow_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    nll_N = np.array([1.0, 2.0, 3.0])
    some = control_metrics(ModelResult(nll_N=nll_N), np.stack([nll_N + 1, nll_N * np.nan]))
    assert some["control_perplexity"] == pytest.approx(math.exp(3)) and some["control_ratio"] == pytest.approx(
        1 / math.e
    )
    assert "1 of 2 controls overflowed" in capsys.readouterr().err
    assert control_metrics(ModelResult(nll_N=nll_N), np.full((1, 3), np.inf)) == {}


def test_a_control_without_perplexity_is_refused(cli: Callable[..., Result]) -> None:
    said = cli("prune", "--control", 2, "--measure", "speed", code=2).stderr
    assert "control=2" in said and "measure=speed" in said


@pytest.mark.parametrize("sparsity", ["0", "0.00001"])
def test_a_whole_ticket_has_no_control(sparsity: str, cli: Callable[..., Result], tiny: Path) -> None:
    said = cli("prune", "--model", tiny, "--sparsity", sparsity, "--control", 1, *SHORT, "--json")
    lines = [line for line in said.stderr.splitlines() if "control" in line]
    assert (
        len(lines) == 1 and lines[0].startswith("warning: control=1: no control is measured") and "nothing" in lines[0]
    )
    made = json.loads(said.stdout)
    assert "control_ratio" not in made["metrics"] and "beats_control" not in made["tags"]
