"""Weight files that lie: whatever a header says, the answer is a whole ticket of what the file holds, or one clear line."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from lottery.cli.main import main
from lottery.ticket.stored import StoredTicket
from tests.support.models import tiny_model
from tests.support.often import repeats

Header = dict[str, Any]
FUZZ = settings(max_examples=repeats(200, 600), deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("fuzz") / "model"
    return tiny_model(model, vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1)


def taken_apart(path: Path) -> tuple[Header, bytes]:
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def put_together(header: Header, data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


NUMBERS = st.one_of(
    st.integers(-2, 5000), st.sampled_from([2**31, 2**32 + 1, 2**53, 2**63 - 1, 2**64, -(2**63)]), st.booleans(),
    st.floats(allow_nan=False), st.none(), st.text(max_size=3),
)  # fmt: skip


@st.composite
def lies(draw: st.DrawFn, path: Path) -> bytes:
    """The file with something wrong in it: mostly one field of one tensor, now and then bytes anywhere."""
    header, data = taken_apart(path)
    names = sorted(n for n in header if n != "__metadata__")
    kind = draw(st.sampled_from(
        ["dtype", "shape", "offsets", "swap", "name", "drop", "copy", "more", "length", "cut", "bytes", "metadata"]
    ))  # fmt: skip
    name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    if kind == "dtype":
        header[name]["dtype"] = draw(
            st.sampled_from(["F32", "F16", "F64", "I64", "U8", "F8_E4M3", "F8_E5M2", "C64", "X", "", 3])
        )
    elif kind == "shape":
        header[name]["shape"] = draw(st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS))
    elif kind == "offsets":
        header[name]["data_offsets"] = draw(st.one_of(st.lists(NUMBERS, max_size=3), NUMBERS))
    elif kind == "swap":
        header[name]["data_offsets"], header[other]["data_offsets"] = (
            header[other]["data_offsets"],
            header[name]["data_offsets"],
        )
    elif kind == "name":
        header[draw(st.one_of(st.text(max_size=8), st.just("../x.weight"), st.just("a\0b")))] = header.pop(name)
    elif kind == "drop":
        del header[name][draw(st.sampled_from(sorted(header[name])))]
    elif kind == "copy":
        header[name] = dict(header[other])
    elif kind == "more":
        header[name][draw(st.text(max_size=4))] = draw(NUMBERS)
    elif kind == "metadata":
        header["__metadata__"] = draw(st.one_of(NUMBERS, st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2)))
    if kind == "length":
        return put_together(header, data, draw(st.sampled_from([0, 1, 7, 2**20, 100_000_001, 2**63, 2**64 - 1])))
    content = bytearray(put_together(header, data))
    if kind == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    if kind == "bytes":
        for _ in range(draw(st.integers(1, 4))):
            content[draw(st.integers(0, min(len(content) - 1, 1500)))] = draw(st.integers(0, 255))
    return bytes(content)


@pytest.mark.parametrize("storage", ["packed", "mask"])
def test_a_header_that_lies(storage: str, small: Path, tmp_path: Path) -> None:
    model, out = Path(shutil.copytree(small, tmp_path / "model")), tmp_path / "out"
    file = model / "model.safetensors"
    command = ["prune", "--model", str(model), "--storage", storage, "--measure", "none", "--register", "none"]
    command += ["--out", str(out), "--target", "all+embeddings"]
    ends: dict[int, int] = {}

    @FUZZ
    @given(content=lies(small / "model.safetensors"))
    def fuzz(content: bytes) -> None:
        shutil.rmtree(out, ignore_errors=True)
        file.write_bytes(content)
        result = CliRunner().invoke(main, command)
        ends[result.exit_code] = ends.get(result.exit_code, 0) + 1
        if result.exit_code == 0:  # then it was no lie, or one about nothing that matters
            state, stored = load_file(file), StoredTicket(out)
            assert set(stored.tensors) == set(state)
            for name, entry in stored.entries.items():
                if "kept" not in entry and storage == "packed":
                    assert torch.equal(stored.tensor(name).view(torch.uint8), state[name].view(torch.uint8)), name
            return
        lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
        assert result.exit_code == 2 and len(lines) == 1, (result.output, result.exception)
        assert str(model) in lines[0] or "tensor" in lines[0] or "model" in lines[0], lines[0]
        assert not [p.name for p in tmp_path.iterdir() if p != model], lines[0]

    fuzz()
    assert ends[2] > FUZZ.max_examples // 12 and ends[0] > FUZZ.max_examples // 100, ends  # both were tried


def test_a_ticket_record_that_lies(small: Path, tmp_path: Path, cli: Callable[..., Any]) -> None:
    """Its checksum made right again, so that what it says is what is looked at."""
    from lottery.ticket.record import write_record

    out = tmp_path / "t"
    cli("prune", "--model", small, "--measure", "none", "--register", "none", "--out", out)
    record = json.loads((out / "ticket.json").read_text())
    del record["checksum"]
    places: list[tuple[str, ...]] = [(key,) for key in record]
    places += [(key, inner) for key in ("spec", "base", "files", "shards", "tensors") for inner in record[key]]
    places += [("tensors", name, field) for name, entry in record["tensors"].items() for field in entry]
    ends: dict[int, int] = {}
    values = st.one_of(
        NUMBERS, st.just([]), st.just({}), st.just("../../etc/passwd"), st.just({"../x": "y"}), st.just(["x"])
    )

    count = repeats(400, 1500)

    @settings(FUZZ, max_examples=count)
    @given(st.sampled_from(places), values, st.booleans())
    def fuzz(place: tuple[str, ...], value: Any, remove: bool) -> None:
        changed = json.loads(json.dumps(record))
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        if remove:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        write_record(out, changed)
        result = CliRunner().invoke(main, ["verify", "--ticket", str(out)])
        assert result.exit_code in (0, 2), (place, value, remove, result.output, result.exception)
        assert "Traceback" not in result.output
        ends[result.exit_code] = ends.get(result.exit_code, 0) + 1
        if result.exit_code == 2:
            assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1

    fuzz()
    assert ends[2] > count // 3 and ends[0] > count // 250, ends
