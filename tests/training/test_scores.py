"""Scores before training against their definitions, written out slowly; what the masks made of them promise."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lottery.training import scores
from lottery.training.masks import densities, full_mask, keep_best
from lottery.training.network import Network, initial_weights
from lottery.training.recipe import Shape
from tests.support import slow_scores as slow

SEED = 0  # that only random scores look at


def tiny(layers: int = 1, seed: int = 0) -> tuple[Network, np.ndarray]:
    """A network, and weights large enough for every part of it to matter; gains of the norms between 0.5 and 1.5."""
    network = Network(Shape(layers, 8, 2, 12, 16, 8))
    rng = np.random.default_rng(seed)
    weight_P = np.where(
        initial_weights(network, 0) == 1, rng.uniform(0.5, 1.5, network.size), rng.normal(0, 0.4, network.size)
    )
    return network, weight_P.astype(np.float32)


def tokens(*shape: int, vocabulary: int = 16) -> np.ndarray:
    return np.random.default_rng(7).integers(0, vocabulary, shape)


def close(one: np.ndarray, other: np.ndarray, to: float) -> bool:
    return bool(np.abs(one - other).max() <= to * np.abs(other).max())


NO_TOKENS = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def default() -> Network:
    return Network(Shape())


def test_snip_is_the_change_of_the_loss_in_each_mask_entry() -> None:
    network, weight_P = tiny()
    batches = tokens(2, 3, 9)
    score_P = scores.snip(network, weight_P, batches, SEED)
    exact_P = weight_P.astype(np.float64)

    def loss(place: int, mask: float) -> float:
        changed_P = exact_P.copy()
        changed_P[place] *= mask
        flat_P = torch.from_numpy(changed_P)
        return sum(float(slow.loss(network, flat_P, ids_NT, 1)) for ids_NT in torch.from_numpy(batches))

    places = np.flatnonzero(network.prunable_P)[::3]
    slope_W = np.array([(loss(p, 1 + 1e-4) - loss(p, 1 - 1e-4)) / 2e-4 for p in places])
    assert close(score_P[places], np.abs(slope_W), 1e-4)
    alone_P = np.sum([scores.snip(network, weight_P, batches[b : b + 1], SEED) for b in range(2)], axis=0)
    assert (alone_P[places] - score_P[places]).max() > 0.1 * score_P[places].max()  # gradients cancel between batches


def test_grasp_is_half_the_change_of_the_gradients_squared_norm_in_each_mask_entry() -> None:
    network, weight_P = tiny()
    batches = tokens(1, 3, 9)
    score_P = scores.grasp(network, weight_P, batches, SEED)
    exact_P = weight_P.astype(np.float64)

    def norm(place: int, mask: float) -> float:
        changed_P = exact_P.copy()
        changed_P[place] *= mask
        return float(np.sum(slow.gradient(network, changed_P, batches, 200) ** 2))

    places = np.flatnonzero(network.prunable_P)[::17]
    slope_W = np.array([(norm(p, 1 + 1e-4) - norm(p, 1 - 1e-4)) / 2e-4 for p in places])
    assert close(score_P[places], slope_W / 2, 1e-4)
    assert (slope_W < 0).sum() > 5 and (slope_W > 0).sum() > 5  # a wrong sign would be seen


def test_grasps_product_is_the_difference_of_gradients_along_the_gradient() -> None:
    network, weight_P = tiny(layers=2)
    batches = tokens(2, 4, 9)
    exact_P = weight_P.astype(np.float64)
    grad_P = slow.gradient(network, exact_P, batches, 200)
    step = 1e-4 / np.abs(grad_P).max()
    ahead_P, behind_P = (slow.gradient(network, exact_P + s * grad_P, batches, 200) for s in (step, -step))
    score_P = scores.grasp(network, weight_P, batches, SEED) * network.prunable_P
    assert close(score_P, weight_P * (ahead_P - behind_P) / (2 * step), 1e-4)
    halves_P = scores.grasp(network, weight_P, batches.reshape(4, 2, 9), SEED) * network.prunable_P
    assert close(halves_P, 4 * score_P, 1e-4)  # twice the gradient and twice the Hessian


@settings(max_examples=15, deadline=None)
@given(layers=st.integers(1, 3), density=st.sampled_from([0.05, 0.3, 1]), seed=st.integers(0, 99))
def test_synflow_is_what_loops_give(layers: int, density: float, seed: int) -> None:
    network, weight_P = tiny(layers, seed)
    weight_P *= np.random.default_rng(seed).random(network.size) < density
    score_P = scores.synflow(network, weight_P, NO_TOKENS, SEED)
    assert score_P.dtype == np.float64
    value = {n: x.numpy() for n, x in slow.named(network, torch.from_numpy(np.abs(weight_P).astype(float))).items()}
    twin = slow.synflow(network.shape, value)
    for matrix in network.matrices:
        np.testing.assert_allclose(score_P[matrix.part], twin[matrix.name].ravel(), rtol=1e-9, atol=1e-12)


def test_synflow_conserves_what_flows_through_a_unit(default: Network) -> None:
    score_P = scores.synflow(default, initial_weights(default, 0), NO_TOKENS, SEED)
    score: dict[str, Any] = {m.short: score_P[m.part].reshape(m.shape) for m in default.matrices}
    for i in range(4):
        q, k, v, o, gate, up, down = (score[f"{i}.{p}_proj"] for p in ("q", "k", "v", "o", "gate", "up", "down"))
        np.testing.assert_allclose(up.sum(1), down.sum(0))  # into an inner unit, and out of it
        np.testing.assert_allclose(gate.sum(1), down.sum(0))
        np.testing.assert_allclose(v.sum(1), o.sum(0))
        np.testing.assert_allclose(q.sum(1), k.sum(1))
        np.testing.assert_allclose(q.reshape(4, -1).sum(1), o.sum(0).reshape(4, -1).sum(1))  # of a head


def test_synflow_leaves_no_matrix_empty_where_one_round_does(default: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_P, keep = initial_weights(default, 0), round(0.005 * default.prunable)

    def empty() -> int:
        mask_P = scores.mask_before_training("synflow", default, weight_P, NO_TOKENS, keep, "global", 0)
        assert (mask_P & default.prunable_P).sum() == keep
        return sum(density == 0 for density in densities(default, mask_P).values())

    assert empty() == 0
    monkeypatch.setitem(scores.ROUNDS, "synflow", 1)
    assert empty() == 20


def test_synflow_prunes_what_the_round_before_left() -> None:
    network, weight_P = tiny(layers=3)
    keep = round(0.3 * network.prunable)
    mask_P = full_mask(network)
    for i in range(100):
        score_P = scores.synflow(network, weight_P * mask_P, NO_TOKENS, SEED)
        mask_P = keep_best(
            network, score_P, mask_P, round(network.prunable * (keep / network.prunable) ** ((i + 1) / 100)), "global"
        )
    made_P = scores.mask_before_training("synflow", network, weight_P, NO_TOKENS, keep, "global", 0)
    assert np.array_equal(made_P, mask_P)


def test_synflow_does_not_overflow_in_32_layers() -> None:
    network = Network(Shape(layers=32))
    score_P = scores.synflow(network, initial_weights(network, 0), NO_TOKENS, SEED)
    first, last = (score_P[network.matrices[i].part].sum() for i in (0, -1))
    assert np.isfinite(score_P).all() and score_P[network.prunable_P].min() > 0
    assert 1 < first / last < 100  # 64 blocks add to the stream, the first one to an input of the same size


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("method", list(scores.SCORES))
def test_a_mask_keeps_exactly_as_many_weights_and_leaves_the_network_alone(method: str, scope: str) -> None:
    network, weight_P = tiny(layers=2)
    network.load(weight_P)
    batches = tokens(2, 3, 9)
    total = network.prunable
    for keep in (0, 1, 18, 57, total // 5, total - 1, total):
        mask_P = scores.mask_before_training(method, network, weight_P, batches, keep, scope, 0)
        assert mask_P.dtype == bool and (mask_P & network.prunable_P).sum() == keep
        assert mask_P[~network.prunable_P].all()
        again_P = scores.mask_before_training(method, network, weight_P, batches, keep, scope, 0)
        assert np.array_equal(again_P, mask_P)
        if scope == "layer":
            for matrix in network.matrices:
                size = matrix.stop - matrix.start
                assert abs(mask_P[matrix.part].sum() - size * keep / total) < 2
    assert np.array_equal(network.weights(), weight_P) and not network.grad_P.any()


def test_global_masks_of_a_new_network_at_21_percent(default: Network) -> None:
    """SNIP and GraSP leave almost nothing of q and k; SynFlow takes as much of each of a block's square matrices."""
    weight_P, batches = initial_weights(default, 0), tokens(2, 8, 65, vocabulary=512)
    keep = round(0.21 * default.prunable)
    made = {
        method: densities(default, scores.mask_before_training(method, default, weight_P, batches, keep, "global", 0))
        for method in scores.SCORES
    }
    names = ("0.q_proj", "3.k_proj", "0.v_proj", "3.o_proj", "3.down_proj")
    seen = {method: [density[name] for name in names] for method, density in made.items()}
    assert seen["snip"] == pytest.approx([0.06, 0.00, 0.63, 0.42, 0.08], abs=0.01)
    assert seen["grasp"] == pytest.approx([0.11, 0.00, 0.36, 0.32, 0.18], abs=0.01)
    assert seen["synflow"] == pytest.approx([0.68, 0.16, 0.67, 0.16, 0.07], abs=0.01)
    assert seen["random"] == pytest.approx([0.20, 0.21, 0.20, 0.21, 0.21], abs=0.01)


