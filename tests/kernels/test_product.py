"""Products of few tokens, straight from bitmask and survivors, beside a slow, obvious twin."""

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from itertools import product as combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.errors import InputError
from lottery.kernels import product, quantizing
from lottery.models.tensors import DTYPES

FORMS = ("BF16", "F16", "F32", "I8", "F8_E4M3")
TYPES = {torch.bfloat16: quantizing.BF16, torch.float16: quantizing.F16, torch.float32: quantizing.F32}
ROUNDING = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
LEAST = {torch.float32: 1e-37, torch.bfloat16: 1e-37, torch.float16: 2.0**-24}  # below, numbers have fewer digits


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.view({1: torch.uint8, 2: torch.uint16, 4: torch.uint32}[tensor.itemsize]).numpy()


def make(
    rows: int, columns: int, form: str, share: float, masked: bool, seed: int, bias: bool = False
) -> tuple[product.Stored, torch.Tensor]:
    """A stored matrix, and the dense one in float64. The first row is empty and the second full where there are two."""
    rng = torch.Generator().manual_seed(seed)
    weight_OI = 3 * torch.randn(rows, columns, generator=rng)
    stored_OI = (40 * weight_OI).round().clamp(-127, 127).to(torch.int8) if form == "I8" else weight_OI.to(DTYPES[form])
    alive_OI = torch.ones(rows, columns, dtype=torch.bool)
    if masked:
        alive_OI = torch.rand(rows, columns, generator=rng) < share
        alive_OI[:1] = False
        alive_OI[1:2] = True
    step_O = torch.rand(rows, generator=rng) if form in ("I8", "F8_E4M3") else None
    bias_O = torch.randn(rows, generator=rng) if bias else None
    values_K = product.spare(bits_of(stored_OI[alive_OI])) if masked else bits_of(stored_OI).reshape(-1)
    mask_OB = np.packbits(alive_OI.numpy(), axis=1, bitorder="little") if masked else None
    stored = product.Stored(
        rows, columns, form, values_K, mask_OB,
        None if mask_OB is None else quantizing.row_offsets(mask_OB),
        None if step_O is None else step_O.numpy(), None if bias_O is None else bias_O.numpy(),
    )  # fmt: skip
    return stored, torch.where(alive_OI, stored_OI.double(), 0) * (1 if step_O is None else step_O[:, None].double())


def multiply(work: product.Product, x_TI: torch.Tensor) -> list[torch.Tensor]:
    rows = [m.rows for m in work.matrices]
    out = torch.full((len(x_TI) * sum(rows) + 1,), 7, dtype=x_TI.dtype)
    work(x_TI.data_ptr(), TYPES[x_TI.dtype], len(x_TI), out.data_ptr())
    assert out[-1] == 7
    return [part.view(len(x_TI), -1) for part in out[:-1].split([len(x_TI) * r for r in rows])]


def check(found_TO: torch.Tensor, x_TI: torch.Tensor, dense_OI: torch.Tensor, stored: product.Stored) -> None:
    """The twin: float64 arithmetic. The tolerance is that of float32 sums, and of the type of the result."""
    bias_O = torch.zeros(stored.rows) if stored.bias_O is None else torch.from_numpy(stored.bias_O)
    want_TO = x_TI.double() @ dense_OI.T + bias_O.double()
    sizes_TO = x_TI.double().abs() @ dense_OI.abs().T + bias_O.double().abs()
    room_TO = 2.0**-21 * sizes_TO + ROUNDING[x_TI.dtype] * want_TO.abs() + LEAST[x_TI.dtype]
    assert ((found_TO.double() - want_TO).abs() <= room_TO).all()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(product.available_kernels()), st.sampled_from(FORMS), st.sampled_from(list(TYPES)), st.booleans(),
    st.integers(1, 9), st.one_of(st.integers(1, 70), st.integers(1, 700), st.sampled_from([64, 512, 576, 1024])),
    st.integers(1, 8), st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_a_product_equals_float64_arithmetic(
    kernel: str, form: str, dtype: torch.dtype, masked: bool, rows: int, columns: int, tokens: int, share: float,
    bias: bool, seed: int,
) -> None:  # fmt: skip
    if not masked and not product.reads_whole(kernel, columns):
        columns = columns // 8 * 8 + 8
    stored, dense_OI = make(rows, columns, form, share, masked, seed, bias)
    x_TI = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed + 1)).to(dtype)
    (found_TO,) = multiply(product.Product([stored], 1, kernel), x_TI)
    check(found_TO, x_TI, dense_OI, stored)


