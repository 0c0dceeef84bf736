"""The methods that look at data, where counts do not divide, inputs are always zero, or a Gram matrix is a bad one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.errors import InputError
from lottery.pruning import linear_algebra, methods
from lottery.pruning.choosing import Ask, share_out
from lottery.pruning.least_squares import layer_error
from lottery.pruning.methods import METHODS
from lottery.pruning.statistics import Accumulator, Statistics
from tests.support import slow_methods as slow

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random_case(rows: int, columns: int, tokens: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs that depend on each other and are of unlike size."""
    random = torch.manual_seed(seed)
    x_TI = torch.randn(tokens, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random), x_TI * torch.rand(columns, generator=random).add(0.1) * 3


def statistics_of(*parts: torch.Tensor, with_gram: bool = True) -> Statistics:
    sums = Accumulator(parts[0].shape[1], with_gram, "cpu")
    for x_TI in parts:
        sums.add(x_TI)
    return sums.finish()


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(list(METHODS)),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 300)),
    sparsity=st.floats(0, 1),
    zeros=st.sampled_from([0, 0.3, 0.9]),
    where=st.sampled_from(["anywhere", "left", "top"]),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_a_matrix_loses_exactly_what_is_asked_for(
    method: str, shape: tuple[int, int], sparsity: float, zeros: float, where: str, dtype: torch.dtype, seed: int
) -> None:
    """Whatever the shape is, and wherever the matrix holds zeros already, which all stay zeros."""
    weight_OI, x_TI = random_case(*shape, tokens=40, seed=seed)
    share = {
        "anywhere": torch.rand(shape, generator=torch.manual_seed(seed)),
        "left": torch.arange(shape[1]).expand(shape) / shape[1],
        "top": torch.arange(shape[0])[:, None].expand(shape) / shape[0],
    }[where]
    weight_OI = weight_OI.masked_fill(share < zeros, 0).to(dtype)
    remove = round(sparsity * weight_OI.numel())
    solved = METHODS[method](weight_OI, statistics_of(x_TI), Ask(remove))
    gone_OI, zero_OI = ~solved.stays_OI, weight_OI == 0
    assert int(gone_OI.sum()) == max(remove, int(zero_OI.sum()))
    assert gone_OI[zero_OI].all() and not solved.weight_OI[gone_OI].any()
    assert solved.weight_OI.dtype == dtype and solved.weight_OI.isfinite().all()
    if method in ("wanda", "swaps"):
        assert torch.equal(solved.weight_OI[solved.stays_OI], weight_OI[solved.stays_OI])
    if method in ("wanda", "swaps", "refit") and not zeros:  # the others choose over rows together
        assert gone_OI.sum(1).max() - gone_OI.sum(1).min() <= 1


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(list(METHODS)),
    groups=st.sampled_from([(2, 4), (4, 8), (1, 4)]),
    rows=st.integers(1, 20),
    count=st.integers(1, 40),
    zeros=st.sampled_from([0, 0.3, 0.9]),
    dtype=st.sampled_from(DTYPES),
)
def test_a_pattern_holds_in_every_group(
    method: str, groups: tuple[int, int], rows: int, count: int, zeros: float, dtype: torch.dtype
) -> None:
    keep, size = groups
    weight_OI, x_TI = random_case(rows, count * size, tokens=40, seed=count)
    weight_OI[torch.rand(weight_OI.shape, generator=torch.manual_seed(rows)) < zeros] = 0
    weight_OI = weight_OI.to(dtype)
    solved = METHODS[method](weight_OI, statistics_of(x_TI), Ask(weight_OI.numel() // 2, groups))
    nonzero = (weight_OI != 0).reshape(-1, size).sum(1)
    assert torch.equal(solved.stays_OI.reshape(-1, size).sum(1), nonzero.clamp(max=keep))
    assert not solved.stays_OI[weight_OI == 0].any()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=8), st.floats(0, 1))
