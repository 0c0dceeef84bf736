"""Methods that look at data, through the command: each against a twin that runs the whole model in memory."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result

import lottery
from lottery.pruning import methods
from lottery.pruning.methods import Ask
from lottery.pruning.statistics import Accumulator
from lottery.spec import METHODS, Spec
from lottery.ticket.comparing import mask_of
from lottery.ticket.stored import StoredTicket
from tests.runtime.test_experts import fuse
from tests.support.families import make
from tests.support.models import tiny_model
from tests.support.weights import same_bits, tensors

QUICK = ("--measure", "none", "--register", "none")
LOOK = ("--calibration", "self", "--nsamples", "4", "--seqlen", "64")
Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]
CALIBRATED = [name for name, method in METHODS.items() if method.calibrated]
LINEAR = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.\w+_proj\.weight")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words at random: none of what it says is in the evaluation text."""
    words = [f"w{i:03d}" for i in range(700)]
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(words, 3000)))
    return path


def samples_of(model: Path, text: Path, count: int, length: int, seed: int = 0) -> torch.Tensor:
    """The rule of the documents: one stream of tokens, starts that numpy draws."""
    from transformers import AutoTokenizer

    ids = np.asarray(AutoTokenizer.from_pretrained(model)(text.read_text())["input_ids"])
    starts = np.random.default_rng(seed).integers(0, len(ids) - length + 1, count)
    return torch.from_numpy(np.stack([ids[s : s + length] for s in starts]))


def adds_to(of_inputs: Accumulator) -> Any:
    return lambda _, given: of_inputs.add(given[0].flatten(0, 1))


@torch.inference_mode()
def pruned_in_memory(model: Path, ids_NT: torch.Tensor, method: str, sparsity: float, go_on_pruned: bool) -> Any:
    """The whole model runs once for each block: inputs are seen by hooks, then the block is pruned."""
    from transformers import AutoModelForCausalLM

    seen_in = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    twin = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    if go_on_pruned:
        seen_in = twin
    for block in range(twin.config.num_hidden_layers):
        sums: dict[str, Accumulator] = {}
        hooks = []
        for path, module in seen_in.model.layers[block].named_modules():
            if isinstance(module, torch.nn.Linear):
                sums[path] = Accumulator(module.in_features, True, "cpu")
                hooks.append(module.register_forward_pre_hook(adds_to(sums[path])))
        for ids_T in ids_NT:
            seen_in(ids_T[None], use_cache=False)
        for hook in hooks:
            hook.remove()
        for path, of_inputs in sums.items():
            weight = twin.model.layers[block].get_submodule(path).weight
            statistics = of_inputs.finish()
            if method == "wanda":
                statistics.gram_II = None
            solved = methods.METHODS[method](weight.float(), statistics, Ask(round(sparsity * weight.numel())))
            weight.data = solved.weight_OI.to(weight.dtype)
    return twin


@pytest.mark.parametrize("propagate", ["dense", "pruned"])
@pytest.mark.parametrize("method", ["wanda", "refit", "sparsegpt"])
def test_the_ticket_is_the_model_that_is_pruned_whole_in_memory(
    method: str, propagate: str, text: Path, tmp_path: Path, lottery_json: Json
) -> None:
    model = tiny_model(tmp_path / "m")
    made = lottery_json(
        "prune", "--model", model, "--method", method, "--sparsity", "0.6", "--calibration", text, "--nsamples", "3",
        "--seqlen", "64", "--propagate", propagate, "--out", tmp_path / "t", *QUICK,
    )  # fmt: skip
    twin = pruned_in_memory(model, samples_of(model, text, 3, 64), method, 0.6, propagate == "pruned")
    stored, state = StoredTicket(tmp_path / "t"), twin.state_dict()
    differ = total = 0
    for name in stored.tensors:
        if not LINEAR.fullmatch(name):
            assert same_bits(stored.tensor(name), state[name])
            continue
        assert stored.entries[name]["kept"] == state[name].numel() - round(0.6 * state[name].numel())
        differ += int(((stored.tensor(name) != 0) != (state[name] != 0)).sum())
        total += state[name].numel()
        gap = (stored.tensor(name).float() - state[name].float()).norm() / state[name].float().norm()
        assert gap < 0.02, name
    assert differ <= total / 1000  # wanda sums squares without a Gram matrix: the last bits differ
    assert ("layer_error" in made["metrics"]) == (method != "wanda")
    assert made["metrics"]["calibrate_s"] > 0


def folder_hashes(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "measurements.json"
    }