@pytest.mark.parametrize("kernel", product.available_kernels())
def test_float32_activations_keep_their_digits(kernel: str) -> None:
    """In bfloat16 the activations would be 1, and the sum 0."""
    for form in FORMS:
        stored, dense_OI = make(3, 64, form, 1, True, 0)
        dense_OI[2] = 1
        stored.values_K[64:] = bits_of(torch.ones(64).to(torch.int8 if form == "I8" else DTYPES[form]))
        if stored.step_O is not None:
            stored.step_O[:] = 1
        x_TI = torch.ones(1, 64) * (1 - 2 * (torch.arange(64) % 2)) * (1 + (torch.arange(64) % 2) * 2.0**-12)
        (found_TO,) = multiply(product.Product([stored], 1, kernel), x_TI)
        assert found_TO[0, 2].item() == pytest.approx(-32 * 2.0**-12, rel=1e-6), form


@pytest.mark.parametrize("kernel", product.available_kernels())
def test_every_code_is_exact(kernel: str) -> None:
    """Each of the 256 codes (those that are never stored left out) times 1, in int8 and in float8 with subnormals."""
    for form, dtype, left_out in (("I8", torch.int8, [0x80]), ("F8_E4M3", torch.float8_e4m3fn, [0x7F, 0xFF])):
        codes = torch.tensor([c for c in range(256) if c not in left_out], dtype=torch.uint8)
        mask_OB = np.full((len(codes), 1), 1, np.uint8)
        ones_O = np.ones(len(codes), np.float32)
        stored = product.Stored(
            len(codes), 8, form, product.spare(codes.numpy()), mask_OB, quantizing.row_offsets(mask_OB), ones_O
        )
        for x_TI in (torch.ones(1, 8), torch.ones(1, 8).bfloat16()):
            (found_TO,) = multiply(product.Product([stored], 1, kernel), x_TI)
            assert torch.equal(found_TO[0].float(), codes.view(dtype).float()), form


