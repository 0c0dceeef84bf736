"""The exchange of removed weights for kept ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.pruning.choosing import Ask
from lottery.pruning.least_squares import layer_error
from lottery.pruning.methods import swaps, wanda
from lottery.pruning.statistics import Accumulator, Statistics
from tests.support import slow_methods as slow


def case(rows: int, columns: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and inputs of which some hang together."""
    random = torch.Generator().manual_seed(seed)
    mixed_II = torch.eye(columns) + 0.4 * torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random), torch.randn(3 * columns, columns, generator=random) @ mixed_II


def statistics_of(x_TI: torch.Tensor) -> Statistics:
    unit_II, _ = slow.unit_diagonal(gram := x_TI.double().numpy().T @ x_TI.double().numpy())
    return Statistics(torch.from_numpy(slow.norms(gram)), torch.from_numpy(unit_II), len(x_TI))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 3),
    columns=st.sampled_from([4, 16, 28]),
    sparsity=st.floats(0.05, 0.95),
    groups=st.sampled_from([None, (2, 4)]),
    zeros=st.sampled_from([0, 0.3]),
    seed=st.integers(0, 99),
)
def test_every_swap_is_the_best_one(
    rows: int, columns: int, sparsity: float, groups: tuple[int, int] | None, zeros: float, seed: int
) -> None:
    weight_OI, x_TI = case(rows, columns, seed)
    weight_OI = weight_OI.double().masked_fill(
        torch.rand(weight_OI.shape, generator=torch.manual_seed(seed)) < zeros, 0
    )
    remove = round(sparsity * weight_OI.numel())
    solved = swaps(weight_OI, statistics_of(x_TI), Ask(remove, groups))
    gram_II = x_TI.double().numpy().T @ x_TI.double().numpy()
    stays_OI = slow.swaps_stays(weight_OI.numpy(), gram_II, remove, groups)
    np.testing.assert_array_equal(solved.stays_OI.numpy(), stays_OI)
    assert torch.equal(solved.weight_OI, weight_OI * solved.stays_OI)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_come_nearer_and_no_value_changes(dtype: torch.dtype) -> None:
    weight_OI, x_TI = case(64, 200, 0)
    weight_OI, sums = weight_OI.to(dtype), Accumulator(200, True, "cpu")
    sums.add(x_TI)
    statistics, ask = sums.finish(), Ask(round(0.6 * weight_OI.numel()))
    before, after = wanda(weight_OI, statistics, ask), swaps(weight_OI, statistics, ask)
    assert torch.equal(after.stays_OI.sum(1), before.stays_OI.sum(1))
    assert torch.equal(after.weight_OI[after.stays_OI], weight_OI[after.stays_OI])
    error = [layer_error(weight_OI, solved.weight_OI, statistics) for solved in (before, after)]
    assert error[1] < 0.7 * error[0]
