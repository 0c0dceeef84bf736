"""The folder that an export writes: its files, its summary, and nothing where it fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import Result

import lottery
from lottery.errors import InputError
from lottery.files.reading import read_json
from lottery.ticket import export, packing
from lottery.ticket.record import RECORD, write_record
from lottery.ticket.stored import StoredTicket
from tests.support.exported import same_bits, tensors, vanilla
from tests.support.families import logits
from tests.support.forks import Forks
from tests.support.models import tiny_model

QUICK = ("--measure", "none", "--register", "none")


def test_the_summary(tmp_path: Path, cli: Callable[..., Result], lottery_json: Callable[..., dict[str, Any]]) -> None:
    model = tiny_model(tmp_path / "model")
    cli("prune", "--model", model, "--target", "late", "--out", tmp_path / "t", *QUICK)
    found = lottery_json("export", "--ticket", tmp_path / "t", "--to", tmp_path / "a b's")
    stored = StoredTicket(tmp_path / "t")
    assert (found["ticket"], found["path"], found["format"]) == (stored.id, str(tmp_path / "a b's"), "dense")
    size = (tmp_path / "a b's" / "model.safetensors").stat().st_size
    assert found["files"] == {"model.safetensors": size} and found["disk_bytes"] == size
    assert found["disk_ratio"] == size / stored.base_record["disk_bytes"] and found["notes"] == []
    assert found["sparsity_target"] == 0.5 and "quantized" not in found
    scope: dict[str, Any] = {"transformers": transformers}
    exec(found["load"], scope)
    want, _ = lottery.load(tmp_path / "t", dtype="bfloat16")
    assert torch.equal(logits(scope["model"]), logits(want))
    assert (tmp_path / "a b's" / "config.json").read_bytes() == (model / "config.json").read_bytes()
    assert (tmp_path / "a b's" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert (tmp_path / "a b's" / "README.md").exists()

    result = cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / "int8", "--format", "int8")
    for words in (
        f"ticket {stored.id} as compressed-tensors, int8: ",
        "zeros: 50.00% of the target, ",
        "21 matrices are in 8 bits; ",
        "not in 8 bits: lm_head.weight (the head",
        "not in 8 bits: model.embed_tokens.weight (looked up",
        "quantized at export: the ticket's measurements are of its own weights",
        f"folder: {tmp_path / 'int8'}",
        "# needs the package compressed-tensors",
    ):
        assert words in result.stdout, words
    assert f"export {stored.id} as int8" in result.stderr

    export.export(stored, tmp_path / "carded", card="# A ticket\n")
    assert (tmp_path / "carded" / "README.md").read_text() == "# A ticket\n"


@pytest.mark.parametrize("form", ["dense", "fp8", "int8"])
def test_the_same_bytes_again_and_several_files(
    form: str, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli("prune", "--model", tiny_model(tmp_path / "model"), "--out", tmp_path / "t", *QUICK)
    for name in ("one", "two"):
        cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / name, "--format", form)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    assert all((tmp_path / "one" / f).stat().st_mode & 0o777 == 0o644 for f in files if f.endswith("safetensors"))

    monkeypatch.setattr(packing, "SHARD_BYTES", 100_000)
    cli("export", "--ticket", tmp_path / "t", "--to", tmp_path / "many", "--format", form)
    shards = sorted(p.name for p in (tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 3 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    one, many = tensors(tmp_path / "one"), tensors(tmp_path / "many")
    assert one.keys() == many.keys() and all(same_bits(one[key], many[key]) for key in one)
    assert torch.equal(logits(vanilla(tmp_path / "one", "float32")), logits(vanilla(tmp_path / "many", "float32")))


@pytest.fixture
def small(tiny: Path, tmp_path: Path, cli: Callable[..., Result]) -> Path:
    cli("prune", "--model", tiny, "--out", tmp_path / "t", *QUICK)
    return tmp_path / "t"


def test_places_that_cannot_be_written(small: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    def refused(to: Path, *says: str) -> None:
        said = cli("export", "--ticket", small, "--to", to, code=2).stderr
        assert len(said.splitlines()) <= 2 and "Traceback" not in said
        for words in (f"to={to}", *says):
            assert words in said, said

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    refused(tmp_path / "full", "it is not empty", "give a new folder")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
    refused(tmp_path / "full" / "mine.txt", "it is a file")
    refused(small / "model", "the ticket's own folder", "give another folder")
    refused(small, "it is not empty")
    said = cli("export", "--ticket", small, "--to", "/proc/no/such", code=2).stderr
    assert "to=/proc/no: " in said and "give a folder that can be written" in said
    StoredTicket(small).verify()
    (tmp_path / "empty").mkdir()
    cli("export", "--ticket", small, "--to", tmp_path / "empty")
    assert not list(tmp_path.glob(".*"))


def test_other_bad_input(
    small: Path, tmp_path: Path, cli: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "model"
    assert "'dense', 'fp8', 'int8'" in cli("export", "--ticket", small, "--to", to, "--format", "gguf", code=2).stderr
    with pytest.raises(InputError, match="format=gguf: give dense, fp8, int8"):
        export.export(StoredTicket(small), to, "gguf")
    assert "--to" in cli("export", "--ticket", small, code=2).stderr
    assert "holds no ticket.json" in cli("export", "--ticket", tmp_path, "--to", to, code=2).stderr
    with monkeypatch.context() as changed:
        usage = export.shutil.disk_usage(tmp_path)
        changed.setattr(export.shutil, "disk_usage", lambda path: usage._replace(free=1000))
        said = cli("export", "--ticket", small, "--to", to, code=1).stderr
        assert "the disk has 1,000 free; make room" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]


def test_a_disk_that_fills_up(small: Path, tmp_path: Path, forks: Forks) -> None:
    """A limit on the size of a file makes the same system call fail at the same place as a full disk."""
    to = tmp_path / "model"
    command = ("export", "--ticket", small, "--to", to)
    (failed,) = forks.run(command, largest_file=600_000)
    assert failed["code"] == 1 and "Traceback" not in failed["err"], failed
    assert failed["err"].splitlines()[-1].startswith(f"Error: to={to}: File too large; make room")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]
    (done,) = forks.run(command)  # there is room again
    assert done["code"] == 0 and (to / "model.safetensors").exists(), done


def test_a_damaged_ticket_leaves_nothing(small: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    shard = StoredTicket(small).shards[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)
    for form in ("dense", "int8"):
        said = cli("export", "--ticket", small, "--to", tmp_path / "model", "--format", form, code=2).stderr
        assert "damaged" in said
        assert sorted(p.name for p in tmp_path.iterdir()) == ["t"]


def test_a_record_cannot_point_elsewhere(small: Path, tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Neither for reading nor for writing: with every hash in it right."""
    from lottery.files.hashes import file_sha256

    (tmp_path / "secret").write_text("{}")
    record = read_json(small / RECORD)
    record["files"]["../secret"] = file_sha256(tmp_path / "secret")
    write_record(small, {k: v for k, v in record.items() if k != "checksum"})
    said = cli("export", "--ticket", small, "--to", tmp_path / "model", code=2).stderr
    assert "'../secret', which lies outside of its folder" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["secret", "t"]
