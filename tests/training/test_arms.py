"""From which weights, under which mask and at which step each arm starts: its rule, said once more in plain NumPy.

Legend: P parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lottery.training.arms import ARMS, OTHER, SHUFFLED, Start, ancestors, early_steps, mask_cost, needs, prepare_start
from lottery.training.loop import train
from lottery.training.network import Network, initial_weights
from lottery.training.outputs import End, Outputs
from lottery.training.recipe import Training, living
from tests.support.laboratory import DENSE, ROUND, SETUP, small_batches, small_network, small_outputs

BEFORE = ("snip", "grasp", "synflow", "random", *SHUFFLED)


@dataclass(frozen=True)
class Bench:
    """Trainings of a few thousand weights, which are made when somebody asks for them."""

    network: Network
    outputs: Outputs

    def start(self, training: Training) -> Start:
        for need in needs(training):
            if need.step is None:
                self.end(need.training)
            elif not self.outputs.has(need.training, need.step):
                self.make(need.training, need.step)
        return prepare_start(training, SETUP, self.network, self.outputs, small_batches())

    def end(self, training: Training) -> End:
        if not self.outputs.has(training):
            start = self.start(training)
            weight_P = self.make(training)
            with self.outputs.writing(training, End(weight_P, start.mask_P)) as written:
                written.result({"id": training.id(SETUP), "outcome": "done"})
        return self.outputs.read_end(training)

    def make(self, training: Training, stop: int | None = None) -> np.ndarray:
        """Returns the weights at the end, or after some steps, which are kept."""
        keep = () if stop is None else (stop,)
        return train(
            self.network, SETUP, training, self.start(training), small_batches(), lambda: 0.0, keep=keep, stop=stop,
            write_state=lambda step, weight_P: self.outputs.write_state(training, step, weight_P),
        ).weight_P  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Bench(small_network(), small_outputs(Path(tmp_path_factory.mktemp("arms"))))
    torch.set_num_threads(before)


def of(arm: str) -> Training:
    """The training of an arm beside ROUND: two rounds, rewound to step 2."""
    if arm == "dense":
        return DENSE
    if arm in BEFORE:
        return replace(ROUND, arm=arm, rewind=0, mask_lr=0.0, mask_steps=0, mask_rewind=0)
    return replace(ROUND, arm=arm)


def largest(bench: Bench, weight_P: np.ndarray, lives_P: np.ndarray, keep: int) -> np.ndarray:
    """The mask of the `keep` largest living prunable weights: one sort over all matrices."""
    places = [i for i in range(len(weight_P)) if bench.network.prunable_P[i] and lives_P[i]]
    kept = sorted(places, key=lambda i: -abs(weight_P[i]))[:keep]
    mask_P = ~bench.network.prunable_P
    mask_P[kept] = True
    return mask_P


def counts(bench: Bench, mask_P: np.ndarray) -> list[int]:
    return [int(mask_P[m.part].sum()) for m in bench.network.matrices]


def keep(bench: Bench) -> int:
    return living(bench.network.prunable, 2, 0.2)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_has_exactly_its_density_and_nothing_removed_comes_back(arm: str, bench: Bench) -> None:
    training = of(arm)
    start = bench.start(training)
    alive = int(start.mask_P[bench.network.prunable_P].sum())
    assert alive == (bench.network.prunable if arm == "dense" else keep(bench))
    assert start.mask_P[~bench.network.prunable_P].all() and (start.weight_P[~start.mask_P] == 0).all()
    assert start.first == {"untrained": 40, "dense": 0, "signs": 0, "reinit": 0}.get(arm, 0 if arm in BEFORE else 2)
    end = bench.end(training)
    assert (end.weight_P[~start.mask_P] == 0).all() and (end.mask_P == start.mask_P).all()
    assert (end.weight_P == start.weight_P).all() == (arm == "untrained")
    assert all(step.training in [n.training for n in ancestors(training)] for step in needs(training))


def test_the_chain(bench: Bench) -> None:
    """Each round removes the smallest of what the round before has left, and goes back to step 2 of the dense training."""
    dense, one = bench.end(DENSE), replace(ROUND, round=1)
    first_P = largest(bench, dense.weight_P, dense.mask_P, living(bench.network.prunable, 1, 0.2))
    assert (bench.start(one).mask_P == first_P).all()
    second_P = largest(bench, bench.end(one).weight_P, first_P, keep(bench))
    start, early_P = bench.start(ROUND), bench.make(DENSE, 2)
    assert (start.mask_P == second_P).all() and not (second_P & ~first_P).any()
    assert start.weight_P.tobytes() == np.where(second_P, early_P, np.float32(0)).tobytes()
    original = replace(ROUND, round=1, rewind=0, mask_rewind=0)
    assert (
        bench.start(original).weight_P.tobytes()
        == np.where(first_P, initial_weights(bench.network, 0), 0).astype(np.float32).tobytes()
    )


def test_arms_with_the_mask_of_the_chain(bench: Bench) -> None:
    ticket, new_P = bench.start(ROUND), initial_weights(bench.network, OTHER)
    mask_P, fixed_P = ticket.mask_P, ~bench.network.prunable_P
    before = bench.end(replace(ROUND, round=1)).weight_P
    for arm in ("permuted", "signs", "other", "reinit", "tuned", "rewound-rate"):
        assert (bench.start(of(arm)).mask_P == mask_P).all(), arm
    for arm in ("tuned", "rewound-rate"):
        assert (bench.start(of(arm)).weight_P == np.where(mask_P, before, 0)).all()
    assert (bench.start(of("reinit")).weight_P == np.where(mask_P, new_P, 0)).all()
    other_P = bench.make(replace(DENSE, seed=OTHER), 2)
    assert (bench.start(of("other")).weight_P == np.where(mask_P, other_P, 0)).all()
    signs_P, lives_P = bench.start(of("signs")).weight_P, mask_P & bench.network.prunable_P
    assert (np.sign(signs_P) == np.sign(ticket.weight_P))[lives_P].all()
    assert (np.abs(signs_P) == np.abs(new_P))[lives_P].all() and (signs_P == new_P)[fixed_P].all()
    permuted_P = bench.start(of("permuted")).weight_P
    assert (permuted_P == ticket.weight_P)[fixed_P].all()
    for matrix in bench.network.matrices:
        a, b = (x[matrix.part][mask_P[matrix.part]] for x in (permuted_P, ticket.weight_P))
        assert sorted(a) == sorted(b) and (len(a) < 3 or (a != b).any())


def test_a_shuffled_mask_keeps_each_matrix_density(bench: Bench) -> None:
    early_P = bench.make(DENSE, 2)
    start = bench.start(of("shuffled"))
    assert (start.weight_P == np.where(start.mask_P, early_P, 0)).all()
    for arm, shuffled in [("rewound", "shuffled"), *((name.removesuffix("-shuffled"), name) for name in SHUFFLED)]:
        one, two = bench.start(of(arm)).mask_P, bench.start(of(shuffled)).mask_P
        assert counts(bench, one) == counts(bench, two) and (one != two).any()


def test_arms_with_a_mask_of_the_dense_training(bench: Bench) -> None:
    dense, early_P = bench.end(DENSE), bench.make(DENSE, 2)
    cut_P = largest(bench, dense.weight_P, dense.mask_P, keep(bench))
    once, untrained = bench.start(of("oneshot")), bench.start(of("untrained"))
    assert (once.mask_P == cut_P).all() and (once.weight_P == np.where(cut_P, early_P, 0)).all()
    assert (untrained.mask_P == cut_P).all() and (untrained.weight_P == np.where(cut_P, dense.weight_P, 0)).all()
    bird = bench.start(of("early"))
    states = [bench.outputs.read_state(DENSE, step) for step in early_steps(40)]
    same = [(bird.mask_P == largest(bench, state, dense.mask_P, keep(bench))).all() for state in states]
    assert any(same) and bird.mask_step in (None, *[s for s, is_it in zip(early_steps(40), same, strict=True) if is_it])
    assert (bird.weight_P == np.where(bird.mask_P, early_P, 0)).all()


def test_arms_before_training_start_from_the_first_weights(bench: Bench) -> None:
    new_P = initial_weights(bench.network, 0)
    masks = {arm: bench.start(of(arm)).mask_P for arm in BEFORE}
    for arm, mask_P in masks.items():
        assert (bench.start(of(arm)).weight_P == np.where(mask_P, new_P, 0)).all()
    assert len({mask_P.tobytes() for mask_P in masks.values()}) == len(BEFORE)


def test_what_the_mask_has_cost() -> None:
    """In trainings of 40 steps: the dense one, and 38 steps of each round."""
    costs = {arm: mask_cost(of(arm)) for arm in ARMS}
    chain = (40 + 38) / 40
    assert {arm: costs[arm] for arm in ("rewound", "permuted", "reinit", "tuned", "oneshot", "untrained")} == {
        "rewound": chain, "permuted": chain, "reinit": chain, "tuned": chain, "oneshot": 1.0, "untrained": 1.0,
    }  # fmt: skip
    assert mask_cost(of("early"), 10) == 0.25, "training further would not have been needed"
    assert costs["other"] == pytest.approx(chain + 2 / 40) and {costs[arm] for arm in ("dense", *BEFORE)} == {0.0}


def test_another_order_of_the_data_is_the_same_start(bench: Bench) -> None:
    copy = replace(ROUND, order=1)
    one, two = bench.start(ROUND), bench.start(copy)
    assert one.weight_P.tobytes() == two.weight_P.tobytes() and (one.mask_P == two.mask_P).all()
    assert (bench.end(copy).weight_P != bench.end(ROUND).weight_P).any()


def test_ranked_within_matrices_all_keep_the_same_share(bench: Bench) -> None:
    for arm in ("rewound", "oneshot", "snip"):
        mask_P = bench.start(replace(of(arm), scope="layer")).mask_P
        shares = [n / (m.stop - m.start) for n, m in zip(counts(bench, mask_P), bench.network.matrices, strict=True)]
        assert max(shares) - min(shares) < 0.005
