"""Scopes, patterns, masks over a base, tickets of tickets: each against a slow twin, through the command."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file

import lottery
import lottery.models.sources
from lottery.errors import InputError
from lottery.models.checkpoint import BITS
from lottery.ticket.record import write_record
from lottery.ticket.stored import Stored
from tests.support.models import tiny_model

QUICK = ("--measure", "none", "--register", "none")
Cli = Callable[..., Result]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    integer = torch.int16 if a.dtype.itemsize == 2 else torch.int32
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(integer), b.view(integer))


def is_mlp(name: str) -> bool:
    return bool(re.search(r"(gate|up|down)_proj", name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sparsity", [0.5, 0.83, 0, 1])
def test_global_scope_is_exact_over_all_tensors_together(
    dtype: torch.dtype, sparsity: float, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / "m", dtype=dtype)
    state = tensors(model)
    for name in sorted(state):  # of unlike scale, and with ties across tensors
        if is_mlp(name):
            state[name] = (state[name].float() * (1 + len(name) % 3)).to(dtype)
            state[name][0] = 0.01
            state[name][1] = -0.0
    save_file(state, model / "model.safetensors", {"format": "pt"})
    made = lottery_json(
        "prune", "--model", model, "--target", "mlp", "--scope", "global", "--sparsity", sparsity, "--out", tmp_path / "t", *QUICK
    )  # fmt: skip
    names = sorted(n for n in state if is_mlp(n))
    flat = torch.cat([state[n].flatten() for n in names])
    k = round(sparsity * len(flat))
    gone = torch.zeros(len(flat), dtype=torch.bool)
    gone[flat.float().abs().sort(stable=True).indices[: max(k, int((flat == 0).sum()))]] = True
    at, stored = 0, Stored(tmp_path / "t")
    shares = set()
    for name in names:
        mask = gone[at : at + state[name].numel()].reshape(state[name].shape)
        at += state[name].numel()
        assert same_bits(stored.tensor(name), torch.where(mask, 0, state[name])), name
        shares.add(float(mask.float().mean()))
    assert len(shares) > 1 or sparsity in (0, 1)
    assert made["metrics"]["sparsity_target"] == pytest.approx(float(gone.double().mean()), abs=1e-12)


def test_global_scope_refuses_types_that_cannot_be_compared(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    state = tensors(model)
    state["model.layers.1.mlp.up_proj.weight"] = state["model.layers.1.mlp.up_proj.weight"].half()
    save_file(state, model / "model.safetensors", {"format": "pt"})
    said = cli("prune", "--model", model, "--scope", "global", "--out", tmp_path / "t", *QUICK, code=2).stderr
    assert "mixed types" in said and "up_proj" in said and "scope=layer" in said and not (tmp_path / "t").exists()
    assert (
        "warning: the targeted weights are of mixed types"
        in cli("prune", "--model", model, "--out", tmp_path / "t", *QUICK).stderr
    )
    stored = Stored(tmp_path / "t")
    assert {stored.info(n).dtype for n in stored.tensors} == {"BF16", "F16"}


@pytest.mark.parametrize(("pattern", "keep", "group"), [("2:4", 2, 4), ("4:8", 4, 8)])
@pytest.mark.parametrize("kind", ["Llama", "gpt2"])
def test_patterns_hold_in_every_group_along_the_inputs(
    pattern: str, keep: int, group: int, kind: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    from tests.models.test_families import make

    model = (
        make("gpt2", tmp_path / "m", "published")
        if kind == "gpt2"
        else tiny_model(tmp_path / "m", intermediate_size=96)
    )
    target = "attention" if kind == "gpt2" else "all"
    made = lottery_json(
        "prune", "--model", model, "--pattern", pattern, "--target", target, "--out", tmp_path / "t", *QUICK
    )
    assert made["metrics"]["sparsity_target"] == 0.5
    base, stored = tensors(model), Stored(tmp_path / "t")
    for name, entry in stored.entries.items():
        if "requested" not in entry:
            continue
        weight, pruned = (t.T if kind == "gpt2" else t for t in (base[name], stored.tensor(name)))
        groups, left = weight.reshape(-1, group), pruned.reshape(-1, group)
        order = groups.float().abs().sort(dim=1, stable=True).indices[:, : group - keep]
        assert torch.equal(left, groups.clone().scatter_(1, order, 0))
        assert entry.get("transposed", False) == (kind == "gpt2")


def test_a_pattern_over_a_dimension_that_does_not_divide_writes_nothing(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    said = cli("prune", "--model", tiny, "--pattern", "4:8", "--out", tmp_path / "t", *QUICK, code=2).stderr
    assert "down_proj" in said and "100 inputs" in said and not list(tmp_path.iterdir())
    cli("prune", "--model", tiny, "--pattern", "4:8", "--target", "attention", "--out", tmp_path / "t", *QUICK)


@pytest.mark.parametrize(
    "more",
    [
        ("--target", "all", "--sparsity", "0.7"),
        ("--target", "late+embeddings", "--method", "random"),
        ("--target", "mlp", "--scope", "global"),
        ("--target", "attention", "--pattern", "2:4"),
        ("--target", "lm_head"),
        ("--target", "all", "--sparsity", "0"),
    ],
    ids=" ".join,
)
def test_masks_over_a_base_give_the_bits_of_the_packed_ticket(more: tuple[str, ...], tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m", intermediate_size=104, tie_word_embeddings=True, dtype=torch.float16)
    for storage in ("packed", "mask"):
        cli("prune", "--model", model, "--storage", storage, "--out", tmp_path / storage, *more, *QUICK)
    packed, mask = Stored(tmp_path / "packed"), lottery.ticket.opening.open_ticket(tmp_path / "mask")
    assert mask.is_mask and mask.base and packed.tensors == {**packed.tensors, **{}} and mask.id != packed.id
    for name in packed.tensors:
        assert same_bits(packed.tensor(name), mask.tensor(name)), name
    targeted = sum(mask.info(n).nbytes for n, e in mask.entries.items() if "requested" in e)
    header = sum(8 + int.from_bytes(s.read_bytes()[:8], "little") for s in mask.shards)
    assert mask.disk_bytes - header == targeted / 16
    one, _ = lottery.load(tmp_path / "packed", dtype="float32")
    two, _ = lottery.load(tmp_path / "mask", dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_ticket_of_masks_finds_its_base_and_knows_it(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--storage", "mask", "--out", tmp_path / "t", *QUICK)
    cli("verify", "--ticket", tmp_path / "t")
    model.rename(tmp_path / "elsewhere")
    said = cli("verify", "--ticket", tmp_path / "t", code=2).stderr
    assert "base m is not at hand" in said and "base" in said
    cli("verify", "--ticket", tmp_path / "t", "--base", tmp_path / "elsewhere")
    lottery.load(tmp_path / "t", base=str(tmp_path / "elsewhere"))
    cli("generate", "--ticket", tmp_path / "t", "--base", tmp_path / "elsewhere", "--tokens", "2")
    state = tensors(tmp_path / "elsewhere")
    state["model.norm.weight"][0] += 1
    save_file(state, tmp_path / "elsewhere" / "model.safetensors", {"format": "pt"})
    said = cli("verify", "--ticket", tmp_path / "t", "--base", tmp_path / "elsewhere", code=2).stderr
    assert (
        f"base={tmp_path / 'elsewhere'}: " in said and "model.safetensors is not the one" in said and "ticket" in said
    )
    assert cli("evaluate", "--ticket", tmp_path / "t", "--measure", "memory", code=2).stderr.startswith(
        "Error: ticket="
    )


def test_a_flipped_bit_of_a_mask_or_of_its_base_is_found(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--storage", "mask", "--out", tmp_path / "t", *QUICK)
    (shard,) = Stored(tmp_path / "t").shards
    shard.chmod(0o644)
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "is damaged" in cli("verify", "--ticket", tmp_path / "t", code=2).stderr
    content[-1] ^= 1
    shard.write_bytes(content)
    # A bit of the base that its remembered hash does not show: the hash of the tensor does.
    from lottery.models import checkpoint

    true_hashes = checkpoint.sha256_of_files([model / n for n in sorted(p.name for p in model.iterdir())])
    monkeypatch.setattr(checkpoint, "sha256_of_files", lambda paths: {p.name: true_hashes[p.name] for p in paths})
    whole = bytearray((model / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (model / "model.safetensors").write_bytes(whole)
    assert "is damaged" in cli("verify", "--ticket", tmp_path / "t", code=2).stderr


def test_a_registered_ticket_of_masks_loads_and_serves(
    tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    import mlflow

    model = tiny_model(tmp_path / "m")
    made = lottery_json("prune", "--model", model, "--storage", "mask", "--measure", "memory", "--register", "masks")
    loaded, tokenizer = lottery.load(made["model_uri"])
    assert tokenizer and sum((p == 0).sum() for p in loaded.parameters()) > 10_000
    assert mlflow.pyfunc.load_model(made["model_uri"]).predict(["Once"], params={"max_new_tokens": 2})


@pytest.mark.parametrize("storage", ["packed", "mask"])
def test_a_ticket_pruned_further_keeps_its_zeros(
    storage: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]], cli: Cli
) -> None:
    model = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    first = lottery_json(
        "prune", "--model", model, "--target", "mlp+lm_head", "--sparsity", "0.4", "--measure", "none", "--register", "first"
    )  # fmt: skip
    assert first["model_uri"]
    second = lottery_json(
        "prune", "--model", first["model_uri"], "--target", "all", "--sparsity", "0.7", "--storage", storage,
        "--measure", "perplexity", "--dataset", "builtin", "--limit", "2", "--out", tmp_path / "t",
    )  # fmt: skip
    assert second["model_uri"].startswith("models:/ticket-m/") and second["tags"]["base"] == "m"
    assert "perplexity_ratio" in second["metrics"]  # against the dense base, not against the first ticket
    stored, base = lottery.ticket.opening.open_ticket(tmp_path / "t"), tensors(model)
    record = json.loads((tmp_path / "t" / "ticket.json").read_text())
    assert record["source"] == first["ticket"] and record["base"]["id"] == "m"
    for name, entry in stored.entries.items():
        weight = base[entry.get("copy_of", name)]
        if "kept" not in entry:
            assert same_bits(stored.tensor(name), weight)
            continue
        share = 0.7 if "_proj" in name else 0.4
        gone = weight.flatten().float().abs().sort(stable=True).indices[: round(share * weight.numel())]
        twin = weight.flatten().index_fill(0, gone, 0).reshape(weight.shape)
        assert same_bits(stored.tensor(name), twin), name  # the head of the first ticket has kept its zeros
        assert ("requested" in entry) == ("_proj" in name)
    removed = sum(torch.Size(e["shape"]).numel() - e["kept"] for e in stored.entries.values() if "kept" in e)
    total = sum(torch.Size(e["shape"]).numel() for e in stored.entries.values())
    assert second["metrics"]["sparsity_model"] == pytest.approx(removed / total)
    assert second["metrics"]["sparsity_target"] == pytest.approx(0.7, abs=1e-4)
    # The folder of a ticket will do, and one that is sparser than asked for stays as it is.
    said = cli(
        "prune", "--model", tmp_path / "t", "--target", "all", "--sparsity", "0.5", "--out", tmp_path / "u", *QUICK
    ).stderr
    assert "more zeros than asked for and keep them: the target is 70.00% zeros" in said
    again = Stored(tmp_path / "u")
    assert all(same_bits(again.tensor(n), stored.tensor(n)) for n in stored.tensors)
    assert json.loads((tmp_path / "u" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("first", ["packed", "mask"])
@pytest.mark.parametrize("target", ["attention", "lm_head", "embeddings+attention"])
@pytest.mark.parametrize("storage", ["packed", "mask"])
def test_a_ticket_as_source_leaves_the_base_as_it_was(
    first: str, target: str, storage: str, tmp_path: Path, cli: Cli, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    """What is packed in place is nobody else's memory: neither the base's, which is measured next, nor a tied tensor's."""
    model = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    cli("prune", "--model", model, "--target", "mlp", "--storage", first, "--out", tmp_path / "a", *QUICK)
    more = ("--model", tmp_path / "a", "--target", target, "--sparsity", "0.6", "--storage", storage)
    plan = lottery_json("plan", *more)
    made = lottery_json(
        "prune", *more, "--out", tmp_path / "b", "--register", "none", "--dataset", "builtin", "--limit", "2",
        "--measure", "perplexity",
    )  # fmt: skip
    dense = lottery_json(
        "prune", "--model", model, "--sparsity", "0", "--out", tmp_path / "c", "--register", "none",
        "--dataset", "builtin", "--limit", "2", "--measure", "perplexity",
    )["metrics"]["perplexity"]  # fmt: skip
    assert made["metrics"]["perplexity"] / made["metrics"]["perplexity_ratio"] == pytest.approx(dense, rel=1e-6)
    second, base = lottery.ticket.opening.open_ticket(tmp_path / "b"), tensors(model)
    second.verify()
    source = lottery.ticket.opening.open_ticket(tmp_path / "a")
    for name, entry in second.entries.items():
        before = base[entry["copy_of"]] if "copy_of" in entry else source.tensor(name)
        kept = second.tensor(name) != 0
        assert torch.equal(second.tensor(name), torch.where(kept, before, 0)), name
        assert "kept" not in entry or int(kept.sum()) == entry["kept"] == plan["tensors"][name]["kept"]
    header = sum(8 + int.from_bytes(s.read_bytes()[:8], "little") for s in second.shards)
    assert second.disk_bytes - header == plan["disk_bytes_after"]
    for figure in ("sparsity_target", "sparsity_prunable", "sparsity_model"):
        assert plan[figure] == pytest.approx(made["metrics"][figure])


