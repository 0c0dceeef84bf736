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
from lottery.pruning.choosing import Ask
from lottery.pruning.statistics import Accumulator
from lottery.spec import METHODS
from lottery.ticket.comparing import mask_of
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.weights import same_bits, tensors
from tests.support.words import write_random_words

QUICK = ("--measure", "none", "--register", "none")
LOOK = ("--calibration", "self", "--nsamples", "4", "--seqlen", "64")
Cli = Callable[..., Result]
Json = Callable[..., dict[str, Any]]
CALIBRATED = [name for name, method in METHODS.items() if method.calibrated]
LINEAR = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.\w+_proj\.weight")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_words(tmp_path_factory.mktemp("text") / "calibration.txt")


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home in which no earlier test kept its sums."""
    monkeypatch.setenv("LOTTERY_HOME", str(tmp_path / "home"))


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
