"""Every kernel against its slow, obvious twin."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lottery.kernels import select


def pack(bits_OI: np.ndarray, k: int, seed: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    bitmask_OB = select.select(bits_OI, k, seed)
    return bitmask_OB, np.concatenate(select.compact(bits_OI.copy(), bitmask_OB))


KINDS = {torch.bfloat16: torch.uint16, torch.float16: torch.uint16, torch.float32: torch.uint32}


def twin_mask(weight_OI: torch.Tensor, k: int) -> np.ndarray:
    """The k smallest magnitudes go; of equal ones the earlier."""
    order = np.argsort(weight_OI.float().abs().numpy().ravel(), kind="stable")
    mask = np.ones(weight_OI.numel(), bool)
    mask[order[:k]] = False
    return mask.reshape(weight_OI.shape)


def twin_bits(mask_OI: np.ndarray) -> np.ndarray:
    return np.packbits(mask_OI, axis=1, bitorder="little")


@st.composite
def matrices(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 80)))
    dtype = draw(st.sampled_from(list(KINDS)))
    values = st.one_of(st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, 2**-130]), st.floats(-4, 4, width=32))
    weight_OI = torch.from_numpy(draw(hnp.arrays(np.float32, shape, elements=values))).to(dtype)
    return weight_OI, draw(st.integers(0, weight_OI.numel()))


@settings(max_examples=150, deadline=None)
@given(matrices())
def test_pack_and_unpack_equal_their_twins(case: tuple[torch.Tensor, int]) -> None:
    weight_OI, k = case
    bits_OI = weight_OI.view(KINDS[weight_OI.dtype]).numpy()
    zeros, broken = select.scan(
        bits_OI, 0x7C00 if weight_OI.dtype == torch.float16 else 0x7F800000 >> (32 - 8 * bits_OI.itemsize)
    )
    assert (zeros, broken) == (int((weight_OI == 0).sum()), 0)
    mask_OI = twin_mask(weight_OI, k)
    bitmask_OB, values_K = pack(bits_OI, k)
    np.testing.assert_array_equal(bitmask_OB, twin_bits(mask_OI))
    np.testing.assert_array_equal(values_K, bits_OI[mask_OI])
    dense_OI = np.where(mask_OI, bits_OI, 0)
    for wide in (True, False):  # by AVX-512's instructions, and as processors without them do it
        pieces = select.compact(bits_OI.copy(), bitmask_OB, wide)
        np.testing.assert_array_equal(np.concatenate(pieces), values_K)
        np.testing.assert_array_equal(select.unpack(bitmask_OB, values_K, bits_OI.shape[1], wide), dense_OI)
    np.testing.assert_array_equal(select.masked(bits_OI, bitmask_OB), dense_OI)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(0, 2**64 - 1))
def test_random_is_exact_and_takes_zeros_first(case: tuple[torch.Tensor, int], seed: int) -> None:
    weight_OI, k = case
    bits_OI = weight_OI.view(KINDS[weight_OI.dtype]).numpy()
    bitmask_OB, values_K = pack(bits_OI, k, seed)
    again_OB, _ = pack(bits_OI, k, seed)
    np.testing.assert_array_equal(bitmask_OB, again_OB)
    assert len(values_K) == bits_OI.size - k
    zeros = int((weight_OI == 0).sum())
    assert int((values_K << 1 == 0).sum()) == max(0, zeros - k)


def test_random_draws_every_weight_alike() -> None:
    weight_OI = torch.ones(200, 300)
    counts = np.zeros((200, 300))
    for seed in range(100):
        bitmask_OB, _ = pack(weight_OI.view(torch.uint32).numpy(), 30_000, seed)
        counts += np.unpackbits(bitmask_OB, axis=1, bitorder="little", count=300)
    assert abs(counts.mean() - 50) < 1e-9
    assert abs(counts.std() - 5) < 0.1  # binomial(100, 1/2)
    assert np.abs(counts.mean(0) - 50).max() < 2.5 and np.abs(counts.mean(1) - 50).max() < 2.5


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    bits_OI = torch.randn(37, 53, generator=torch.manual_seed(0)).view(torch.uint32).numpy()
    many = pack(bits_OI, 700)
    before = select.THREADS, select.SMALL
    try:
        select.SMALL = 0
        for select.THREADS in (1, 3, 8):
            for a, b in zip(pack(bits_OI, 700), many, strict=True):
                np.testing.assert_array_equal(a, b)
    finally:
        select.THREADS, select.SMALL = before


def test_not_a_number_is_counted() -> None:
    for dtype, integer, infinity in (
        (torch.bfloat16, torch.uint16, 0x7F80),
        (torch.float16, torch.uint16, 0x7C00),
        (torch.float32, torch.uint32, 0x7F800000),
    ):
        weight = torch.tensor([0.0, 1.0, float("nan"), float("inf"), -float("inf"), -0.0, 3e4]).to(dtype)
        assert select.scan(weight.view(integer).numpy(), infinity) == (2, 3)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from([(2, 4), (4, 8), (1, 4)]), st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_groups_equal_their_twin(case: tuple[torch.Tensor, int], pattern: tuple[int, int], seed: int | None) -> None:
    weight_OI, _ = case
    keep, group = pattern
    weight_OI = weight_OI.repeat_interleave(group, 1)  # with ties in every group
    weight_OI[:, ::3] *= 2
    bits_OI = weight_OI.view(KINDS[weight_OI.dtype]).numpy()
    bitmask_OB = select.select_groups(bits_OI, keep, group, seed)
    lives = np.unpackbits(bitmask_OB, axis=1, bitorder="little", count=bits_OI.shape[1]).astype(bool)
    groups = weight_OI.float().abs().numpy().reshape(-1, group)
    assert (lives.reshape(-1, group).sum(1) == np.minimum(keep, (groups != 0).sum(1))).all()
    if seed is None:
        twin = np.ones(groups.shape, bool)
        for values, mine in zip(groups, twin, strict=True):
            mine[np.argsort(values, kind="stable")[: group - keep]] = False
            mine[values == 0] = False
        np.testing.assert_array_equal(lives.reshape(-1, group), twin)


@settings(max_examples=60, deadline=None)
@given(st.lists(matrices(), min_size=1, max_size=4), st.floats(0, 1), st.sampled_from(list(KINDS)))
def test_a_threshold_over_several_matrices_equals_its_twin(
    cases: list[tuple[torch.Tensor, int]], share: float, dtype: torch.dtype
) -> None:
    many = [weight_OI.to(dtype).view(KINDS[dtype]).numpy() for weight_OI, _ in cases]
    k = round(share * sum(m.size for m in many))
    search = select.Search(k)
    for _ in range(2):
        for bits_OI in many:
            search.add(bits_OI)
        if not search.step():
            break
    every = np.concatenate([weight_OI.to(dtype).float().abs().numpy().ravel() for weight_OI, _ in cases])
    gone = np.argsort(every, kind="stable")[:k]
    ties = search.ties
    for bits_OI, first in zip(many, np.cumsum([0] + [m.size for m in many]), strict=False):
        bitmask_OB = select.select_below(bits_OI, search.limit, ties)
        ties -= min(ties, int(select.count_ties(bits_OI, search.limit).sum()))
        mask_OI = np.ones(bits_OI.size, bool)
        mask_OI[gone[(gone >= first) & (gone < first + bits_OI.size)] - first] = False
        np.testing.assert_array_equal(bitmask_OB, twin_bits(mask_OI.reshape(bits_OI.shape)))


def test_mask_and_values_must_belong_together() -> None:
    bitmask_OB, values_K = pack(np.arange(64, dtype=np.uint16).reshape(8, 8), 30)
    for wrong in (values_K[:-1], np.append(values_K, values_K[:1])):
        try:
            select.unpack(bitmask_OB, wrong, 8)
        except ValueError:
            continue
        raise AssertionError("a wrong number of survivors was unpacked")