def test_a_plan_says_what_is_sparser_already(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--target", "mlp", "--sparsity", "0.7", "--out", tmp_path / "a", *QUICK)
    said = cli("plan", "--model", tmp_path / "a", "--target", "all").stdout
    assert "9 targeted tensors are sparser than asked for already" in said


def test_the_zeros_of_a_ticket_survive_a_random_one(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--sparsity", "0.3", "--out", tmp_path / "a", *QUICK)
    cli("prune", "--model", tmp_path / "a", "--sparsity", "0.6", "--method", "random", "--out", tmp_path / "b", *QUICK)
    a, b = Stored(tmp_path / "a"), Stored(tmp_path / "b")
    for name, entry in b.entries.items():
        if "requested" in entry:
            assert not ((a.tensor(name) == 0) & (b.tensor(name) != 0)).any()
            assert entry["kept"] == entry["requested"]


def test_a_quantized_ticket_is_no_source(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--out", tmp_path / "t", *QUICK)
    record = json.loads((tmp_path / "t" / "ticket.json").read_text())
    del record["checksum"]
    record["spec"]["quantize"] = "int8"
    write_record(tmp_path / "t", record)
    said = cli("prune", "--model", tmp_path / "t", "--out", tmp_path / "u", *QUICK, code=2).stderr
    assert f"model={tmp_path / 't'}" in said and "quantized (int8)" in said and not (tmp_path / "u").exists()


@pytest.mark.parametrize("target", ["embeddings", "lm_head", "embeddings+lm_head", "all+lm_head"])
def test_a_tied_head_counts_once(target: str, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]) -> None:
    model = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    made = lottery_json("prune", "--model", model, "--target", target, "--out", tmp_path / "t", *QUICK)
    sizes = {n: t.numel() for n, t in tensors(model).items()}
    table, layers = sizes["model.embed_tokens.weight"], sum(n for name, n in sizes.items() if "_proj" in name)
    untied = "embeddings" not in target
    gone = (table / 2 if target != "all+lm_head" else table / 2 + layers / 2) / (sum(sizes.values()) + untied * table)
    assert made["metrics"]["sparsity_model"] == pytest.approx(gone, rel=1e-3)
    assert ("lm_head.weight" in Stored(tmp_path / "t").tensors) == untied


def test_a_tied_head_that_is_in_the_file_too(
    tmp_path: Path, cli: Cli, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    model = tiny_model(tmp_path / "m", tie_word_embeddings=True)
    state = tensors(model)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, model / "model.safetensors", {"format": "pt"})
    plan = lottery_json("plan", "--model", model, "--target", "embeddings")
    assert plan["dropped"] == ["lm_head.weight"] and plan["tied"] and "counted once" in plan["notes"][0]
    state["lm_head.weight"][0, 0] += 1
    save_file(state, model / "model.safetensors", {"format": "pt"})
    assert "tie_word_embeddings to false" in cli("plan", "--model", model, code=2).stderr


def test_negative_zeros_become_positive_where_they_are_removed(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    state = tensors(model)
    name = "model.layers.0.mlp.up_proj.weight"
    state[name][:, ::2] = -0.0
    save_file(state, model / "model.safetensors", {"format": "pt"})
    for storage in ("packed", "mask"):
        cli("prune", "--model", model, "--sparsity", "0.2", "--storage", storage, "--out", tmp_path / storage, *QUICK)
        bits = lottery.ticket.opening.open_ticket(tmp_path / storage).tensor(name).view(BITS["BF16"][0])
        assert not (bits == 0x8000).any() and int((bits == 0).sum()) >= bits.numel() // 2


def test_masks_without_their_base_say_so(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--storage", "mask", "--out", tmp_path / "t", *QUICK)
    with pytest.raises(InputError, match="its masks lie over m"):
        Stored(tmp_path / "t").verify()
    shutil.rmtree(model)
    (tmp_path / "t" / "measurements.json").unlink()
    with pytest.raises(InputError, match="its place is unknown"):
        lottery.load(tmp_path / "t")
