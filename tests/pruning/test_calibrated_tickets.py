"""Tickets of methods that look at data, in the registry and in folders; mixtures; what the bar counts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lottery
from lottery.pruning import sparsegpt
from lottery.spec import METHODS, Spec
from lottery.ticket.stored import StoredTicket
from tests.pruning.test_calibrated import CALIBRATED, LINEAR, LOOK, QUICK, Cli, Json, folder_hashes, text  # noqa: F401
from tests.runtime.test_experts import fuse
from tests.support.families import make
from tests.support.models import tiny_model
from tests.support.weights import same_bits, tensors


def test_a_registered_ticket_of_another_machine_stands(
    tmp_path: Path, lottery_json: Json, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer steps of the solver stand for another processor's arithmetic."""
    model = tiny_model(tmp_path / "other-machine")
    given = (
        "prune",
        "--model",
        model,
        "--method",
        "sparsegpt",
        *LOOK,
        "--measure",
        "memory",
        "--register",
        "other-machine",
    )
    with monkeypatch.context() as other:
        other.setattr(sparsegpt, "RIDGE", 0.011)
        first = lottery_json(*given)
    result = cli(*given, "--json")
    again = json.loads(result.stdout)
    assert again["model_uri"] == first["model_uri"] and again["ticket"] == first["ticket"]
    said = re.search(r"made elsewhere or with other threads: ([\d,]+) of ([\d,]+) mask bits differ", result.stderr)
    assert said and 0 < int(said[1].replace(",", "")) < int(said[2].replace(",", ""))
    assert again["metrics"]["layer_error"] == first["metrics"]["layer_error"]  # of the ticket that was measured
    same = cli(*given, "--json")
    assert "made elsewhere" in same.stderr  # it is said each time
    with monkeypatch.context() as other:
        other.setattr(sparsegpt, "RIDGE", 0.011)
        assert "made elsewhere" not in cli(*given, "--json").stderr


def test_experts_that_see_few_tokens_get_no_update(tmp_path: Path, cli: Cli) -> None:
    model = make("mixtral", tmp_path / "m", "saved")
    given = ("prune", "--model", model, "--calibration", "self", "--seqlen", "32", "--target", "mlp", *QUICK)
    few = cli(*given, "--method", "refit", "--nsamples", "1", "--out", tmp_path / "few")
    warned = re.search(
        r"warning: (\d+) of (\d+) matrices of experts saw fewer tokens than they have columns", few.stderr
    )
    assert warned and warned[1] == warned[2]
    many = cli(*given, "--method", "refit", "--nsamples", "64", "--out", tmp_path / "many")
    assert "matrices of experts" not in many.stderr
    cli(*given, "--method", "wanda", "--nsamples", "1", "--out", tmp_path / "wanda")
    starved, by_wanda, updated = (StoredTicket(tmp_path / name) for name in ("few", "wanda", "many"))
    base = tensors(model)
    experts = [name for name in starved.entries if ".experts." in name]
    assert experts
    for name in experts:
        assert same_bits(starved.tensor(name), by_wanda.tensor(name))
        kept = updated.tensor(name) != 0
        assert not torch.equal(updated.tensor(name)[kept], base[name][kept])


def test_a_mask_over_the_base_is_refused_where_values_were_changed(tmp_path: Path, cli: Cli) -> None:
    """Also by a ticket further back: the base does not hold the weights that would stay."""
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--method", "refit", *LOOK, "--out", tmp_path / "a", *QUICK)
    cli("prune", "--model", tmp_path / "a", "--sparsity", "0.6", "--out", tmp_path / "b", *QUICK)
    for source in (tmp_path / "a", tmp_path / "b"):
        result = cli(
            "prune",
            "--model",
            source,
            "--sparsity",
            "0.7",
            "--storage",
            "mask",
            "--out",
            tmp_path / "c",
            *QUICK,
            code=2,
        )
        assert "storage=mask: it takes the weights that stay from the base" in result.stderr.strip().splitlines()[-1]
    cli("prune", "--model", model, "--method", "wanda", *LOOK, "--out", tmp_path / "w", *QUICK)
    cli("prune", "--model", tmp_path / "w", "--sparsity", "0.7", "--storage", "mask", "--out", tmp_path / "d", *QUICK)
    was, now = StoredTicket(tmp_path / "w"), lottery.load(tmp_path / "d", dtype="bfloat16")[0].state_dict()
    for name in filter(LINEAR.fullmatch, was.tensors):
        stays = now[name] != 0
        assert torch.equal(now[name][stays], was.tensor(name)[stays])