@pytest.mark.parametrize("kernel", product.available_kernels())
def test_several_matrices_share_activations(kernel: str) -> None:
    made = [make(rows, 96, "BF16", 0.5, masked, rows) for rows, masked in ((5, True), (1, False), (12, True))]
    matrices = [stored for stored, _ in made]
    assert all(product.shares_activations(kernel, matrices[0], m) for m in matrices)
    x_TI = torch.randn(3, 96)
    for found_TO, (stored, dense_OI) in zip(multiply(product.Product(matrices, 2, kernel), x_TI), made, strict=True):
        check(found_TO, x_TI, dense_OI, stored)
    assert not product.shares_activations(kernel, matrices[0], make(5, 97, "BF16", 0.5, True, 0)[0])


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also more threads than processors, several callers at once, and a forked process, which has no threads yet."""
    monkeypatch.setattr(product, "GRAIN_BYTES", 256)
    stored, dense_OI = make(101, 576, "BF16", 0.4, True, 3)
    x_TI = torch.randn(2, 576).bfloat16()
    kernel = product.available_kernels()[0]
    want_TO = multiply(product.Product([stored], 1, kernel), x_TI)[0]
    check(want_TO, x_TI, dense_OI, stored)
    several = [product.Product([stored], threads, kernel) for threads in (2, 3, 7)]
    assert [len(work.edges) - 1 for work in several] == [2, 3, 7]
    found: list[bool] = []

    def call_often() -> None:
        found.extend(torch.equal(multiply(work, x_TI)[0], want_TO) for _ in range(50) for work in several)

    callers = [threading.Thread(target=call_often) for _ in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(found) == 3 * 50 * 3 and all(found)
    child = os.fork()
    if not child:
        ok = torch.equal(multiply(product.Product([stored], 2, kernel), x_TI)[0], want_TO)
        os._exit(0 if ok and torch.equal(multiply(several[0], x_TI)[0], want_TO) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_nothing_spins_while_nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "GRAIN_BYTES", 256)
    stored, _ = make(101, 576, "BF16", 0.4, True, 3)
    multiply(product.Product([stored], 2, product.available_kernels()[0]), torch.randn(1, 576))
    threads = [t for t in threading.enumerate() if t.name.startswith("lottery-product")]

    def seconds() -> float:
        stats = [Path(f"/proc/self/task/{t.native_id}/schedstat").read_text() for t in threads]
        return sum(int(stat.split()[0]) for stat in stats) / 1e9

    time.sleep(0.05)
    before = seconds()
    time.sleep(0.5)
    assert threads and seconds() - before < 0.01


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.integers(1, 9))
def test_threads_get_about_as_many_bytes(sizes: list[int], ranks: int) -> None:
    edges = product.balance(np.array(sizes, np.int64), ranks)
    assert edges[0] == 0 and edges[-1] == len(sizes) and (np.diff(edges) >= 0).all() and len(edges) == ranks + 1
    shares = [sum(sizes[a:b]) for a, b in pairwise(edges)]
    assert max(shares) <= sum(sizes) / ranks + max(sizes)


def before_a_wall(array: np.ndarray, spare: int) -> np.ndarray:
    """A copy of which `spare` bytes more may be read, and not one beyond: there begins memory that ends the process."""
    size = array.nbytes + spare
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    copy = np.frombuffer(memory, array.dtype, array.size, pages - size).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("kernel", product.available_kernels())
def test_nothing_is_read_beyond_the_end(kernel: str) -> None:
    for form, masked, columns in combinations(FORMS, (True, False), (8, 71, 72, 128, 576)):
        if not masked and not product.reads_whole(kernel, columns):
            continue
        made, dense_OI = make(6, columns, form, 0.9, masked, 5)
        spare = product.SPARE_BYTES if masked else 0
        walls = [None if a is None else before_a_wall(a, 0) for a in (made.bitmask_OB, made.step_O)]
        stored = product.Stored(
            6, columns, form, before_a_wall(made.values_K, spare), walls[0], made.start_O, walls[1], None
        )
        for tokens, dtype in ((1, torch.float32), (3, torch.bfloat16)):
            x_TI = torch.randn(tokens, columns).to(dtype)
            wall_TI = torch.from_numpy(before_a_wall(bits_of(x_TI), 0)).view(dtype)
            check(multiply(product.Product([stored], 1, kernel), wall_TI)[0], x_TI, dense_OI, stored)


def test_the_kernel_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    pick = product.pick_kernel.__wrapped__
    monkeypatch.delenv("LOTTERY_KERNEL", raising=False)
    assert pick() == product.available_kernels()[0]
    monkeypatch.setenv("LOTTERY_KERNEL", "plain")
    assert pick() == "plain"
    monkeypatch.setenv("LOTTERY_KERNEL", "sse")
    with pytest.raises(InputError, match="LOTTERY_KERNEL=sse: give one of avx512, avx2, plain"):
        pick()


def test_an_old_processor_runs_the_plain_loops(tmp_path: Path) -> None:
    """numba compiles for the processor that these variables describe."""
    old = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2,+cx8,+fxsr,+mmx,+sse,+64bit,+cmov"}
    code = (
        "from lottery.kernels import product as p; import lottery.errors as e\n"
        "print(p.available_kernels(), p.pick_kernel.__wrapped__())\n"
        "import os; os.environ['LOTTERY_KERNEL'] = 'avx2'\n"
        "try: p.pick_kernel.__wrapped__()\n"
        "except e.InputError as found: print(found)\n"
    )
    environment = os.environ | old | {"LOTTERY_HOME": str(tmp_path), "LOTTERY_KERNEL": ""}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines() == [
        "['plain'] plain",
        "LOTTERY_KERNEL=avx2: this processor lacks its instructions; it can run plain",
    ]
