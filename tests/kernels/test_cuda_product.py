"""The GPU's product of a few tokens with packed weights, beside a twin in numpy; without a GPU in Triton's interpreter."""

import os

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lottery.kernels import cuda, cuda_product, quantizing
from lottery.models.tensors import DTYPES

if not cuda_product.is_triton_available() and "LOTTERY_CI" not in os.environ:
    pytest.skip("needs triton", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMS = ["BF16", "F16", "F32", "I8", "F8_E4M3"]


def random_values(form: str, count: int, random: torch.Generator) -> torch.Tensor:
    if form in ("I8", "F8_E4M3"):
        codes = torch.randint(0, 256, (count,), generator=random, dtype=torch.uint8)
        codes[codes & 0x7F == 0x7F] = 0x80  # no code of ours is not a number
        return codes.view(DTYPES[form])
    return torch.randn(count, generator=random).to(DTYPES[form])


def twin(
    x_TI: np.ndarray, lives_OI: np.ndarray, values_K: np.ndarray, step_O: np.ndarray, bias_O: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64, and that of the magnitudes, to which a rounding error is in proportion."""
    weight_OI = np.zeros(lives_OI.shape)
    weight_OI[lives_OI] = values_K
    weight_OI *= step_O[:, None]
    return x_TI @ weight_OI.T + bias_O, abs(x_TI) @ abs(weight_OI.T) + abs(bias_O)


@pytest.mark.cuda
@settings(max_examples=100 if DEVICE == "cuda" else 30, deadline=None)
@given(
    tokens=st.integers(1, 8),
    rows=st.integers(1, 9),
    columns=st.one_of(st.integers(1, 70), st.integers(1, 2600), st.sampled_from([255, 256, 257, 1023, 1024, 1025])),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.97, 1.0]),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    masked=st.booleans(),
    biased=st.booleans(),
    wide_starts=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(1, 5, 2048, 1.0, "BF16", torch.float32, True, True, False, 0)
@example(8, 9, 2600, 0.5, "F8_E4M3", torch.float32, True, True, True, 1)
def test_the_product_equals_its_twin(
    tokens: int, rows: int, columns: int, share: float, form: str, dtype: torch.dtype, masked: bool, biased: bool,
    wide_starts: bool, seed: int,
) -> None:  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    lives = torch.rand(rows, columns, generator=random) < share if masked else torch.ones(rows, columns).bool()
    if masked and rows > 2:
        lives[1], lives[2] = False, True  # an empty row, and a full one
    values_K = random_values(form, int(lives.sum()), random)
    step_O = torch.rand(rows, generator=random) if form in ("I8", "F8_E4M3") else None
    bias_O = torch.randn(rows, generator=random).to(dtype) if biased else None
    x_TI = torch.randn(tokens, columns, generator=random).to(dtype)
    bitmask_OB = torch.from_numpy(np.packbits(lives.numpy(), axis=1, bitorder="little")) if masked else None
    start_OC = (
        None if bitmask_OB is None else torch.from_numpy(quantizing.chunk_offsets(bitmask_OB.numpy(), cuda.CHUNK))
    )
    if start_OC is not None and wide_starts:
        start_OC = start_OC.to(torch.int64)
    there = [None if t is None else t.to(DEVICE) for t in (x_TI, bitmask_OB, start_OC, values_K, step_O, bias_O)]
    found_TO = cuda_product.multiply(*there).cpu()  # type: ignore[arg-type]
    assert found_TO.dtype == dtype and found_TO.shape == (tokens, rows)
    expected_TO, size_TO = twin(
        x_TI.double().numpy(), lives.numpy(), values_K.double().numpy(),
        np.ones(rows) if step_O is None else step_O.double().numpy(),
        np.zeros(rows) if bias_O is None else bias_O.double().numpy(),
    )  # fmt: skip
    # float32 sums, and one rounding to the tokens' type; the interpreter cuts bits off where a GPU rounds
    allowed_TO = 2e-6 * size_TO + torch.finfo(dtype).eps * abs(expected_TO) + 1e-7
    assert (abs(found_TO.double().numpy() - expected_TO) <= allowed_TO).all()


@pytest.mark.cuda
def test_tokens_that_do_not_lie_one_after_the_other() -> None:
    x_TI = torch.arange(12.0, device=DEVICE).view(4, 3).T  # [3, 4]
    found_TO = cuda_product.multiply(x_TI, None, None, torch.ones(20, device=DEVICE), None, None)
    assert torch.equal(found_TO, x_TI.sum(1, keepdim=True).expand(3, 5))


@pytest.mark.cuda
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_product_is_tried_before_it_is_used(form: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = (torch.device(DEVICE), DTYPES[form], masked, torch.float16)
    assert cuda_product.kernel_matches_torch(*tried)
    right = cuda_product.multiply
    monkeypatch.setattr(cuda_product, "multiply", lambda *given: right(*given) * 1.01)
    assert not cuda_product.kernel_matches_torch(*tried)


def test_a_gpu_on_which_triton_fails_gets_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> bool:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(cuda_product, "kernel_matches_torch", fail)
    monkeypatch.setattr(cuda_product, "is_triton_available", lambda: True)
    asked = cuda_product.can_use_product.__wrapped__  # without the answers of earlier calls
    assert not asked(0, torch.int8, True, torch.float16)
    assert "Triton does not work here (RuntimeError: no C compiler)" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    assert not asked(0, torch.int8, True, torch.float16)
    assert not capsys.readouterr().err
