"""Sealed files: what is written is what is read, and nothing else is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from lottery.errors import InputError
from lottery.training.sealed import read_sealed, seal

TENSORS = st.dictionaries(
    st.sampled_from(["a", "b", "adam.step"]),
    st.tuples(st.sampled_from(["float32", "float64", "uint8"]), st.lists(st.integers(0, 3), max_size=3)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes=TENSORS, about=st.dictionaries(st.text(max_size=5), st.integers()), data=st.data())
def test_what_is_sealed_is_read_and_any_other_byte_is_refused(
    shapes: dict[str, Any], about: dict[str, int], data: st.DataObject, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: np.asarray(9 * rng.random(shape)).astype(dtype) for name, (dtype, shape) in shapes.items()}
    path = tmp_path / "sealed.safetensors"
    content = seal(tensors, about)
    path.write_bytes(content)
    assert all(seal(tensors, about) == content for _ in range(4))
    read = read_sealed(path)
    assert read.about == about and sorted(read.tensors) == sorted(tensors)
    for name, tensor in tensors.items():
        assert read.tensors[name].tobytes() == tensor.tobytes()
        assert (read.tensors[name].dtype, read.tensors[name].shape) == (tensor.dtype, tensor.shape)
    values = sum(tensor.nbytes for tensor in tensors.values())
    if values:
        at = len(content) - 1 - data.draw(st.integers(0, values - 1))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(InputError, match="its content is not what its hash says"):
            read_sealed(path)


def test_a_file_without_a_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    for content in (
        save({"a": np.zeros(2)}),
        save({"a": np.zeros(2)}, {"seal": '["00", "{}"]'}),
        save({"a": np.zeros(2)}, {"seal": "7"}),
        b"",
        b"{",
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not readable"):
            read_sealed(path)
