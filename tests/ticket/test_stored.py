"""The ticket directory: whole or not at all, the same bytes again, every flipped bit found."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors import safe_open

import lottery
from lottery.errors import InputError
from lottery.ticket.stored import StoredTicket
from tests.support.forks import Forks
from tests.support.models import tiny_model
from tests.support.store import only_run

QUICK = ("--measure", "none", "--register", "none")


@pytest.fixture(scope="module")
def ticket(tiny: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Result]) -> Path:
    out = tmp_path_factory.mktemp("tickets") / "t"
    cli("prune", "--model", tiny, "--target", "late+lm_head", "--sparsity", "0.5", "--out", out, *QUICK)
    return out


def test_the_layout_is_the_documented_one(ticket: Path) -> None:
    record = json.loads((ticket / "ticket.json").read_text())
    shards = sorted(p.name for p in ticket.glob("*.safetensors"))
    assert (
        shards
        == list(record["shards"])
        == [f"ticket-0000{i}-of-0000{len(shards)}.safetensors" for i in range(1, len(shards) + 1)]
    )
    stored: dict[str, torch.Tensor] = {}
    for shard in shards:
        with safe_open(ticket / shard, "pt") as f:
            stored |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (no mapping: it cannot be iterated)
    for name, entry in record["tensors"].items():
        rows, columns = entry["shape"] if len(entry["shape"]) == 2 else (1, entry["shape"][0])
        if "kept" not in entry:
            assert list(stored.pop(name).shape) == entry["shape"]
            continue
        bitmask, values = stored.pop(f"{name}.bitmask"), stored.pop(f"{name}.values")
        assert bitmask.dtype == torch.uint8 and bitmask.shape == (rows, -(-columns // 8))
        assert values.dtype == torch.bfloat16 and values.shape == (entry["kept"],)
        assert entry["kept"] == entry["requested"] == rows * columns - round(0.5 * rows * columns)
        bits = np.unpackbits(bitmask.numpy(), axis=1, bitorder="little")
        assert not bits[:, columns:].any() and bits.sum() == entry["kept"]
    assert not stored
    assert not any(str(p) in (ticket / "ticket.json").read_text() for p in (ticket.parent, Path.home()))


def test_what_is_kept_is_the_base_to_the_bit(ticket: Path, tiny: Path) -> None:
    with safe_open(tiny / "model.safetensors", "pt") as base:
        for name, entry in (stored := StoredTicket(ticket)).entries.items():
            whole, tensor = base.get_tensor(name), stored.tensor(name)
            if "kept" in entry:
                assert int((tensor == 0).sum()) == tensor.numel() - entry["kept"]
                whole = torch.where(tensor == 0, 0, whole)
            assert torch.equal(tensor.view(torch.int16), whole.view(torch.int16))


def test_vanilla_transformers_refuses_the_folder(ticket: Path) -> None:
    import transformers

    with pytest.raises(OSError, match="no file named"):
        transformers.AutoModelForCausalLM.from_pretrained(ticket)


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_two_runs_give_the_same_bytes(method: str, tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    for out in ("a", "b"):
        cli("prune", "--model", tiny, "--method", method, "--out", tmp_path / out, *QUICK)
    for path in (tmp_path / "a").iterdir():
        if path.name != "measurements.json":
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def flip(path: Path, at: int) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_every_flipped_bit_is_found(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    out = tmp_path / "t"
    cli("prune", "--model", tiny, "--out", out, *QUICK)
    cli("verify", "--ticket", out)
    rng = np.random.default_rng(0)
    for path in [p for p in out.iterdir() if p.name != "measurements.json"]:
        size = path.stat().st_size
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little") if path.suffix == ".safetensors" else 0
        for at in range(header):  # no tensor's hash covers these
            flip(path, at)
            with pytest.raises(InputError):
                StoredTicket(out)
            flip(path, at)
        for at in {0, size - 1, *rng.integers(header, size, 20).tolist()}:
            flip(path, at)
            refused = cli("verify", "--ticket", out, code=2).stderr
            assert refused.startswith("Error: ") and len(refused.splitlines()) == 1
            flip(path, at)
    cli("verify", "--ticket", out)


def test_a_stranger_in_the_folder_is_refused(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """transformers would read it."""
    cli("prune", "--model", tiny, "--out", tmp_path / "t", *QUICK)
    (tmp_path / "t" / "added_tokens.json").write_text('{"</s>": 3}')
    assert "added_tokens.json" in cli("verify", "--ticket", tmp_path / "t", code=2).stderr


def test_a_flipped_weight_refuses_to_load_and_is_named(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    out = tmp_path / "t"
    cli("prune", "--model", tiny, "--out", out, *QUICK)
    shard = next(
        p
        for p in StoredTicket(out).shards
        if "model.layers.1.mlp.up_proj.weight.values" in set(safe_open(p, "pt").keys())
    )
    header = int.from_bytes(shard.read_bytes()[:8], "little")
    offsets = json.loads(shard.read_bytes()[8 : 8 + header])["model.layers.1.mlp.up_proj.weight.values"]["data_offsets"]
    flip(shard, 8 + header + offsets[0])
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        lottery.load(out)
    assert "model.layers.1.mlp.up_proj.weight" in cli("generate", "--ticket", out, code=2).stderr
    assert "model.layers.1.mlp.up_proj.weight" in cli("evaluate", "--ticket", out, "--measure", "memory", code=2).stderr


def test_names_in_a_ticket_cannot_leave_its_folder(ticket: Path, tmp_path: Path) -> None:
    from lottery.ticket.record import write_record

    record = json.loads((ticket / "ticket.json").read_text())
    record.pop("checksum")
    for change in ({"files": {"../config.json": "0" * 64}}, {"shards": {"/etc/passwd": "0" * 64}}):
        write_record(tmp_path, {**record, **{"files": {}}, **change})
        with pytest.raises(InputError, match="outside of its folder"):
            StoredTicket(tmp_path)


def test_an_old_format_says_which_version_reads_it(ticket: Path, tmp_path: Path) -> None:
    record = json.loads((ticket / "ticket.json").read_text()) | {"format": 99}
    (tmp_path / "ticket.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="format 99"):
        StoredTicket(tmp_path)


@pytest.mark.parametrize("sparsity", ["0", "0.03", "1"])
def test_the_ends_of_the_range(
    sparsity: str, tiny: Path, tmp_path: Path, lottery_json: Callable[..., dict[str, Any]]
) -> None:
    made = lottery_json("prune", "--model", tiny, "--sparsity", sparsity, "--out", tmp_path / "t", *QUICK)
    assert made["metrics"]["sparsity_target"] == pytest.approx(float(sparsity), abs=1e-3)
    stored = StoredTicket(tmp_path / "t")
    stored.verify()
    packed = {entry["packed"] for entry in stored.entries.values() if "kept" in entry}
    assert packed == {sparsity == "1"}  # below 6.25% a bitmask costs more than it saves


def test_a_base_sparser_than_asked_keeps_its_zeros(tmp_path: Path, cli: Callable[..., Result]) -> None:
    model = tiny_model(tmp_path / "m")
    cli("prune", "--model", model, "--sparsity", "0.7", "--out", tmp_path / "sparse", *QUICK)
    from safetensors.torch import save_file

    stored = StoredTicket(tmp_path / "sparse")
    save_file({n: stored.tensor(n).clone() for n in stored.tensors}, model / "model.safetensors", {"format": "pt"})
    said = cli("prune", "--model", model, "--sparsity", "0.5", "--out", tmp_path / "again", *QUICK).stderr
    assert "more zeros than asked for" in said
    again = StoredTicket(tmp_path / "again")
    assert all(torch.equal(again.tensor(n), stored.tensor(n)) for n in stored.tensors)
    assert again.disk_bytes <= stored.disk_bytes + 200


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_zeros_of_a_trained_model_are_no_news_where_none_were_asked_for(
    scope: str, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model(tmp_path / "m")
    tensors = load_file(model / "model.safetensors")
    for name in tensors:
        if "_proj" in name:
            tensors[name].view(-1)[:3] = 0  # as a trained model holds a few
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    some = ("--model", model, "--scope", scope, "--sparsity")
    said = cli("prune", *some, "0", "--out", tmp_path / "whole", *QUICK).stderr
    assert "prune all to 0% by" in said and "more zeros" not in said
    assert "more zeros than asked for" in cli("prune", *some, "0.00001", "--out", tmp_path / "few", *QUICK).stderr


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_leaves_nothing_and_the_same_command_resumes(blow: signal.Signals, tmp_path: Path, forks: Forks) -> None:
    model = tiny_model(tmp_path / "m", hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
    out = tmp_path / "t"
    command = ("prune", "--model", model, "--out", out, *QUICK)
    (killed,) = forks.run(command, kill_when=f"{tmp_path}/.t.partial/shard-*", kill_by=blow)
    assert killed["code"] == (-signal.SIGKILL if blow == signal.SIGKILL else 143) and not out.exists()
    assert (tmp_path / ".t.partial").exists() == (blow == signal.SIGKILL)
    assert only_run().info.status == ("RUNNING" if blow == signal.SIGKILL else "KILLED")
    assert forks.run(command)[0]["code"] == 0
    StoredTicket(out).verify()
    assert not (tmp_path / ".t.partial").exists()
