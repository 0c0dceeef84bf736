"""Masks: which weights live, beside slow twins that look at one weight after the other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.training.masks import densities, full_mask, keep_best, permute_values, shares, shuffle_mask
from lottery.training.recipe import living
from tests.support.laboratory import small_network

NETWORK = small_network()


def random_scores(seed: int, ties: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, NETWORK.size).astype(float) if ties else rng.random(NETWORK.size)


def keep_best_slowly(score_P: np.ndarray, mask_P: np.ndarray, keep: int) -> np.ndarray:
    """One weight at a time: the best living one, the first of equal ones."""
    left = [i for i in range(NETWORK.size) if NETWORK.prunable_P[i] and mask_P[i]]
    best = sorted(left, key=lambda i: (-score_P[i], i))[:keep]
    out_P = mask_P & ~NETWORK.prunable_P
    for i in best:
        out_P[i] = True
    return out_P


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1), ties=st.booleans(), living_share=st.floats(0.2, 1))
def test_global_cut_is_that_of_the_slow_twin(seed: int, share: float, ties: bool, living_share: float) -> None:
    mask_P = full_mask(NETWORK)
    dead = np.random.default_rng(seed).random(NETWORK.size) > living_share
    mask_P &= ~(dead & NETWORK.prunable_P)
    keep = int(share * (mask_P & NETWORK.prunable_P).sum())
    score_P = random_scores(seed, ties)
    found_P = keep_best(NETWORK, score_P, mask_P, keep, "global")
    assert (found_P == keep_best_slowly(score_P, mask_P, keep)).all()
    assert (found_P & NETWORK.prunable_P).sum() == keep
    assert found_P[~NETWORK.prunable_P].all(), "embeddings and norms are never pruned"


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_with_scope_layer_each_matrix_keeps_the_same_share(share: float, seed: int) -> None:
    keep = int(share * NETWORK.prunable)
    found_P = keep_best(NETWORK, random_scores(seed, False), full_mask(NETWORK), keep, "layer")
    assert (found_P & NETWORK.prunable_P).sum() == keep
    for matrix, expected in zip(NETWORK.matrices, shares(keep, NETWORK.matrices), strict=True):
        assert found_P[matrix.part].sum() == expected
        assert abs(expected - share * (matrix.stop - matrix.start)) <= 1.5


def test_more_than_what_lives_cannot_be_kept() -> None:
    with pytest.raises(ValueError, match="living weights cannot be kept"):
        keep_best(NETWORK, random_scores(0, False), full_mask(NETWORK), NETWORK.prunable + 1, "global")


def test_counts_of_rounds_are_those_of_open_lth() -> None:
    # ceil(20% of what lives) goes in each round; 0.8 ** 4, 7, 10 and 13
    assert [living(194_560, n, 0.2) for n in (0, 1, 4, 7, 10, 13)] == [194560, 155648, 79691, 40800, 20889, 10694]
    assert living(1, 1, 0.2) == 0


def test_a_shuffled_mask_keeps_as_many_weights_of_each_matrix() -> None:
    mask_P = keep_best(NETWORK, random_scores(1, False), full_mask(NETWORK), NETWORK.prunable // 5, "global")
    shuffled_P = shuffle_mask(NETWORK, mask_P, 0)
    assert densities(NETWORK, shuffled_P) == densities(NETWORK, mask_P)
    assert (shuffled_P != mask_P).mean() > 0.1, "it shuffles: a public code's control does not"
    assert (shuffled_P == shuffle_mask(NETWORK, mask_P, 0)).all()
    assert (shuffled_P != shuffle_mask(NETWORK, mask_P, 1)).any()


def test_permuted_values_are_the_same_values_in_other_places() -> None:
    weight_P = np.random.default_rng(0).standard_normal(NETWORK.size).astype(np.float32)
    mask_P = keep_best(NETWORK, random_scores(2, False), full_mask(NETWORK), NETWORK.prunable // 4, "global")
    found_P = permute_values(NETWORK, weight_P, mask_P, 0)
    assert (found_P[~mask_P] == weight_P[~mask_P]).all()
    for matrix in NETWORK.matrices:
        lives_W = mask_P[matrix.part]
        before_W, after_W = weight_P[matrix.part][lives_W], found_P[matrix.part][lives_W]
        assert sorted(before_W) == sorted(after_W) and (len(before_W) < 3 or (before_W != after_W).any())