def test_random_scores_follow_the_seed(default: Network) -> None:
    one, same, other = (scores.random(default, np.zeros(0), NO_TOKENS, seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert one.min() >= 0 and one.max() < 1 and abs(one.mean() - 0.5) < 0.01


def moving(network: Network, shares: list[float], keep: int) -> list[np.ndarray]:
    """Masks of `keep` weights each of which has that share of its living weights in other places than the one before."""
    rng = np.random.default_rng(0)
    places = rng.permutation(np.flatnonzero(network.prunable_P))
    living, dead = list(places[:keep]), list(places[keep:])
    masks = []
    for share in [0.0, *shares]:
        number = round(share * keep)
        living, dead = living[number:] + dead[:number], dead[number:] + living[:number]
        mask_P = ~network.prunable_P
        mask_P[living] = True
        masks.append(mask_P)
    return masks


def test_an_early_bird_has_stopped_moving_five_times_in_a_row(default: Network) -> None:
    keep = 10000
    still = [0.5, 0.2, 0.09, 0.09, 0.09, 0.09, 0.0, 0.0, 0.5]
    masks = moving(default, still, keep)
    assert [round(scores.moved(default, a, b), 6) for a, b in itertools.pairwise(masks)] == still
    assert scores.early_bird(default, masks) == 7
    assert scores.early_bird(default, masks[:7]) is None
    assert scores.early_bird(default, masks, patience=1) == 3
    assert scores.early_bird(default, masks, threshold=0.05) is None
    assert scores.early_bird(default, masks, threshold=0.05, patience=2) == 8
    assert scores.early_bird(default, moving(default, [0.05] * 4 + [0.1] + [0.05] * 5, keep)) == 10
    assert scores.early_bird(default, []) is None


def test_sparse_masks_that_share_nothing_have_moved(default: Network) -> None:
    """The distance over all weights, which the paper uses for half of a network's channels, would call them equal."""
    masks = moving(default, [1.0] * 6, round(0.04 * default.prunable))
    assert all((a ^ b).mean() < 0.1 for a, b in itertools.pairwise(masks))
    assert scores.moved(default, masks[0], masks[1]) == 1
    assert scores.early_bird(default, masks) is None
