"""The training loop: beside a slow twin, under a mask, killed and resumed, to the bit."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lottery.training import loop
from lottery.training.arms import Start
from lottery.training.loop import Optimizer, learning_rate, train
from lottery.training.masks import full_mask, keep_best
from lottery.training.network import Network, initial_weights
from tests.support.laboratory import DENSE, SETUP, small_batches, small_network


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def start_of(network: Network, density: float = 1.0) -> Start:
    weight_P = initial_weights(network, 0)
    mask_P = keep_best(network, np.abs(weight_P), full_mask(network), int(density * network.prunable), "global")
    return Start(np.where(mask_P, weight_P, np.float32(0)), mask_P, 0)


def run(start: Start, network: Network, checkpoint: Path | None = None, **more: object) -> loop.Trained:
    return train(network, SETUP, DENSE, start, small_batches(), lambda: 0.0, checkpoint, **more)  # type: ignore[arg-type]


def train_slowly(start: Start, network: Network, steps: int) -> np.ndarray:
    """Plain torch: one AdamW per tensor, gradients and weights masked by hand, the same schedule."""
    network.load(start.weight_P)
    masks = []
    for name, parameter in network.model.named_parameters():
        matrix = next((m for m in network.matrices if m.name == name), None)
        lives = (
            torch.ones_like(parameter)
            if matrix is None
            else torch.from_numpy(start.mask_P[matrix.part].reshape(matrix.shape)).float()
        )
        masks.append(lives)
    parameters = list(network.model.parameters())
    adam = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.1, fused=False, foreach=False)
    batches = small_batches()
    for step in range(steps):
        ids = torch.from_numpy(batches.at(0, 0, step))
        logits = network.model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        for parameter, mask in zip(parameters, masks, strict=True):
            assert parameter.grad is not None
            parameter.grad.mul_(mask)
        torch.nn.utils.clip_grad_norm_(parameters, SETUP.clip)
        adam.param_groups[0]["lr"] = learning_rate(DENSE, SETUP, step)
        adam.step()
        for parameter, mask in zip(parameters, masks, strict=True):
            parameter.data.mul_(mask)
            assert parameter.grad is not None
            parameter.grad.zero_()
    return network.weights()


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_the_flat_loop_is_plain_torch(density: float) -> None:
    network = small_network()
    start = start_of(network, density)
    fast = run(start, network, stop=10).weight_P
    np.testing.assert_allclose(fast, train_slowly(start, network, 10), atol=2e-6)


def test_it_learns() -> None:
    network = small_network()
    done = run(start_of(network), network)
    losses = [loss for _, loss, _ in done.curve]
    assert len(losses) == 20 and losses[0] > 4.0 > 3.7 > losses[-1] and done.diverged is None


def test_removed_weights_and_their_moments_are_zero_after_every_step() -> None:
    network = small_network()
    start = start_of(network, 0.1)
    network.load(start.weight_P)
    optimizer, batches = Optimizer(network, SETUP, start.mask_P), small_batches()
    for step in range(5):
        network.loss(torch.from_numpy(batches.at(0, 0, step))).backward()
        optimizer.step(1e-2)
        moments = optimizer.tensors()
        for tensor in (network.weight_P, moments["exp_avg"], moments["exp_avg_sq"]):
            assert (tensor.numpy()[~start.mask_P] == 0).all()
            assert (tensor.numpy()[start.mask_P] != 0).mean() > 0.9


def test_a_living_weight_that_is_zero_still_learns() -> None:
    network = small_network()
    start = start_of(network)
    first = network.matrices[0]
    start.weight_P[first.start] = 0
    assert run(start, network, stop=3).weight_P[first.start] != 0


def test_two_runs_give_the_same_bits() -> None:
    one, two = (run(start_of(network, 0.3), network).weight_P for network in (small_network(), small_network()))
    assert one.tobytes() == two.tobytes()


class KilledError(Exception):
    """Stands for the kill of a process at a point of the curve."""


def test_a_resumed_training_gives_the_same_bits_and_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    network, path = small_network(), tmp_path / "checkpoint.safetensors"
    start = start_of(network, 0.3)
    whole = run(start, network)
    for killed_at in (8, 22):
        steps = 0

        def kill(made: int, loss: float, killed_at: int = killed_at) -> None:
            nonlocal steps
            steps += made
            if steps >= killed_at - (0 if killed_at == 8 else 6):
                raise KilledError

        with pytest.raises(KilledError):
            run(start, small_network(), path, advance=kill)
    resumed = run(start, small_network(), path)
    assert resumed.weight_P.tobytes() == whole.weight_P.tobytes() and resumed.curve == whole.curve


def test_a_checkpoint_that_was_altered_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, path = small_network(), tmp_path / "checkpoint.safetensors"
    start = start_of(network, 0.3)
    optimizer = Optimizer(network, SETUP, start.mask_P)
    network.load(start.weight_P)
    optimizer.step(0.0)
    loop.save_checkpoint(path, network, optimizer, 30, [[20, 1.0, 1.0]], 5.0)
    assert loop.load_checkpoint(path, network, optimizer) == (30, [[20, 1.0, 1.0]], 5.0)
    content = path.read_bytes()
    for changed in (content[:-1] + bytes([content[-1] ^ 1]), content.replace(b"30", b"31", 1), content[:-5], b""):
        assert changed != content
        path.write_bytes(changed)
        assert loop.load_checkpoint(path, network, optimizer) is None
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and str(path) in said and "the training begins anew" in said


def test_who_asked_is_told_between_the_points_of_the_curve_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a large network would go on for minutes after Ctrl-C."""
    monkeypatch.setattr(loop, "POINTS", 2)
    network, told = small_network(), []
    run(start_of(network), network, advance=lambda made, loss: told.append(made))
    assert told == [20, 20]
    monkeypatch.setattr(loop, "TELL_S", -1.0)
    told.clear()
    done = run(start_of(network), network, advance=lambda made, loss: told.append(made))
    assert told == [1] * 40 and [step for step, _, _ in done.curve] == [20, 40]


def test_a_search_loss_that_is_no_number_is_divergence() -> None:
    network = small_network()
    done = train(network, SETUP, DENSE, start_of(network), small_batches(), lambda: float("inf"))
    assert done.diverged == 2 and done.curve == []


def test_states_are_the_weights_on_the_way() -> None:
    network = small_network()
    start = start_of(network)
    states: dict[int, np.ndarray] = {}
    run(start, network, keep=(2, 7), write_state=states.__setitem__)
    assert sorted(states) == [2, 7]
    assert states[7].tobytes() == run(start, network, stop=7).weight_P.tobytes()


def test_a_rate_that_is_too_high_is_recorded_as_divergence() -> None:
    network = small_network()
    wild = replace(DENSE, lr=1e38)
    done = train(network, SETUP, wild, start_of(network), small_batches(), lambda: 0.0)
    assert done.diverged is not None and done.diverged <= 40


def test_the_schedule_warms_up_and_falls_to_the_floor() -> None:
    rates = [learning_rate(DENSE, SETUP, step) for step in range(40)]
    assert rates[0] == DENSE.lr / 2 and rates[1] == rates[2] == DENSE.lr
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0.05 * DENSE.lr < rates[-1] < 0.06 * DENSE.lr
    assert learning_rate(replace(DENSE, arm="tuned"), SETUP, 0) == pytest.approx(0.05 * DENSE.lr)
