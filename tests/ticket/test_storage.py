"""Masks over a base, tickets of tickets: each against a slow twin, through the command."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

import lottery
import lottery.models.sources
from lottery.errors import InputError
from lottery.ticket.record import write_record
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.weights import same_bits, tensors

QUICK = ("--measure", "none", "--register", "none")
Cli = Callable[..., Result]


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
    packed, mask = StoredTicket(tmp_path / "packed"), lottery.ticket.opening.open_ticket(tmp_path / "mask")
    assert mask.is_mask_only and mask.base and packed.tensors == {**packed.tensors, **{}} and mask.id != packed.id
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
    assert "base m could not be opened" in said and "base" in said
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
    (shard,) = StoredTicket(tmp_path / "t").shards
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
    again = StoredTicket(tmp_path / "u")
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
    assert "9 targeted tensors are already sparser than asked for" in said


def test_the_zeros_of_a_ticket_survive_a_random_one(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--sparsity", "0.3", "--out", tmp_path / "a", *QUICK)
    cli("prune", "--model", tmp_path / "a", "--sparsity", "0.6", "--method", "random", "--out", tmp_path / "b", *QUICK)
    a, b = StoredTicket(tmp_path / "a"), StoredTicket(tmp_path / "b")
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


def test_masks_without_their_base_say_so(tmp_path: Path, cli: Cli) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--storage", "mask", "--out", tmp_path / "t", *QUICK)
    with pytest.raises(InputError, match="it holds masks alone; give its base m"):
        StoredTicket(tmp_path / "t").verify()
    shutil.rmtree(model)
    (tmp_path / "t" / "measurements.json").unlink()
    with pytest.raises(InputError, match="its place is unknown"):
        lottery.load(tmp_path / "t")