def test_blocks_share_what_goes(blocks: list[tuple[int, float]], sparsity: float) -> None:
    """The others lose at one rate, within rounding; a block with more zeros than that loses its zeros."""
    sizes = [size for size, _ in blocks]
    zeros = [int(size * share) for size, share in blocks]
    remove = round(sparsity * sum(sizes))
    lost = share_out(remove, zeros, sizes)
    assert sum(lost) == max(remove, sum(zeros))
    assert all(z <= n <= size for z, n, size in zip(zeros, lost, sizes, strict=True))
    rates = [(n / size, 1 / size) for z, n, size in zip(zeros, lost, sizes, strict=True) if n > z]
    assert all(a - b <= u + v for a, u in rates for b, v in rates)
    for z, n, size in zip(zeros, lost, sizes, strict=True):
        if n == z and rates:
            assert n / size >= min(rate - unit for rate, unit in rates) - 1 / size


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_inputs_that_are_always_zero_go_first(method: str) -> None:
    weight_OI, x_TI = random_case(40, 160)
    dead = torch.tensor([3, 4, 90, 159])
    x_TI[:, dead] = 0
    weight_OI[:, dead] *= 1000
    few = METHODS[method](weight_OI, statistics_of(x_TI * 1e-4), Ask(round(0.5 * weight_OI.numel())))
    assert not few.stays_OI[:, dead].any()
    gram_II = (x_TI.double().T @ x_TI.double()).numpy() * 1e-8
    gap_OI = (few.weight_OI - weight_OI).double().numpy()
    assert layer_error(weight_OI, few.weight_OI, statistics_of(x_TI * 1e-4)) == pytest.approx(
        slow.output_error(weight_OI.double().numpy(), weight_OI.double().numpy() + gap_OI, gram_II), rel=1e-4
    )
    pattern = METHODS[method](weight_OI, statistics_of(x_TI * 1e-4), Ask(0, (2, 4)))
    assert not pattern.stays_OI[:, dead].any()
    none = METHODS[method](weight_OI, statistics_of(x_TI), Ask(0))
    torch.testing.assert_close(none.weight_OI, weight_OI, rtol=1e-5, atol=1e-5)  # what stays is as it was


def test_norms_and_gram_agree_and_do_not_depend_on_the_type_of_the_inputs() -> None:
    _, x_TI = random_case(1, 70)
    x_TI[:, 5] = 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        parts = x_TI.to(dtype).split(97)
        full, only_norms = statistics_of(*parts), statistics_of(*parts, with_gram=False)
        x64_TI = x_TI.to(dtype).double().numpy()
        unit_II, _ = slow.unit_diagonal(x64_TI.T @ x64_TI)
        assert full.gram_II is not None and only_norms.gram_II is None and full.tokens == only_norms.tokens == 300
        np.testing.assert_allclose(full.norm_I.numpy(), np.linalg.norm(x64_TI, axis=0), rtol=2e-6)
        np.testing.assert_allclose(only_norms.norm_I.numpy(), full.norm_I.numpy(), rtol=2e-6)
        np.testing.assert_allclose(full.gram_II.numpy(), unit_II, rtol=0, atol=3e-6)
        assert full.norm_I[5] == 0 and full.gram_II[5, 5] == 1 and torch.equal(full.gram_II, full.gram_II.T)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_a_gram_matrix_of_few_tokens(method: str, tokens: int) -> None:
    """It is singular; the ridge makes it regular. With no token at all nothing is known, and nothing breaks."""
    weight_OI, x_TI = random_case(20, 150)
    statistics = statistics_of(x_TI[:tokens])
    solved = METHODS[method](weight_OI, statistics, Ask(1500))
    assert int(solved.stays_OI.sum()) == 1500 and solved.weight_OI.isfinite().all() and solved.damping is None
    if tokens and method != "wanda":  # 75 weights of a row can give the output of two tokens again
        assert layer_error(weight_OI, solved.weight_OI, statistics) < 0.01
    if not tokens:
        assert layer_error(weight_OI, solved.weight_OI, statistics) == 0