@pytest.mark.parametrize("method", CALIBRATED)
def test_two_runs_give_the_same_bytes(method: str, tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m")
    for name in ("a", "b"):
        lottery_json(
            "prune",
            "--model",
            model,
            "--method",
            method,
            *LOOK,
            "--out",
            tmp_path / name,
            *QUICK,
            "--propagate",
            "pruned",
        )
    assert folder_hashes(tmp_path / "a") == folder_hashes(tmp_path / "b")
    record = json.loads((tmp_path / "a" / "ticket.json").read_text())
    about = {"calibration": "self", "nsamples": 4, "seqlen": 64, "seed": 0, "propagate": "pruned"}
    assert record["spec"].items() >= about.items()
    assert re.fullmatch("[0-9a-f]{64}", record["samples"])


def test_what_fixes_the_samples_is_part_of_the_name(text: Path, tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m")
    changes: list[tuple[str, ...]] = [
        (), ("--nsamples", "3"), ("--seqlen", "32"), ("--seed", "1"), ("--propagate", "pruned"),
        ("--calibration", str(text)),
    ]  # fmt: skip
    found = {}
    for i, change in enumerate(changes):
        made = lottery_json(
            "prune", "--model", model, "--method", "refit", *LOOK, *change, "--out", tmp_path / f"t{i}", *QUICK
        )
        found[made["ticket"]] = StoredTicket(tmp_path / f"t{i}").tensor("model.layers.2.mlp.up_proj.weight")
    assert len(found) == len(changes)
    first, *others = found.values()
    assert all(not same_bits(first, other) for other in others)
    again = tmp_path / "again.txt"  # the name of a file does not count
    again.write_bytes(text.read_bytes())
    made = lottery_json(
        "prune",
        "--model",
        model,
        "--method",
        "refit",
        *LOOK,
        "--calibration",
        again,
        "--out",
        tmp_path / "again",
        *QUICK,
    )
    assert made["ticket"] in found


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
def test_groups_of_a_pattern(method: str, pattern: str, tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m", intermediate_size=104)
    lottery_json(
        "prune", "--model", model, "--method", method, "--pattern", pattern, *LOOK, "--out", tmp_path / "t", *QUICK
    )
    keep, group = map(int, pattern.split(":"))
    stored = StoredTicket(tmp_path / "t")
    for name in filter(LINEAR.fullmatch, stored.tensors):
        columns = stored.info(name).shape[1]
        alive = np.unpackbits(mask_of(stored, name), axis=1, count=columns, bitorder="little")
        assert (alive.reshape(len(alive), -1, group).sum(2) == keep).all()


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_the_new_weights_are_quantized(method: str, quantize: str, tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m")
    made = [
        lottery_json(
            "prune", "--model", model, "--method", method, *LOOK, *QUICK, "--quantize", q, "--out", tmp_path / q
        )
        for q in ("none", quantize)
    ]
    plain, small = StoredTicket(tmp_path / "none"), StoredTicket(tmp_path / quantize)
    assert made[0]["ticket"] != made[1]["ticket"]
    for name in filter(LINEAR.fullmatch, plain.tensors):
        assert np.array_equal(mask_of(plain, name), mask_of(small, name))
        weight = plain.tensor(name).float()
        step = weight.abs().amax(1, keepdim=True) / (127 if quantize == "int8" else 8)
        assert ((small.tensor(name).float() - weight).abs() <= step * 0.51 + 1e-6).all()
    small.verify()


def test_masks_of_wanda_alone_are_stored_over_the_base(tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m")
    for storage in ("packed", "mask"):
        lottery_json(
            "prune",
            "--model",
            model,
            "--method",
            "wanda",
            *LOOK,
            "--storage",
            storage,
            "--out",
            tmp_path / storage,
            *QUICK,
        )
    one, _ = lottery.load(tmp_path / "packed", dtype="bfloat16")
    two, _ = lottery.load(tmp_path / "mask", dtype="bfloat16")
    assert all(same_bits(a, two.state_dict()[name]) for name, a in one.state_dict().items())


@pytest.mark.parametrize("method", CALIBRATED)
def test_a_ticket_that_is_pruned_further_keeps_its_zeros(method: str, tmp_path: Path, lottery_json: Json) -> None:
    model = tiny_model(tmp_path / "m")
    lottery_json("prune", "--model", model, "--sparsity", "0.4", "--out", tmp_path / "a", *QUICK)
    lottery_json(
        "prune",
        "--model",
        tmp_path / "a",
        "--method",
        method,
        "--sparsity",
        "0.6",
        *LOOK,
        "--out",
        tmp_path / "b",
        *QUICK,
    )
    before, after = StoredTicket(tmp_path / "a"), StoredTicket(tmp_path / "b")
    for name in filter(LINEAR.fullmatch, before.tensors):
        was, now = before.tensor(name), after.tensor(name)
        assert not (now[was == 0] != 0).any()
        assert after.entries[name]["kept"] == now.numel() - round(0.6 * now.numel())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", CALIBRATED)
def test_the_head_is_pruned_by_what_the_last_norm_gives(
    method: str, tied: bool, tmp_path: Path, lottery_json: Json, text: Path
) -> None:
    model = tiny_model(tmp_path / "m", tie_word_embeddings=tied)
    lottery_json(
        "prune", "--model", model, "--method", method, "--target", "lm_head", "--calibration", text, "--nsamples", "2",
        "--seqlen", "64", "--out", tmp_path / "t", *QUICK,
    )  # fmt: skip
    from transformers import AutoModelForCausalLM

    twin, sums = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval(), Accumulator(48, True, "cpu")
    with torch.inference_mode():
        for ids_T in samples_of(model, text, 2, 64):
            sums.add(twin.model(ids_T[None], use_cache=False).last_hidden_state[0])
    head = twin.lm_head.weight.detach().float()
    solved = methods.METHODS[method](head, sums.finish(), Ask(round(head.numel() / 2)))
    stored = StoredTicket(tmp_path / "t").tensor("lm_head.weight")
    assert ((stored != 0) != (solved.weight_OI != 0)).float().mean() < 0.001
    torch.testing.assert_close(stored.float(), solved.weight_OI, rtol=0.05, atol=0.002)
    assert same_bits(
        StoredTicket(tmp_path / "t").tensor("model.embed_tokens.weight"), tensors(model)["model.embed_tokens.weight"]
    )


def test_late_layers_see_the_dense_early_ones(tmp_path: Path, lottery_json: Json) -> None:
    """With one target, propagation changes nothing before the first block that is pruned."""
    model = tiny_model(tmp_path / "m")
    for propagate in ("dense", "pruned"):
        lottery_json(
            "prune", "--model", model, "--method", "sparsegpt", "--target", "mlp@2", *LOOK, "--propagate", propagate,
            "--out", tmp_path / propagate, *QUICK,
        )  # fmt: skip
    one, two = StoredTicket(tmp_path / "dense"), StoredTicket(tmp_path / "pruned")
    assert all(same_bits(one.tensor(name), two.tensor(name)) for name in one.tensors)


def test_embeddings_are_refused(cli: Cli) -> None:
    result = cli("prune", "--method", "wanda", "--target", "embeddings", *QUICK, code=2)
    assert "target=embeddings: method=wanda looks at what a matrix multiplies" in result.stderr.strip().splitlines()[-1]


def test_hidden_states_that_are_not_finite_are_an_error_and_leave_nothing(tmp_path: Path, cli: Cli) -> None:
    from safetensors.torch import save_file

    model = tiny_model(tmp_path / "m")
    state = tensors(model)
    state["model.layers.1.mlp.up_proj.weight"] *= 1e25
    state["model.layers.1.mlp.down_proj.weight"] *= 1e25
    save_file(state, model / "model.safetensors", {"format": "pt"})
    (tmp_path / "x.txt").write_text("a b c " * 500)
    result = cli(
        "prune", "--model", model, "--method", "wanda", "--out", tmp_path / "t", *QUICK, "--nsamples", "2",
        "--calibration", tmp_path / "x.txt", code=2,
    )  # fmt: skip
    assert "its hidden states are not finite" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "t").exists()


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
        other.setattr(methods, "RIDGE", 0.011)
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
        other.setattr(methods, "RIDGE", 0.011)
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
        other.setattr(methods, "RIDGE", 0.011)
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


def test_an_evaluation_names_the_ticket_as_its_run_did(text: Path, tmp_path: Path, lottery_json: Json) -> None:
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
            places, selection, _ = open_selection(base, spec, chosen, None, "", samples)
            counted: list[float] = []
            selection.show(lambda amount=1, note="", counted=counted: counted.append(amount))
            for place in places:
                if place.name in {p.name for p in chosen}:
                    info = base.info(place.name)
                    selection.prepare(place)
                    selection.mask(place, info, np.zeros(info.shape, np.uint16), 0)
            list(selection.pieces)  # type: ignore[attr-defined]  # what follows the last tensor
            assert sum(counted) == selection.steps, (method, target)  # type: ignore[attr-defined]
