"""The n-gram baseline against dictionaries, and on texts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.training.ngram import NGrams
from tests.support.slow_ngram import SlowNGrams


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    words=st.integers(2, 9),
    order=st.integers(2, 6),
    length=st.integers(8, 400),
    window=st.integers(2, 12),
)
def test_sorted_arrays_give_what_dictionaries_give(seed: int, words: int, order: int, length: int, window: int) -> None:
    rng = np.random.default_rng(seed)
    skewed = rng.dirichlet(np.full(words, 0.5))
    train_T = rng.choice(words, length, p=skewed)
    ids_NT = rng.integers(0, words, (5, window))
    ids_NT[0] = np.resize(train_T, window)  # one window was seen
    slow = SlowNGrams(train_T.tolist(), words, order)
    expected_NT = [slow.nll(ids_T) for ids_T in ids_NT.tolist()]
    np.testing.assert_allclose(NGrams(train_T, words, order).nll(ids_NT), expected_NT, rtol=0, atol=1e-9)


def test_discounts_that_are_estimated_are_met_too() -> None:
    rng = np.random.default_rng(0)
    train_T = rng.choice(30, 6000, p=rng.dirichlet(np.full(30, 0.3)))
    fast, slow = NGrams(train_T, 30, 4), SlowNGrams(train_T.tolist(), 30, 4)
    ids_NT = rng.integers(0, 30, (4, 9))
    np.testing.assert_allclose(fast.nll(ids_NT), [slow.nll(ids_T) for ids_T in ids_NT.tolist()], rtol=0, atol=1e-9)


@pytest.mark.parametrize("context", [1, 2, 3, 7])
def test_probabilities_sum_to_one(context: int) -> None:
    rng = np.random.default_rng(context)
    train_T = rng.integers(0, 12, 3000).astype(np.uint16)
    for start in (0, 17):  # a context that was seen, and one that hardly was
        history = train_T[start : start + context] if start else rng.integers(0, 20, context)
        ids_NT = np.array([[*history, token] for token in range(20)])
        assert np.exp(-NGrams(train_T, 20).nll(ids_NT)[:, -1]).sum() == pytest.approx(1, abs=1e-12)


def test_a_token_is_judged_by_its_own_window_alone() -> None:
    train_T = np.tile(np.arange(10), 300)
    whole = NGrams(train_T, 10).nll(np.arange(40)[None] % 10)
    halves = NGrams(train_T, 10).nll((np.arange(40) % 10).reshape(2, 20))
    np.testing.assert_array_equal(whole[0, 5:19], halves[0, 5:])
    assert whole[0, 19:24].mean() <= halves[1, :5].mean()


def test_no_two_ngrams_share_a_code() -> None:
    assert (NGrams(np.arange(8), 512).order, NGrams(np.arange(8), 513).order) == (6, 6)
    assert (NGrams(np.arange(8), 1449).order, NGrams(np.arange(8), 50257).order) == (5, 4)
    high = np.full(8, 50256)
    assert NGrams(high, 50257).loss(high[None]) == pytest.approx(
        SlowNGrams(high.tolist(), 50257, 4).nll(high.tolist())[-1], abs=1
    )
