"""The GPU's kernel without a GPU: run by Triton's interpreter, and compiled for the GPUs that there are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lottery.kernels import cuda, quantizing
from lottery.models.tensors import DTYPES
from tests.support.families import LABELS, make
from tests.support.paths import ROOT

IN_CI = "LOTTERY_CI" in os.environ  # `make gpu-check` runs this file without what the other tests need
if not cuda.is_triton_available() and not IN_CI:
    pytest.skip("needs triton", allow_module_level=True)

FEW = ["llama", "gpt2", "mixtral"]
MANY = [label for label in LABELS if label not in FEW]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.cuda
@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.one_of(st.integers(1, 70), st.integers(1, 2600), st.sampled_from([255, 256, 257, 1023, 1024, 1025])),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]),
    form=st.sampled_from(["BF16", "F16", "F32", "I8", "F8_E4M3"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    masked=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=3, columns=2048, share=0.5, form="F8_E4M3", dtype=torch.float32, masked=True, seed=0)
def test_widened_as_by_torch(
    rows: int, columns: int, share: float, form: str, dtype: torch.dtype, masked: bool, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    lives = torch.rand(rows, columns, generator=random) < share if masked else torch.ones(rows, columns).bool()
    count = int(lives.sum())
    if form in ("I8", "F8_E4M3"):
        codes = torch.randint(0, 256, (count,), generator=random, dtype=torch.uint8)
        codes[codes & 0x7F == 0x7F] = 0x80  # no code of ours is not a number
        stored, step_O = codes.view(DTYPES[form]), torch.rand(rows, generator=random) * 10 ** -random_exponent(random)
    else:
        stored, step_O = torch.randn(count, generator=random).to(DTYPES[form]), None
    bitmask_OB = torch.from_numpy(np.packbits(lives.numpy(), axis=1, bitorder="little")) if masked else None
    start_OC = (
        None if bitmask_OB is None else torch.from_numpy(quantizing.chunk_offsets(bitmask_OB.numpy(), cuda.CHUNK))
    )
    twin = cuda.unpack_weights_with_torch(bitmask_OB, stored, step_O, torch.empty(rows, columns, dtype=dtype))
    there = [None if t is None else t.to(DEVICE) for t in (bitmask_OB, start_OC, stored, step_O)]
    out = torch.full((rows, columns), torch.nan, dtype=dtype, device=DEVICE)
    found = cuda.unpack_weights(there[0], there[1], there[2], there[3], out).cpu()  # type: ignore[arg-type]
    if DEVICE == "cpu" and dtype == torch.bfloat16 and stored.dtype != dtype:
        # the interpreter cuts bits off where a GPU rounds to the nearest
        assert (found.view(torch.int16).int() - twin.view(torch.int16).int()).abs().max() <= 1
    else:
        assert torch.equal(found, twin) and torch.equal(found.signbit(), twin.signbit())


def random_exponent(random: torch.Generator) -> int:
    return int(torch.randint(0, 5, (1,), generator=random))


def test_chunk_starts_equal_their_twin() -> None:
    lives: np.ndarray = torch.rand(7, 1030, generator=torch.manual_seed(0)).numpy() < 0.4
    found = quantizing.chunk_offsets(np.packbits(lives, axis=1, bitorder="little"), 256)
    before = np.cumsum(lives.ravel()) - lives.ravel()
    assert found.dtype == np.int32
    assert np.array_equal(found, before.reshape(7, 1030)[:, ::256])


def run_script(name: str, *arguments: Path | str, folder: Path) -> Any:
    """What a script of tests/support prints, run by itself: here Triton interprets, there it compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(folder / "triton"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "support" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_compiled_for_every_gpu_within_its_registers(tmp_path: Path) -> None:
    found = run_script("compiled.py", "unpack", folder=tmp_path)
    assert {capability for capability, *_ in found} == {70, 75, 80, 86, 90, 100, 120}
    for kernel in found:
        capability, *_, registers, stack = kernel
        threads = {75: 1024, 86: 1536, 120: 1536}.get(capability, 2048)  # as many as a multiprocessor holds
        assert registers * threads <= 65536 and stack == 0, kernel


def test_the_product_is_compiled_for_every_gpu_without_spills(tmp_path: Path) -> None:
    """One token takes so few registers that a multiprocessor holds at least 24 warps, eight tokens at least 16."""
    found = run_script("compiled.py", "product", folder=tmp_path)
    assert {capability for capability, *_ in found} == {70, 75, 80, 86, 90, 100, 120}
    assert {tokens for *_, tokens, _, _ in found} == {1, 8}
    for kernel in found:
        *_, tokens, registers, stack = kernel
        assert registers * 32 * (24 if tokens == 1 else 16) <= 65536 and stack == 0, kernel


@pytest.mark.parametrize("labels", [FEW, pytest.param(MANY, marks=pytest.mark.slow)], ids=["few", "many"])
def test_a_decoding_step_is_one_graph_with_one_kernel_a_packed_layer(
    labels: list[str], tmp_path: Path, cli: Callable[..., Result]
) -> None:
    """In every family. A CUDA graph copies what goes into it that is neither weight nor cache: a token, a short mask."""
    tickets = [tmp_path / f"ticket-{label}" for label in labels]
    for label, ticket in zip(labels, tickets, strict=True):
        model = make(label, tmp_path / label, "saved")
        cli("prune", "--model", model, "--quantize", "fp8", "--out", ticket, "--measure", "none", "--register", "none")
    found = dict(zip(labels, run_script("traced.py", *tickets, folder=tmp_path), strict=True))
    for label, (graphs, kernels, packed, waits, largest) in found.items():
        assert (graphs, kernels, waits) == (1, packed, 0) and packed > 0 and largest <= 64, label


@pytest.mark.cuda
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", ["BF16", "F16", "F32", "I8", "F8_E4M3"])
def test_the_kernel_is_tried_before_it_is_used(form: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = (torch.device(DEVICE), DTYPES[form], masked, torch.float16)
    assert cuda.kernel_matches_torch(*tried)
    monkeypatch.setattr(cuda, "unpack_weights_with_torch", lambda *given: given[-1].fill_(1))
    assert not cuda.kernel_matches_torch(*tried)
