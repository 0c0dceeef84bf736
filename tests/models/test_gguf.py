"""Headers of GGUF files that lie: the answer is what the file holds, or one clear line, and never much memory."""

import struct
import tracemalloc
from pathlib import Path

import pytest
from gguf import GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lottery.errors import InputError
from lottery.models.gguf import bits_per_weight, quantized_types, read_header
from tests.support.gguf_files import Q8_0, tiny_dense, write_gguf
from tests.support.often import repeats

FUZZ = settings(max_examples=repeats(300, 3000), deadline=None, suppress_health_check=list(HealthCheck))
NUMBERS = st.sampled_from([0, 1, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**53, 2**63 - 1, 2**63, 2**64 - 1])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny_dense("Llama"), type=Q8_0)
    return path


def test_a_header_equals_the_one_that_the_package_reads(file: Path) -> None:
    header, reader = read_header(file), GGUFReader(file)
    assert header.data == reader.data_offset and header.alignment == reader.alignment
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert (ours.name, ours.type, ours.nbytes) == (theirs.name, theirs.tensor_type.name, theirs.n_bytes)
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert header.data + ours.offset == theirs.data_offset
    names = [name for name in reader.fields if not name.startswith("GGUF.")]
    assert list(header.values) == names
    for name in names:
        found = reader.fields[name].contents()
        assert header.values[name] == (len(found) if isinstance(found, list) else found)
    assert quantized_types(header.tensors) == ["Q8_0"] and 8.5 < bits_per_weight(header.tensors) < 8.6


@given(st.data())
@FUZZ
def test_a_changed_header_is_read_or_refused(
    file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(file.read_bytes())
    end = read_header(file).data
    where = st.one_of(st.integers(0, 2000), st.integers(end - 2000, end), st.integers(0, end))
    for _ in range(data.draw(st.integers(1, 3))):
        at, kind = data.draw(where), data.draw(st.sampled_from(["byte", "number", "cut", "count"]))
        if kind == "byte":
            content[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
        elif kind == "number":
            content[at : at + 8] = struct.pack("<Q", data.draw(NUMBERS))
        elif kind == "count":
            content[8:24] = struct.pack("<QQ", data.draw(NUMBERS), data.draw(NUMBERS))
        else:
            del content[at:]
    path = tmp_path_factory.mktemp("changed") / "changed.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        header = read_header(path)
        assert all(header.data + t.offset + t.nbytes <= len(content) for t in header.tensors)
    except InputError as e:
        assert str(e).startswith(f"file={path}: ") and "\n" not in str(e)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * file.stat().st_size


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a GGUF file"),
        (b"GGUF", "not a GGUF file"),
        (b"PK\3\4" + bytes(100), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "1,152,921,504,606,846,976 values"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**40) + bytes(64), "a text of 1,099,511,627,776 bytes"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 4, 2**50) + bytes(9), "1,125,899,906,842,624 elements"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"a", 9, 9, 1) + bytes(9), "unknown type 9"),
    ],
)  # fmt: skip
def test_absurd_headers(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "odd.gguf").write_bytes(content)
    with pytest.raises(InputError, match=says):
        read_header(tmp_path / "odd.gguf")