def indefinite(columns: int, below: float) -> Statistics:
    """A Gram matrix of rank 1 whose diagonal was made smaller: its least eigenvalue is -`below`."""
    gram_II = torch.full((columns, columns), 1.0 + below)
    gram_II.fill_diagonal_(1)
    return Statistics(torch.ones(columns), gram_II, 1)


@pytest.mark.parametrize(("below", "damping"), [(0.0, None), (0.005, None), (0.05, 0.1), (0.5, 1.0)])
def test_a_gram_matrix_that_is_not_positive_definite_is_damped_more(
    below: float, damping: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    weight_OI, _ = random_case(10, 140)
    solved = methods.sparsegpt(weight_OI, indefinite(140, below), Ask(700))
    assert solved.damping == (damping and pytest.approx(damping)) and solved.weight_OI.isfinite().all()
    assert int(solved.stays_OI.sum()) == 700
    said = capsys.readouterr().err
    assert (f"damping was raised from 0.01 to {damping:g}" in said) if damping else said == ""
    gram_II = np.full((140, 140), 1 + below) - below * np.eye(140)
    wanted, stays_OI = slow.sparsegpt(weight_OI.double().numpy(), gram_II, 700, damping=damping or 0.01)
    assert (solved.stays_OI.numpy() == stays_OI).mean() > 0.99
    assert np.abs(np.where(stays_OI, solved.weight_OI.numpy() - wanted, 0)).mean() < 1e-3


def test_a_gram_matrix_that_cannot_be_damped_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="cannot be factorized, even with a damping of 100"):
        methods.sparsegpt(torch.ones(4, 8), indefinite(8, 1e4), Ask(16))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(0, 9))
def test_the_factor_is_that_of_the_inverse(columns: int, seed: int) -> None:
    """Also where the matrix is larger than what is moved or cleared at once."""
    _, x_TI = random_case(1, columns, seed=seed)
    statistics = statistics_of(x_TI)
    step, rows = linear_algebra.STEP, linear_algebra.ROWS
    try:
        linear_algebra.STEP, linear_algebra.ROWS = 7, 5
        factor_II, damping = linear_algebra.inverse_factor(statistics, 0.01)
    finally:
        linear_algebra.STEP, linear_algebra.ROWS = step, rows
    assert statistics.gram_II is not None and damping is None and factor_II.dtype == torch.float64
    norm_I = statistics.norm_I.double().numpy()
    h_II = statistics.gram_II.double().numpy() * norm_I * norm_I[:, None]
    h_II[np.diag_indices(columns)] += 0.01 * np.mean(np.diag(h_II))
    want_II = np.linalg.cholesky(np.linalg.inv(h_II)).T
    added = 0.01 * float(statistics.norm_I.double().square().mean())
    of_gpu_II = linear_algebra.inverse_factor_on_gpu(statistics.gram_II, statistics.scale.double(), added)
    assert of_gpu_II is not None
    for got_II in (factor_II, of_gpu_II):  # the GPU's way runs here too, on the CPU
        np.testing.assert_allclose(got_II.numpy(), want_II, rtol=0, atol=1e-9 * np.abs(want_II).max())


@pytest.mark.parametrize("method", METHODS)
def test_16_bit_weights_are_solved_in_float32_and_rounded_once(method: str) -> None:
    weight_OI, x_TI = random_case(30, 200)
    statistics = statistics_of(x_TI)
    for dtype in (torch.bfloat16, torch.float16):
        short = METHODS[method](weight_OI.to(dtype), statistics, Ask(3000))
        long = METHODS[method](weight_OI.to(dtype).float(), statistics, Ask(3000))
        assert torch.equal(short.stays_OI, long.stays_OI)
        assert torch.equal(short.weight_OI, long.weight_OI.to(dtype))