def test_the_folder_that_is_kept_holds_what_was_measured(
    tmp_path: Path, lottery_json: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "kept-elsewhere")
    given = ("prune", "--model", model, "--method", "sparsegpt", *LOOK, "--measure", "memory")
    with monkeypatch.context() as other:
        other.setattr(sparsegpt, "RIDGE", 0.011)
        first = lottery_json(*given, "--out", tmp_path / "first")
    again = lottery_json(*given, "--out", tmp_path / "again")
    assert again["model_uri"] == first["model_uri"] and again["path"] == str(tmp_path / "again")
    assert folder_hashes(tmp_path / "again") == folder_hashes(tmp_path / "first")
    StoredTicket(tmp_path / "again").verify()


def test_the_dense_model_writes_the_text_of_a_ticket(tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m")
    lottery_json("prune", "--model", model, "--sparsity", "0.9", "--out", tmp_path / "a", *QUICK)
    records = []
    for source in (model, tmp_path / "a"):
        lottery_json(
            "prune", "--model", source, "--method", "wanda", *LOOK, "--out", tmp_path / f"{source.name}-w", *QUICK
        )
        records.append(json.loads((tmp_path / f"{source.name}-w" / "ticket.json").read_text()))
    assert records[0]["samples"] == records[1]["samples"]


def test_experts_of_one_tensor_share_what_goes(tmp_path: Path, lottery_json: Json) -> None:
    """Of one that has more zeros than its share the others lose fewer, so that the tensor loses exactly its share."""
    from safetensors.torch import save_file

    model = make("mixtral", tmp_path / "m", "saved")
    fuse(model)
    state = tensors(model)
    name = next(n for n in state if n.endswith("experts.down_proj"))
    state[name][0] = 0
    save_file(state, model / "model.safetensors", {"format": "pt"})
    lottery_json(
        "prune", "--model", model, "--target", "mlp", "--method", "wanda", "--sparsity", "0.4", *LOOK[:4], "--seqlen", "32",
        "--out", tmp_path / "t", *QUICK,
    )  # fmt: skip
    stored = StoredTicket(tmp_path / "t")
    assert stored.entries[name]["kept"] == state[name].numel() - round(0.4 * state[name].numel())


def test_nothing_is_removed_and_nothing_changes_at_0(tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m", dtype=torch.float32)
    for method in CALIBRATED:
        lottery_json(
            "prune", "--model", model, "--method", method, "--sparsity", "0", *LOOK, "--out", tmp_path / method, *QUICK
        )
        stored = StoredTicket(tmp_path / method)
        assert all(same_bits(stored.tensor(name), tensor) for name, tensor in tensors(model).items())


def test_an_evaluation_names_the_ticket_as_its_run_did(
    text: Path,  # noqa: F811
    tmp_path: Path,
    lottery_json: Json,
) -> None:
    import mlflow

    model = tiny_model(tmp_path / "named")
    made = lottery_json(
        "prune", "--model", model, "--method", "wanda", "--calibration", text, "--nsamples", "4", "--measure", "memory"
    )
    again = lottery_json("evaluate", made["model_uri"], "--measure", "memory")
    notes = [mlflow.get_run(r["run_id"]).data.tags["mlflow.note.content"] for r in (made, again)]
    assert all("all 50% wanda calibration.txt nsamples=4" in note for note in notes)
    assert not any(re.search("[0-9a-f]{64}", note) for note in notes)


def test_the_bar_ends_at_its_end(tmp_path: Path) -> None:
    from lottery.models.sources import open_base
    from lottery.models.targets import resolve_target
    from lottery.pruning.calibration import Calibration
    from lottery.pruning.samples import Samples
    from lottery.pruning.stream import open_selection

    base = open_base(str(tiny_model(tmp_path / "m")))
    ids_NT = np.random.default_rng(0).integers(5, 500, (3, 32))
    for method in CALIBRATED:
        for target in ("all", "late", "mlp@1", "lm_head", "q_proj"):
            spec = Spec.parse(method=method, target=target)
            chosen = resolve_target(target, base.places, base.tied_head)
            samples = Samples(Calibration("x", "x", 3, 32, 0, METHODS[method].propagate), ids_NT, "cpu")
            places, selection, _ = open_selection(base, spec, chosen, None, "", samples, None)
            counted: list[float] = []
            selection.show(lambda amount=1, note="", counted=counted: counted.append(amount))
            for place in places:
                if place.name in {p.name for p in chosen}:
                    info = base.info(place.name)
                    selection.prepare(place)
                    selection.mask(place, info, np.zeros(info.shape, np.uint16), 0)
            list(selection.pieces)  # type: ignore[attr-defined]  # what follows the last tensor
            assert sum(counted) == selection.steps, (method, target)  # type: ignore[attr-defined]
