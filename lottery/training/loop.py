"""The training loop: AdamW under a mask, with warm-up, cosine, clipping, checkpoints and a curve.

One thread a training: several trainings run as processes, each bit-reproducible. A killed training goes on from its
checkpoint to the same weights, because the data of a step follow from its number alone.
"""

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lottery.errors import InputError
from lottery.files.atomic import atomic_write
from lottery.progress import say
from lottery.training.arms import Start, has_constant_rate
from lottery.training.network import Network
from lottery.training.recipe import Setup, Training
from lottery.training.sealed import read_sealed, seal
from lottery.training.windows import Batches

POINTS = 20  # of the curve
CHECKPOINT_S = 10.0  # seconds between two checkpoints
TELL_S = 1.0  # seconds after which `advance` is called at the latest: who is told may want the training to stop

Advance = Callable[[int, float], None]  # (steps made, loss)


@dataclass(frozen=True)
class Trained:
    """What the loop leaves. `diverged` is the step at which the loss was no number, or None."""

    weight_P: np.ndarray
    curve: list[list[float]]  # [step, mean training loss since the point before, loss of the search text]
    diverged: int | None
    seconds: float = 0.0  # that the steps took, in all processes that made them


class Optimizer:
    """torch's AdamW on the flat buffer, under a mask.

    The gradient is masked before its norm is clipped, so removed weights do not shrink the step of the living ones. A
    removed weight and its moments are zero after every step.
    """

    def __init__(self, network: Network, setup: Setup, mask_P: np.ndarray) -> None:
        self.network, self.clip = network, setup.clip
        self.mask_P = torch.from_numpy(mask_P).to(network.device, torch.float32)
        self.parameter = torch.nn.Parameter(network.weight_P)
        self.parameter.grad = network.grad_P
        self.adam = torch.optim.AdamW(
            [self.parameter], lr=0.0, betas=(setup.beta1, setup.beta2), weight_decay=setup.decay, fused=True
        )

    def step(self, rate: float) -> None:
        """Makes one step with the gradient of the buffer, and clears it."""
        gradient_P = self.network.grad_P
        gradient_P.mul_(self.mask_P)
        torch.nn.utils.clip_grad_norm_([self.parameter], self.clip)
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.network.weight_P.mul_(self.mask_P)
        gradient_P.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the moments and the count of steps."""
        return dict(self.adam.state[self.parameter])

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Sets the moments and the count of steps."""
        self.adam.state[self.parameter] = {name: value.to(self.network.device) for name, value in tensors.items()}


class Telling:
    """Tells how many steps were made since it last told."""

    def __init__(self, advance: Advance, step: int) -> None:
        self.advance, self.step, self.time = advance, step, time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self.time > TELL_S

    def tell(self, step: int, loss: float) -> None:
        self.advance(step - self.step, loss)
        self.step, self.time = step, time.monotonic()


def learning_rate(training: Training, setup: Setup, step: int) -> float:
    """Returns the rate of a step: a linear warm-up, then a cosine down to the floor."""
    if has_constant_rate(training.arm):
        return training.lr * setup.floor
    warm = round(setup.warmup * training.steps)
    if step < warm:
        return training.lr * (step + 1) / warm
    share = (step - warm) / max(1, training.steps - warm)
    return training.lr * (setup.floor + (1 - setup.floor) * 0.5 * (1 + math.cos(math.pi * share)))


def train(
    network: Network,
    setup: Setup,
    training: Training,
    start: Start,
    batches: Batches,
    search_loss: Callable[[], float],
    checkpoint: Path | None = None,
    keep: Collection[int] = (),
    write_state: Callable[[int, np.ndarray], None] | None = None,
    stop: int | None = None,
    advance: Advance = lambda steps, loss: None,
) -> Trained:
    """Trains from `start` to the last step of the schedule, or to the step `stop`.

    The weights after each step of `keep` go to `write_state`. Every CHECKPOINT_S seconds the file `checkpoint` is
    replaced, and if it is there the training goes on from it. An error that `advance` raises ends the training.
    """
    network.load(start.weight_P)
    optimizer = Optimizer(network, setup, start.mask_P)
    loss_of = torch.compile(network.loss) if setup.compile else network.loss
    step, curve, spent = (checkpoint and load_checkpoint(checkpoint, network, optimizer)) or (start.first, [], 0.0)
    began = time.monotonic() - spent
    last = training.steps if stop is None else stop
    every = max(1, training.steps // POINTS)
    total, seen, saved = torch.zeros((), device=network.device), 0, time.monotonic()
    telling = Telling(advance, step)
    while step < last:
        ids_NT = torch.from_numpy(batches.at(training.seed, training.order, step)).to(network.device)
        loss = loss_of(ids_NT)
        loss.backward()
        optimizer.step(learning_rate(training, setup, step))
        step += 1
        total, seen = total + loss.detach(), seen + 1
        if write_state and step in keep:
            write_state(step, network.weights())
        if step % every and step < last:
            if telling.is_due():
                telling.tell(step, float(total) / seen)
            continue
        mean, search, finite = float(total) / seen, search_loss(), bool(torch.isfinite(network.weight_P).all())
        if not finite or not math.isfinite(mean) or not math.isfinite(search):
            return Trained(network.weights(), curve, step, time.monotonic() - began)
        curve.append([step, round(mean, 5), round(search, 5)])
        telling.tell(step, mean)
        total, seen = torch.zeros_like(total), 0
        if checkpoint and time.monotonic() - saved > CHECKPOINT_S and step < last:
            save_checkpoint(checkpoint, network, optimizer, step, curve, time.monotonic() - began)
            saved = time.monotonic()
    return Trained(network.weights(), curve, None, time.monotonic() - began)


def save_checkpoint(
    path: Path, network: Network, optimizer: Optimizer, step: int, curve: list[Any], spent: float
) -> None:
    """Writes weights, moments, the curve so far, and the seconds spent."""
    tensors = {"weights": network.weights()}
    tensors |= {f"adam.{name}": value.cpu().numpy() for name, value in optimizer.tensors().items()}
    atomic_write(path, seal(tensors, {"at": step, "curve": curve, "spent": spent}))


def load_checkpoint(path: Path, network: Network, optimizer: Optimizer) -> tuple[int, list[Any], float] | None:
    """Loads a checkpoint. Returns the step that comes next, the curve so far and the seconds spent, or None if there is no
    checkpoint."""
    if not path.exists():
        return None
    try:
        saved = read_sealed(path)
    except InputError as e:
        say(f"{e}; the training begins anew")
        return None
    tensors = {name: torch.from_numpy(value) for name, value in saved.tensors.items()}
    network.weight_P.copy_(tensors.pop("weights"))
    optimizer.load({name.removeprefix("adam."): value for name, value in tensors.items()})
    return saved.about["at"], saved.about["curve"], saved.about["spent"]
