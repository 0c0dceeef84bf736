"""Studies of several models, and what one of them does not have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result

from tests.support.hub_server import Hub
from tests.support.models import tiny_model
from tests.support.studies import MEASURED, QUICK, write


def test_several_models_and_what_one_does_not_have(
    lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    gpt = tiny_model(tmp_path / "gpt", "GPTNeoX")
    path = write(tmp_path, "two-models", models=[str(tiny), str(gpt)], target=["mlp", "q_proj"], sparsity=0.5)
    found = lottery_json("study", path, *QUICK)
    assert [(r["base"], r["title"]) for r in found["tickets"]] == [
        ("tiny", "dense"), ("tiny", "mlp 50%"), ("tiny", "q_proj 50%"), ("gpt", "dense"), ("gpt", "mlp 50%"),
    ]  # fmt: skip
    (left,) = found["left_out"]
    assert left["model"] == str(gpt) and left["target"] == "q_proj" and "unknown" in left["reason"]
    assert "of 2 protocols" not in cli("study", path, *QUICK).stdout
    wrong = write(tmp_path, "wrong", models=[str(tiny)], target=["mlp", "q_porj"], sparsity=0.5)
    assert "did you mean q_proj" in cli("study", wrong, *QUICK, code=2).stderr
    none = write(tmp_path, "none", models=[str(tiny), str(gpt)], target=["mlp", "no_proj"], sparsity=0.5)
    assert "target=no_proj" in cli("study", none, *QUICK, code=2).stderr  # no model has it: a typo
    budget = write(tmp_path, "budget", models=[str(tiny)], target=["mlp", "q_porj"], budget="0.01")
    assert "did you mean q_proj" in cli("study", budget, *QUICK, code=2).stderr


def test_a_hub_s_models_are_planned_without_their_weights_and_kept_as_masks(
    server: Hub, lottery_json: Callable[..., dict[str, Any]], cli: Callable[..., Result], tiny: Path, tmp_path: Path
) -> None:
    server.add("org/one", tiny)
    server.add("org/two", tiny_model(tmp_path / "phi", "Phi"))
    grid = [
        {"target": "mlp", "sparsity": "0.5", "quantize": ["none", "int8"]},
        {"target": "gate_proj", "sparsity": "0.5"},
    ]
    path = write(tmp_path, "of-the-hub", models=["org/one", "org/two"], grid=grid)
    plan = lottery_json("study", path, "--dry-run", *QUICK)
    assert [(p["base"], p["title"], p["params"]["storage"]) for p in plan["tickets"]] == [
        ("org/one", "mlp 50%", "mask"), ("org/one", "mlp 50% int8", "packed"), ("org/one", "gate_proj 50%", "mask"),
        ("org/two", "mlp 50%", "mask"), ("org/two", "mlp 50% int8", "packed"),
    ]  # fmt: skip
    assert [left["target"] for left in plan["left_out"]] == ["gate_proj"]
    assert not [asked for asked in server.asked if asked.startswith("GET") and "model.safetensors" in asked]
    asked = cli("study", path, "--show", "--storage", "packed").stdout
    assert "storage: packed" in asked  # who asks for it gets it
    packed = lottery_json("study", path, "--dry-run", *QUICK, "--storage", "packed", "--quantize", "none")
    assert {p["params"]["storage"] for p in packed["tickets"]} == {"packed"}
    found = lottery_json("study", path, *QUICK)
    # the first one's dense baseline is there: its files are those of another test's
    assert [row["state"] for row in found["tickets"] if row["title"] != "dense"] == ["made"] * 5
    small, eight = (row["metrics"]["disk_bytes"] for row in found["tickets"][1:3])
    assert small < eight / 10


def test_models_of_one_name_are_told_apart(
    lottery_json: Callable[..., dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    for i, family in enumerate(("Llama", "GPTNeoX")):
        tiny_model(tmp_path / str(i) / "final", family)
    models = [str(tmp_path / str(i) / "final") for i in range(2)]
    path = write(tmp_path, "alike", models=models, target="mlp", sparsity=0.5)
    found = lottery_json("study", path, *MEASURED, "--out", tmp_path / "report")
    assert [r["base"] for r in found["tickets"]] == [f"final ({m})" for m in models for _ in range(2)]
    table = (tmp_path / "report" / "tables").glob("*.csv")
    assert all(any(m in path.read_text() for path in table) for m in models[:1])
    assert len({(r["base"], r["metrics"]["parameters"]) for r in found["tickets"]}) == 2
